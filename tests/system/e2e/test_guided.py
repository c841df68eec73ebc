"""`hsm-kms rotation`: by the page, and under load, killed at every step."""

from __future__ import annotations

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from hsm_kms.cli.rotation.journal import FILE, whoami
from hsm_kms.cli.rotation.steps import STEP_NAMES
from tests.harness.pages import walk
from tests.system.e2e.control_planes import Traffic, running_nodes, text_of
from tests.system.e2e.guided import HTTP, FrozenMetrics, Guide
from tests.system.e2e.rotating import everything_reads, key_ids
from tests.system.e2e.shells import names_on, operator_shell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.system.e2e.control_planes import ControlPlane

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200, func_only=True)]

STALE = 40  # Secrets, so that the re-encryption is killed in its midst


def test_killed_at_every_step(binaries, new_folder):
    """A rotation that is killed at every step and resumed fails no request."""
    with running_nodes(binaries, new_folder(), 1, (0.0, 0.0, 0.0), http=HTTP) as nodes:
        first = [f"first-{number}" for number in range(STALE)]
        for name in first:
            nodes[0].world.create(name, text_of(name))
        old = nodes[0].plugin.status().key_id

        began = time.monotonic()
        with Traffic(nodes, first) as traffic, FrozenMetrics(nodes[-1]) as metrics:
            traffic.goes_on()
            guide = Guide(nodes[0], nodes)
            changes_nothing(guide, nodes, old)
            guide = killed_at_every_step(guide, nodes, metrics)
            traffic.goes_on()
        seconds = time.monotonic() - began
        sys.stdout.write(f"{traffic.requests:,} requests in {seconds:.0f} s\n")
        sys.stdout.write(guide.said())

        assert [] == traffic.failures
        [new] = set(key_ids(nodes[0].world).values())
        assert (old, new) == (guide.read()["old_key"], guide.read()["new_key"])
        assert [{new: "current"}] * len(nodes) == [each.states() for each in nodes]
        for node in nodes:
            everything_reads(node.world, [*first, *traffic.names])


def changes_nothing(guide: Guide, nodes: Sequence[ControlPlane], old: str) -> None:
    """--dry-run prints every step, and changes nothing."""
    code, said = guide.run("start", "--dry-run", *guide.names())

    assert 0 == code, said
    assert list(STEP_NAMES) == [
        line.split()[2] for line in said.splitlines() if line.startswith("to do")
    ]
    assert said.endswith("nothing was changed\n")
    assert [{old: "current"}] * len(nodes) == [each.states() for each in nodes]
    assert not guide.journal.exists()


def killed_at_every_step(
    guide: Guide, nodes: Sequence[ControlPlane], metrics: FrozenMetrics
) -> Guide:
    """Kill the command whenever a step has begun, and resume it; return the last.

    Once all nodes have switched, the metrics of the last one stay as they are: the
    command cannot end before it is killed at the last step, however late that is.
    """
    names = [*guide.names()[:-1], metrics.address]
    command = ["start", "--yes", "--rate", "10", *names]
    for step in STEP_NAMES:
        if step == "re-encrypt":
            metrics.freeze()
        with guide.running(*command):
            guide.wait_begun(step)
            if step == "switch":  # which waits: no other command gets in
                excluded(guide)
            guide.kill()
        code, said = guide.run("status")
        assert 1 == code, said
        continues = "^next: run `hsm-kms rotation resume .+`, which continues with "
        assert re.search(continues, said, re.MULTILINE), said
        guide.pass_time(step)
        if step == "re-encrypt":
            guide = guide.handed_to(nodes[1])  # another person, on another node
        command = ["resume"]
    metrics.thaw()
    with guide.running(*command):
        assert 0 == guide.ended(), guide.said()
    code, said = guide.run("status")
    assert 0 == code, said
    assert f"✓ {STEP_NAMES[-1]}: no node decrypts with " in guide.said()
    return guide


def excluded(guide: Guide) -> None:
    """While a command runs, no second one does, and `status` says so."""
    code, said = guide.run("status")
    assert 0 == code, said
    assert said.startswith("rotation: running")
    code, said = guide.run("resume")
    assert 1 == code, said
    assert "another `hsm-kms rotation` command is running here" in said


def test_page(binaries, new_folder):
    """docs/rotation.md replaces a key from a container without kubectl."""
    with running_nodes(binaries, new_folder(), 1, (0.0, 0.0), http=HTTP) as nodes:
        for number in range(4):
            nodes[number % 2].world.create(f"s-{number}", text_of(f"s-{number}"))
        guide = Guide(nodes[0], nodes, nodes[0].plugin.state_dir / FILE)
        names = names_on(nodes[0].world) | {
            "--node cp-1 --node cp-2 --node cp-3": " ".join(guide.names()),
            "root@cp-1": whoami(),
        }
        with (
            ThreadPoolExecutor(1) as beside,
            walk(
                nodes[0].shell,
                "docs/rotation.md",
                "Guided rotation",
                "Guided rotation (2)",
                "Guided rotation (3)",
                names=names,
            ) as page,
        ):
            time_passes = beside.submit(pass_time, guide)
            page.run("with_etcd hsm-kms rotation start", code=1)
            time_passes.result()
            page.run("hsm-kms migrate", on=[operator_shell(nodes[0].world)])
            page.run("hsm-kms rotation status", code=1)
            page.run("with_etcd hsm-kms rotation resume")
        for node in nodes:
            everything_reads(node.world, [f"s-{number}" for number in range(4)])


def pass_time(guide: Guide) -> None:
    """Let the time pass that the first steps wait for."""
    for step in ("switch", "settle"):
        guide.wait_begun(step)
        guide.pass_time(step)
