"""A kubelet runs the static pod of manifests/ as it is written.

Figures are printed: pytest -rP shows them.
"""

from __future__ import annotations

import re
import socket
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.harness.examples import LONG
from tests.harness.wait import patient
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import Writer
from tests.system.node.kubelet.operator import (
    POD,
    USER,
    KmsSocket,
    api_server,
    create,
    stored,
    token_away,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries
    from tests.system.e2e.cluster import ApiServer
    from tests.system.e2e.etcd import Etcd
    from tests.system.node.kubelet.node import Node
    from tests.system.node.kubelet.pod_view import PodView

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900, func_only=True)]

PREFIX = b"k8s:enc:kms:v2:hsm-kms:"
PORT = 9462
AWAY_SECONDS = 90.0 if LONG else 1.0  # after the pod is no longer Ready
TAKEN_SECONDS = 70.0 if LONG else 1.0
NOTICED = 120.0  # seconds until an outage, or its end, is noticed
RESTARTED = 180.0  # seconds; three probes of 20 s each must fail
PROBES = 20
WRITES = 10  # of a client, before and after a kill
MEBIBYTE = 2**20


def report(line: str) -> None:
    """Show a figure: pytest -rP prints it."""
    sys.stdout.write(f"{line}\n")


class Rig(NamedTuple):
    """A node with the static pod, and an API server that encrypts through it."""

    pod: PodView
    kms: KmsSocket
    api: ApiServer
    etcd: Etcd


@pytest.fixture(scope="module")
def node(make_node: Callable[..., Node]) -> Node:
    """A node with the image, the configuration and a token without a key."""
    return make_node()


@pytest.fixture(scope="module")
def pod(node: Node, view: Callable[[Node], PodView]) -> PodView:
    """The static pod, Ready with a key that was generated in it."""
    seen = view(node)
    node.place(POD)
    seen.wait_ready(False)
    seen.exec("hsm-kms", "keys", "generate")
    seen.wait_ready()
    return seen


@pytest.fixture(autouse=True)
def ready(pod: PodView) -> None:
    """Begin each test with a pod that is well, whatever the one before did to it."""
    pod.wait_ready()
    pod.wait_probed()


@pytest.fixture(scope="module")
def kms(node: Node, pod: PodView) -> KmsSocket:
    """The plugin's socket."""
    return KmsSocket(node.folder / "run" / "kms.sock")


@pytest.fixture(scope="module")
def rig(
    node: Node,
    pod: PodView,
    kms: KmsSocket,
    binaries: Binaries,
    new_folder: Callable[[], Path],
) -> Iterator[Rig]:
    """The same with an API server that is root."""
    with api_server(node, binaries, new_folder(), root=True) as (api, etcd):
        yield Rig(pod, kms, api, etcd)


def test_start(node, pod, kms):
    """A pod that starts with a key encrypts within seconds."""
    node.take_out()
    assert not kms.socket.exists()

    began = time.monotonic()
    node.place(POD)
    wait_for("Encrypt", kms.encrypts, timeout=NOTICED, every=0.02)
    report(f"from the manifest to the first Encrypt: {time.monotonic() - began:.1f} s")
    pod.wait_ready()
    report(f"from the manifest to Ready: {time.monotonic() - began:.1f} s")


def test_what_the_kernel_says(pod):
    """No process of the container has a privilege, by /proc and not the manifest."""
    server = pod.pids()[0]
    statuses = wait_for(
        "the server and two workers",
        lambda: all_of_them if len(all_of_them := statuses_of(pod)) >= 3 else None,
        timeout=NOTICED,
    )

    for status in statuses:
        assert {str(USER)} == set((status["Uid"] + "\t" + status["Gid"]).split("\t"))
        assert {str(USER)} >= set(status["Groups"].split())
        capabilities = [int(status[name], 16) for name in status if "Cap" in name]
        assert (5, 0) == (len(capabilities), sum(capabilities))
        assert ("1", "2") == (status["NoNewPrivs"], status["Seccomp"])
    [root] = [
        line.split()[5]
        for line in pod.proc(server, "mountinfo").splitlines()
        if line.split()[4] == "/"
    ]
    assert "ro" in root.split(",")
    assert "Read-only file system" in pod.exec("touch", "/x", check=False).stderr


def statuses_of(pod: PodView) -> list[dict[str, str]]:
    """Return /proc/PID/status of each process of the container.

    A probe is runc at first, which is still root, and it can end meanwhile.
    """
    texts = [pod.proc(pid, "status") for pid in pod.pids()]
    found = [dict(re.findall(r"(\w+):\t(.*)", text)) for text in texts if text]
    return [each for each in found if not each["Name"].startswith("runc")]


def test_memory(pod, rig):
    """The pod uses less than half of its limit, and a third more than its request."""
    limit = pod.memory("limit_in_bytes", "max")
    used = pod.memory("usage_in_bytes", "current")
    pss = sum(
        int(found[1]) * 1024
        for pid in pod.pids()
        if (
            found := re.search(
                r"^Pss:\s+(\d+)", pod.proc(pid, "smaps_rollup"), re.MULTILINE
            )
        )
    )
    report(
        f"memory of the pod: {used / MEBIBYTE:.0f} MiB, {pss / MEBIBYTE:.0f} MiB PSS"
    )

    assert 512 * MEBIBYTE == limit
    assert pss < limit / 2


def test_the_api_server_encrypts(rig):
    """An API server that is root stores what only the plugin can decrypt."""
    create(rig.api, "root")

    assert stored(rig.etcd)["root"].startswith(PREFIX)
    assert b"root" in rig.api.kubectl("get", "secret", "root", "-o", "name")


def test_kill(rig):
    """A server that is killed is replaced by the kubelet, and no write is lost."""
    before = rig.pod.container()
    with Writer(rig.api, "kill") as writer:
        wait_for("writes", lambda: len(writer.names) > WRITES, timeout=NOTICED)
        rig.pod.kill()
        began = time.monotonic()
        wait_for("end", lambda: not rig.kms.encrypts(), timeout=NOTICED, every=0.01)
        gone = time.monotonic()
        wait_for("Encrypt", rig.kms.encrypts, timeout=NOTICED, every=0.02)
        back = time.monotonic()
        done = len(writer.names)
        wait_for("writes", lambda: len(writer.names) > done + WRITES, timeout=NOTICED)
    report(
        f"kill -9: no Encrypt for {back - gone:.1f} s, {back - began:.1f} s after it"
    )

    assert [] == writer.failures
    rig.pod.wait_ready()
    assert before != rig.pod.container()
    assert 137 == rig.pod.status["lastState"]["terminated"]["exitCode"]
    values = stored(rig.etcd)
    assert set(writer.names) <= set(values)
    rig.api.restart()
    listed = rig.api.kubectl("get", "secrets", "-o", "name").decode().split()
    assert {f"secret/{name}" for name in writer.names} <= set(listed)


def test_token_away(node, rig):
    """Without its token the pod is not Ready, never restarted, and back by itself."""
    container = rig.pod.container()
    with Writer(rig.api, "away") as writer:
        with token_away(node):
            began = time.monotonic()
            rig.pod.wait_ready(False)
            report(f"not Ready {time.monotonic() - began:.0f} s after the token left")
            end = time.monotonic() + patient(AWAY_SECONDS)
            while time.monotonic() < end:
                assert not rig.pod.ready
                time.sleep(1)
            status = rig.pod.exec("hsm-kms", "status", check=False)
            assert 1 == status.returncode
            assert "token" in status.stdout
        began = time.monotonic()
        rig.pod.wait_ready()
        report(f"Ready {time.monotonic() - began:.0f} s after the token came back")
    report(f"{len(writer.names)} writes while the token was away")

    assert [] == writer.failures
    assert container == rig.pod.container()
    assert rig.kms.encrypts()


def test_the_port_is_taken(node, pod, kms):
    """A port that somebody else has is no reason to restart, and is taken later."""
    node.take_out()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", PORT))
        other.listen()
        node.place(POD)
        pod.wait_ready()
        container = pod.container()
        said = pod.exec("hsm-kms", "status").stdout
        assert f"http 127.0.0.1:{PORT}: not listening: Address already in use" in said
        assert kms.encrypts()
        # Probes of the port would ask the other process, and fail by now.
        time.sleep(TAKEN_SECONDS)
        assert pod.ready
    wait_for("port", listens, timeout=NOTICED)

    assert container == pod.container()
    assert "not listening" not in pod.exec("hsm-kms", "status").stdout


def listens() -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", PORT)) == 0


def test_a_probe_is_cheap(pod):
    """A probe in the container takes milliseconds."""
    loop = f"for i in $(seq {PROBES}); do hsm-kms-healthcheck readyz >/dev/null; done"
    timed = pod.exec("bash", "-c", f"time {{ {loop}; }}").stderr
    seconds = {
        name: 60 * int(minutes) + float(rest)
        for name, minutes, rest in re.findall(
            r"(real|user|sys)\t(\d+)m([\d.]+)s", timed
        )
    }
    cpu = (seconds["user"] + seconds["sys"]) / PROBES
    began = time.monotonic()
    pod.exec("hsm-kms-healthcheck", "livez")
    report(
        f"a probe: {1000 * seconds['real'] / PROBES:.0f} ms, {1000 * cpu:.0f} ms of "
        f"CPU; with crictl exec {1000 * (time.monotonic() - began):.0f} ms"
    )

    assert cpu < patient(0.3)  # ten times what it takes


@pytest.mark.skipif(not LONG, reason="takes over a minute; HSM_KMS_LONG=1 includes it")
def test_a_server_that_hangs(pod, kms):
    """The kubelet restarts a server that does not run any more."""
    before = pod.container()
    pod.kill("STOP")
    wait_for("restart", lambda: pod.container() != before, timeout=RESTARTED, every=0.5)
    wait_for("Encrypt", kms.encrypts, timeout=NOTICED)
