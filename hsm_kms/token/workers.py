"""Keep the configured number of token workers alive, and the pool stocked.

1. The sessions of a worker are lent only after the worker has loaded the module, logged
   in and opened them, and `qualify` has accepted the worker.
2. A worker that has ended is replaced at once. If a worker cannot start, or ends soon,
   the next one starts after growing pauses with jitter. While there is no worker,
   requests fail with the reason.
3. Only `Workers.end` ends a worker that serves, for every caller. A worker is
   ended once, calls under way may finish as the row in `token.ends` says, and a worker
   is recycled only while all workers serve, so never two at once.
4. A worker starts only if it has a place, see `token.places`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import HsmKmsError, WorkerLostError
from hsm_kms.log import get_logger
from hsm_kms.repeats import Repeats
from hsm_kms.tasks import keep_running
from hsm_kms.token.counts import Counts
from hsm_kms.token.ends import ENDS, End, Ending
from hsm_kms.token.places import Places, Unkillable
from hsm_kms.token.restarts import Backoff, KillBudget
from hsm_kms.token.startup import Startup
from hsm_kms.token.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.channel import Channel
    from hsm_kms.token.login import PinLogin
    from hsm_kms.token.pool import Pool
    from hsm_kms.token.process import Worker
    from hsm_kms.token.settings import WorkerSettings

_WELL_SECONDS: Final = 10.0  # a worker that lived this long resets the pauses
_POLL_SECONDS: Final = 0.05

_log = get_logger(__name__)


class Workers:
    """Keep the worker processes.

    Args:
        settings: Number and limits of the workers.
        pool: Lends the sessions.
        login: Logs a worker in.
        qualify: Called with a worker that is logged in, before its sessions are
            lent; raises an error to refuse it.
        alarm: Raised when a worker started, ended, or could not start.
        counts: Running totals.
        unkillable: The workers that cannot be killed, of all engines.

    Attributes:
        ready: The workers that serve, and those that drain.
        last_error: Why the latest worker could not start; None if it could.
        failed_at: When that was, in the loop's time.
    """

    def __init__(  # noqa: PLR0913 - one object each
        self,
        settings: WorkerSettings,
        *,
        pool: Pool,
        login: PinLogin,
        qualify: Callable[[Worker], Awaitable[None]],
        alarm: Alarm,
        counts: Counts | None = None,
        unkillable: Unkillable | None = None,
    ) -> None:
        self._settings = settings
        self._counts = counts or Counts()
        self._pool = pool
        self._alarm = alarm
        self.ready: list[Worker] = []
        self.last_error: HsmKmsError | None = None
        self.failed_at = -math.inf
        self._budget = KillBudget()
        unkillable = unkillable or Unkillable()
        self._places = Places(settings.workers, unkillable)
        self._startup = Startup(
            settings,
            login=login,
            qualify=qualify,
            budget=self._budget,
            unkillable=unkillable,
            counts=self._counts,
        )
        self._failures = Repeats(__name__)
        self._tasks: set[asyncio.Task[None]] = set()
        self._spare: asyncio.Task[None] | None = None
        self._spare_worker: Worker | None = None

    def start(self) -> None:
        """Start the workers in the background."""
        for number in range(self._settings.workers):
            self._run_on("token worker", partial(self._keep, number))
        self._run_on("watchdog", Watchdog(self._settings, self._pool, self).run)

    @contextlib.asynccontextmanager
    async def fresh_worker(self) -> AsyncIterator[Worker | None]:
        """Start a worker that only reads the keys, and let it leave at the end.

        Yields:
            A worker with a control session alone, logged in; None while the place of
            the spare worker is taken, or while the budget of kills is spent.

        Raises:
            HsmKmsError: The worker could not be started.
        """
        spare = self._settings.workers
        if self.has_spare or self._budget.spent or not self._places.is_free(spare):
            yield None
            return
        worker = await self._startup.start_reader(self)
        try:
            yield worker
        finally:
            await self._startup.see_out(worker)

    def end(self, worker: Worker, end: End, why: str) -> None:
        """End a worker as its row in `token.ends` says, and have it replaced.

        Nothing happens if the worker is being ended already, or if it must wait until
        all others serve.

        Args:
            worker: The worker.
            end: Why, for metrics.
            why: Why, for the log.
        """
        how = ENDS[end]
        if how.drain == 0:
            worker.finish(end, why)
            return
        if worker.retiring or (how.alone and self._lending < self._settings.workers):
            return
        # No await from the checks to here: the second of two callers finds this worker
        # retiring, and a second worker finds that not all serve.
        worker.lend_no_more()
        for channel in worker.sessions:
            self._pool.withdraw(channel)
        self._run(self._drain_and_finish(worker, end, why))

    @property
    def _lending(self) -> int:
        return sum(not each.retiring for each in self.ready)

    async def _drain_and_finish(self, worker: Worker, end: End, why: str) -> None:
        settings, loop = self._settings, asyncio.get_running_loop()
        seconds = ENDS[end].drain
        until = loop.time() + (settings.call_timeout if seconds is None else seconds)
        hung_before = loop.time() - settings.hang_timeout
        while loop.time() < until and any(  # noqa: ASYNC110 - polls channels, no event
            channel.busy_since is not None and channel.busy_since > hung_before
            for channel in worker.sessions
        ):
            await asyncio.sleep(_POLL_SECONDS)
        worker.finish(end, why)

    @property
    def has_spare(self) -> bool:
        """Return True if a spare worker has its place on the token."""
        return self._spare is not None

    def start_spare(self) -> None:
        """Keep one more worker alive, unless there is a spare one."""
        if self._spare is None:
            keep = partial(self._keep, self._settings.workers)
            self._spare = self._run_on("spare worker", keep)
            self._spare.add_done_callback(self._spare_gone)

    def drop_spare(self) -> None:
        """Let the spare worker leave, calls under way having finished."""
        if self._spare_worker is not None:
            if self._lending > 1:  # no other worker may have a place
                self.end(self._spare_worker, End.ASKED, "the spare is not needed")
        elif self._spare is not None:
            self._spare.cancel()

    def _spare_gone(self, _: asyncio.Task[None]) -> None:
        self._spare = self._spare_worker = None

    def canary_passed(self) -> None:
        """Allow all configured workers again, because the token works."""
        self._budget.refill()

    async def close(self) -> None:
        """Let every worker leave at once, and wait until all are gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _run_on(
        self, name: str, work: Callable[[], Awaitable[None]]
    ) -> asyncio.Task[None]:
        return self._run(keep_running(name, work))

    def _run(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self, number: int) -> None:
        """Keep worker `number` alive: start one after the other until cancelled."""
        backoff = Backoff()
        while True:
            await self._budget.wait(number)
            if not self._places.is_free(number):
                self._failed(self._places.error())
            await self._places.take(number)
            try:
                pause = await self._keep_one(number, backoff)
            finally:
                self._places.release(number)
            if pause is None:
                return
            await asyncio.sleep(pause)

    async def _keep_one(self, number: int, backoff: Backoff) -> float | None:
        """Start one worker, and return once it has ended.

        Returns:
            The seconds until another one starts; None if none shall.
        """
        try:
            worker, channels = await self._startup.start(self)
        except Exception as error:  # noqa: BLE001 - a bug must not end it
            known = _as_known(error)
            self._failed(known)
            return backoff.pause(known, beside=bool(self.ready))
        loop = asyncio.get_running_loop()
        began = loop.time()
        is_spare = number == self._settings.workers
        self._spare_worker = worker if is_spare else self._spare_worker
        how = await self._serve(worker, channels)
        if is_spare:
            self._spare_worker = None
        if not how.replaced:
            return None
        if loop.time() - began > _WELL_SECONDS:
            backoff.reset()
            return 0.0
        return backoff.pause(beside=bool(self.ready))

    def _failed(self, error: HsmKmsError) -> None:
        self._failures.log(
            logging.WARNING,
            "token worker cannot start",
            str(error),
            error=error.sentence,
        )
        self.last_error = error
        self.failed_at = asyncio.get_running_loop().time()
        self._pool.fail(error)
        self._alarm.notify("a token worker cannot start")

    async def _serve(self, worker: Worker, channels: list[Channel]) -> Ending:
        _log.info("token worker started", pid=worker.pid, sessions=len(channels))
        self.last_error = None
        self.ready.append(worker)
        for channel in channels:
            self._pool.add(channel)
        self._alarm.notify("a token worker started")
        try:
            await worker.lost.wait()
        finally:
            self.ready.remove(worker)
            for channel in worker.sessions:  # also those opened later
                self._pool.withdraw(channel)
            await self._startup.see_out(worker)
            end = worker.end or End.ASKED
            self._counts.ends[end] += 1
            _log.info(
                "token worker ended",
                pid=worker.pid,
                end=str(end),
                reason=worker.reason,
            )
            self._alarm.notify("a token worker ended")
        return ENDS[end]


def _as_known(error: Exception) -> HsmKmsError:
    if isinstance(error, HsmKmsError):
        return error
    _log.error("bug while a token worker started", exc_info=error)
    return WorkerLostError(f"a bug in hsm-kms: {type(error).__name__}")
