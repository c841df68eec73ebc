"""This node's clock, and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> float:
    """Seconds since the Unix epoch."""
    return datetime.now(UTC).timestamp()


def when(seconds: float) -> str:
    """A time as RFC 3339 writes it, in UTC, without fractions.

    Args:
        seconds: Since the Unix epoch; past the range of a calendar it stays a number.
    """
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} seconds after 1970"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
