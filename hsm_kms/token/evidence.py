"""Pass on what requests learn about the token: to the counts, breaker and alarm.

`token.errors` says what each failure means; nothing else is decided here but whether an
unanswered call is a fault of the token.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import TokenTimeoutError
from hsm_kms.ipc import ckr
from hsm_kms.token.errors import BreakerEffect

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError
    from hsm_kms.ipc.messages import Failure, Request
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.breaker import Breaker
    from hsm_kms.token.counts import Counts
    from hsm_kms.token.errors import Row

_PATIENT: Final = 0.5  # of call_timeout: an unanswered call this old is a fault


class Evidence:
    """Collect what the requests of one pool learn.

    Args:
        counts: Running totals.
        breaker: Fails requests at once while the token is down.
        alarm: Raised by every error whose cause is the token, not the request.
        call_timeout: Longest wait for a token's answer, in seconds.
    """

    def __init__(
        self, *, counts: Counts, breaker: Breaker, alarm: Alarm, call_timeout: float
    ) -> None:
        self._counts = counts
        self._breaker = breaker
        self._alarm = alarm
        self._patient = call_timeout * _PATIENT
        self._loop = asyncio.get_running_loop()

    def asked(self, request: Request) -> None:
        """Count a call that is about to be sent."""
        self._counts.calls[type(request).__name__.lower()] += 1

    def worked(self) -> None:
        """Note that the token did what a request asked."""
        self._breaker.succeeded()

    def lost(self, error: HsmKmsError) -> None:
        """Note that a session or a worker was lost under a request."""
        self._alarm.fault(error)

    def failed(self, row: Row, failure: Failure) -> HsmKmsError:
        """Do what the row of a failure says, and return the error for the caller."""
        name = ckr.name(failure.rv) if failure.rv else failure.cause
        self._counts.errors[name] += 1
        error = row.error_from(failure)
        if row.breaker is BreakerEffect.COUNTS:
            # Requests that the breaker refuses are not tried on another session.
            self._breaker.failed(row.final_from(failure))
        elif row.breaker is BreakerEffect.RESETS:
            self._breaker.succeeded()
        if row.reported and not row.retried:  # see `lost`, before it is tried again
            self._alarm.fault(error)
        return error

    def unanswered(self, since: float | None) -> TokenTimeoutError:
        """Return the error of a request that gave up; blame the token if it had time.

        Args:
            since: When the call was sent, in the loop's time; None if it has ended.
        """
        error = TokenTimeoutError("the token did not answer in time")
        if since is not None and self._loop.time() - since >= self._patient:
            self._counts.errors["timeout"] += 1
            self._alarm.fault(error)
            self._breaker.failed(error)
        return error
