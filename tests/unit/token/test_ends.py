"""The table of ends, walked with real workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from hsm_kms.errors import WorkerLostError
from hsm_kms.ipc.messages import FindKeys, KeyPage
from hsm_kms.token import watchdog
from hsm_kms.token.ends import ENDS, End
from tests.harness.processes import children, stop
from tests.harness.served import Served
from tests.harness.token_keys import LABEL

SOON = 0.3  # a replacement would have been started by then


@pytest.fixture
async def served(hsm, pin_file, directory, monkeypatch):
    """Two workers of one session each, both there; the watchdog sleeps."""
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 3600)
    async with Served(hsm, pin_file, directory, sessions=1) as served:
        yield await served.stocked()


async def test_every_end_has_a_row():
    """Every reason has a row, and whatever is counted as a kill is one."""
    assert set(End) == set(ENDS)
    assert all(row.kill for row in ENDS.values() if row.counted)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("end", End)
async def test_row(served, end):
    """A worker ends as the row of the reason says, and is replaced if the row says."""
    row = ENDS[end]
    worker, other = served.workers.ready
    call = busy(worker)
    served.workers.end(worker, end, "a test")
    assert worker.retiring
    assert (row.drain == 0) is worker.lost.is_set()

    if row.drain == 0:
        with pytest.raises(WorkerLostError):
            await call
    with contextlib.suppress(ProcessLookupError):  # it may be killed already
        os.kill(worker.pid, signal.SIGCONT)
    if row.drain != 0:
        assert isinstance(await call, KeyPage)
    await served.until(lambda: served.counts.ends[end] and worker.gone)
    assert (end, "a test") == (worker.end, worker.reason)
    assert row.counted is worker.killed
    assert (-signal.SIGKILL if row.kill else 0) == worker._process.returncode
    if row.replaced:
        await served.stocked()
    else:
        await asyncio.sleep(SOON)
        assert {other.pid} == children()
    assert other in served.workers.ready


def busy(worker):
    """Have a call under way that ends when the process is continued."""
    stop(worker.pid)
    return worker.sessions[0].exchange(FindKeys(label=LABEL))


async def test_ended_once(served):
    """Of two reasons for one worker the first one counts."""
    worker, _ = served.workers.ready
    call = busy(worker)
    served.workers.end(worker, End.CANARY, "first")
    served.workers.end(worker, End.HANG, "second")
    os.kill(worker.pid, signal.SIGCONT)
    assert isinstance(await call, KeyPage)
    await worker.lost.wait()

    assert (End.CANARY, "first", False) == (worker.end, worker.reason, worker.killed)


async def test_lost_while_draining(served):
    """A worker that dies while its calls drain is not waited for."""
    worker, _ = served.workers.ready
    call = busy(worker)
    served.workers.end(worker, End.CANARY, "a test")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        await call
    await worker.lost.wait()

    assert End.LOST == worker.end
    await served.until(lambda: served.counts.ends[End.LOST])
    await served.stocked()


async def test_never_two_recycled(served):
    """While one worker is recycled no other is."""
    first, second = served.workers.ready
    served.workers.end(first, End.RECYCLED, "a test")
    served.workers.end(second, End.RECYCLED, "a test")
    await first.lost.wait()
    served.workers.end(second, End.RECYCLED, "a test")

    assert not second.retiring
    await served.stocked()


@pytest.mark.usefixtures("unhurried")
async def test_a_spare_drains(served):
    """A call under way on a spare worker that is let go gets its answer."""
    regular = list(served.workers.ready)
    served.workers.start_spare()
    await served.until(lambda: len(served.workers.ready) == 3)
    (spare,) = set(served.workers.ready) - set(regular)
    call = busy(spare)
    served.workers.drop_spare()
    await asyncio.sleep(0)
    assert served.workers.has_spare
    os.kill(spare.pid, signal.SIGCONT)

    assert isinstance(await call, KeyPage)
    await served.until(lambda: not served.workers.has_spare)
    assert regular == served.workers.ready
    assert (End.ASKED, False) == (spare.end, spare.killed)


async def test_closed_while_draining(served):
    """Closing does not wait for a worker that drains."""
    worker, _ = served.workers.ready
    call = busy(worker)
    served.workers.end(worker, End.CANARY, "a test")
    await served.workers.close()

    assert set() == children()
    with pytest.raises(WorkerLostError):
        await call
