"""`health.stop_writes_after`: when Status stops answering, and answers again."""

from __future__ import annotations

import pytest

from hsm_kms.errors import KeyLostError
from hsm_kms.health.state import DOWN_SECONDS
from tests.unit.health.health_node import (
    ABSENT,
    SLOW,
    HealthNode,
    in_software,
    sentence,
)
from tests.unit.keys.node_rig import Peer


@pytest.mark.parametrize("local_kek", [False, True])
async def test_stop_writes(node, local_kek):
    """Status stops answering after `stop_writes_after`, until the state is ok again."""
    node.local_kek = local_kek
    node.stop_after(600.0)
    node.away()
    node.later(DOWN_SECONDS)
    node.later(599)
    wanted = ("degraded", in_software) if local_kek else ("failed", sentence)
    assert (wanted[0], wanted[1](SLOW)) == node.seen

    node.later(1)
    assert (wanted[0], "UNAVAILABLE") == node.seen
    assert node.keyring.key_id == node.health.look().key_id
    assert not node.health.look().ready

    await node.well()
    assert ("ok", "ok") == node.seen


async def test_stop_writes_for_a_lost_key(node):
    """A lost key stops Status from answering, too."""
    node.stop_after(600.0)
    node.fault(KeyLostError("gone"))
    node.later(600)

    assert ("failed", "UNAVAILABLE") == node.seen


async def test_stop_writes_counts_over_causes(node):
    """Two causes in a row count as one time without being ok."""
    node.stop_after(600.0)
    node.gone()
    node.later(300)
    await node.well()
    node.gone()
    node.later(300)
    assert ("failed", sentence(ABSENT)) == node.seen
    node.serves(Peer(set()))
    node.fault(KeyLostError("gone"))
    node.later(300)

    assert ("failed", "UNAVAILABLE") == node.seen


async def test_stop_writes_from_the_start(node, tmp_path, clock):
    """If the state never was ok, the time counts from the start."""
    again = HealthNode(tmp_path / "state", clock)
    again.stop_after(600.0)
    again.later(0)
    again.later(599)
    assert "UNAVAILABLE" not in again.seen
    again.later(1)

    assert ("failed", "UNAVAILABLE") == again.seen


async def test_stop_writes_within_the_grace(node):
    """When Status stops answering, the grace is over: healthz gives the cause."""
    node.local_kek = True
    node.stop_after(30.0)
    node.gone()
    node.later(30)

    assert ("degraded", "UNAVAILABLE") == node.seen
    assert in_software(ABSENT) == node.health.look().healthz


async def test_writes_go_on_unless_stopped(node):
    """Without `stop_writes_after` Status answers permanently."""
    node.gone()
    node.later(365 * 86400)

    assert ("failed", sentence(ABSENT)) == node.seen
