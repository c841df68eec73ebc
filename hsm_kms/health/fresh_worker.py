"""Read the keys beside the regular inspections: by fresh workers, and on request.

1. Now and then a fresh worker reads the keys: some modules show an old process only
   the keys that existed when it started. A worker that still misses a key after a
   fresh worker saw it is replaced, one worker at a time.
2. When the current key is missing, a fresh worker looks for it at once, and once.
3. A request that names an unknown key can cause one look in `REQUESTED_SECONDS`,
   however many such requests come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import HsmKmsError
from hsm_kms.log import get_logger
from hsm_kms.repeats import Repeats
from hsm_kms.token.ends import End

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hsm_kms.health.inspection import Inspection
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.workers import Workers

REQUESTED_SECONDS: Final = 5.0  # between two looks on request
APART_SECONDS: Final = 60.0  # two fresh workers: each is a process, and a login
ASK_SECONDS: Final = 30.0  # the same, if the current key was seen between them
CHECK_EVERY: Final = 10  # regular intervals between two fresh-worker checks
_TICK_SECONDS: Final = 0.5

_log = get_logger(__name__)


class FreshWorkerChecks:
    """Let a fresh worker read the keys from time to time.

    Args:
        workers: Starts fresh workers, and replaces those that are behind.
        inspection: Reads the keys, and knows which worker is behind.
        alarm: Raised after each check: do the other workers see as much?
        interval: Seconds between regular inspections.
    """

    def __init__(
        self, workers: Workers, inspection: Inspection, alarm: Alarm, interval: float
    ) -> None:
        self._workers = workers
        self._inspection = inspection
        self._alarm = alarm
        self._period = max(interval * CHECK_EVERY, APART_SECONDS)
        self._next = 0.0
        self._failures = Repeats(__name__)
        self._checked = -math.inf  # when the latest check began

    def soon(self) -> None:
        """Let a fresh worker read the keys soon, but at most every `APART_SECONDS`."""
        now = asyncio.get_running_loop().time()
        soonest = max(now + REQUESTED_SECONDS, self._checked + APART_SECONDS)
        self._next = min(self._next, soonest)

    async def run(self) -> None:
        """Check from time to time, until cancelled."""
        loop = asyncio.get_running_loop()
        self._next = loop.time() + self._period
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.end_outdated()
            self.recycle()
            if not self._workers.ready or not self._is_time(loop.time()):
                continue
            self._checked = loop.time()
            self._next = self._checked + self._period
            try:
                await self.check()
            except HsmKmsError as error:
                self._failures.log(
                    logging.INFO,
                    "fresh worker could not read the keys",
                    str(error),
                    error=str(error),
                )
            except Exception as error:  # noqa: BLE001 - a bug must not end the checks
                _log.error("bug in a fresh-worker check", exc_info=error)

    def _is_time(self, now: float) -> bool:
        asks = now >= self._checked + ASK_SECONDS and self._inspection.asks
        return asks or now >= self._next

    async def check(self) -> None:
        """Let one fresh worker read the keys, unless no place for it is free.

        Raises:
            HsmKmsError: The worker could not be started, or could not read.
        """
        async with self._workers.fresh_worker() as worker:
            if worker is not None:
                await self._inspection.read_fresh(worker)
                self._alarm.notify("a fresh worker read the keys")

    def end_outdated(self) -> None:
        """End every worker that is older than the change of a key's names."""
        for worker in list(self._workers.ready):
            if self._inspection.is_outdated(worker):
                why = "another key has the names of a key"
                self._workers.end(worker, End.KEY, why)

    def recycle(self) -> None:
        """Replace one worker that misses a key after a younger worker saw it."""
        for worker in self._workers.ready:
            if not worker.retiring and self._inspection.is_behind(worker):
                self._workers.end(worker, End.RECYCLED, "a fresh worker sees more keys")
                return


class RequestedLooks:
    """Look at the token on request, at most once in `REQUESTED_SECONDS`.

    Args:
        look: Looks once with a regular worker.
    """

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._task: asyncio.Future[None] | None = None
        self._next = 0.0

    async def look(self, until: float) -> bool:
        """Look, or wait for a look that is under way.

        Args:
            until: Longest wait, in the loop's time.

        Returns:
            True if this call began a look.
        """
        now = asyncio.get_running_loop().time()
        begins = self._task is None or self._task.done()
        if begins:
            if now < self._next:
                return False
            self._next = now + REQUESTED_SECONDS
            self._task = asyncio.ensure_future(self._look())
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    # Shielded: a request that gives up must not end the look that
                    # other requests wait for.
                    await asyncio.shield(self._task)
        return begins

    def close(self) -> None:
        """Cancel a look that is under way."""
        if self._task is not None:
            self._task.cancel()
