"""Decide when the next worker starts: after which pause, and after how many kills.

The pauses of a worker that cannot start grow to `LONGEST_SECONDS`, or, while others
serve, to `LONGEST_BESIDE_SECONDS`: each start is a process and a login.

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
LONGEST_BESIDE_SECONDS: Final = 60.0
PIN_SECONDS: Final = 1.0  # only a stat() of the PIN file each time

_log = get_logger(__name__)


class Backoff:
    """Lengthen the pauses between the starts of one worker, with jitter."""

    def __init__(self) -> None:
        self._next = FIRST_SECONDS

    def pause(self, error: HsmKmsError | None = None, *, beside: bool = False) -> float:
        """Return the seconds to wait before the next start.

        Args:
            error: Why the last start failed; None if the worker ended soon after it.
            beside: Other workers serve.
        """
        if isinstance(error, (PinRejectedError, PinUnavailableError)):
            return PIN_SECONDS
        if error is None and self._next == FIRST_SECONDS:
            self._next *= 2
            return 0.0  # it may have crashed only once
        longest = LONGEST_BESIDE_SECONDS if beside else LONGEST_SECONDS
        seconds = min(self._next, longest) * (0.5 + secrets.SystemRandom().random())
        self._next = min(self._next * 2, LONGEST_BESIDE_SECONDS)
        return seconds

    def reset(self) -> None:
        """Begin with the shortest pause again, because a worker lived long."""
        self._next = FIRST_SECONDS


class KillBudget:
    """Count the workers that one server had to kill."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MOST)
        self._free = asyncio.Event()
        self._free.set()

    @property
    def spent(self) -> bool:
        """Return True if only one worker, with one session, may exist."""
        return not self._free.is_set()

    def spend(self) -> None:
        """Count one kill."""
        now = asyncio.get_running_loop().time()
        self._times.append(now)
        if len(self._times) == MOST and now - self._times[0] <= WINDOW_SECONDS:
            if not self.spent:
                _log.warning("too many workers were killed: continuing with one")
            self._free.clear()

    def refill(self) -> None:
        """Allow all workers again, because a canary has passed."""
        if self.spent:
            self._times.clear()
            self._free.set()

    async def wait(self, number: int) -> None:
        """Wait until worker `number` may start; number 0 may at any time."""
        if number > 0:
            await self._free.wait()
