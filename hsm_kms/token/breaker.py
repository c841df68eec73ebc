"""Fail requests at once while the token is down.

1. After `TRIP_AFTER` failures in a row that `token.errors` blames on the token, the
   breaker opens: requests fail at once, with the last of these errors.
2. Only a canary closes the breaker; requests never try the token on its behalf.
3. A bad ciphertext never counts, so no client can open the breaker.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from hsm_kms.repeats import Repeats
from hsm_kms.token.counts import Counts

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError

TRIP_AFTER: Final = 5


class Breaker:
    """Count the token's failures in a row, of all sessions together.

    Args:
        counts: Running totals.
    """

    def __init__(self, counts: Counts | None = None) -> None:
        self._counts = counts or Counts()
        self._in_a_row = 0
        self._open: HsmKmsError | None = None
        self._changes = Repeats(__name__)

    @property
    def is_open(self) -> bool:
        """Return True while requests fail without asking the token."""
        return self._open is not None

    def check(self) -> None:
        """Let a request pass.

        Raises:
            HsmKmsError: The breaker is open; the error that opened it.
        """
        if self._open is not None:
            raise self._open.again()

    def failed(self, error: HsmKmsError) -> None:
        """Count a failure of the token; open after `TRIP_AFTER` in a row."""
        self._in_a_row += 1
        if self._in_a_row >= TRIP_AFTER and self._open is None:
            self._open = error
            self._counts.breaker_openings += 1
            sentence = error.sentence
            self._changes.log_change(
                "breaker", logging.WARNING, "breaker open", error=sentence
            )

    def succeeded(self) -> None:
        """Reset the count, because the token answered a request."""
        self._in_a_row = 0

    def close(self) -> None:
        """Close the breaker: a canary passed."""
        self._in_a_row = 0
        if self._open is not None:
            self._open = None
            self._changes.log_change("breaker", logging.INFO, "breaker closed")
