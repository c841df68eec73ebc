"""Watch the workers that serve: stuck calls, hung calls, sessions not opened yet.

1. A call running longer than `call_timeout` brings one spare worker.
2. A call running longer than `hang_timeout` ends its worker.
3. If the token granted fewer sessions than were wanted, one more is tried every 30 s.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from hsm_kms.errors import WorkerLostError
from hsm_kms.log import get_logger
from hsm_kms.token.ends import End

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.token.channel import Channel
    from hsm_kms.token.pool import Pool
    from hsm_kms.token.process import Worker
    from hsm_kms.token.settings import WorkerSettings

WATCH_SECONDS: Final = 0.25
SPARE_SECONDS: Final = 10.0  # a spare worker stays this long after the last stuck call
GROW_SECONDS: Final = 30.0

_log = get_logger(__name__)


class Watched(Protocol):
    """Show the watchdog the workers, and do to them what it asks for."""

    @property
    def ready(self) -> Sequence[Worker]:
        """Return the workers that serve now."""

    @property
    def has_spare(self) -> bool:
        """Return True if a spare worker has its place on the token."""

    def end(self, worker: Worker, end: End, why: str) -> None:
        """End a worker as its row in `token.ends` says."""

    def start_spare(self) -> None:
        """Keep one more worker alive."""

    def drop_spare(self) -> None:
        """Let the spare worker leave."""


class Watchdog:
    """Watch the workers that serve.

    Args:
        settings: How workers are made.
        pool: Holds their sessions.
        workers: The workers.
    """

    def __init__(self, settings: WorkerSettings, pool: Pool, workers: Watched) -> None:
        self._settings = settings
        self._pool = pool
        self._workers = workers
        self._grow_at = 0.0
        self._spare_until = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                self._end_hung()
                self._mind_spare()
                await self._grow()
            except Exception as error:  # noqa: BLE001 - a bug must not end it
                _log.error("bug in the watchdog", exc_info=error)

    def _hung(self) -> list[Worker]:
        limit = asyncio.get_running_loop().time() - self._settings.hang_timeout
        return [
            worker
            for worker in self._workers.ready
            if not worker.retiring
            and any(
                channel.busy_since is not None and channel.busy_since < limit
                for channel in (worker.control, *worker.sessions)
            )
        ]

    def _end_hung(self) -> None:
        seconds = self._settings.hang_timeout
        for worker in self._hung():
            self._workers.end(
                worker, End.HANG, f"one call ran longer than {seconds:g} s"
            )

    def _mind_spare(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._pool.busy_longer_than(self._settings.call_timeout):
            self._spare_until = now + SPARE_SECONDS
            if not self._workers.has_spare:
                _log.warning("token calls are stuck: starting a spare worker")
                self._workers.start_spare()
        elif self._workers.has_spare and now > self._spare_until:
            self._workers.drop_spare()

    async def _grow(self) -> None:
        """Try one more session, if the token granted fewer than were wanted."""
        now = asyncio.get_running_loop().time()
        if now < self._grow_at:
            return
        self._grow_at = now + GROW_SECONDS
        for worker in self._workers.ready:
            if worker.started is None or not worker.started.os_locking:
                continue
            for channel in worker.sessions:
                idle = channel.busy_since is None and channel.lendable
                if idle and channel not in self._pool:
                    await self._open_one_more(worker, channel)
                    return

    async def _open_one_more(self, worker: Worker, channel: Channel) -> None:
        with contextlib.suppress(TimeoutError, WorkerLostError):
            async with asyncio.timeout(self._settings.call_timeout):
                failure = await asyncio.shield(worker.open_session(channel))
            if failure is None and channel.lendable:
                _log.info("the token opens one more session", pid=worker.pid)
                self._pool.add(channel)
