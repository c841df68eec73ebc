"""A clock and errors for the tests of the verdict on a PIN."""

from __future__ import annotations

from hsm_kms.errors import PinRejectedError, TokenError

GENERAL_ERROR = TokenError(function="C_Login", rv=0x5)
REJECTION = PinRejectedError("wrong", function="C_Login", rv=0xA0)


class Clock:
    """A clock, moved by the test."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds
