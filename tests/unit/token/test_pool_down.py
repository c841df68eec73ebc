"""The pool while the token refuses, fails or does not answer."""

from __future__ import annotations

import asyncio

import pytest

from hsm_kms.errors import (
    CiphertextError,
    TokenAbsentError,
    TokenError,
    TokenTimeoutError,
)
from hsm_kms.ipc.messages import Failure
from hsm_kms.token.breaker import TRIP_AFTER
from tests.unit.token.pool_rig import CALL_TIMEOUT, SESSION_WAIT, later, one_busy


@pytest.mark.parametrize(
    ("cause", "error", "faults"),
    [
        ("request", CiphertextError, 0),
        ("not-authentic", CiphertextError, 0),
        ("device", TokenError, 1),
        ("ambiguous", TokenError, 1),
        ("from a later version", TokenError, 1),
    ],
)
async def test_refused(rig, cause, error, faults):
    """A failure raises the alarm if its cause is the token, not the request."""
    worker, task = await one_busy(rig)
    worker.sessions[0].answer(Failure(cause=cause))

    with pytest.raises(error):
        await task
    assert faults == len(rig.alarm.faults)
    assert 1 == rig.pool.stats().idle


async def test_down(rig):
    """Without sessions, requests fail at once with the reason, also waiting ones."""
    waiting = rig.call()
    await rig.settle()
    error = TokenAbsentError("no token matches")
    rig.pool.fail(error)
    for task in (waiting, rig.call()):
        with pytest.raises(TokenAbsentError, match="no token matches"):
            await task
    rig.add(1)
    task = rig.call()
    await rig.settle()
    rig.busy()[0].answer()

    assert "request 3" == await task


async def test_down_does_not_grow(rig):
    """The reason that all requests get does not collect their frames."""
    error = TokenAbsentError("no token matches")
    rig.pool.fail(error)
    for _ in range(50):
        with pytest.raises(TokenAbsentError):
            await rig.call()
    frames, traceback = 0, error.__traceback__
    while traceback is not None:
        frames, traceback = frames + 1, traceback.tb_next

    assert frames < 20


async def test_not_down_while_a_session_is_there(rig):
    """A worker that cannot start fails no request that another can serve."""
    worker, task = await one_busy(rig)
    rig.pool.fail(TokenAbsentError("no token matches"))
    worker.sessions[0].answer()

    assert "request 1" == await task


async def test_breaker(rig):
    """After device errors in a row requests fail at once, until a canary passes."""
    worker = rig.add(1)
    for number in range(TRIP_AFTER):
        task = rig.call()
        await rig.settle()
        worker.sessions[0].answer(Failure(cause="device", detail=f"error {number}"))
        with pytest.raises(TokenError, match=f"error {number}"):
            await task
    with pytest.raises(TokenError, match=f"error {TRIP_AFTER - 1}"):
        await rig.call()
    assert [] == rig.busy()
    rig.pool.breaker.close()
    task = rig.call()
    await rig.settle()
    worker.sessions[0].answer()

    assert f"request {TRIP_AFTER + 2}" == await task


async def test_bad_ciphertexts_do_not_trip_the_breaker(rig):
    """Bad ciphertexts never open the breaker."""
    worker = rig.add(1)
    for _ in range(3 * TRIP_AFTER):
        task = rig.call()
        await rig.settle()
        worker.sessions[0].answer(Failure(cause="not-authentic"))
        with pytest.raises(CiphertextError):
            await task

    assert not rig.pool.breaker.is_open


async def test_short_deadlines_do_not_trip_the_breaker(rig):
    """A request that had little time says nothing about the token."""
    rig.add(3 * TRIP_AFTER)
    for _ in range(2 * TRIP_AFTER):
        task = rig.call(deadline=asyncio.get_running_loop().time() + 0.01)
        await rig.settle()
        await later(rig, 0.01)
        with pytest.raises(TokenTimeoutError):
            await task

    assert not rig.pool.breaker.is_open
    assert [] == rig.alarm.faults


async def test_clients_that_gave_up_trip_the_breaker(rig):
    """Requests that were cancelled after a long wait open the breaker."""
    rig.add(TRIP_AFTER)
    for _ in range(TRIP_AFTER):
        task = rig.call()
        await rig.settle()
        await later(rig, CALL_TIMEOUT / 2)
        task.cancel()
        await rig.settle()
        assert task.cancelled()

    assert [TokenTimeoutError] * TRIP_AFTER == [
        type(fault) for fault in rig.alarm.faults
    ]
    assert TRIP_AFTER == rig.counts.errors["timeout"]
    with pytest.raises(TokenTimeoutError, match="did not answer in time"):
        await rig.call()


async def test_impatient_clients_do_not_trip_the_breaker(rig):
    """A request that is cancelled early says nothing about the token."""
    worker = rig.add(1)
    for seconds in (0, CALL_TIMEOUT * 0.49):
        for _ in range(2 * TRIP_AFTER):
            task = rig.call()
            await rig.settle()
            await later(rig, seconds)
            task.cancel()
            await rig.settle()
            worker.sessions[0].answer()
            await rig.settle()

    assert [] == rig.alarm.faults
    assert not rig.pool.breaker.is_open
    assert 0 == rig.counts.errors["timeout"]


@pytest.mark.parametrize("steps", range(1, 5))
async def test_gone_as_the_answer_comes(rig, steps):
    """A token that has answered is not at fault, even if nobody reads the answer."""
    worker, task = await one_busy(rig)
    await later(rig, CALL_TIMEOUT * 0.9)
    worker.sessions[0].answer()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await rig.settle()

    assert task.done()
    assert [] == rig.alarm.faults


async def test_who_waits_for_a_session_blames_nobody(rig):
    """A request that is cancelled without a session says nothing about the token."""
    await one_busy(rig)
    waiting = rig.call()
    await rig.settle()
    await later(rig, SESSION_WAIT * 0.9)
    waiting.cancel()
    await rig.settle()

    assert waiting.cancelled()
    assert [] == rig.alarm.faults
