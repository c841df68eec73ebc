"""Sessions on loan: who gets one, for how long, and what comes back.

1. A session belongs to the call that runs on it, not to the request that asked: when
   a request gives up, the session is lent again only after its answer was read.
2. Nobody waits for a session longer than `session_wait` or his own deadline.
3. Last in, first out: few sessions stay warm.
4. A call is made again once, elsewhere, when its session or worker was lost under it
   and time remains; never when it was the call that hung.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    CiphertextError,
    HsmKmsError,
    PoolClosedError,
    PoolTimeoutError,
    RequestError,
    RequestRefusedError,
    SessionLostError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.ipc import ckr
from hsm_kms.ipc.messages import Decrypt, Encrypt, Failure
from hsm_kms.token.breaker import Breaker
from hsm_kms.token.counts import Counts
from hsm_kms.token.ends import End
from hsm_kms.token.errors import error_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.channel import Channel


_PATIENT: Final = 0.5  # a call this part of call_timeout old counts as the token's
_TOKEN_AT_FAULT: Final = frozenset(
    {ckr.Fault.DEVICE, ckr.Fault.AMBIGUOUS, "not-proven", "internal"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A snapshot: sessions held, of them idle, and requests waiting for one."""

    sessions: int
    idle: int
    waiting: int


class Pool:
    """The sessions of all workers.

    Args:
        session_wait: Longest wait for a session, in seconds.
        call_timeout: Longest wait for a token's answer, in seconds.
        alarm: Raised by every error of the token, as opposed to one of the request.
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
        """How many sessions there are, how many idle, how many requests wait."""
        return PoolStats(
            sessions=len(self._sessions),
            idle=len(self._idle),
            waiting=sum(not waiter.done() for waiter in self._waiting),
        )

    def busy_longer_than(self, seconds: float) -> list[Channel]:
        """Sessions whose call has run for more than `seconds`."""
        limit = self._loop.time() - seconds
        return [
            channel
            for channel in self._sessions
            if channel.busy_since is not None and channel.busy_since < limit
        ]

    def __contains__(self, channel: Channel) -> bool:
        """Whether this session is lent or idle here."""
        return channel in self._sessions

    def add(self, channel: Channel) -> None:
        """Take an idle session in; from now on it is lent."""
        if self._closed:
            return
        self._down = None
        self._sessions.add(channel)
        self._hand_out(channel)

    def withdraw(self, channel: Channel) -> None:
        """Lend this session no more; a call on it may finish."""
        self._sessions.discard(channel)
        if channel in self._idle:
            self._idle.remove(channel)

    def fail(self, error: HsmKmsError) -> None:
        """The token is down: fail who waits, and who comes, until a session comes."""
        if self._sessions or self._closed:
            return
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
            request: What the session shall do.
            deadline: In the loop's time, or None.
            before: Called just before each try; what it raises ends the call.

        Raises:
            PoolTimeoutError: No session became free in time.
            TokenTimeoutError: The token did not answer in time.
            HsmKmsError: The token is unavailable, or refused.
            CiphertextError: The token found the ciphertext not authentic.
        """
        now = self._loop.time()
        latest = now + self._call_timeout
        if deadline is not None:
            if deadline <= now:  # an idle session would be asked all the same
                raise TokenTimeoutError("no time is left for the token")
            latest = min(latest, deadline)
        try:
            return await self._attempt(request, latest, before)
        except (SessionLostError, WorkerLostError) as error:
            self._alarm.fault(error)
            if self._loop.time() >= latest:
                raise TokenTimeoutError("no time is left for another try") from None
        try:
            return await self._attempt(request, latest, before)
        except (SessionLostError, WorkerLostError) as error:
            self._alarm.fault(error)
            raise WorkerLostError(
                "the token was lost twice under one request"
            ) from None

    async def _attempt(
        self, request: Request, latest: float, before: Callable[[], None] | None
    ) -> Reply:
        self.breaker.check()
        channel = await self._lend(latest)
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
                reply = await asyncio.shield(future)
        except TimeoutError:
            raise self._timed_out(channel) from None
        except asyncio.CancelledError:
            self._timed_out(channel)
            raise
        if isinstance(reply, Failure):
            self._report_and_raise(channel, request, reply)
        self.breaker.succeeded()
        return reply

    def _timed_out(self, channel: Channel) -> TokenTimeoutError:
        """A client that had no patience says nothing about the token."""
        error = TokenTimeoutError("the token did not answer in time")
        since = channel.busy_since
        patient = self._call_timeout * _PATIENT
        if since is not None and self._loop.time() - since >= patient:
            self._counts.errors["timeout"] += 1
            self._alarm.fault(error)
            self.breaker.failed(error)
        return error

    def _report_and_raise(
        self, channel: Channel, request: Request, reply: Failure
    ) -> None:
        error = error_from(reply)
        self._counts.errors[ckr.name(reply.rv) if reply.rv else reply.cause] += 1
        if isinstance(error, WorkerLostError):
            channel.retire(End.LOGIN)  # logged out: so are its other sessions
        elif isinstance(error, SessionLostError):
            self._lend_last(channel)
        elif reply.function == "C_OpenSession" and len(self._sessions) > 1:
            self.withdraw(channel)  # it has no session; one more is tried later
            raise SessionLostError(str(error))
        elif isinstance(error, CiphertextError) and isinstance(request, Encrypt):
            raise RequestError(str(error))
        elif isinstance(request, Decrypt) and reply.cause == ckr.Fault.AMBIGUOUS:
            pass  # no canary could settle it, and what came from etcd trips nothing
        elif not isinstance(error, RequestRefusedError):
            self._alarm.fault(error)
            if reply.cause in _TOKEN_AT_FAULT:
                self.breaker.failed(error)
        else:
            self.breaker.succeeded()  # it judged the ciphertext: it is well
        raise error

    async def _lend(self, latest: float) -> Channel:
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
        """A waiter gave up, perhaps just after it was handed a session."""
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
        """It came back in a bad way: the next try shall get another one."""
        if channel in self._idle:
            self._idle.remove(channel)
            self._idle.insert(0, channel)

    def _hand_out(self, channel: Channel) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(channel)
                return
        self._idle.append(channel)

    def close(self) -> None:
        """Fail who waits and who comes; calls under way may finish."""
        self._closed = True
        self._sessions.clear()
        self._idle.clear()
        self._fail_all(PoolClosedError("the server is shutting down"))
