"""Define what those who decide something need to have it recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from hsm_kms.audit.events import Event
    from hsm_kms.config import schema
    from hsm_kms.errors import AuditError


class Audit(Protocol):
    """Record events; `audit.stream.AuditStream` does."""

    def record(self, event: Event) -> None:
        """Record an event soon, in the order of the calls; never wait, never fail."""
        ...

    async def wrote(self, event: Event) -> None:
        """Record an event; if requests are refused otherwise, wait until it is written.

        Raises:
            AuditError: It could not be written, and `audit.on_error` is refuse.
        """
        ...

    @property
    def enabled(self) -> bool:
        """Return True if events are recorded; otherwise nobody need make them."""
        ...

    @property
    def fault(self) -> AuditError | None:
        """Return why requests are refused now; None if they are not."""
        ...


class AdjustableAudit(Audit, Protocol):
    """Record events as a configuration says that can change."""

    def adjust(self, settings: schema.Audit) -> None:
        """Go on with other settings; what was recorded before goes where it should.

        Args:
            settings: The section `audit`.
        """
        ...


class _Unaudited:
    """Record nothing."""

    enabled: Final = False
    fault: Final = None

    def record(self, event: Event) -> None:
        """Ignore the event."""

    async def wrote(self, event: Event) -> None:
        """Ignore the event."""

    def adjust(self, settings: schema.Audit) -> None:
        """Ignore the settings."""


UNAUDITED: Final[AdjustableAudit] = _Unaudited()
"""An audit that is off."""
