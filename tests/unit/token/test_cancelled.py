"""A login and the end of a worker are finished, however often a caller is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.process import Worker
from tests.harness.one_worker import configure, gate
from tests.harness.processes import alive
from tests.harness.served import Served
from tests.harness.shim.driver import Shim
from tests.harness.wait import settle, until


async def cancel_twice(task):
    """Cancel a task again after it has begun to react to the first cancellation."""
    task.cancel()
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_worker_has_gone(hsm, pin_file, directory):
    """Workers.close ends only after the workers have, also when cancelled meanwhile."""
    async with Served(hsm, pin_file, directory, workers=1) as served:
        await served.stocked()
        (worker,) = served.workers.ready
        os.kill(worker.pid, signal.SIGSTOP)  # it leaves only when it is killed
        closing = asyncio.create_task(served.workers.close())
        await worker.lost.wait()
        await cancel_twice(closing)

        assert not alive(worker.pid)


@contextlib.asynccontextmanager
async def logging_in(hsm, pin_file, directory):
    """A worker inside C_Login: the worker, its PinLogin, and the task that waits."""
    shim = Shim(directory)
    shim.set("C_Login sleep=500")
    login = gate(pin_file, directory)
    worker = await Worker.spawn(0, hsm.env | shim.env)
    try:
        await worker.configure(configure(module=str(shim.module)))
        trying = asyncio.create_task(login.login(worker))
        await until(lambda: shim.calls("C_Login"))
        yield worker, login, trying
    finally:
        await worker.leave()


async def test_login_is_recorded(hsm, pin_file, directory):
    """The result of a C_Login under way is recorded, also after two cancellations."""
    async with logging_in(hsm, pin_file, directory) as (worker, login, trying):
        await cancel_twice(trying)

        assert "proven" == login.verdict.word
        assert not worker.lost.is_set()


async def test_lock_is_held_meanwhile(hsm, pin_file, directory):
    """No other process can try the PIN while a C_Login that was cancelled runs."""
    async with logging_in(hsm, pin_file, directory) as (_, _, trying):
        trying.cancel()
        await settle()
        trying.cancel()
        await settle()
        with StateDir(directory / "state").pin_lock() as acquired:
            assert acquired == trying.done()
        with pytest.raises(asyncio.CancelledError):
            await trying
