"""The alarm: many events before one inspection are one alarm."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from hsm_kms.errors import TokenError, WorkerLostError
from hsm_kms.token.alarm import Alarm


async def test_one_alarm_for_many_events():
    """The alarm stays raised until it is cleared, and keeps the first reason."""
    alarm = Alarm()
    alarm.notify("a token worker ended")
    alarm.notify("a local KEK was created")

    await alarm.wait()
    assert "a token worker ended" == alarm.reason
    alarm.clear()
    assert not alarm.reason


async def test_waits_until_raised():
    """Whoever waits goes on when the alarm is raised, and not before."""
    alarm = Alarm()
    waiting = asyncio.ensure_future(alarm.wait())
    await asyncio.sleep(0)
    assert not waiting.done()

    alarm.fault(WorkerLostError("the token worker is gone"))
    await waiting
    assert "the token worker is gone" == alarm.reason


async def test_a_flood_of_faults_is_one_log_line():
    """Of all faults of one kind only the first is logged, whatever inspections find."""
    alarm = Alarm()
    with capture_logs() as logs:
        for _ in range(1000):
            alarm.fault(WorkerLostError("the token worker is gone"))
            alarm.clear()
        alarm.fault(TokenError("C_Encrypt failed", rv=0x30))

    assert ["token fault during a request"] * 2 == [each["event"] for each in logs]
    assert "C_Encrypt failed" == logs[-1]["error"]
