"""Fresh-worker checks and looks on request: how often they happen."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from hsm_kms.errors import TokenAbsentError
from hsm_kms.health.fresh_worker import (
    APART_SECONDS,
    ASK_SECONDS,
    REQUESTED_SECONDS,
    FreshWorkerChecks,
    RequestedLooks,
)
from hsm_kms.token.alarm import Alarm
from hsm_kms.token.ends import End
from tests.harness.wait import settle

INTERVAL = 30.0


class Look:
    """Count looks; each goes on until `end` is set."""

    def __init__(self):
        self.count = 0
        self.end = asyncio.Event()

    async def __call__(self):
        self.count += 1
        await self.end.wait()


async def test_look_on_request(clock):
    """The first request begins a look; all requests wait for it."""
    look = Look()
    requested = RequestedLooks(look)
    asking = [asyncio.ensure_future(requested.look(clock[0] + 1)) for _ in range(3)]
    await settle()
    assert [False] * 3 == [task.done() for task in asking]
    look.end.set()

    assert [True, False, False] == await asyncio.gather(*asking)
    assert 1 == look.count


async def test_look_on_request_is_seldom(clock):
    """Many requests cause one look in `REQUESTED_SECONDS`; none waits for it."""
    look = Look()
    look.end.set()
    requested = RequestedLooks(look)
    assert await requested.look(clock[0] + 1)
    clock[0] += REQUESTED_SECONDS - 0.1
    assert [False] * 9 == [await requested.look(clock[0] + 1) for _ in range(9)]
    clock[0] += 0.1

    assert await requested.look(clock[0] + 1)
    assert 2 == look.count


async def test_look_on_request_waits_no_longer_than_the_request():
    """A request that runs out of time does not end the look."""
    look = Look()
    requested = RequestedLooks(look)
    loop = asyncio.get_running_loop()
    assert await requested.look(loop.time() + 0.05)
    assert not await requested.look(loop.time() + 0.05)
    look.end.set()
    await settle()

    assert 1 == look.count
    requested.close()


async def test_look_on_request_given_up():
    """A cancelled request does not end the look that other requests wait for."""
    look = Look()
    requested = RequestedLooks(look)
    until = asyncio.get_running_loop().time() + 5
    first, second = (asyncio.ensure_future(requested.look(until)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    look.end.set()

    assert not await second
    assert 1 == look.count


class Workers:
    """Stand in for `token.workers.Workers`."""

    def __init__(self):
        self.ready = []
        self.recycled = []
        self.outdated = []
        self.fresh = 0
        self.error = None

    @contextlib.asynccontextmanager
    async def fresh_worker(self):
        self.fresh += 1
        if self.error is not None:
            raise self.error
        yield object()

    def end(self, worker, end, _why):
        ended = {End.RECYCLED: self.recycled, End.KEY: self.outdated}
        ended[end].append(worker)


class Inspection:
    """Stand in for `Inspection`."""

    def __init__(self, reads):
        self.reads = reads
        self.asks = False

    async def read_fresh(self, worker):
        self.reads.append(worker)

    def is_behind(self, worker):
        return worker.behind

    def is_outdated(self, worker):
        return worker.outdated


class Member:
    """A worker that serves."""

    def __init__(self, *, behind=False, outdated=False, retiring=False):
        self.behind = behind
        self.outdated = outdated
        self.retiring = retiring


@pytest.fixture
async def visited(clock, monkeypatch):
    """Running checks; `after` moves the clock."""
    ticks = asyncio.Event()

    async def tick(_seconds):
        await ticks.wait()
        ticks.clear()

    workers, reads = Workers(), []
    workers.ready = [Member(), Member()]

    inspection = Inspection(reads)
    checks = FreshWorkerChecks(workers, inspection, Alarm(), INTERVAL)
    checks.inspection = inspection
    real = asyncio.sleep
    monkeypatch.setattr("hsm_kms.health.fresh_worker.asyncio.sleep", tick)
    task = asyncio.ensure_future(checks.run())

    async def after(seconds):
        clock[0] += seconds
        for _ in range(8):
            await real(0)
        ticks.set()
        for _ in range(8):
            await real(0)
        return workers.fresh

    await real(0)
    yield checks, workers, reads, after
    task.cancel()


async def test_visit_every_ten_intervals(visited):
    """A fresh worker reads the keys every ten intervals."""
    _, _, reads, after = visited

    assert 0 == await after(10 * INTERVAL - 1)
    assert 1 == await after(1)
    assert 1 == await after(10 * INTERVAL - 1)
    assert 2 == await after(1)
    assert 2 == len(reads)


async def test_visit_soon(visited):
    """An unknown key_id starts a fresh worker; a flood of them starts no second one."""
    checks, _, _, after = visited
    checks.soon()
    assert 0 == await after(REQUESTED_SECONDS - 1)
    assert 1 == await after(1)

    for _ in range(int(APART_SECONDS) - 1):
        checks.soon()
        assert 1 == await after(1)
    checks.soon()
    assert 2 == await after(REQUESTED_SECONDS)


async def test_visit_for_a_missing_key(visited):
    """A missing current key starts a fresh worker at once, then seldom."""
    checks, _, _, after = visited
    checks.inspection.asks = True
    assert 1 == await after(0.5)
    for _ in range(int(ASK_SECONDS) - 1):
        assert 1 == await after(1)

    assert 2 == await after(1)


async def test_no_visit_without_workers(visited):
    """While no worker serves, no fresh worker is started beside the regular ones."""
    _, workers, _, after = visited
    workers.ready.clear()

    assert 0 == await after(20 * INTERVAL)


@pytest.mark.parametrize("error", [TokenAbsentError("away"), ZeroDivisionError()])
async def test_visit_that_fails(visited, error):
    """A fresh worker that fails is logged, and the next check happens in time."""
    _, workers, reads, after = visited
    workers.error = error
    assert 1 == await after(10 * INTERVAL)
    workers.error = None

    assert 2 == await after(10 * INTERVAL)
    assert 1 == len(reads)


async def test_recycle_one_at_a_time(visited):
    """Of two workers that are behind one is replaced, and never a retiring one."""
    _, workers, _, after = visited
    workers.ready = [Member(behind=True, retiring=True), Member(behind=True), Member()]
    await after(0.5)

    assert [workers.ready[1]] == workers.recycled


async def test_outdated_workers(visited):
    """Every worker that is older than the change of a key's names is ended."""
    _, workers, _, after = visited
    old = [Member(outdated=True), Member(outdated=True)]
    workers.ready = [*old, Member()]
    await after(0.5)

    assert old == workers.outdated
