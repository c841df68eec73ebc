"""Ask for an inspection of token and keys when something happened.

Pool, workers and local KEKs raise the alarm; the health monitor waits for it. All that
happens before the next inspection is one alarm, so a flood of errors cannot cause a
flood of inspections; nor of log lines, see `repeats`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from hsm_kms import clock
from hsm_kms.repeats import Repeats

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError


class Alarm:
    """Wake the health monitor, which inspects the token.

    Attributes:
        reason: What raised the alarm first since `clear`; "" while it is not raised.
        fault_at: When a request last met an error of the token, in the loop's time.
        last_fault: When that was, in seconds since the Unix epoch, and the error in
            words; None if no request has.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.fault_at = -math.inf
        self.last_fault: tuple[float, str] | None = None
        self._raised = asyncio.Event()
        self._faults = Repeats(__name__)

    def notify(self, reason: str) -> None:
        """Raise the alarm: something changed that an inspection should find."""
        self.reason = self.reason or reason
        self._raised.set()

    def fault(self, error: HsmKmsError) -> None:
        """Raise the alarm: a request met an error of the token, not of the request."""
        self._faults.log(
            logging.INFO,
            "token fault during a request",
            (type(error), error.rv),
            error=str(error),
        )
        self.fault_at = asyncio.get_running_loop().time()
        self.last_fault = clock.now(), str(error)
        self.notify(str(error))

    async def wait(self) -> None:
        """Wait until the alarm is raised; return at once if it is."""
        await self._raised.wait()

    def clear(self) -> None:
        """Take note of the alarm: what happens from now on raises it again."""
        self.reason = ""
        self._raised.clear()
