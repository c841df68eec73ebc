"""Growing, jittered pauses between tries to start a worker."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import PinRejectedError, PinUnavailableError

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError

FIRST_SECONDS: Final = 0.1
LONGEST_SECONDS: Final = 5.0
PIN_SECONDS: Final = 1.0  # only a stat() of the PIN file each time


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
