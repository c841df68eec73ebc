"""Lend the sessions of all workers to requests, and take them back.

1. A session belongs to the call that runs on it, not to the request: when a request
   gives up, its session is lent again only after the answer to it was read. If that
   answer is a failure, the session is judged first, also if nobody waits for it.
2. A request waits for a session at most `session_wait`, and never past its deadline.
3. The session that came back last is lent first: few sessions stay warm.
4. A request whose session or worker was lost under it runs once more, elsewhere, if
   time remains; a call that hangs is never made again.
5. All of it runs on the event loop: whatever stands between two awaits is one step. In
   the step in which a session comes back, the request that waits longest is sent on it:
   no session is ever on its way to a request that gives up meanwhile.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from hsm_kms.errors import (
    HsmKmsError,
    PoolClosedError,
    PoolTimeoutError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.ipc.messages import Failure
from hsm_kms.token.attempts import Attempt, Queue
from hsm_kms.token.breaker import Breaker
from hsm_kms.token.counts import Counts, PoolStats
from hsm_kms.token.deadlines import Deadlines
from hsm_kms.token.ends import End
from hsm_kms.token.errors import LOST, SessionEffect, row_for
from hsm_kms.token.evidence import Evidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.channel import Channel


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
        self._counts = counts or Counts()
        self.breaker = Breaker(self._counts)
        self._evidence = Evidence(
            counts=self._counts,
            breaker=self.breaker,
            alarm=alarm,
            call_timeout=call_timeout,
        )
        self._session_wait = session_wait
        self._call_timeout = call_timeout
        self._sessions: set[Channel] = set()
        self._idle: list[Channel] = []
        self._waiting = Queue()
        self._deadlines: Deadlines[Attempt] = Deadlines(self._expire)
        self._down: HsmKmsError | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def stats(self) -> PoolStats:
        """Count the sessions, the idle ones, and the requests that wait for one."""
        return PoolStats(
            sessions=len(self._sessions),
            idle=len(self._idle),
            waiting=len(self._waiting),
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
        self._lend(channel)

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
        while (attempt := self._waiting.take()) is not None:
            attempt.answer.set_exception(error.again())

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
            self._evidence.lost(error)
            if self._loop.time() >= latest:
                raise TokenTimeoutError("no time is left for another try") from None
        try:
            return await self._attempt(request, latest, before)
        except LOST as error:
            self._evidence.lost(error)
            raise WorkerLostError(
                "the token was lost twice under one request"
            ) from None

    async def _attempt(
        self, request: Request, latest: float, before: Callable[[], None] | None
    ) -> Reply:
        self.breaker.check()
        answer: asyncio.Future[Reply] = self._loop.create_future()
        attempt = Attempt(request, latest, before, answer)
        self._begin(attempt)
        try:
            return await answer
        except asyncio.CancelledError:
            # If the answer had come already, `_expire` has reported this call.
            if answer.cancelled() and attempt.channel is not None:
                self._evidence.unanswered(attempt.channel.busy_since)
            self._waiting.discard(attempt)
            raise
        finally:
            self._deadlines.drop(attempt)

    def _begin(self, attempt: Attempt) -> None:
        """Send a request on an idle session, or let it wait for one."""
        until = attempt.latest
        if (channel := self._take_idle()) is not None:
            try:
                self._send(channel, attempt)
            except BaseException:
                self._lend(channel)
                raise
        elif self._down is not None:
            raise self._down.again()
        else:
            attempt.waits_since = self._loop.time()
            self._waiting.add(attempt)
            until = min(until, attempt.waits_since + self._session_wait)
        self._deadlines.set(attempt, until)

    def _take_idle(self) -> Channel | None:
        while self._idle:
            channel = self._idle.pop()
            if channel.lendable:
                return channel
            self._sessions.discard(channel)
        return None

    def _send(self, channel: Channel, attempt: Attempt) -> None:
        """Send a request on a session that nobody else has.

        If this raises an error, nothing was sent, and the caller keeps the session.
        """
        # No await in here: a session is taken and used in one step.
        if attempt.before is not None:
            attempt.before()
        self._evidence.asked(attempt.request)
        attempt.channel = channel
        try:
            channel.send(attempt.request, partial(self._answered, channel, attempt))
        except BaseException:
            attempt.channel = None
            raise

    def _answered(
        self, channel: Channel, attempt: Attempt, reply: Reply | WorkerLostError
    ) -> None:
        """Pass a reply on to its request, and lend the session to the next one."""
        # No await in here: the session is judged before anybody can get it, and the
        # next request is sent on it in the same step.
        attempt.channel = None
        waits = not attempt.answer.done()  # False if the request gave up
        last = False
        if isinstance(reply, Failure):
            row = row_for(reply, attempt.request, others=len(self._sessions) > 1)
            if row.session is SessionEffect.WITHDRAWN:
                self.withdraw(channel)
            elif row.session is SessionEffect.RETIRED:
                channel.retire(End.LOGIN)  # its worker's other sessions go with it
            last = row.session is SessionEffect.LENT_LAST
            if waits:
                attempt.answer.set_exception(self._evidence.failed(row, reply))
        elif isinstance(reply, WorkerLostError):
            if waits:
                attempt.answer.set_exception(reply)
        elif waits:
            self._evidence.worked()
            attempt.answer.set_result(reply)
        self._lend(channel, last=last)

    def _expire(self, attempt: Attempt) -> None:
        """End a request whose time is over; a call under way goes on."""
        if attempt.answer.done():
            return
        error: HsmKmsError
        if attempt.channel is not None:
            error = self._evidence.unanswered(attempt.channel.busy_since)
        elif self._sessions:
            error = PoolTimeoutError("no session became free in time")
        else:
            error = WorkerLostError("there is no token worker at the moment")
        self._waiting.discard(attempt)
        attempt.answer.set_exception(error)

    def _lend(self, channel: Channel, *, last: bool = False) -> None:
        """Give a session to the request that waits longest, or keep it idle.

        Args:
            channel: The session; nothing is done if it was withdrawn meanwhile.
            last: Lend it after every other idle session.
        """
        if not channel.lendable:
            self.withdraw(channel)
        if channel not in self._sessions:
            return
        while (attempt := self._waiting.take()) is not None:
            try:
                self._send(channel, attempt)
            except Exception as error:  # noqa: BLE001 - it belongs to that request
                attempt.answer.set_exception(error)
            else:
                self._counts.waited(self._loop.time() - attempt.waits_since)
                self._deadlines.set(attempt, attempt.latest)
                return
        self._idle.insert(0 if last else len(self._idle), channel)

    def close(self) -> None:
        """Fail all requests that wait or come later; calls under way may finish."""
        self._closed = True
        self._sessions.clear()
        self._idle.clear()
        self._fail_all(PoolClosedError("the server is shutting down"))
