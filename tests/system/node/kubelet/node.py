"""A node: a kubelet and containerd that run static pods, without a cluster.

1. Both run in namespaces of their own for mounts and processes, which end with the
   test, however it ends, and every container with them.
2. In these namespaces the directories of the guide, such as /etc/hsm-kms, are folders
   of the test: a manifest is run as it is, and the machine's own directories are not
   touched.
3. There is one set of sysctls and of cgroups on a machine. So one node runs at a time,
   under a lock, and what the kubelet has changed is restored.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shlex
import shutil
import ssl
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.harness.processes import children_of
from tests.harness.wait import patient
from tests.system.e2e.processes import Child, free_ports, wait_for
from tests.system.node.kubelet import pause

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.e2e.binaries import NodeBinaries

NAME: Final = "node"
LOCK: Final = Path("/run/lock/hsm-kms-node.lock")
# Folder of the test → where the node has it.
DIRECTORIES: Final = {
    "etc": "/etc/hsm-kms",
    "state": "/var/lib/hsm-kms",
    "token": "/var/lib/hsm-kms-token",
    "run": "/run/hsm-kms",
    "tmpfiles": "/etc/tmpfiles.d",
    "manifests": "/etc/kubernetes/manifests",
    "encryption": "/etc/kubernetes/encryption",
    "containerd-run": "/run/containerd",
    "kubelet-lib": "/var/lib/kubelet",
}
START_SECONDS: Final = 120.0
SYSCTLS: Final = (
    *("vm/overcommit_memory", "vm/panic_on_oom"),
    *("kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PODS: Final = "kubepods"


def missing() -> str | None:
    """Say what keeps a node from being started here, None if nothing does."""
    if os.geteuid() != 0:
        return "a kubelet needs root"
    for tool in ("containerd", "ctr", "runc", "nsenter", "systemd-tmpfiles", "gcc"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    return None


class Node:
    """A kubelet that runs the static pods of a folder.

    Args:
        folder: An empty folder with a short path.
        binaries: The programs of a node.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path, binaries: NodeBinaries) -> None:
        self.folder = folder
        self._binaries = binaries
        self._containerd_socket = "/run/containerd/containerd.sock"
        (self._port,) = free_ports(1)
        folder.chmod(0o711)  # an API server that is not root finds its socket here
        for name in DIRECTORIES:
            (folder / name).mkdir()
        self._namespaces = self._enter_namespaces()
        self._containerd = self._start_containerd()
        self._kubelet = self._start_kubelet()

    # Namespaces

    def _enter_namespaces(self) -> Child:
        binds = [
            f"mount --bind {shlex.quote(str(self.folder / name))} {path}"
            for name, path in DIRECTORIES.items()
        ]
        # The first process of the namespace reaps what loses its parent.
        lines = [*binds, "while :; do sleep 1000 & wait $!; done"]
        child = Child(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", "bash", "-euc", "\n".join(lines)),
            ],
            log=self.folder / "namespaces.log",
        )
        last = list(DIRECTORIES.values())[-1]

        def mounted() -> bool:
            child.check()
            return any(
                f" {last} " in Path(f"/proc/{pid}/mountinfo").read_text()
                for pid in children_of(child.pid)
            )

        wait_for("mounts", mounted, timeout=START_SECONDS)
        (self._first,) = children_of(child.pid)
        return child

    def command(self, *command: object) -> list[str]:
        """Return the command line that runs a command on the node."""
        target = f"--target={self._first}"
        return ["nsenter", target, "--mount", "--pid", *map(str, command)]

    def command_in_mounts(self) -> list[str]:
        """Return what runs a command where the node's directories are, and no more."""
        return ["nsenter", f"--target={self._first}", "--mount"]

    @property
    def encryption_config(self) -> Path:
        """Return the EncryptionConfiguration's path on the node."""
        return Path(DIRECTORIES["encryption"], "config.yaml")

    def run(
        self, *command: object, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node."""
        done = subprocess.run(
            self.command(*command),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(120),
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    # containerd

    def _start_containerd(self) -> Child:
        config = self.folder / "containerd.toml"
        config.write_text(_containerd_config(self.folder, self._containerd_socket))
        child = Child(
            self.command("containerd", "--config", config),
            log=self.folder / "containerd.log",
        )

        def answers() -> bool:
            child.check()
            return self.ctr("version", check=False).returncode == 0

        wait_for("containerd", answers, timeout=START_SECONDS)
        archive = self.folder / "pause.tar"
        pause.write(archive)
        self.ctr("images", "import", archive)
        return child

    def ctr(
        self, *arguments: object, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ctr on the containers of the kubelet."""
        socket = self._containerd_socket
        return self.run("ctr", "-a", socket, "-n", "k8s.io", *arguments, check=check)

    # The kubelet

    def _start_kubelet(self) -> Child:
        config = self.folder / "kubelet.json"
        config.write_text(
            json.dumps(_kubelet_config(self._containerd_socket, self._port))
        )
        root = self.folder / "kubelet-lib"
        child = Child(
            self.command(
                self._binaries.kubelet,
                *("--config", config, "--root-dir", root, "--cert-dir", root / "pki"),
                *("--hostname-override", NAME),
            ),
            log=self.folder / "kubelet.log",
        )

        def answers() -> bool:
            child.check()
            return self._get("/pods") is not None

        wait_for("kubelet", answers, timeout=START_SECONDS)
        return child

    def _get(self, path: str) -> Any:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=patient(30), context=context
        )
        with contextlib.closing(connection):
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())

    def place(self, manifest: str) -> None:
        """Have the kubelet run a static pod in the place of the one before."""
        hidden = self.folder / "manifests" / ".new"
        hidden.write_text(manifest)
        hidden.rename(self.folder / "manifests" / "hsm-kms.yaml")

    def take_out(self) -> None:
        """Remove the static pod, and wait until its containers have ended."""
        (self.folder / "manifests" / "hsm-kms.yaml").unlink(missing_ok=True)

        def gone() -> bool:
            return not self.ctr("tasks", "ls", "-q").stdout.split()

        wait_for("end of the pod", gone, timeout=START_SECONDS, every=0.2)

    def pod(self) -> dict[str, Any] | None:
        """Return the pod as the kubelet reports it; None if there is none."""
        items = self._get("/pods")["items"] or []
        return items[0] if items else None

    def stop(self) -> None:
        """End all containers and everything else, and restore the cgroups."""
        try:
            self.take_out()
        finally:
            self._namespaces.kill()  # and with them every process in them
            for child in (self._kubelet, self._containerd):
                child.kill()
            _remove_cgroups()


class PodView:
    """What an operator sees of the one container of the static pod.

    Args:
        node: The node.
        crictl: The program crictl.
    """

    def __init__(self, node: Node, crictl: Path) -> None:
        self._node = node
        self._crictl = crictl

    @property
    def status(self) -> dict[str, Any]:
        """Return the kubelet's status of the container; empty before it has one."""
        pod = self._node.pod() or {}
        statuses = pod.get("status", {}).get("containerStatuses") or [{}]
        return dict(statuses[0])

    @property
    def restarts(self) -> int:
        """Return how often the kubelet has restarted the container."""
        return int(self.status.get("restartCount", 0))

    @property
    def ready(self) -> bool:
        """Return True if the pod is Ready."""
        return bool(self.status.get("ready"))

    @property
    def running(self) -> bool:
        """Return True if the container runs."""
        return "running" in self.status.get("state", {})

    def wait_ready(self, ready: bool = True) -> None:
        """Wait until the pod is Ready, or not."""
        wait_for(
            f"ready {ready}",
            lambda: self.running and self.ready == ready,
            timeout=START_SECONDS,
            every=0.2,
        )

    def crictl(
        self, *arguments: object, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run crictl on the node."""
        return self._node.run(self._crictl, *arguments, check=check)

    def container(self) -> str:
        """Return the ID of the running container."""
        name = ("--name", "hsm-kms", "--state", "running", "-q")

        def running() -> str:
            return self.crictl("ps", *name, check=False).stdout.strip()

        return str(wait_for("container", running, timeout=START_SECONDS))

    def exec(
        self, *command: object, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return self.crictl("exec", self.container(), *command, check=check)

    def pids(self) -> list[int]:
        """Return the container's processes on the node, the server first."""
        inspected = json.loads(self.crictl("inspect", self.container()).stdout)
        first = int(inspected["info"]["pid"])
        cgroup = self.cgroup("pids") or self.cgroup("")
        assert cgroup is not None
        procs = self._node.run("cat", cgroup / "cgroup.procs").stdout.split()
        return [first, *(pid for pid in map(int, procs) if pid != first)]

    def cgroup(self, controller: str) -> Path | None:
        """Return the container's cgroup of a controller; "" for cgroup v2."""
        found = list((_CGROUPS / controller / _PODS).rglob(f"*{self.container()}*"))
        return found[0] if found else None

    def memory(self, v1: str, v2: str) -> int:
        """Return a number of the container's memory cgroup, by its names."""
        if cgroup := self.cgroup("memory"):
            return int((cgroup / f"memory.{v1}").read_text())
        cgroup = self.cgroup("")
        assert cgroup is not None
        return int((cgroup / f"memory.{v2}").read_text())

    def proc(self, pid: int, file: str) -> str:
        """Return a file of a process of the node in /proc."""
        return self._node.run("cat", f"/proc/{pid}/{file}").stdout

    def kill(self, signal: str = "KILL") -> None:
        """Send a signal to the server."""
        self._node.run("kill", f"-{signal}", self.pids()[0])


@contextmanager
def machine() -> Iterator[None]:
    """Have this machine alone, and leave it as it was."""
    LOCK.parent.mkdir(exist_ok=True)
    made = []
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = {name: _sysctl(name).read_text() for name in SYSCTLS}
        try:
            for path in map(Path, DIRECTORIES.values()):
                made += _make(path)
            yield
        finally:
            for name, value in before.items():
                if _sysctl(name).read_text() != value:
                    _sysctl(name).write_text(value)
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir()


def _make(path: Path) -> list[Path]:
    """Make a directory to mount at, and return those that were not there."""
    missing_ones = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing_ones[::-1]


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name


def _remove_cgroups() -> None:
    """Remove the empty cgroups of pods, which the kubelet leaves."""
    for pods in [*_CGROUPS.glob(f"*/{_PODS}"), _CGROUPS / _PODS]:
        for path in sorted(pods.rglob("*"), reverse=True):
            if path.is_dir():
                _rmdir(path)
        if pods.is_dir():
            _rmdir(pods)


def _rmdir(path: Path) -> None:
    end = time.monotonic() + patient(10)
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.05)


def _containerd_config(folder: Path, socket: str) -> str:
    cni = folder / "cni"
    return f"""\
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  # A machine without CAP_SYS_RESOURCE cannot lower oom_score_adj.
  restrict_oom_score_adj = true
  sandbox_image = "{pause.NAME}"
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}/bin"
    conf_dir = "{cni}/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def _kubelet_config(socket: str, port: int) -> dict[str, Any]:
    (healthz,) = free_ports(1)
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "staticPodPath": DIRECTORIES["manifests"],
        "podLogsDir": f"{DIRECTORIES['kubelet-lib']}/logs",
        "volumePluginDir": f"{DIRECTORIES['kubelet-lib']}/plugins-exec",
        "containerRuntimeEndpoint": f"unix://{socket}",
        "address": "127.0.0.1",
        "port": port,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": healthz,
        "authentication": {
            "anonymous": {"enabled": True},
            "webhook": {"enabled": False},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "fileCheckFrequency": "1s",
        "makeIPTablesUtilChains": False,
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
    }
