"""Health when a key is lost or spent, at the start, and in the log."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from hsm_kms.clock import now
from hsm_kms.errors import KeyLostError, NonceBudgetError, WorkerLostError
from hsm_kms.keys.token_key import KeySettings
from tests.unit.health.health_node import (
    ABSENT,
    HealthNode,
    in_software,
    outages,
    sentence,
)
from tests.unit.keys.node_rig import LABEL, Engine, make_key


@pytest.mark.parametrize("local_kek", [False, True])
async def test_key_lost(node, local_kek):
    """A local KEK does not replace a lost key, with or without the token."""
    node.local_kek = local_kek
    lost = KeyLostError("gone")
    node.fault(lost)
    assert ("failed", sentence(lost)) == node.seen

    node.gone()
    assert ("failed", sentence(ABSENT)) == node.seen


async def test_key_has_wrapped_too_often(node):
    """A local KEK does not replace a key that has used up its nonces."""
    node.local_kek = True
    spent = NonceBudgetError("2^29")
    node.standby.spent = spent
    node.health.evaluate()
    assert ("failed", sentence(spent)) == node.seen

    node.gone()
    assert ("failed", sentence(ABSENT)) == node.seen


@pytest.mark.parametrize("local_kek", [False, True])
async def test_not_reached(fresh, local_kek):
    """A node that remembers no key answers no Status until it has read the keys."""
    fresh.local_kek = local_kek
    fresh.later(1)
    assert ("starting", "UNAVAILABLE") == fresh.seen
    fresh.gone()
    assert ("starting", "UNAVAILABLE") == fresh.seen
    assert sentence(ABSENT) == fresh.health.look().healthz

    await fresh.well()
    assert ("ok", "ok") == fresh.seen


@pytest.mark.parametrize("local_kek", [False, True])
async def test_not_reached_since_the_start(node, tmp_path, clock, local_kek):
    """A node that remembers its last key answers with its key_id and the cause."""
    again = HealthNode(tmp_path / "state", clock)
    again.local_kek = local_kek
    unreached = sentence(WorkerLostError())
    assert ("failed", unreached) == again.seen
    assert node.keyring.key_id == again.health.look().key_id
    again.later(1)
    assert ("failed", unreached) == again.seen

    again.gone()
    assert ("failed", sentence(ABSENT)) == again.seen


async def test_when_it_was_well(fresh):
    """The token counts as offline since the last canary passed, once one has failed."""
    assert fresh.canaries.offline_for() is None
    await fresh.well()
    fresh.later(20)
    assert fresh.canaries.offline_for() == 0

    fresh.away()
    assert fresh.canaries.offline_for() == pytest.approx(20)
    assert ("ok", "ok") == fresh.seen
    fresh.later(1000)
    assert fresh.canaries.offline_for() == pytest.approx(1020)
    await fresh.well()
    assert fresh.canaries.offline_for() == 0


async def test_log(node):
    """Each change is logged once, with the detail that clients do not see."""
    node.local_kek = True
    node.stop_after(3600.0)
    with capture_logs() as logs:
        node.gone()
        for _ in range(3600):
            node.later(1)
        await node.well()
        await node.well()
    told = [log for log in logs if log["event"] == "health"]

    assert [
        ("degraded", "ok", True),
        ("degraded", in_software(ABSENT), True),
        ("degraded", in_software(ABSENT), False),
        ("ok", "ok", True),
    ] == [(log["state"], log["healthz"], log["status_available"]) for log in told]
    assert (
        "no slot 3; look at the HSM; writes continue with a local KEK"
        == (told[0]["detail"])
    )


async def test_time_passes_without_a_worker(tmp_path, clock):
    """Grace and Status end in time while no worker serves."""
    settings = KeySettings(label=LABEL, shared=True)
    token = {make_key(0, now() - 9000)}
    section = outages(stop_writes_after=600.0)
    engine = Engine(settings, tmp_path / "state", now, token, section).take_effect()
    engine.standby.encrypts_without_token = True
    await engine.come()
    running = asyncio.create_task(engine.monitor.run())
    said = []
    await engine.gone(engine.peers.ready[0])
    for _ in range(650):
        clock[0] += 1
        for _ in range(5):
            await asyncio.sleep(0)
        state = engine.state()
        one = (state.state, state.healthz == "ok", state.answers)
        said += [] if one in said else [one]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert [
        ("ok", True, True),
        ("degraded", True, True),
        ("degraded", False, True),
        ("degraded", False, False),
    ] == said
