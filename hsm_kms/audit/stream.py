"""Record events as the section `audit` of the configuration says.

With `on_error: refuse` a request waits until its record is in the file: in the kernel's
hands, so that a crash of the server loses nothing, and one of the machine may. A file
system, or a reader of stdout, that hangs is a fault before it answers with an error.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from hsm_kms.audit.line import body_of
from hsm_kms.audit.report import AuditReport
from hsm_kms.audit.target import AuditFile, Stream
from hsm_kms.audit.writer import BUSY, HANGS, Done, RecordWriter
from hsm_kms.errors import AuditError

if TYPE_CHECKING:
    from hsm_kms.audit.events import Event
    from hsm_kms.audit.target import Target
    from hsm_kms.config import schema

WRITE_SECONDS: Final = 2.0  # of the 3 s that the API server gives a request

_SLOW: Final = AuditError(
    f"the audit record was not written within {WRITE_SECONDS:g} s",
    hint=HANGS,
)


class AuditStream:
    """Record events.

    Args:
        settings: The section `audit`.
        source: See `events.Header`.
    """

    def __init__(self, settings: schema.Audit, source: str = "serve") -> None:
        self._settings = settings
        self._source = source
        self._to = settings.file, settings.stdout
        self._writer = RecordWriter(target_of(settings), source)

    @property
    def enabled(self) -> bool:
        """See `Audit.enabled`."""
        return self._settings.enabled

    @property
    def fault(self) -> AuditError | None:
        """See `Audit.fault`."""
        refuses = self.enabled and self._settings.on_error == "refuse"
        return self._trouble if refuses else None

    @property
    def _trouble(self) -> AuditError | None:
        """Return why records are not written now; None if they are."""
        hangs = self._writer.busy_for() >= WRITE_SECONDS
        return self._writer.error or (_SLOW if hangs else None)

    @property
    def report(self) -> AuditReport:
        """Return how the stream is."""
        if not self.enabled:
            return AuditReport()
        error = self._trouble
        return AuditReport(
            enabled=True,
            target=str(self._settings.file or "stdout"),
            refuses=self._settings.on_error == "refuse",
            written=self._writer.written,
            lost=self._writer.lost,
            waiting=self._writer.waiting,
            error=error.sentence if error is not None else "",
        )

    def record(self, event: Event) -> None:
        """See `Audit.record`."""
        if self.enabled:
            self._writer.put(body_of(event, self._source), None)

    async def wrote(self, event: Event) -> None:
        """See `Audit.wrote`."""
        if self._settings.on_error != "refuse" or not self.enabled:
            self.record(event)
            return
        done: Done = asyncio.get_running_loop().create_future()
        if not self._writer.put(body_of(event, self._source), done):
            raise BUSY.again()
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                error = await done
        except TimeoutError:
            raise _SLOW.again() from None
        if error is not None:
            raise error.again()

    def reopen(self) -> None:
        """Write to the file that has the name now: another program has rotated it."""
        self._writer.reopen()

    def adjust(self, settings: schema.Audit) -> None:
        """Go on with other settings; what was recorded before goes where it should.

        Args:
            settings: The section `audit`.
        """
        self._settings = settings
        if not settings.enabled:
            # Closes the file. That records were lost is still recorded there.
            self._writer.reopen()
        elif (settings.file, settings.stdout) != self._to:
            self._to = settings.file, settings.stdout
            self._writer.turn_to(target_of(settings))

    async def close(self) -> None:
        """Wait until every record is written or lost."""
        await self._writer.flush()  # also what was recorded before it was turned off


def target_of(settings: schema.Audit) -> Target:
    """Return where records go; if the audit is off, nobody records any.

    Args:
        settings: The section `audit`.
    """
    return Stream() if settings.file is None else AuditFile(settings.file)
