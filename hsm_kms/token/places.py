"""Decide how many worker processes may exist, those included that cannot be killed.

A call that hangs in the kernel, for example in a driver, keeps its process alive even
after SIGKILL. Such a worker may still hold sessions on the token.

1. There is a place for each of the configured workers, and one more for a spare.
2. A worker that cannot be killed keeps a place until its process has ended.
3. If such workers have taken all other places, one worker may serve in the place of
   the spare.
4. A reader of keys, see `Startup.start_reader`, begins only while the place of the
   spare is free, but does not take it: a spare that starts meanwhile is one more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hsm_kms.errors import WorkerUnkillableError
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from hsm_kms.errors import HsmKmsError
    from hsm_kms.token.process import Worker

_log = get_logger(__name__)


class Unkillable:
    """Hold the workers that SIGKILL has not ended, of all engines of the server.

    Attributes:
        changed: Set when a place may have become free.
    """

    def __init__(self) -> None:
        self._watched: dict[asyncio.Task[None], int] = {}
        self.changed = asyncio.Event()

    @property
    def pids(self) -> list[int]:
        """Return the process IDs of the workers."""
        return sorted(self._watched.values())

    def add(self, worker: Worker) -> None:
        """Count a worker until its process has ended."""
        task = asyncio.create_task(worker.wait_until_gone())
        self._watched[task] = worker.pid
        task.add_done_callback(self._has_gone)

    def _has_gone(self, task: asyncio.Task[None]) -> None:
        pid = self._watched.pop(task)
        self.changed.set()
        if not task.cancelled():
            _log.info("token worker that could not be killed has ended", pid=pid)


class Places:
    """Hold the places of one engine's workers.

    Args:
        workers: Number of configured workers. They have the places 0 to `workers` - 1;
            the spare worker has the place `workers`.
        unkillable: The workers that cannot be killed.
    """

    def __init__(self, workers: int, unkillable: Unkillable) -> None:
        self._workers = workers
        self._unkillable = unkillable
        self._taken: set[int] = set()

    def is_free(self, place: int) -> bool:
        """Return True if a worker may start in this place, which is not taken."""
        held = len(self._unkillable.pids)
        if place == self._workers:
            return len(self._taken) + held <= self._workers
        regular = len(self._taken - {self._workers})
        alone = not self._taken and held <= self._workers
        return alone or regular + held < self._workers

    def error(self) -> HsmKmsError:
        """Return why a place is not free."""
        pids = ", ".join(map(str, self._unkillable.pids))
        return WorkerUnkillableError(
            f"token workers cannot be killed and leave no place for others: {pids}",
            hint="a call hangs in the kernel: repair the driver or file system that "
            "the PKCS#11 module uses, or reboot the node",
        )

    async def take(self, place: int) -> None:
        """Wait until the place is free, and take it."""
        changed = self._unkillable.changed
        while not self.is_free(place):
            changed.clear()
            await changed.wait()
        self._taken.add(place)

    def release(self, place: int) -> None:
        """Give the place back: its worker has gone, or counts as unkillable."""
        self._taken.discard(place)
        self._unkillable.changed.set()
