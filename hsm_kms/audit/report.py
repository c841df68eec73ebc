"""Tell how the audit stream is, without what writes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Tell how the audit stream is, for metrics and /status.

    Args:
        enabled: True if events are recorded.
        target: The file, or "stdout"; "" if events are not recorded.
        refuses: True if requests are refused while records are being lost.
        written: Number of records written since the start.
        lost: Number of records lost since the start.
        waiting: Number of records that are not written yet.
        error: Cause and cure while records are being lost, or hang; "" otherwise.
    """

    enabled: bool = False
    target: str = ""
    refuses: bool = False
    written: int = 0
    lost: int = 0
    waiting: int = 0
    error: str = ""
