"""The watch over workers that serve: stuck calls, hung ones, sessions not opened yet.

1. A call running longer than `call_timeout` brings one spare worker.
2. One running longer than `hang_timeout` ends its worker, the other sessions having
   drained.
3. Where the token had fewer sessions than were wanted, one more is tried now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import WorkerLostError
from hsm_kms.log import get_logger
from hsm_kms.token.ends import End

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from hsm_kms.token.channel import Channel
    from hsm_kms.token.pool import Pool
    from hsm_kms.token.process import Worker
    from hsm_kms.token.settings import WorkerSettings

DRAIN_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 0.25
SPARE_SECONDS: Final = 10.0  # a spare stays this long after the last stuck call
GROW_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05

_log = get_logger(__name__)


class Watchdog:
    """Looks at the workers that serve.

    Args:
        settings: How workers are made.
        ready: The workers that serve, as they come and go.
        pool: Has their sessions.
        run: Runs something in the background.
        keep: Keeps one more worker alive, until cancelled.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        ready: Sequence[Worker],
        pool: Pool,
        run: Callable[[Awaitable[None]], asyncio.Task[None]],
        keep: Callable[[], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._ready = ready
        self._pool = pool
        self._run = run
        self._keep = keep
        self._grow_at = 0.0
        self._spare: asyncio.Task[None] | None = None
        self._spare_until = 0.0

    @property
    def has_spare(self) -> bool:
        """Whether a spare worker has its place on the token."""
        return self._spare is not None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                for worker in self._hung():
                    self._run(self._end_hung(worker))
                self._mind_spare()
                await self._grow()
            except Exception as error:  # noqa: BLE001 - a bug must not end the watch
                _log.error("bug in the watch over workers", exc_info=error)

    async def drain(
        self, worker: Worker, seconds: float, since: float = float("-inf")
    ) -> None:
        """Lend nothing more from a worker, and wait for the calls under way.

        Args:
            worker: About to be ended.
            seconds: Longest wait.
            since: Calls begun before are not waited for, in the loop's time.
        """
        worker.lend_no_more()
        for channel in worker.sessions:
            self._pool.withdraw(channel)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until and any(  # noqa: ASYNC110 - polls channels, no event
            channel.busy_since is not None and channel.busy_since > since
            for channel in worker.sessions
        ):
            await asyncio.sleep(_POLL_SECONDS)

    def _hung(self) -> list[Worker]:
        limit = asyncio.get_running_loop().time() - self._settings.hang_timeout
        return [
            worker
            for worker in self._ready
            if not worker.retiring
            and any(
                channel.busy_since is not None and channel.busy_since < limit
                for channel in (worker.control, *worker.sessions)
            )
        ]

    async def _end_hung(self, worker: Worker) -> None:
        limit = self._settings.hang_timeout
        hung_before = asyncio.get_running_loop().time() - limit
        await self.drain(worker, DRAIN_SECONDS, hung_before)
        worker.kill(End.HANG, f"one call ran longer than {limit:g} s")

    def _mind_spare(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._pool.busy_longer_than(self._settings.call_timeout):
            self._spare_until = now + SPARE_SECONDS
            if self._spare is None:
                _log.warning("token calls are stuck: starting a spare worker")
                self._spare = self._run(self._keep())
        elif self._spare is not None and now > self._spare_until:
            self._spare.cancel()
            self._spare = None

    async def _grow(self) -> None:
        """Try one more session, where the token had no more when we asked."""
        now = asyncio.get_running_loop().time()
        if now < self._grow_at:
            return
        self._grow_at = now + GROW_SECONDS
        for worker in self._ready:
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
