"""Ask for an inspection of token and keys when something happened.

Pool, workers and local KEKs raise the alarm; the health monitor waits for it. All that
happens before the next inspection is one alarm, so a flood of errors cannot cause a
flood of inspections or of log lines.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError

_log = get_logger(__name__)


class Alarm:
    """Wake the health monitor, which inspects the token.

    Attributes:
        reason: What raised the alarm first since `clear`; "" while it is not raised.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._raised = asyncio.Event()
        self._fault_logged = False

    def notify(self, reason: str) -> None:
        """Raise the alarm: something changed that an inspection should find."""
        self.reason = self.reason or reason
        self._raised.set()

    def fault(self, error: HsmKmsError) -> None:
        """Raise the alarm: a request met an error of the token, not of the request."""
        if not self._fault_logged:
            self._fault_logged = True
            _log.info("token fault during a request", error=str(error))
        self.notify(str(error))

    async def wait(self) -> None:
        """Wait until the alarm is raised; return at once if it is."""
        await self._raised.wait()

    def clear(self) -> None:
        """Take note of the alarm: what happens from now on raises it again."""
        self.reason = ""
        self._raised.clear()
        self._fault_logged = False
