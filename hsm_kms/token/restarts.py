"""When the next worker starts: after which pause, and after how many kills.

Some HSMs keep the sessions of dead clients. After `MOST` kills within
`WINDOW_SECONDS` only one worker is started, with one session, until a canary has
passed, on it or on one that still serves.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import PinRejectedError, PinUnavailableError
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError

MOST: Final = 3
WINDOW_SECONDS: Final = 5 * 60.0
FIRST_SECONDS: Final = 0.1
LONGEST_SECONDS: Final = 5.0
PIN_SECONDS: Final = 1.0  # only a stat() of the PIN file each time

_log = get_logger(__name__)


class Backoff:
    """The pauses of one worker."""

    def __init__(self) -> None:
        self._next = FIRST_SECONDS

    def pause(self, error: HsmKmsError | None = None) -> float:
        """Seconds to wait before the next try.

        Args:
            error: Why the last one failed; None: the worker ended soon.
        """
        if isinstance(error, (PinRejectedError, PinUnavailableError)):
            return PIN_SECONDS
        if error is None and self._next == FIRST_SECONDS:
            self._next *= 2
            return 0.0  # the first time: perhaps it does not always crash
        seconds = self._next * (0.5 + secrets.SystemRandom().random())
        self._next = min(self._next * 2, LONGEST_SECONDS)
        return seconds

    def reset(self) -> None:
        """A worker has lived well."""
        self._next = FIRST_SECONDS


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
