"""One timer ends everything whose deadline has passed, in time and nothing else."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.token.deadlines import Deadlines
from tests.unit.token.pool_rig import Loop

# Deadlines that are set for one item, one after the other; None drops the item.
DEADLINES = st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=3)


@given(st.lists(DEADLINES, max_size=30))
def test_each_once_in_time(items):
    """Each item expires once, at its last deadline, unless it was dropped."""
    loop = Loop()
    begin, expired = loop.now, []

    async def run():
        deadlines = Deadlines(lambda item: expired.append((item, loop.now - begin)))
        for item, times in enumerate(items):
            for after in times:
                if after is None:
                    deadlines.drop(item)
                else:
                    deadlines.set(item, begin + after)
        while loop.now < begin + 50:
            loop.now += 1
            for _ in range(3):
                await asyncio.sleep(0)

    loop.run_until_complete(run())
    loop.close()
    wanted = [(item, times[-1]) for item, times in enumerate(items) if times[-1]]
    assert wanted == sorted(expired)
