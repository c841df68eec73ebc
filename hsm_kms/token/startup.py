"""Start workers up to where they can serve, and see them out.

A worker has loaded the module, is logged in and has opened its sessions within
`start_timeout`, or it is ended. How long it takes to read and to prove the keys grows
with their number: there, each answer of the token has the same limit. A worker that
cannot be killed is counted until its process has ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hsm_kms.errors import HsmKmsError, PinRejectedError, TokenTimeoutError
from hsm_kms.tasks import complete
from hsm_kms.token.ends import End
from hsm_kms.token.process import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hsm_kms.token.channel import Channel
    from hsm_kms.token.counts import Counts
    from hsm_kms.token.ends import Keeper
    from hsm_kms.token.login import PinLogin
    from hsm_kms.token.places import Unkillable
    from hsm_kms.token.restarts import KillBudget
    from hsm_kms.token.settings import WorkerSettings


class Startup:
    """Start workers, and see them out.

    Args:
        settings: Limits of a start, and what the worker is told.
        login: Logs a worker in.
        qualify: Called with a worker that is logged in, before its sessions are
            lent; raises an error to refuse it.
        budget: Counts the workers that had to be killed.
        unkillable: Counts the workers that could not be killed.
        counts: Running totals.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        login: PinLogin,
        qualify: Callable[[Worker], Awaitable[None]],
        budget: KillBudget,
        unkillable: Unkillable,
        counts: Counts,
    ) -> None:
        self._settings = settings
        self._login = login
        self._qualify = qualify
        self._budget = budget
        self._unkillable = unkillable
        self._counts = counts

    async def start(self, keeper: Keeper) -> tuple[Worker, list[Channel]]:
        """Start a worker that can serve.

        Args:
            keeper: Decides how the worker ends.

        Returns:
            The worker, and those of its channels that have a session.

        Raises:
            HsmKmsError: The worker could not be started, or was refused.
        """
        await self._login.check()
        settings = self._settings
        spent = self._budget.spent
        worker = await Worker.spawn(
            settings.sessions,
            settings.env,
            keeper=keeper,
            functions=self._counts.functions,
        )
        try:
            async with asyncio.timeout(settings.start_timeout):
                started = await worker.configure(settings.configure)
                await self._log_in(worker)
                granted = worker.sessions if started.os_locking else worker.sessions[:1]
                channels = await worker.open_sessions(granted[:1] if spent else granted)
            await self._qualify(worker)
            if spent:  # a canary passed with one session: open the others too
                async with asyncio.timeout(settings.start_timeout):
                    channels = await worker.open_sessions(granted)
        except TimeoutError:
            self._counts.ends[End.START] += 1
            keeper.end(worker, End.START, "it did not start in time")
            await self.see_out(worker)
            raise TokenTimeoutError(
                f"the token worker did not start within {settings.start_timeout:g} s",
                hint="see whether the HSM and its client service are up",
            ) from None
        except BaseException as error:
            if isinstance(error, Exception):
                self._counts.ends[End.START] += 1
            await self.see_out(worker)
            raise
        self._budget.refill()
        return worker, channels

    async def start_reader(self, keeper: Keeper) -> Worker:
        """Start a worker with a control session alone, logged in.

        Args:
            keeper: Decides how the worker ends.

        Raises:
            HsmKmsError: The worker could not be started.
        """
        await self._login.check()
        settings = self._settings
        worker = await Worker.spawn(
            0, settings.env, keeper=keeper, functions=self._counts.functions
        )
        try:
            async with asyncio.timeout(settings.start_timeout):
                await worker.configure(settings.configure)
                await self._log_in(worker)
        except TimeoutError:
            await self.see_out(worker)
            raise TokenTimeoutError("a fresh worker did not start in time") from None
        except BaseException:
            await self.see_out(worker)
            raise
        return worker

    async def _log_in(self, worker: Worker) -> None:
        try:
            tried = await self._login.login(worker)
        except PinRejectedError:
            self._counts.logins["rejected"] += 1
            raise
        except HsmKmsError:
            self._counts.logins["failed"] += 1
            raise
        if tried:
            self._counts.logins["ok"] += 1

    async def see_out(self, worker: Worker) -> None:
        """Let a worker leave, even if this task is cancelled meanwhile."""
        try:
            await complete(worker.leave())
        finally:
            if worker.killed:
                self._budget.spend()
            if not worker.gone:
                self._unkillable.add(worker)
