"""Looks at the keys beside the regular ones: by fresh workers, and on request.

1. Now and then a fresh worker looks: some modules show an old process only what was
   there when it started. What only the fresh one sees has the others replaced, one
   by one.
2. A request that names an unknown key may cause one look in `SEEK_SECONDS`, however
   many such requests come.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import structlog

from hsm_kms.errors import HsmKmsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hsm_kms.token.process import Worker
    from hsm_kms.token.workers import Workers

SEEK_SECONDS: Final = 5.0
APART_SECONDS: Final = 60.0  # two fresh workers: each is a process, and a login
VISIT_EVERY: Final = 10  # regular intervals between two looks by a fresh worker
_TICK_SECONDS: Final = 0.5

_log = structlog.get_logger(__name__)


class FreshWorkerChecks:
    """Looks by fresh workers.

    Args:
        interval: Seconds between regular looks.
        read: Reads the keys with a worker.
        is_behind: Whether a worker sees less than a younger one.
    """

    def __init__(
        self,
        interval: float,
        *,
        read: Callable[[Worker], Awaitable[object]],
        is_behind: Callable[[Worker], bool],
    ) -> None:
        self._period = max(interval * VISIT_EVERY, APART_SECONDS)
        self._read = read
        self._is_behind = is_behind
        self._next = 0.0
        self._soonest = 0.0

    def soon(self) -> None:
        """Let a fresh worker look, but not often."""
        now = asyncio.get_running_loop().time()
        self._next = min(self._next, max(now + SEEK_SECONDS, self._soonest))

    async def run(self, workers: Workers) -> None:
        """Visit from time to time, until cancelled."""
        loop = asyncio.get_running_loop()
        self._next = loop.time() + self._period
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.recycle(workers)
            if loop.time() < self._next or not workers.ready:
                continue
            self._next = loop.time() + self._period
            self._soonest = loop.time() + APART_SECONDS
            try:
                async with workers.visitor() as worker:
                    if worker is not None:
                        await self._read(worker)
            except HsmKmsError as error:
                _log.info("a fresh worker could not look", error=str(error))
            except Exception as error:  # noqa: BLE001 - a bug must not end the visits
                _log.error("bug in the look by a fresh worker", exc_info=error)

    def recycle(self, workers: Workers) -> None:
        """Replace one worker that sees less than a younger one."""
        for worker in workers.ready:
            if not worker.retiring and self._is_behind(worker):
                workers.recycle(worker)
                return


class Seeker:
    """Looks on request, and seldom.

    Args:
        look: Looks once with a regular worker.
    """

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._task: asyncio.Future[None] | None = None
        self._next = 0.0

    async def seek(self, until: float) -> bool:
        """Look, or wait for a look that is under way.

        Args:
            until: Longest wait, in the loop's time.

        Returns:
            Whether this call began a look.
        """
        now = asyncio.get_running_loop().time()
        begins = self._task is None or self._task.done()
        if begins:
            if now < self._next:
                return False
            self._next = now + SEEK_SECONDS
            self._task = asyncio.ensure_future(self._look())
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await asyncio.shield(self._task)
        return begins

    def close(self) -> None:
        """Let go of a look under way."""
        if self._task is not None:
            self._task.cancel()
