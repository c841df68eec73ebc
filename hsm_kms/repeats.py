"""Log an event that can come in floods once, and then as a count.

1. The first event of a kind is logged at once.
2. Events of this kind that follow are counted. When the window ends, the latest of
   them is logged with their number, and a longer window begins.
3. After a window without such an event, the next one is logged at once again.
4. When the server stops, what was counted until then is logged.
5. Events between which one state changes are of one kind: the first of each is logged
   at once, and after that the latest, which says what the state is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

WINDOWS: Final = (60.0, 600.0, 3600.0)  # seconds; the last one again and again
MOST_KINDS: Final = 100  # of which a window is open; all others are one kind

_OTHERS: Final = object()


@dataclass(slots=True, kw_only=True)
class _Window:
    """Hold what came since the window was opened.

    Args:
        number: Index of its length in `WINDOWS`.
        since: When it was opened, in the loop's time.
        logged: Names of the events that were logged at once.
        repeated: Number of events that were not.
        latest: Level, name and fields of the latest of those.
    """

    number: int
    since: float
    logged: set[str] = field(default_factory=set)
    repeated: int = 0
    latest: tuple[int, str, Mapping[str, Any]] | None = None


class Repeats:
    """Log the events of one module that can come in floods.

    Args:
        name: Name of its logger.
    """

    def __init__(self, name: str) -> None:
        self._logger = get_logger(name)
        self._windows: dict[Hashable, _Window] = {}
        _all.add(self)

    def log(self, level: int, event: str, kind: Hashable = "", **fields: Any) -> None:
        """Log an event, or count it if one of its kind was logged shortly before.

        Args:
            level: Level of the standard library's `logging`.
            event: Name of the event.
            kind: What counts as the same, together with `event`; nothing that a client
                can choose.
            fields: Fields of the event; `repeated` and `within_seconds` are added if it
                stands for several.
        """
        key: Hashable = (level, event, kind)
        if key not in self._windows and len(self._windows) >= MOST_KINDS:
            key = (level, event, _OTHERS)
        self._log(key, level, event, fields)

    def log_change(self, state: str, level: int, event: str, **fields: Any) -> None:
        """Log an event that says how a state has changed.

        Args:
            state: Name of the state, which several events may be about.
            level: Level of the standard library's `logging`.
            event: Name of the event.
            fields: As for `log`.
        """
        self._log(state, level, event, fields)

    def _log(
        self, key: Hashable, level: int, event: str, fields: Mapping[str, Any]
    ) -> None:
        window = self._windows.get(key) or self._open(key, 0)
        if window.number == 0 and event not in window.logged:
            window.logged.add(event)
            self._logger.log(level, event, **fields)
        else:
            window.repeated += 1
            window.latest = (level, event, fields)

    def log_counts(self) -> None:
        """Log what was counted since the windows were opened."""
        now = asyncio.get_running_loop().time()
        for window in self._windows.values():
            self._log_count(window, round(now - window.since, 1))
            window.latest, window.repeated = None, 0

    def _open(self, key: Hashable, number: int) -> _Window:
        loop = asyncio.get_running_loop()
        loop.call_later(WINDOWS[number], self._close, key)
        self._windows[key] = window = _Window(number=number, since=loop.time())
        return window

    def _close(self, key: Hashable) -> None:
        window = self._windows.pop(key)
        if window.latest is None:
            return
        self._log_count(window, WINDOWS[window.number])
        self._open(key, min(window.number + 1, len(WINDOWS) - 1))

    def _log_count(self, window: _Window, seconds: float) -> None:
        if window.latest is None:
            return
        level, event, fields = window.latest
        counts = {"repeated": window.repeated, "within_seconds": seconds}
        self._logger.log(level, event, **fields, **counts)


_all: Final[WeakSet[Repeats]] = WeakSet()


def log_all_counts() -> None:
    """Log what every `Repeats` has counted, because the server stops."""
    for each in list(_all):
        each.log_counts()
