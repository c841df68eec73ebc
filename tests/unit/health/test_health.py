"""Health in an outage: state, healthz and Status, on a clock the test moves."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from hsm_kms.health.state import DOWN_SECONDS, INTERVALS
from tests.unit.health.health_node import (
    ABSENT,
    GRACE,
    SLOW,
    in_software,
    outages,
    sentence,
)

INTERVAL = outages().interval
HOURS = 6
EACH = 2.0  # seconds between two inspections in an outage


async def test_well(node):
    """While the token works the state is ok in every wrapping mode."""
    for node.local_kek in (False, True):
        node.health.evaluate()
        assert ("ok", "ok") == node.seen
        assert node.health.look().ready


# The token is away


async def test_token_away(node):
    """25 s after the first failed canary healthz gives the cause."""
    node.away()
    node.later(DOWN_SECONDS - 0.125)
    assert ("ok", "ok") == node.seen

    node.later(0.125)
    assert ("failed", sentence(SLOW)) == node.seen
    assert node.health.look().key_id == node.keyring.key_id


async def test_log_of_a_long_outage(node):
    """Looks that fail for hours, for one cause and another, are a few lines an hour."""
    looks = int(HOURS * 3600 / EACH)
    with capture_logs() as logs:
        for number in range(looks):
            node.away((SLOW, ABSENT)[number % 2])
            node.later(EACH)
            await asyncio.sleep(0)
    failed = [one for one in logs if one["event"] == "canary failed"]

    assert len(logs) < 60
    assert looks * 0.8 < sum(one.get("repeated", 1) for one in failed) <= looks
    assert "failed" == node.health.look().state


async def test_no_worker_starts(node):
    """If a fresh worker cannot start, healthz gives the cause at once."""
    node.gone()

    assert ("failed", sentence(ABSENT)) == node.seen


async def test_worker_that_failed_before(node):
    """A worker that could not start before the outage does not explain it."""
    node.workers.last_error = ABSENT
    node.workers.failed_at = node.clock[0]
    node.later(1)
    node.away()
    assert ("ok", "ok") == node.seen

    node.later(DOWN_SECONDS)
    assert ("failed", sentence(SLOW)) == node.seen


async def test_degraded(node):
    """If Encrypt works without the token, healthz stays ok for `grace` seconds."""
    node.local_kek = True
    node.away()
    node.later(DOWN_SECONDS)
    assert ("degraded", "ok") == node.seen
    assert node.health.look().ready
    assert "slot 3 did not answer; look at the HSM" in node.health.detail

    node.later(GRACE - DOWN_SECONDS - 0.125)
    assert ("degraded", "ok") == node.seen
    node.later(0.125)
    assert ("degraded", in_software(SLOW)) == node.seen
    assert not node.health.look().ready

    await node.well()
    assert ("ok", "ok") == node.seen


async def test_degraded_at_once(node):
    """If no worker starts, the grace holds too, and the latest cause is given."""
    node.local_kek = True
    node.gone()
    assert ("degraded", "ok") == node.seen

    node.gone(SLOW)
    node.later(GRACE)
    assert ("degraded", in_software(SLOW)) == node.seen


async def test_no_grace(node):
    """With a grace of 0 s healthz gives the cause at once."""
    node.local_kek = True
    node.health.adjust(outages(grace=0.0))
    node.gone()

    assert ("degraded", in_software(ABSENT)) == node.seen


async def test_settings_change(node):
    """A changed grace applies to the outage under way."""
    node.local_kek = True
    node.gone()
    node.later(GRACE)
    node.health.adjust(outages(grace=2 * GRACE))
    assert ("degraded", "ok") == node.seen

    node.later(GRACE)
    assert ("degraded", in_software(ABSENT)) == node.seen


async def test_call_fails_in_the_grace(node):
    """A failed request ends the grace at once."""
    node.local_kek = True
    node.gone()
    node.health.call_failed()

    assert ("degraded", in_software(ABSENT)) == node.seen


async def test_call_fails_before_the_outage_is_known(node):
    """A request that failed before the first failed canary ends the grace, too."""
    node.local_kek = True
    node.health.call_failed()
    assert ("ok", "ok") == node.seen
    node.later(1)
    node.away()
    node.health.call_failed()
    assert ("ok", "ok") == node.seen

    node.later(DOWN_SECONDS)
    assert ("degraded", in_software(SLOW)) == node.seen


async def test_call_failed_before_a_good_canary(node):
    """A failed request does not count once a canary has passed."""
    node.local_kek = True
    node.health.call_failed()
    await node.well()
    node.gone()
    assert ("degraded", "ok") == node.seen

    node.health.call_failed()
    await node.well()
    assert ("ok", "ok") == node.seen
    node.gone()
    assert ("degraded", "ok") == node.seen


async def test_call_fails_while_all_is_well(node):
    """A failed request alone does not change the state."""
    node.health.call_failed()
    for _ in range(8):
        node.later(DOWN_SECONDS)
        await node.well()

    assert ("ok", "ok") == node.seen


async def test_no_canary_for_three_intervals(node):
    """Without a canary for three intervals health is not ok, whoever asks first."""
    node.clock[0] += INTERVALS * INTERVAL
    assert node.health.look().ready
    node.clock[0] += 0.125
    assert not node.health.look().ready
    assert ("failed", sentence(SLOW)) == node.seen
    assert "no canary has passed for three intervals" == node.health.detail

    await node.well()
    assert ("ok", "ok") == node.seen


async def test_no_canary_is_announced(node):
    """A Status of the API server notices the missing canary by itself."""
    node.clock[0] += INTERVALS * INTERVAL + 0.125

    assert sentence(SLOW) == node.health.announce().healthz


async def test_no_canary_with_a_short_interval(node):
    """With a short interval a canary counts for `DOWN_SECONDS`."""
    node.health.adjust(outages(interval=0.1))
    node.clock[0] += DOWN_SECONDS
    assert node.health.look().ready
    node.clock[0] += 0.125

    assert not node.health.look().ready


async def test_max_offline(node):
    """Once the local KEK has expired the state is failed."""
    node.local_kek = True
    node.gone()
    node.later(GRACE)
    node.local_kek = False
    node.later(1)
    assert ("failed", sentence(ABSENT)) == node.seen

    node.local_kek = True  # a reload allowed it longer
    node.later(1)
    assert ("degraded", in_software(ABSENT)) == node.seen


@pytest.mark.parametrize("local_kek", [False, True])
async def test_worker_comes_and_goes(node, local_kek):
    """An outage ends with a passed canary, not with a started worker."""
    node.local_kek = local_kek
    node.gone()
    down = node.seen
    node.serves()
    node.later(1)
    assert down[0] == node.seen[0]

    await node.well()
    assert ("ok", "ok") == node.seen


@pytest.mark.parametrize("local_kek", [False, True])
async def test_new_doubt_after_an_outage(node, local_kek):
    """Each outage has its own 25 s and its own grace."""
    node.local_kek = local_kek
    node.gone()
    node.later(10 * GRACE)
    await node.well()
    node.away()
    node.later(DOWN_SECONDS - 1)
    assert ("ok", "ok") == node.seen

    node.later(1)
    wanted = ("degraded", "ok") if local_kek else ("failed", sentence(SLOW))
    assert wanted == node.seen
