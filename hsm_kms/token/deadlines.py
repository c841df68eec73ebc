"""End what waits too long, with one timer for all that waits.

A timer for each request would cost more than all else that the pool does for it, and
almost none would ever fire.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Call back for each item whose deadline has passed.

    Args:
        expire: Called once with each such item, on the event loop.
    """

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._times: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = float("inf")  # when the timer fires; never later than any deadline

    def set(self, item: T, when: float) -> None:
        """Set or replace the deadline of an item, in the loop's time."""
        self._times[item] = when
        if when < self._next:
            self._wake_at(when)

    def drop(self, item: T) -> None:
        """Forget an item; the timer stays, and finds it gone."""
        self._times.pop(item, None)

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = when
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer, self._next = None, float("inf")
        now = self._loop.time()
        due = [item for item, when in self._times.items() if when <= now]
        for item in due:
            del self._times[item]
        if self._times:
            self._wake_at(min(self._times.values()))
        for item in due:
            self._expire(item)
