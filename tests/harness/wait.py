"""Wait for what a test expects, however slow the machine is.

Every bound on time in the tests goes through `patient`: on a slow machine
HSM_KMS_PATIENCE=3 makes them all three times as long.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = float(os.environ.get("HSM_KMS_PATIENCE", "1"))
SECONDS = 60.0  # how long a test waits for what usually takes 2 s at most

T = TypeVar("T")


def patient(seconds: float = SECONDS) -> float:
    """Return `seconds` times `PATIENCE`, for the timeouts of other libraries."""
    return seconds * PATIENCE


def wait_for(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Poll `condition` until it returns something true, and return that.

    Args:
        condition: Called every 10 ms at first, later every 100 ms.
        seconds: How long it may take, to be multiplied by `PATIENCE`.

    Raises:
        AssertionError: The condition did not become true in time.
    """
    began = time.monotonic()
    while not (value := condition()):
        time.sleep(_pause(value, began, seconds))
    return value


async def until(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Poll `condition` as `wait_for` does, and let the event loop run meanwhile.

    Args:
        condition: Called every 10 ms at first, later every 100 ms.
        seconds: How long it may take, to be multiplied by `PATIENCE`.

    Raises:
        AssertionError: The condition did not become true in time.
    """
    began = time.monotonic()  # the loop's clock may be the test's
    while not (value := condition()):
        pause = _pause(value, began, seconds)
        await asyncio.sleep(pause)
    return value


def _pause(value: object, began: float, seconds: float) -> float:
    """Return how long to wait: what takes long is asked for more seldom."""
    waited = time.monotonic() - began
    if waited > patient(seconds):
        raise AssertionError(f"still {value!r} after {patient(seconds):g} s")
    return min(max(waited / 10, 0.01), 0.1)


def wait_quiet(
    reading: Callable[[], T], still: float = 0.4, seconds: float = SECONDS
) -> T:
    """Poll `reading` until it has not changed for a while, and return it.

    Args:
        reading: What changes while something is under way, such as a count of calls.
        still: For how many seconds it must stay the same, to be multiplied by
            `PATIENCE`.
        seconds: How long it may take until then.

    Raises:
        AssertionError: The reading still changed after that time.
    """
    watch = _Stillness(reading, patient(still))
    wait_for(watch.reached, seconds)
    return watch.last


async def quiet(
    reading: Callable[[], T], still: float = 0.4, seconds: float = SECONDS
) -> T:
    """Wait as `wait_quiet` does, and let the event loop run meanwhile."""
    watch = _Stillness(reading, patient(still))
    await until(watch.reached, seconds)
    return watch.last


async def settle(rounds: int = 10) -> None:
    """Let every task run until it waits for something outside the event loop.

    Args:
        rounds: How many tasks may wake each other one after the other.
    """
    for _ in range(rounds):
        await asyncio.sleep(0)


class _Stillness(Generic[T]):
    """A reading, and since when it has been the same."""

    def __init__(self, reading: Callable[[], T], still: float) -> None:
        self._reading = reading
        self._still = still
        self.last = reading()
        self._since = time.monotonic()

    def reached(self) -> bool:
        """Read once more; return True if nothing has changed for long enough."""
        if (now := self._reading()) != self.last:
            self.last, self._since = now, time.monotonic()
        return time.monotonic() - self._since >= self._still
