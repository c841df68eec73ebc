"""Workers on a real token: they start, are watched, replaced, and leave."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from hsm_kms.errors import (
    TokenAbsentError,
    TokenTimeoutError,
)
from hsm_kms.token import restarts, watchdog
from hsm_kms.token.ends import End
from hsm_kms.token.process import Worker
from tests.harness.one_worker import configure
from tests.harness.processes import alive, children, descriptors, stop
from tests.harness.spy import Spy
from tests.harness.wait import patient, wait_for

ANOTHER = {"token_label": "another"}


async def test_round_trip(make):
    """Workers start, log in, and wrap and unwrap through the pool."""
    async with make() as served:
        await served.stocked()
        assert b"dek" * 10 == await served.unwrap(await served.wrap(b"dek" * 10))
        assert 8 == served.pool.stats().sessions
        assert 2 == len({worker.pid for worker in served.workers.ready})
        assert served.workers.last_error is None


async def test_terminal(make):
    """A worker has no terminal that sends it Ctrl-C or that a module can ask."""
    async with make(workers=1) as served:
        await served.stocked()
        (worker,) = served.workers.ready
        assert worker.pid == os.getsid(worker.pid)


async def test_killed_worker_is_replaced(make):
    """A worker that was killed is replaced, and its request made elsewhere."""
    async with make(workers=1) as served:
        await served.stocked()
        (first,) = served.workers.ready
        os.kill(first.pid, signal.SIGKILL)
        await served.until(first.lost.is_set)
        sealed = await served.wrap(b"dek")
        (second,) = served.workers.ready
        assert first.pid != second.pid
        assert (End.LOST, "the worker closed its end") == (first.end, first.reason)
        assert b"dek" == await served.unwrap(sealed)


async def test_bug_while_a_worker_is_kept(make, monkeypatch):
    """A bug that ends the task which keeps a worker costs no worker."""
    wait, failed = restarts.KillBudget.wait, []

    async def fails_once(budget, number):
        if not failed:
            failed.append(number)
            raise ZeroDivisionError
        await wait(budget, number)

    monkeypatch.setattr(restarts.KillBudget, "wait", fails_once)
    async with make() as served:
        await served.stocked()

    assert [0] == failed


async def test_spare_beside_a_hung_worker(make):
    """A hung worker costs its callers `call_timeout`, and brings a spare."""
    async with make(
        workers=1, sessions=2, call_timeout=0.5, hang_timeout=60.0
    ) as served:
        await served.stocked()
        (first,) = served.workers.ready
        stop(first.pid)
        began = asyncio.get_running_loop().time()
        with pytest.raises(TokenTimeoutError):
            await served.wrap(b"dek")
        assert asyncio.get_running_loop().time() - began < patient()
        await served.until(lambda: len(served.workers.ready) == 2)
        assert alive(first.pid)
        assert not first.lost.is_set()


async def test_hung_worker_is_killed(make):
    """A worker whose call runs longer than `hang_timeout` is killed and replaced."""
    async with make(
        workers=1, sessions=2, call_timeout=0.5, hang_timeout=2.0
    ) as served:
        await served.stocked()
        (first,) = served.workers.ready
        stop(first.pid)
        with pytest.raises(TokenTimeoutError):
            await served.wrap(b"dek")
        await served.until(lambda: not alive(first.pid))
        assert (End.HANG, "one call ran longer than 2 s") == (first.end, first.reason)
        await served.stocked()


async def test_spare_goes_again(make, monkeypatch):
    """A spare worker leaves some time after the last stuck call."""
    monkeypatch.setattr(watchdog, "SPARE_SECONDS", 0.5)
    settings = {"call_timeout": 1.0, "answer_timeout": patient()}
    async with make(workers=1, **settings) as served:
        await served.stocked()
        (first,) = served.workers.ready
        stop(first.pid)
        stuck = asyncio.ensure_future(served.wrap(b"dek"))
        await served.until(lambda: len(served.workers.ready) == 2)
        os.kill(first.pid, signal.SIGCONT)
        await stuck
        await served.until(lambda: served.workers.ready == [first])
        assert b"dek" == await served.unwrap(await served.wrap(b"dek"))


async def test_late_answers_after_a_hang(make):
    """A worker that recovers from a hang serves again; late answers are dropped."""
    async with make(workers=1, sessions=2) as served:
        await served.stocked()
        (first,) = served.workers.ready
        sealed = [await served.wrap(bytes([number]) * 8) for number in range(2)]
        stop(first.pid)
        given_up = [asyncio.ensure_future(served.unwrap(one, 0.3)) for one in sealed]
        done, _ = await asyncio.wait(given_up)
        assert {TokenTimeoutError} == {type(task.exception()) for task in done}
        os.kill(first.pid, signal.SIGCONT)
        await served.until(lambda: served.pool.stats().idle >= 2)
        for number in range(20):
            assert bytes([number]) == await served.unwrap(
                await served.wrap(bytes([number]))
            )


async def test_start_timeout(make, hsm, shim, monkeypatch):
    """A worker that does not get ready in time is ended; requests fail with that."""
    monkeypatch.setattr(restarts, "FIRST_SECONDS", 10.0)
    shim.set("C_OpenSession hang")
    module = configure(module=str(shim.module))
    env = hsm.env | shim.env
    async with make(configure=module, env=env, workers=1, start_timeout=0.4) as served:
        await served.until(lambda: served.workers.last_error)
        with pytest.raises(TokenTimeoutError, match=r"did not start within 0\.4 s"):
            await served.wrap(b"dek")
        assert set() == children()


async def test_reason_of_a_failed_start(make):
    """Requests fail with what the module or token said, as long as no worker starts."""
    settings = {"configure": configure(**ANOTHER)}
    async with make(**settings) as served:
        for _ in range(3):
            await served.until(lambda: served.workers.last_error)
            with pytest.raises(TokenAbsentError, match="no token matches token_label"):
                await served.wrap(b"dek")


async def test_bug_while_starting(make):
    """An unexpected exception does not end the loop that starts workers."""
    served = make(workers=1)
    right, seen = served.qualify, []

    async def qualify(worker):
        seen.append(worker.pid)
        if len(seen) == 1:
            raise ZeroDivisionError
        await right(worker)

    served.qualify = qualify
    async with served:
        await served.stocked()
        assert 2 == len(seen)
        assert b"dek" == await served.unwrap(await served.wrap(b"dek"))


async def test_no_descriptor_left(make, monkeypatch):
    """Without free descriptors no worker starts, and none leak; later one starts."""
    real, before = os.pipe, descriptors()

    def pipe():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", pipe)
    async with make(workers=1) as served:
        await served.until(lambda: served.workers.last_error)
        assert "Too many open files" in str(served.workers.last_error)
        assert descriptors() <= before + 1
        monkeypatch.setattr(os, "pipe", real)
        await served.stocked()


@pytest.mark.usefixtures("unhurried")
async def test_orderly_leave(make, hsm, directory):
    """A worker that leaves closes all sessions, and never finalises the module."""
    log = directory / "spy.log"
    spy = Spy(log)
    async with make(
        configure=configure(module=spy.module), env=hsm.env | spy.env, workers=1
    ) as served:
        await served.stocked()
    calls = [line for line in log.read_text().splitlines() if ": C_" in line]

    assert calls[-1].endswith("C_CloseAllSessions")
    assert [] == [call for call in calls if "C_Finalize" in call or "C_Logout" in call]
    assert 1 == sum("C_Login" in call for call in calls)
    assert 5 == sum("C_OpenSession" in call for call in calls)


@pytest.mark.usefixtures("unhurried")
async def test_leave_waits_for_a_canary(make):
    """A call under way on the control session does not make an orderly leave a kill."""
    async with make(workers=1) as served:
        await served.stocked()
        (worker,) = served.workers.ready
        canary = asyncio.create_task(served.qualify(worker))
        await asyncio.sleep(0)
        await worker.leave()
        assert 0 == worker._process.returncode
        canary.cancel()


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.3, 0.5])
async def test_closed_at_any_moment(make, seconds):
    """Closing while workers start, or fail to start, ends all of them at once."""
    for label in ("test", "another"):
        settings = {"configure": configure(token_label=label)}
        served = make(**settings)
        async with asyncio.timeout(patient()):
            async with served:
                await asyncio.sleep(seconds)
        assert set() == children()


async def test_closed_while_leaving(make):
    """Closing while a failed worker leaves is obeyed."""
    served = make(configure=configure(**ANOTHER), workers=1)
    leaving = asyncio.Event()
    leave = Worker.leave

    async def slow_leave(worker):
        leaving.set()
        await leave(worker)
        await asyncio.sleep(0.2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "leave", slow_leave)
        async with asyncio.timeout(patient()):
            async with served:
                await leaving.wait()
    assert set() == children()


def test_parent_death(hsm, directory):
    """A worker dies with the process that started it, however that process ended."""
    code = (
        "import asyncio\nfrom hsm_kms.token.process import Worker\n"
        "async def main():\n"
        "    worker = await Worker.spawn(1, {})\n"
        "    print(worker.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_for(lambda: not alive(pid))
