"""Measure how fast a token encrypts and decrypts, with one session, then with more.

1. Each session makes one call at a time, and all of them together at most `rate` a
   second: there is never more under way than sessions are open.
2. More sessions are opened only if the last ones made the token faster, and if the
   limit was not reached.
3. The first error ends the measurement: nothing is tried again, and every session is
   closed.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hsm_kms.cli.bench.keys import checked
from hsm_kms.errors import HsmKmsError, TokenError, TokenTimeoutError
from hsm_kms.ipc.messages import Decrypted, Encrypted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hsm_kms.cli.bench.keys import Keys, Subject
    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.token.channel import Channel
    from hsm_kms.token.process import Worker

DEK_BYTES: Final = 32
GAIN: Final = 1.2
"""How much faster twice as many sessions must be to pay off."""
AT_LIMIT: Final = 0.9
"""What share of the limit counts as having reached it."""
_CATCH_UP_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bound the measurement.

    Args:
        sessions: Largest number of sessions that are opened, besides the control one.
        rate: Largest number of encryptions and decryptions together, per second.
        seconds: How long all steps take together.
        call_timeout: Longest wait for one encryption or decryption, in seconds.
        start_timeout: Longest wait for a session and its key, in seconds.
    """

    sessions: int
    rate: int
    seconds: float
    call_timeout: float
    start_timeout: float

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the numbers of sessions that are tried, in order."""
        doubled = [1]
        while doubled[-1] * 2 <= self.sessions:
            doubled.append(doubled[-1] * 2)
        if doubled[-1] != self.sessions:
            doubled.append(self.sessions)
        return tuple(doubled)


@dataclass(slots=True)
class Step:
    """Hold what was measured with one number of sessions.

    Args:
        sessions: Number of sessions.
        seconds: How long they ran.
        encrypts: How long each encryption took, in milliseconds.
        decrypts: How long each decryption took, in milliseconds.
        limited: The rate was that of the limit, not of the token.
    """

    sessions: int
    seconds: float = 0.0
    encrypts: list[float] = field(default_factory=list)
    decrypts: list[float] = field(default_factory=list)
    limited: bool = False

    @property
    def rate(self) -> float:
        """Return the encryptions and decryptions per second."""
        made = len(self.encrypts) + len(self.decrypts)
        return made / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Measured:
    """Hold all steps.

    Args:
        steps: Each that was completed, in order.
        mechanism: How the token encrypted; "" if it did not.
        trouble: What ended the measurement early; None if nothing did.
    """

    steps: list[Step] = field(default_factory=list)
    mechanism: str = ""
    trouble: HsmKmsError | None = None


class _Pace:
    """Let at most `rate` calls a second begin.

    Args:
        rate: Calls per second.
    """

    def __init__(self, rate: int) -> None:
        self._interval = 1 / rate
        self._next = time.monotonic()

    async def turn(self) -> None:
        """Wait until the next call may begin."""
        now = time.monotonic()
        # A sleep takes longer than it was asked to; the calls catch up.
        at = max(self._next, now - _CATCH_UP_SECONDS)
        self._next = at + self._interval
        if at > now:
            await asyncio.sleep(at - now)


class Load:
    """Measure a token through the sessions of one worker.

    Args:
        worker: A worker that is logged in, with at least `limits.sessions` channels.
        keys: What to encrypt under.
        limits: The bounds.
        look: Raises an error if the server of this node is in trouble.
    """

    def __init__(
        self,
        worker: Worker,
        keys: Keys,
        limits: Limits,
        look: Callable[[], Awaitable[None]],
    ) -> None:
        self._worker = worker
        self._keys = keys
        self._limits = limits
        self._look = look
        self._open: list[tuple[Channel, Subject]] = []
        self._pace = _Pace(limits.rate)

    async def first(self) -> None:
        """Open the first session, and prepare its key.

        Raises:
            HsmKmsError: That failed.
        """
        await self._open_up_to(1)

    async def measure(self) -> Measured:
        """Run all steps that are worth it; `trouble` says if an error ended them."""
        measured = Measured(mechanism=str(self._open[0][1].mechanism))
        try:
            for sessions in self._limits.steps:
                await self._open_up_to(sessions)
                measured.steps.append(await self._step(sessions))
                await self._look()
                if not _goes_on(measured.steps):
                    break
        except* HsmKmsError as failures:
            measured.trouble = _first(failures)
        return measured

    async def _open_up_to(self, sessions: int) -> None:
        for channel in self._worker.sessions[len(self._open) : sessions]:
            try:
                async with asyncio.timeout(self._limits.start_timeout):
                    failure = await self._worker.open_session(channel)
                    if failure is not None:
                        raise failure
                    self._open.append((channel, await self._keys.subject(channel)))
            except TimeoutError:
                raise _late("start_timeout", self._limits.start_timeout) from None

    async def _step(self, sessions: int) -> Step:
        step = Step(sessions)
        began = time.monotonic()
        until = began + self._limits.seconds / len(self._limits.steps)
        async with asyncio.TaskGroup() as group:
            for channel, subject in self._open[:sessions]:
                group.create_task(self._session(channel, subject, step, until))
        step.seconds = time.monotonic() - began
        step.limited = step.rate >= AT_LIMIT * self._limits.rate
        return step

    async def _session(
        self, channel: Channel, subject: Subject, step: Step, until: float
    ) -> None:
        # Also where the time is over at once, something is measured.
        while not step.decrypts or time.monotonic() < until:
            dek = os.urandom(DEK_BYTES)
            await self._pace.turn()
            subject.spend()
            sealed = await self._timed(channel, subject.encrypt(dek), step.encrypts)
            if not isinstance(sealed, Encrypted):
                raise TokenError("the worker sent a wrong reply to an Encrypt")
            await self._pace.turn()
            opened = await self._timed(channel, subject.decrypt(sealed), step.decrypts)
            if not isinstance(opened, Decrypted) or not hmac.compare_digest(
                dek, opened.plaintext
            ):
                raise TokenError("the token cannot decrypt what it has just encrypted")

    async def _timed(
        self, channel: Channel, request: Request, times: list[float]
    ) -> Reply:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._limits.call_timeout):
                reply = await checked(channel, request)
        except TimeoutError:
            raise _late("call_timeout", self._limits.call_timeout) from None
        times.append((time.perf_counter() - began) * 1000)
        return reply


def _late(setting: str, seconds: float) -> TokenTimeoutError:
    return TokenTimeoutError(
        f"the token did not answer within token.{setting}, {seconds:g} s",
        hint="see whether the HSM and its client service are up",
    )


def _goes_on(steps: list[Step]) -> bool:
    """Return True if more sessions could make the token faster."""
    if steps[-1].limited:
        return False
    return len(steps) == 1 or steps[-1].rate >= GAIN * steps[-2].rate


def _first(failures: BaseExceptionGroup[HsmKmsError]) -> HsmKmsError:
    first = failures.exceptions[0]
    return first if isinstance(first, HsmKmsError) else _first(first)
