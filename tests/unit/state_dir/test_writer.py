"""The thread that writes to the disk."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hsm_kms.state_dir.directory import StateDir
from hsm_kms.state_dir.store import StateWriteError
from hsm_kms.state_dir.writer import MOST_WAITING, Writer, WriterBusyError
from tests.harness.wait import settle, until
from tests.unit.state_dir.state_samples import KEY


@pytest.fixture
def go_on():
    """Let work go on that waits for this; it does at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_results_and_errors():
    """The caller gets what the work returned or raised."""
    writer = Writer()

    assert 3 == await writer.run(lambda: 1 + 2)
    with pytest.raises(ZeroDivisionError):
        await writer.run(lambda: 1 / 0)
    assert 4 == await writer.run(lambda: 2 + 2)


async def test_in_order():
    """Work is done in the order in which it was given, in one thread."""
    writer, done, threads = Writer(), [], set()

    def work(number):
        threads.add(threading.get_ident())
        done.append(number)

    await asyncio.gather(*(writer.run(lambda n=n: work(n)) for n in range(10)))

    assert list(range(10)) == done
    assert 1 == len(threads - {threading.get_ident()}) == len(threads)


async def test_given_up(go_on):
    """Work whose caller gave up, or was cancelled, is done all the same."""
    writer, done = Writer(), []
    first = asyncio.create_task(writer.run(go_on.wait))
    await settle()
    with pytest.raises(TimeoutError):
        await writer.run(lambda: done.append("late"), 0.01)
    cancelled = asyncio.create_task(writer.run(lambda: done.append("cancelled")))
    await settle()
    cancelled.cancel()
    await settle()
    assert [] == done
    go_on.set()
    await first

    await until(lambda: done == ["late", "cancelled"])


async def test_bounded(go_on):
    """While the disk hangs, only so much work waits for it."""
    writer = Writer()
    waiting = [asyncio.create_task(writer.run(go_on.wait)) for _ in range(MOST_WAITING)]
    await settle()
    with pytest.raises(WriterBusyError):
        await writer.run(go_on.wait)
    go_on.set()
    await asyncio.gather(*waiting)

    assert await writer.run(lambda: True)


async def test_state_directory_that_does_not_answer(tmp_path, go_on):
    """The error names the directory, and what to look at."""
    state = StateDir(tmp_path / "state").open()
    first = asyncio.create_task(state.background(go_on.wait))
    await settle()
    with pytest.raises(StateWriteError, match=f"{state.path} does not answer") as error:
        await state.background(lambda: state.save_last_key(KEY), 0.01)
    go_on.set()
    await first

    assert "see whether its disk is full, broken or not reachable" == error.value.hint
    await until(lambda: state.last_key() == KEY)
