"""Workers under load, and over many restarts."""

from __future__ import annotations

import asyncio
import gc
import operator
import os
import secrets
import signal
import threading

from hsm_kms.errors import HsmKmsError
from hsm_kms.token import restarts
from hsm_kms.token.ends import End
from tests.harness.processes import children, descriptors


def held():
    """Descriptors, tasks and threads of this process."""
    gc.collect()
    return descriptors(), len(asyncio.all_tasks()), threading.active_count()


async def test_no_leak_over_restarts(make, monkeypatch):
    """Ten restarts leave no descriptor, process, thread or task behind."""
    monkeypatch.setattr(restarts, "LONGEST_SECONDS", 0.01)
    async with make(workers=1, sessions=2) as served:
        await served.stocked()
        before = held()
        for number in range(10):
            worker = served.workers.ready[0]
            if number % 2:
                os.kill(worker.pid, signal.SIGKILL)
            else:
                worker.retire(End.CANARY, "test")
            await served.until(lambda w=worker: w not in served.workers.ready)
            await served.stocked()
        await served.until(lambda: len(children()) == 1)
        # What waited for the last one that left may take a moment to end.
        await served.until(lambda: all(map(operator.le, held(), before)))
    assert set() == children()


async def test_load_with_cancellations(make):
    """Under load, with clients going away at random, every answer is the right one."""
    async with make() as served:
        await served.stocked()
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.5
        counts = {"right": 0, "cancelled": 0, "failed": 0}

        async def client():
            while loop.time() < until or min(counts["right"], counts["cancelled"]) < 50:
                plaintext = secrets.token_bytes(1 + secrets.randbelow(64))
                # 6 ms is twice what it takes; a slow machine gets a round of 60 ms.
                most = secrets.choice((6_000, 60_000))
                try:
                    async with asyncio.timeout(secrets.randbelow(most) / 1e6):
                        back = await served.unwrap(await served.wrap(plaintext))
                except TimeoutError:
                    counts["cancelled"] += 1
                except HsmKmsError:
                    counts["failed"] += 1
                else:
                    assert plaintext == back
                    counts["right"] += 1

        await asyncio.gather(*(client() for _ in range(12)))
        await served.until(lambda: served.pool.stats().idle == 8)
        assert 0 == counts["failed"], served.alarm.faults


async def test_load_with_kills(make, monkeypatch):
    """Under load, with workers killed, no answer is wrong, and all is well again."""
    monkeypatch.setattr(restarts, "LONGEST_SECONDS", 0.01)
    async with make() as served:
        await served.stocked()
        stop, right = asyncio.Event(), 0

        async def client():
            nonlocal right
            while not stop.is_set():
                plaintext = secrets.token_bytes(32)
                try:
                    back = await served.unwrap(await served.wrap(plaintext))
                except HsmKmsError:
                    continue
                assert plaintext == back
                right += 1

        clients = [asyncio.create_task(client()) for _ in range(12)]
        for _ in range(6):
            await asyncio.sleep(0.25)
            if served.workers.ready:
                os.kill(served.workers.ready[0].pid, signal.SIGKILL)
        await served.until(lambda: right > 50)
        stop.set()
        await asyncio.gather(*clients)
        await served.stocked()
        assert b"dek" == await served.unwrap(await served.wrap(b"dek"))
