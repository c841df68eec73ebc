"""Every order in which the parts of a node can start, and what it ends in.

docs/operations.md has the results; what it says that kube-apiserver logs is compared.
Each start is a reboot: /run is empty and the slots of the token have other numbers.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.harness.examples import LONG
from tests.system.e2e.booting import KEPT, PARTS, READYZ, Machine
from tests.system.e2e.page import logged
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import NAMESPACE, running_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800, func_only=True)]

ORDERS = list(itertools.permutations(PARTS))
FEW = [
    ("API server", "etcd", "plugin", "token"),
    ("plugin", "API server", "token", "etcd"),
    ("etcd", "API server", "token", "plugin"),
]
LATE, LATER = (600.0, 120.0) if LONG else (0.0, 0.0)  # seconds
NOTICED = 90.0  # seconds; the API server believes a good Status for 20
WITHOUT = "/readyz?exclude=kms-providers"
SECRET = f"{NAMESPACE}/{KEPT}"


@pytest.fixture(scope="module")
def machine(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[Machine]:
    """A node that encrypts Secrets."""
    with running_world(binaries, new_folder()) as world:
        yield Machine(world, "secrets")


@pytest.fixture(scope="module")
def everything(binaries: Binaries, new_folder: Callable[[], Path]) -> Iterator[Machine]:
    """A node that encrypts all resources."""
    with running_world(binaries, new_folder()) as world:
        yield Machine(world, "*.*")


def boot(machine: Machine, *order: str) -> None:
    """Start the parts one after the other, and wait until the node is well.

    The next part starts once the API server waits for what does not run yet.
    """
    machine.cut_power()
    for number, part in enumerate(order, 1):
        machine.start(part)
        running = set(order[:number])
        if "API server" in running and "etcd" not in running:
            machine.shows("connect: connection refused")
        elif {"API server", "etcd"} <= running and number < len(order):
            machine.wait_until("no readiness", lambda: machine.answers(READYZ) == 500)
    machine.recovers()


@pytest.mark.parametrize("order", ORDERS if LONG else FEW, ids="-".join)
def test_order(machine, order):
    """The node ends well by itself, whatever starts first."""
    boot(machine, *order)

    assert machine.exits == 0


def test_without_etcd(machine):
    """Without etcd the API server ends, and the next one becomes ready."""
    machine.cut_power()
    for part in ("token", "plugin", "API server"):
        machine.start(part)
    machine.wait_until("an end", lambda: machine.exits)
    machine.start("etcd")
    machine.recovers()

    machine.shows(*logged("etcd, after kube-apiserver"))


def test_without_plugin(machine):
    """A plugin that is late, and its token later still, keep only Secrets from working.

    In the long form they are ten and twelve minutes late, in real time. To leave the
    plugin out of the readiness does not help an API server that starts.
    """
    machine.cut_power()
    machine.start("etcd")
    machine.start("API server")
    machine.shows(*logged("the plugin, after kube-apiserver"))
    assert 500 == machine.answers("/readyz") == machine.answers(WITHOUT)
    assert 200 == machine.answers("/api/v1/namespaces/default/configmaps")
    no_secret_for(LATE, machine)
    assert not LONG or 200 == machine.answers("/livez")

    machine.start("plugin")
    sentence = "run hsm-kms check on the node"
    machine.wait_until(
        "the message", lambda: sentence in machine.world.api.get(READYZ)[1].decode()
    )
    machine.shows(*logged("the token, after the plugin and kube-apiserver"))
    assert 500 == machine.answers(WITHOUT)
    no_secret_for(LATER, machine)

    machine.start("token")
    machine.recovers()
    assert machine.exits == 0


def no_secret_for(seconds: float, machine: Machine) -> None:
    """Let so much real time pass; no Secret can be read meanwhile."""
    until = time.monotonic() + seconds
    assert 500 == machine.answers(SECRET)
    while time.monotonic() < until:
        assert 500 == machine.answers(SECRET)
        time.sleep(1)


def test_everything_encrypted(everything):
    """With `*.*` the API server ends again and again until the token is there."""
    everything.cut_power()
    everything.start("etcd")
    everything.start("API server")
    everything.wait_until("an end", lambda: everything.exits)
    everything.shows(*logged("plugin or token, with `*.*` encrypted"))
    everything.start("plugin")
    everything.start("token")
    everything.recovers()

    boot(everything, "token", "plugin", "etcd", "API server")
    assert everything.exits == 0


def test_outage_of_a_running_node(machine):
    """In a token outage only the check of the plugin fails, so it can be left out."""
    boot(machine, "token", "plugin", "etcd", "API server")
    api, plugin = machine.world.api, machine.world.plugin
    with plugin.outage():
        wait_for(
            "not ready",
            lambda: api.get("/readyz")[0] == 500,
            timeout=NOTICED,
            every=0.2,
        )
        assert (200, 200) == (machine.answers(WITHOUT), machine.answers(SECRET))
        assert "[-]kms-providers failed" in api.get("/readyz?verbose")[1].decode()
        assert "[-]" not in api.get(f"{WITHOUT}&verbose")[1].decode()

        plugin.configure(health={"stop_writes_after": "1s"})
        wait_for("no Status", lambda: not _has_status(plugin), timeout=NOTICED)
        assert 200 == machine.answers(WITHOUT)
    machine.recovers()
    plugin.configure(health={"stop_writes_after": None})


def _has_status(plugin) -> bool:
    try:
        plugin.status()
    except grpc.RpcError:
        return False
    return True
