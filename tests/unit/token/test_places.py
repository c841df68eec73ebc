"""Places for workers: with those that cannot be killed there are never too many."""

from __future__ import annotations

import asyncio

import pytest

from hsm_kms.token.places import Places, Unkillable
from tests.harness.wait import settle


class Undying:
    """A worker that ends when the test says."""

    def __init__(self, pid):
        self.pid = pid
        self._gone = asyncio.Event()

    async def wait_until_gone(self):
        await self._gone.wait()

    async def ends(self):
        """Let the process end."""
        self._gone.set()
        await settle()


@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_never_too_many(workers):
    """However many cannot be killed, there are at most one more than workers.

    One serves as long as there is any place.
    """
    unkillable = Unkillable()
    for held in range(workers + 3):
        places = Places(workers, unkillable)
        served = 0
        for place in range(workers + 1):
            if places.is_free(place):
                await places.take(place)
                served += 1

        assert served + held == max(workers + 1, held)
        unkillable.add(Undying(held))


async def test_waits_for_a_place():
    """A place comes free when a process has ended, or when a worker has left."""
    unkillable, undying = Unkillable(), Undying(7)
    places = Places(1, unkillable)
    unkillable.add(undying)
    await places.take(1)
    waiting = asyncio.ensure_future(places.take(0))
    await settle()
    assert not waiting.done()
    assert "7" in str(places.error())

    await undying.ends()
    await waiting
    assert [] == unkillable.pids
    other = Places(1, unkillable)
    unkillable.add(Undying(8))
    await other.take(0)
    spare = asyncio.ensure_future(other.take(1))
    await settle()
    assert not spare.done()
    other.release(0)
    await spare
