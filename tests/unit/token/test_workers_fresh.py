"""Workers that are recycled, and a fresh worker that only reads the keys."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from hsm_kms.token.ends import End
from tests.harness.processes import children, stop


def recycle(served, worker):
    served.workers.end(worker, End.RECYCLED, "a fresh worker sees more keys")


@pytest.mark.usefixtures("unhurried")
async def test_recycle(make):
    """A worker is recycled while all others serve, and only one at a time."""
    async with make() as served:
        await served.stocked()
        first, second = served.workers.ready
        recycle(served, first)
        recycle(served, second)
        await served.until(first.lost.is_set)
        assert (End.RECYCLED, False) == (first.end, first.killed)
        recycle(served, second)
        await served.stocked()
        assert second in served.workers.ready
        assert b"dek" == await served.unwrap(await served.wrap(b"dek"))
        assert 1 == served.counts.ends[End.RECYCLED]


@pytest.mark.usefixtures("unhurried")
async def test_recycle_lets_calls_end(make):
    """A call under way on a worker that is recycled gets its answer."""
    async with make(workers=1, sessions=1) as served:
        await served.stocked()
        (worker,) = served.workers.ready
        stop(worker.pid)
        call = asyncio.ensure_future(served.wrap(b"dek"))
        await served.until(lambda: served.pool.stats().idle == 0)
        recycle(served, worker)
        await asyncio.sleep(0.2)
        assert not worker.lost.is_set()
        os.kill(worker.pid, signal.SIGCONT)
        assert b"dek" == await served.unwrap(await call)


@pytest.mark.usefixtures("unhurried")
async def test_fresh_worker(make):
    """A fresh worker logs in, serves no request, and leaves after reading the keys."""
    async with make() as served:
        await served.stocked()
        async with served.workers.fresh_worker() as worker:
            await served.qualify(worker)
            assert 3 == len(children())
            assert (2, 8) == (
                len(served.workers.ready),
                served.pool.stats().sessions,
            )
        assert 2 == len(children())
        assert 0 == worker._process.returncode
