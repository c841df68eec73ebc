"""Read this node's clocks, and write times for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_ROUNDED: Final = 2  # "119 s", and from there on "2 min"
_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"  # RFC 3339


def now() -> float:
    """Return the seconds since the Unix epoch."""
    return datetime.now(UTC).timestamp()


def since_boot() -> float:
    """Return the seconds since this node started, also those of its suspensions."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Suspension:
    """Measure for how long this node has been suspended since this object was made.

    CLOCK_MONOTONIC, and so the event loop's clock, stands while a node is suspended;
    CLOCK_BOOTTIME goes on.
    """

    def __init__(self) -> None:
        # The monotonic clock is read first here and last in `seconds`: what passes
        # between two readings makes the result too small, never too large.
        self._awake = time.monotonic()
        self._whole = since_boot()

    def seconds(self) -> float:
        """Return the seconds of suspension, exactly 0 if there was none."""
        whole = since_boot() - self._whole
        return max(0.0, whole - (time.monotonic() - self._awake))


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
    return moment.strftime(_FORMAT)


def seconds_since(text: str) -> float:
    """Return the seconds from a time that `when` has written until now."""
    moment = datetime.strptime(text, _FORMAT).replace(tzinfo=UTC)
    return now() - moment.timestamp()


def spell(seconds: float) -> str:
    """Return a length of time for people, in one unit, rounded down."""
    for size, unit in _UNITS:
        if seconds >= _ROUNDED * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
