"""Write to the disk in one thread, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

MOST_WAITING: Final = 16

_T = TypeVar("_T")
_Work = Callable[[], None]


class WriterBusyError(Exception):
    """Raised when too many writes wait for a disk that does not answer."""


class Writer:
    """Do one piece of work after the other, in the order in which it was given.

    The thread is a daemon: a process can exit while its disk hangs.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._waiting = 0

    async def run(self, work: Callable[[], _T], seconds: float | None = None) -> _T:
        """Return the result of `work`, or raise its exception.

        Work that was given is done, also if the caller is cancelled or times out.

        Args:
            work: Is called in the writer's thread.
            seconds: Longest wait; None for no limit.

        Raises:
            TimeoutError: The work was not done in time. It may be done later.
            WriterBusyError: `MOST_WAITING` pieces of work wait already.
        """
        if self._waiting >= MOST_WAITING:
            raise WriterBusyError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        # Only the event loop counts: up here, and down in `settle`.
        self._waiting += 1

        def settle(error: Exception | None, *value: _T) -> None:
            self._waiting -= 1
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(*value)

        def in_thread() -> None:
            try:
                done = partial(settle, None, work())
            except Exception as error:  # noqa: BLE001 - raised again by the caller
                done = partial(settle, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(done)

        self._queue.put(in_thread)
        self._start()
        async with asyncio.timeout(seconds):
            return await future

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, name="state writer", daemon=True
            )
            self._thread.start()

    def _serve(self) -> None:
        while True:
            self._queue.get()()
