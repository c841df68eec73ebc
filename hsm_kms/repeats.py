"""Log an event that can come in floods once, and then as a count.

1. The first event of a kind is logged at once.
2. Events of this kind that follow are counted. When the window ends, the latest of
   them is logged with their number, and a longer window begins.
3. After a window without such an event, the next one is logged at once again.
4. When the server stops, what was counted until then is logged.
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
        repeated: Number of events.
        fields: Fields of the latest.
    """

    number: int
    since: float
    repeated: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


class Repeats:
    """Log the events of one module that can come in floods.

    Args:
        name: Name of its logger.
    """

    def __init__(self, name: str) -> None:
        self._logger = get_logger(name)
        self._windows: dict[tuple[int, str, Hashable], _Window] = {}
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
        key: tuple[int, str, Hashable] = (level, event, kind)
        if key not in self._windows and len(self._windows) >= MOST_KINDS:
            key = (level, event, _OTHERS)
        window = self._windows.get(key)
        if window is None:
            self._logger.log(level, event, **fields)
            self._open(key, 0)
        else:
            window.repeated += 1
            window.fields = fields

    def log_counts(self) -> None:
        """Log what was counted since the windows were opened."""
        now = asyncio.get_running_loop().time()
        for key, window in self._windows.items():
            if window.repeated:
                self._log_count(key, window, round(now - window.since, 1))
                window.repeated = 0

    def _open(self, key: tuple[int, str, Hashable], number: int) -> None:
        loop = asyncio.get_running_loop()
        self._windows[key] = _Window(number=number, since=loop.time())
        loop.call_later(WINDOWS[number], self._close, key)

    def _close(self, key: tuple[int, str, Hashable]) -> None:
        window = self._windows.pop(key)
        if not window.repeated:
            return
        self._log_count(key, window, WINDOWS[window.number])
        self._open(key, min(window.number + 1, len(WINDOWS) - 1))

    def _log_count(
        self, key: tuple[int, str, Hashable], window: _Window, seconds: float
    ) -> None:
        level, event, _ = key
        self._logger.log(
            level,
            event,
            **window.fields,
            repeated=window.repeated,
            within_seconds=seconds,
        )


_all: Final[WeakSet[Repeats]] = WeakSet()


def log_all_counts() -> None:
    """Log what every `Repeats` has counted, because the server stops."""
    for each in list(_all):
        each.log_counts()
