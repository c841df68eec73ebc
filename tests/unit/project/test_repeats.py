"""Events that come in floods: the first is logged, the others are counted."""

from __future__ import annotations

import asyncio
import logging

import pytest
from structlog.testing import capture_logs

from hsm_kms import errors
from hsm_kms.repeats import MOST_KINDS, WINDOWS, Repeats, log_all_counts
from tests.harness.log_capture import captured
from tests.harness.wait import settle
from tests.unit.api.api_service import refused, serve

FLOOD = 300


@pytest.fixture
async def pass_time(monkeypatch):
    """Move the loop's clock, which stands otherwise, and let its timers run."""
    loop = asyncio.get_running_loop()
    now = [loop.time()]
    monkeypatch.setattr(loop, "time", lambda: now[0])

    async def passed(seconds):
        now[0] += seconds
        await settle()

    return passed


async def test_one_line_and_then_counts(pass_time):
    """A flood is one line at once, and one with its number for each longer window."""
    repeats = Repeats(__name__)
    with capture_logs() as logs:
        for window in (*WINDOWS, WINDOWS[-1]):
            for number in range(FLOOD):
                repeats.log(logging.WARNING, "refused", "kind", number=number)
            await pass_time(window + 1)
    first, *others = logs

    assert {"event": "refused", "log_level": "warning", "number": 0} == first
    assert [FLOOD - 1, *[FLOOD] * len(WINDOWS)] == [one["repeated"] for one in others]
    assert [*WINDOWS, WINDOWS[-1]] == [one["within_seconds"] for one in others]
    assert {FLOOD - 1} == {one["number"] for one in others}


async def test_a_state_that_flaps(pass_time):
    """The first of two opposite events is logged at once, and at last what holds."""
    repeats = Repeats(__name__)
    with capture_logs() as logs:
        for _ in range(5):
            repeats.log_change("door", logging.WARNING, "open")
            repeats.log_change("door", logging.INFO, "closed")
        await pass_time(WINDOWS[0] + 1)
        repeats.log_change("door", logging.WARNING, "open")
        await pass_time(WINDOWS[1] + 1)

    assert ["open", "closed", "closed", "open"] == [one["event"] for one in logs]
    assert [8, 1] == [one["repeated"] for one in logs[2:]]


async def test_quiet_window(pass_time):
    """After a window without such an event the next one is logged at once."""
    repeats = Repeats(__name__)
    with capture_logs() as logs:
        for _ in range(3):
            repeats.log(logging.WARNING, "refused")
            await pass_time(WINDOWS[0] + 1)

    assert ["refused"] * 3 == [one["event"] for one in logs]
    assert not any("repeated" in one for one in logs)


async def test_stop(pass_time):
    """What was counted is logged when the server stops, and only once."""
    flood, quiet = Repeats(__name__), Repeats(__name__)
    with capture_logs() as logs:
        quiet.log(logging.INFO, "once")
        for number in range(FLOOD):
            flood.log(logging.WARNING, "often", number=number)
        await pass_time(10)
        log_all_counts()
        await pass_time(WINDOWS[0])
        log_all_counts()
    # Other tests of this process may have left counts of their own.
    ours = [one for one in logs if one["event"] in {"once", "often"}]
    last = {"number": FLOOD - 1, "repeated": FLOOD - 1, "within_seconds": 10.0}

    assert ["once", "often", "often"] == [one["event"] for one in ours]
    assert {"event": "often", "log_level": "warning"} | last == ours[-1]


async def test_kinds(pass_time):
    """Each kind is logged at once, up to a number of kinds that bounds the memory."""
    repeats = Repeats(__name__)
    with capture_logs() as logs:
        for kind in range(10 * MOST_KINDS):
            for _ in range(2):
                repeats.log(logging.INFO, "refused", kind)
        at_once = len(logs)
        await pass_time(WINDOWS[0] + 1)

    assert MOST_KINDS + 1 == at_once
    assert 10 * MOST_KINDS * 2 == at_once + sum(one.get("repeated", 0) for one in logs)


@pytest.mark.parametrize(("level", "lines"), [("info", 3), ("debug", 2 * FLOOD + 1)])
async def test_refused_requests(level, lines):
    """Refusals of one kind are one line; at debug each request is one."""
    with captured(level) as stream:
        async with serve() as service:
            service.wrapper.error = errors.TokenError("C_Decrypt failed")
            for _ in range(FLOOD):
                await refused(service.call("v2.Decrypt"))
                await refused(service.call("v1.Decrypt"))
            service.wrapper.error = errors.CiphertextError("not authentic")
            await refused(service.call("v2.Decrypt"))

    assert lines == len(stream.events())
