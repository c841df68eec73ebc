"""How often workers may be killed: some HSMs keep the sessions of dead clients.

After `MOST` kills within `WINDOW_SECONDS` only one worker is started, with one session,
until a canary has passed, on it or on one that still serves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import structlog

MOST: Final = 3
WINDOW_SECONDS: Final = 5 * 60.0

_log = structlog.get_logger(__name__)


class KillBudget:
    """The kills of one server."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MOST)
        self._free = asyncio.Event()
        self._free.set()

    @property
    def spent(self) -> bool:
        """Whether only one worker, with one session, may be there."""
        return not self._free.is_set()

    def spend(self) -> None:
        """A worker is killed."""
        now = asyncio.get_running_loop().time()
        self._times.append(now)
        if len(self._times) == MOST and now - self._times[0] <= WINDOW_SECONDS:
            if not self.spent:
                _log.warning("too many workers had to be killed: going on with one")
            self._free.clear()

    def refill(self) -> None:
        """A canary has passed."""
        if self.spent:
            self._times.clear()
            self._free.set()

    async def wait(self, number: int) -> None:
        """Let worker `number` start; while the budget is spent, only number 0 may."""
        if number > 0:
            await self._free.wait()
