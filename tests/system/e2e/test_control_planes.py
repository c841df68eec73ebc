"""Three control-plane nodes on one token, under load, by docs/rotation.md."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness.pages import walk
from tests.system.e2e.control_planes import (
    NOTICED,
    ControlPlane,
    Traffic,
    forward,
    running_nodes,
    text_of,
)
from tests.system.e2e.processes import wait_for
from tests.system.e2e.rotating import DAY, everything_reads, key_ids
from tests.system.e2e.shells import names_on, operator_shell

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900, func_only=True)]

AHEAD = 1200.0  # seconds by which the clock of the last node is ahead
ACTIVATE_IN = 600.0  # seconds: the default of `keys rotate`
DOUBT = "a pending key has a doubtful activation time"


@pytest.mark.parametrize("members", [1, 3])
def test_nodes_with_troubles(members, binaries, new_folder):
    """A node without its token, a killed plugin and a rotation fail no request."""
    with running_nodes(binaries, new_folder(), members, (0.0, 0.0, AHEAD)) as nodes:
        first = [f"first-{number}" for number in range(len(nodes))]
        for node, name in zip(nodes, first, strict=True):
            node.world.create(name, text_of(name))
        assert {200} == {node.reads(name)[0] for node in nodes for name in first}

        began = time.monotonic()
        with Traffic(nodes, first) as traffic:
            traffic.goes_on()
            cut_off(nodes[1], traffic)
            kill(nodes[0], traffic)
            rotate_by_the_page(nodes, traffic)
            traffic.goes_on()
        seconds = time.monotonic() - began
        sys.stdout.write(f"{traffic.requests:,} requests in {seconds:.0f} s\n")

        assert [] == traffic.failures
        [new] = set(key_ids(nodes[0].world).values())
        assert [{new: "current"}] * len(nodes) == [each.states() for each in nodes]
        for node in nodes:
            everything_reads(node.world, [*first, *traffic.names])


def cut_off(node: ControlPlane, traffic: Traffic) -> None:
    """A node that loses its token says so, and goes on with the keys that it has."""
    with node.plugin.outage():
        node.wait_ready(False)
        traffic.goes_on()
    node.wait_ready(True)


def kill(node: ControlPlane, traffic: Traffic) -> None:
    """A node whose plugin is killed goes on until the plugin is back."""
    node.plugin.kill()
    node.wait_ready(False)
    traffic.goes_on()
    node.plugin.start()
    node.wait_ready(True)


def rotate_by_the_page(nodes: Sequence[ControlPlane], traffic: Traffic) -> None:
    """docs/rotation.md replaces a key; the node with the wrong clock is set right."""
    *right, late = nodes
    everywhere = [each.shell for each in nodes]
    old = late.plugin.status().key_id
    with walk(
        nodes[0].shell,
        "docs/rotation.md",
        "1. Generate the key",
        "1. Generate the key (2)",
        "2. Check that every node has switched",
        "3. Re-encrypt stored objects",
        "4. Prove that nothing needs the old key",
        "5. Retire the old key",
        "6. Destroy it",
        names=names_on(nodes[0].world),
    ) as page:
        page.run("hsm-kms keys rotate")
        wait_for("the doubt", lambda: DOUBT in late.plugin.log(), timeout=NOTICED)
        [new] = wait_for(
            "the new key", lambda: set(right[0].states()) - {old}, timeout=NOTICED
        )
        for node in right:  # a node that has not seen the key would doubt its clock
            node.wait_states({old: "current", new: "pending"})
        page.run("hsm-kms keys list", on=[each.shell for each in right])
        forward(nodes, ACTIVATE_IN)
        for node in right:
            node.wait_writes(new)
        traffic.goes_on()

        # The page's second step shows that one node has not switched, and why.
        _, said = late.shell.run("hsm-kms status", typed="", after="")
        assert f"key_id: {old}\n" in said
        assert "this node's clock is ahead" in said
        late.clock.set(right[0].clock.seconds)
        late.wait_writes(new)
        page.run("hsm-kms status", on=everywhere)

        page.run("hsm-kms migrate", on=[operator_shell(nodes[0].world)])
        page.run("with_etcd hsm-kms etcd scan")
        page.run("with_etcd hsm-kms keys retire")
        for node in nodes:
            node.wait_states({new: "current"})
        traffic.goes_on()
        forward(nodes, DAY + 60)
        page.run("with_etcd hsm-kms keys destroy")
