"""Fail fast while the token is down.

1. After `TRIP_AFTER` device errors in a row, with no success between them, requests
   fail at once, with the last of these errors.
2. Only a canary closes it again; requests never try the token on its behalf.
3. A bad ciphertext is no device error: no client can trip it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError

TRIP_AFTER: Final = 5

_log = structlog.get_logger(__name__)


class Breaker:
    """Counts device errors of all sessions together."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._open: HsmKmsError | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests fail without asking the token."""
        return self._open is not None

    def check(self) -> None:
        """Let a request pass.

        Raises:
            HsmKmsError: It is open; the error that opened it.
        """
        if self._open is not None:
            raise self._open.again()

    def failed(self, error: HsmKmsError) -> None:
        """The token, not the request, was at fault."""
        self._in_a_row += 1
        if self._in_a_row >= TRIP_AFTER and self._open is None:
            self._open = error
            _log.warning("breaker open", error=error.sentence)

    def succeeded(self) -> None:
        """A request was answered."""
        self._in_a_row = 0

    def close(self) -> None:
        """A canary passed."""
        self._in_a_row = 0
        if self._open is not None:
            self._open = None
            _log.info("breaker closed")
