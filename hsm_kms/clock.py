"""Read this node's clock, and write times for people."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> float:
    """Return the seconds since the Unix epoch."""
    return datetime.now(UTC).timestamp()


def when(seconds: float) -> str:
    """Write a time as RFC 3339 does, in UTC, without fractions.

    Args:
        seconds: Seconds since the Unix epoch. A time beyond the calendar is written
            as a number.
    """
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} seconds after 1970"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
