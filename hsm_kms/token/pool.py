"""Lend the sessions of all workers to requests, and take them back.

1. A session belongs to the call that runs on it, not to the request: when a request
   gives up, its session is lent again only after the answer to it was read.
2. A request waits for a session at most `session_wait`, and never past its deadline.
3. The session that came back last is lent first: few sessions stay warm.
4. A request whose session or worker was lost under it runs once more, elsewhere, if
   time remains; a call that hangs is never made again.
5. All of it runs on the event loop: whatever stands between two awaits is one step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    HsmKmsError,
    PoolClosedError,
    PoolTimeoutError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.ipc import ckr
from hsm_kms.ipc.messages import Failure
from hsm_kms.token.breaker import Breaker
from hsm_kms.token.counts import Counts
from hsm_kms.token.ends import End
from hsm_kms.token.errors import LOST, BreakerEffect, SessionEffect, row_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.channel import Channel

_PATIENT: Final = 0.5  # of call_timeout: an unanswered call this old is a fault


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Count the sessions held, of them idle, and the requests waiting for one."""

    sessions: int
    idle: int
    waiting: int


class Pool:
    """Hold the sessions of all workers.

    Args:
        session_wait: Longest wait for a session, in seconds.
        call_timeout: Longest wait for a token's answer, in seconds.
        alarm: Raised by every error whose cause is the token, not the request.
        counts: Running totals.

    Attributes:
        breaker: Fails requests at once while the token is down.
    """

    def __init__(
        self,
        *,
        session_wait: float,
        call_timeout: float,
        alarm: Alarm,
        counts: Counts | None = None,
    ) -> None:
        self.breaker = Breaker()
        self._counts = counts or Counts()
        self._session_wait = session_wait
        self._call_timeout = call_timeout
        self._alarm = alarm
        self._sessions: set[Channel] = set()
        self._idle: list[Channel] = []
        self._waiting: deque[asyncio.Future[Channel]] = deque()
        self._down: HsmKmsError | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def stats(self) -> PoolStats:
        """Count the sessions, the idle ones, and the requests that wait for one."""
        return PoolStats(
            sessions=len(self._sessions),
            idle=len(self._idle),
            waiting=sum(not waiter.done() for waiter in self._waiting),
        )

    def busy_longer_than(self, seconds: float) -> list[Channel]:
        """Return the sessions whose call has run for more than `seconds`."""
        limit = self._loop.time() - seconds
        return [
            channel
            for channel in self._sessions
            if channel.busy_since is not None and channel.busy_since < limit
        ]

    def __contains__(self, channel: Channel) -> bool:
        """Return True if the pool holds this session, lent or idle."""
        return channel in self._sessions

    def add(self, channel: Channel) -> None:
        """Add an idle session, and lend it from now on."""
        if self._closed:
            return
        self._down = None
        self._sessions.add(channel)
        self._hand_out(channel)

    def withdraw(self, channel: Channel) -> None:
        """Stop lending a session; a call under way on it may finish."""
        self._sessions.discard(channel)
        if channel in self._idle:
            self._idle.remove(channel)

    def fail(self, error: HsmKmsError) -> None:
        """Fail all requests with `error` until a session is added.

        Does nothing while the pool has sessions, which can serve them.
        """
        if not (self._sessions or self._closed):
            self._fail_all(error)

    def _fail_all(self, error: HsmKmsError) -> None:
        self._down = error
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error.again())

    async def call(
        self,
        request: Request,
        *,
        deadline: float | None,
        before: Callable[[], None] | None = None,
    ) -> Reply:
        """Run one request on some session.

        Args:
            request: The request to a session.
            deadline: In the loop's time, or None.
            before: Called just before each try; an error that it raises ends the call.

        Raises:
            PoolTimeoutError: No session became free in time.
            TokenTimeoutError: The token did not answer in time.
            HsmKmsError: The token refused or is unavailable, see `token.errors`.
        """
        now = self._loop.time()
        latest = now + self._call_timeout
        if deadline is not None:
            if deadline <= now:  # an idle session would run the call all the same
                raise TokenTimeoutError("no time is left for the token")
            latest = min(latest, deadline)
        try:
            return await self._attempt(request, latest, before)
        except LOST as error:
            self._alarm.fault(error)
            if self._loop.time() >= latest:
                raise TokenTimeoutError("no time is left for another try") from None
        try:
            return await self._attempt(request, latest, before)
        except LOST as error:
            self._alarm.fault(error)
            raise WorkerLostError(
                "the token was lost twice under one request"
            ) from None

    async def _attempt(
        self, request: Request, latest: float, before: Callable[[], None] | None
    ) -> Reply:
        self.breaker.check()
        channel = await self._lend(latest)
        # No await from here to the send: an idle session is taken and used in one
        # step, and every way out gives it back.
        try:
            if before is not None:
                before()
            self._counts.calls[type(request).__name__.lower()] += 1
            future = channel.exchange(request)
        except BaseException:
            self._take_back(channel)
            raise
        future.add_done_callback(lambda _: self._take_back(channel))
        try:
            async with asyncio.timeout_at(latest):
                # Shielded: the call goes on in the module when its request gives up,
                # and only its answer frees the session.
                reply = await asyncio.shield(future)
        except TimeoutError:
            raise self._timed_out(channel) from None
        except asyncio.CancelledError:
            self._timed_out(channel)
            raise
        if isinstance(reply, Failure):
            raise self._apply(channel, request, reply)
        self.breaker.succeeded()
        return reply

    def _timed_out(self, channel: Channel) -> TokenTimeoutError:
        """Return the error of an unanswered call; blame the token if it had time."""
        error = TokenTimeoutError("the token did not answer in time")
        since = channel.busy_since
        patient = self._call_timeout * _PATIENT
        if since is not None and self._loop.time() - since >= patient:
            self._counts.errors["timeout"] += 1
            self._alarm.fault(error)
            self.breaker.failed(error)
        return error

    def _apply(
        self, channel: Channel, request: Request, failure: Failure
    ) -> HsmKmsError:
        """Do what the failure's row says, and return the error for the caller."""
        name = ckr.name(failure.rv) if failure.rv else failure.cause
        self._counts.errors[name] += 1
        row = row_for(failure, request, others=len(self._sessions) > 1)
        error = row.error_from(failure)
        if row.session is SessionEffect.LENT_LAST:
            self._lend_last(channel)
        elif row.session is SessionEffect.WITHDRAWN:
            self.withdraw(channel)
        elif row.session is SessionEffect.RETIRED:
            channel.retire(End.LOGIN)  # its worker's other sessions go with it
        if row.breaker is BreakerEffect.COUNTS:
            # Requests that the breaker refuses are not tried on another session.
            self.breaker.failed(row.final_from(failure))
        elif row.breaker is BreakerEffect.RESETS:
            self.breaker.succeeded()
        if row.reported and not row.retried:  # `call` reports before it tries again
            self._alarm.fault(error)
        return error

    async def _lend(self, latest: float) -> Channel:
        # No await before the return: no other request can get the popped session.
        while self._idle:
            channel = self._idle.pop()
            if channel.lendable:
                return channel
            self._sessions.discard(channel)
        if self._down is not None:
            raise self._down.again()
        waiter: asyncio.Future[Channel] = self._loop.create_future()
        self._waiting.append(waiter)
        until = min(latest, self._loop.time() + self._session_wait)
        try:
            async with asyncio.timeout_at(until):
                return await waiter
        except TimeoutError:
            self._reclaim(waiter)
            raise self._nothing_free() from None
        except asyncio.CancelledError:
            self._reclaim(waiter)
            raise

    def _nothing_free(self) -> HsmKmsError:
        if self._sessions:
            return PoolTimeoutError("no session became free in time")
        return WorkerLostError("there is no token worker at the moment")

    def _reclaim(self, waiter: asyncio.Future[Channel]) -> None:
        """Forget a waiter that gave up, and take back the session it may hold."""
        # A session can be handed to a waiter just before it is cancelled or times out.
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif waiter.done() and not waiter.cancelled() and not waiter.exception():
            self._take_back(waiter.result())

    def _take_back(self, channel: Channel) -> None:
        if not channel.lendable:
            self.withdraw(channel)
        elif channel in self._sessions:
            self._hand_out(channel)

    def _lend_last(self, channel: Channel) -> None:
        """Put an idle session last, for the next try to get another one."""
        # `_take_back` ran before the request woke: the session is idle, or lent again.
        if channel in self._idle:
            self._idle.remove(channel)
            self._idle.insert(0, channel)

    def _hand_out(self, channel: Channel) -> None:
        """Give a session to the request that waits longest, or keep it idle."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(channel)
                return
        self._idle.append(channel)

    def close(self) -> None:
        """Fail all requests that wait or come later; calls under way may finish."""
        self._closed = True
        self._sessions.clear()
        self._idle.clear()
        self._fail_all(PoolClosedError("the server is shutting down"))
