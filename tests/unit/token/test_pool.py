"""The rules of the pool, one by one; `test_pool_machine` mixes them."""

from __future__ import annotations

import asyncio

import pytest

from hsm_kms.errors import (
    NonceBudgetError,
    PoolClosedError,
    PoolTimeoutError,
    TokenAbsentError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.ipc import ckr
from hsm_kms.ipc.messages import Failure
from hsm_kms.token.counts import PoolStats
from hsm_kms.token.ends import End
from tests.unit.token.pool_rig import CALL_TIMEOUT, SESSION_WAIT, later, one_busy


async def test_last_in_first_out(rig):
    """The session that came back last is lent first."""
    rig.add(3)
    for _ in range(3):
        task = rig.call()
        await rig.settle()
        (busy,) = rig.busy()
        assert rig.workers[0].sessions[2] is busy
        busy.answer()
        await task


async def test_first_come_first_served(rig):
    """The request that has waited longest gets the next session."""
    worker, first = await one_busy(rig)
    second, third = rig.call(), rig.call()
    await rig.settle()
    assert PoolStats(sessions=1, idle=0, waiting=2) == rig.pool.stats()
    worker.sessions[0].answer()
    await rig.settle()

    assert first.done()
    assert (worker.sessions[0].asked or ("", ""))[1] == "request 2"
    worker.sessions[0].answer()
    await rig.settle()
    worker.sessions[0].answer()
    assert ["request 2", "request 3"] == [await second, await third]


async def test_no_session_in_time(rig):
    """A request waits for a session at most `session_wait`."""
    await one_busy(rig)
    waiting = rig.call()
    await rig.settle()
    await later(rig, SESSION_WAIT)

    with pytest.raises(PoolTimeoutError):
        await waiting
    assert [] == rig.alarm.faults


async def test_own_deadline(rig):
    """A request ends at its own deadline if that is sooner; its call goes on."""
    worker = rig.add(1)
    task = rig.call(deadline=asyncio.get_running_loop().time() + 0.2)
    await rig.settle()
    await later(rig, 0.2)

    with pytest.raises(TokenTimeoutError):
        await task
    assert PoolStats(sessions=1, idle=0, waiting=0) == rig.pool.stats()
    assert worker.sessions[0].asked is not None


async def test_cancelled_as_its_time_ends(rig):
    """A call whose request is cancelled just as its time ends is reported once."""
    rig.add(1)
    task = rig.call()
    await rig.settle()
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() + CALL_TIMEOUT, task.cancel)  # right after the deadline
    await later(rig, CALL_TIMEOUT)

    assert task.cancelled()
    assert [TokenTimeoutError] == [type(fault) for fault in rig.alarm.faults]


async def test_late_answer_is_nobodys(rig):
    """The answer to a request that gave up is read before the session is lent again."""
    worker, task = await one_busy(rig)
    await later(rig, CALL_TIMEOUT)
    with pytest.raises(TokenTimeoutError):
        await task
    following = rig.call()
    await rig.settle()
    worker.sessions[0].answer()
    await rig.settle()
    worker.sessions[0].answer()

    assert "request 2" == await following


@pytest.mark.parametrize("steps", range(7))
async def test_cancelled_with_a_session_on_its_way(rig, steps):
    """A request cancelled just as it gets a session gives the session back."""
    worker, first = await one_busy(rig)
    waiting = rig.call()
    await rig.settle()
    worker.sessions[0].answer()
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel()
    await rig.settle()
    if worker.sessions[0].asked:
        worker.sessions[0].answer()
        await rig.settle()

    assert first.done()
    assert PoolStats(sessions=1, idle=1, waiting=0) == rig.pool.stats()


async def test_lost_under_a_request(rig):
    """A request whose worker died runs once more, on another worker."""
    rig.add(1)
    _, task = await one_busy(rig)
    (busy,) = rig.busy()
    busy.worker.die()
    await rig.settle()
    (other,) = rig.busy()
    assert other.worker is not busy.worker
    other.answer()

    assert "request 1" == await task
    assert [WorkerLostError] == [type(fault) for fault in rig.alarm.faults]


async def test_lost_twice(rig):
    """A request that lost two workers does not run a third time."""
    for _ in range(3):
        rig.add(1)
    task = rig.call()
    await rig.settle()
    for _ in range(2):
        rig.busy()[0].worker.die()
        await rig.settle()

    with pytest.raises(WorkerLostError, match="lost twice under one request"):
        await task
    assert [] == rig.busy()


async def test_logged_out(rig):
    """A logged-out worker is retired with all its sessions; another one serves."""
    rig.add(1)
    worker, task = await one_busy(rig, sessions=3)
    worker.sessions[2].answer(Failure(cause="login", detail="not logged in"))
    await rig.settle()
    (busy,) = rig.busy()
    busy.answer()

    assert "request 1" == await task
    assert busy.worker is rig.workers[0]
    assert [End.LOGIN] == worker.retired


async def test_broken_session_is_lent_last(rig):
    """The second try after a session error gets another session."""
    worker, task = await one_busy(rig, sessions=2)
    worker.sessions[1].answer(Failure(cause="session"))
    await rig.settle()
    assert worker.sessions[0].asked is not None
    worker.sessions[0].answer()

    assert "request 1" == await task
    assert PoolStats(sessions=2, idle=2, waiting=0) == rig.pool.stats()


FULL = Failure(
    cause="capacity", function="C_OpenSession", rv=ckr.BY_NAME["CKR_SESSION_COUNT"]
)


@pytest.mark.parametrize("failure", [FULL, Failure(cause="login")])
async def test_judged_before_it_is_lent_again(rig, failure):
    """A request that waits does not get a session that has just become unusable."""
    rig.add(1)
    rig.add(1)
    for _ in range(3):  # the third one waits
        rig.call()
    await rig.settle()
    good, bad = rig.busy()
    bad.answer(failure)
    await rig.settle()
    assert bad.asked is None

    labels = []
    while good.asked:
        labels.append(good.asked[1])
        good.answer()
        await rig.settle()
    assert ["request 2", "request 3", "request 1"] == labels


@pytest.mark.parametrize("failure", [FULL, Failure(cause="login")])
async def test_judged_though_nobody_waits(rig, failure):
    """A session is judged by its failure also after the request gave up."""
    worker, task = await one_busy(rig, sessions=2)
    task.cancel()
    await rig.settle()
    (busy,) = rig.busy()
    busy.answer(failure)
    await rig.settle()

    assert busy.channel not in rig.pool
    assert ([] if failure is FULL else [End.LOGIN]) == worker.retired
    assert [] == rig.alarm.faults


async def test_withdrawn(rig):
    """A withdrawn session finishes its call and is not lent again."""
    worker, task = await one_busy(rig)
    rig.pool.withdraw(worker.sessions[0].channel)
    worker.sessions[0].answer()

    assert "request 1" == await task
    assert PoolStats(sessions=0, idle=0, waiting=0) == rig.pool.stats()


async def test_stuck(rig):
    """The pool names the sessions whose call runs longer than a limit."""
    worker, task = await one_busy(rig, sessions=2)
    await later(rig, 0.6)

    assert [worker.sessions[1].channel] == rig.pool.busy_longer_than(0.5)
    assert [] == rig.pool.busy_longer_than(0.7)
    worker.sessions[1].answer()
    await task


async def test_closed(rig):
    """A closed pool lends and adds no session, and lets calls under way finish."""
    worker, task = await one_busy(rig)
    waiting = rig.call()
    await rig.settle()
    rig.pool.close()
    rig.pool.fail(TokenAbsentError("no token matches"))
    rig.add(1)
    for late in (waiting, rig.call()):
        with pytest.raises(PoolClosedError):
            await late
    worker.sessions[0].answer()

    assert "request 1" == await task
    assert PoolStats(sessions=0, idle=0, waiting=0) == rig.pool.stats()


async def test_before_each_try(rig):
    """`before` runs once for each try, when its session has been lent."""
    lent = []
    for _ in range(2):
        rig.add(1)
    task = rig.call(before=lambda: lent.append(rig.pool.stats().idle))
    assert [] == lent
    await rig.settle()
    assert [1] == lent
    rig.busy()[0].worker.die()
    await rig.settle()
    rig.busy()[0].answer()

    assert "request 1" == await task
    assert [1, 0] == lent


async def test_nothing_before_a_session_is_lent(rig):
    """`before` does not run for a request that gets no session."""
    await one_busy(rig)
    waiting = rig.call(before=pytest.fail)
    await rig.settle()
    await later(rig, SESSION_WAIT)

    with pytest.raises(PoolTimeoutError):
        await waiting


async def test_refused_before_a_try(rig):
    """An error of `before` leaves the session idle and is no fault of the token."""

    def refuse():
        raise NonceBudgetError("spent")

    rig.add(1)
    for _ in range(3):
        with pytest.raises(NonceBudgetError, match="spent"):
            await rig.call(before=refuse)

    assert [] == rig.busy()
    assert PoolStats(sessions=1, idle=1, waiting=0) == rig.pool.stats()
    assert [] == rig.alarm.faults
    assert not rig.counts.calls
