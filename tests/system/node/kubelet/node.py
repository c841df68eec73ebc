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
import http.client
import json
import shlex
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.harness.processes import alive, children_of
from tests.harness.wait import patient
from tests.system.e2e.processes import Child, awaited, free_ports, started, wait_for
from tests.system.node.kubelet import pause
from tests.system.node.kubelet.machine import remove_cgroups
from tests.system.node.kubelet.settings import (
    CONTAINERD,
    DIRECTORIES,
    containerd_config,
    kubelet_config,
)

if TYPE_CHECKING:
    from tests.system.e2e.binaries import NodeBinaries

NAME: Final = "node"
START_SECONDS: Final = 120.0


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
        folder.chmod(0o711)  # an API server that is not root finds its socket here
        for name in DIRECTORIES:
            (folder / name).mkdir()
        self._namespaces = self._enter_namespaces()
        try:
            self._containerd = self._start_containerd()
            [self._kubelet] = started(self._start_kubelet)
        except BaseException:
            self._leave_namespaces()
            raise

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

    def _leave_namespaces(self) -> None:
        """End every process of the node; the first one ends after all others."""
        self._namespaces.kill()
        wait_for(
            "end of the node", lambda: not alive(self._first), timeout=START_SECONDS
        )

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
        config.write_text(containerd_config(self.folder))
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
        return self.run(
            "ctr", "-a", CONTAINERD, "-n", "k8s.io", *arguments, check=check
        )

    # The kubelet

    def _start_kubelet(self) -> list[Child]:
        (self._port,) = free_ports(1)
        config = self.folder / "kubelet.json"
        config.write_text(json.dumps(kubelet_config(self._port)))
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
            return bool(self._pods())

        return awaited("kubelet", [child], answers, START_SECONDS)

    def _get(self, path: str) -> bytes:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=patient(30), context=context
        )
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read()

    def _pods(self) -> dict[str, Any]:
        """Return the kubelet's PodList."""
        return dict(json.loads(self._get("/pods")))

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
        items = self._pods()["items"] or []
        return items[0] if items else None

    def has_probed_liveness(self) -> bool:
        """Return True if the kubelet has run the liveness probe of the static pod."""
        return b'probe_type="Liveness"' in self._get("/metrics/probes")

    def stop(self) -> None:
        """End all containers and everything else, and restore the cgroups."""
        try:
            self.take_out()
        finally:
            self._leave_namespaces()
            for child in (self._kubelet, self._containerd):
                child.kill()
            remove_cgroups()
