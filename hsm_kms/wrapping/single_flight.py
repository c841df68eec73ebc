"""Share one call among all callers that want the same record unwrapped.

1. A caller that is cancelled or times out does not cancel the shared call.
2. When the last caller has left, the shared call is cancelled.
3. That a record is not authentic is remembered for `REMEMBER_SECONDS`. Nothing else is
   remembered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from hsm_kms.errors import OTHER_SCOPE, CiphertextError, HsmKmsError, TokenTimeoutError
from hsm_kms.token.deadlines import Deadlines
from hsm_kms.wrapping.record import CIPHERTEXT_SENTENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

REMEMBER_SECONDS: Final = 5.0
MAX_REMEMBERED: Final = 4096  # records of at most 1.4 KB each

T = TypeVar("T")


class _Flight(Generic[T]):
    """Hold a call under way, and a future for each caller that waits for it.

    Args:
        task: Runs the call.
    """

    __slots__ = ("answers", "task")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.answers: set[asyncio.Future[T]] = set()

    def answer(self) -> None:
        """Pass on to every caller how the call ended."""
        for answer in self.answers:
            if answer.done():
                continue
            if self.task.cancelled():
                answer.cancel()
            elif (error := self.task.exception()) is None:
                answer.set_result(self.task.result())
            else:  # every caller gets a copy
                copy = error.again() if isinstance(error, HsmKmsError) else error
                answer.set_exception(copy)


class SingleFlight(Generic[T]):
    """Hold the calls under way, by the bytes that they unwrap.

    Attributes:
        joined: Number of callers that have joined the call of another one.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flights: dict[bytes, _Flight[T]] = {}
        self._deadlines: Deadlines[asyncio.Future[T]] = Deadlines(_expire)
        self.joined = 0
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    async def join(
        self,
        what: bytes,
        call: Callable[[], Coroutine[None, None, T]],
        *,
        deadline: float | None,
    ) -> T:
        """Return the result of the call for `what`; start it if none is under way.

        Args:
            what: The bytes to unwrap.
            call: Unwraps the bytes.
            deadline: Deadline of this caller alone, in the loop's time, or None.

        Raises:
            CiphertextError: The bytes are not authentic, or were not a moment ago.
            TokenTimeoutError: The deadline has passed.
            HsmKmsError: The call failed with this error.
        """
        self._check(what)
        if deadline is not None and deadline <= self._loop.time():
            raise TokenTimeoutError("no time is left for the token")
        # No await from here to the future of this caller: a call that is joined cannot
        # be cancelled because its last other caller leaves meanwhile.
        flight = self._flights.get(what)
        if flight is None:
            flight = self._start(what, call)
        else:
            self.joined += 1
        answer: asyncio.Future[T] = self._loop.create_future()
        flight.answers.add(answer)
        if deadline is not None:
            self._deadlines.set(answer, deadline)
        try:
            return await answer
        finally:
            self._deadlines.drop(answer)
            flight.answers.remove(answer)
            if not flight.answers and not flight.task.done():
                self._forget(what, flight)
                flight.task.cancel()

    def _start(
        self, what: bytes, call: Callable[[], Coroutine[None, None, T]]
    ) -> _Flight[T]:
        flight = self._flights[what] = _Flight(self._loop.create_task(call()))
        flight.task.add_done_callback(lambda _: self._landed(what, flight))
        return flight

    def _check(self, what: bytes) -> None:
        until = self._refused.get(what)
        if until is None:
            return
        if self._loop.time() < until:
            raise CiphertextError(CIPHERTEXT_SENTENCE, hint=OTHER_SCOPE)
        del self._refused[what]

    def _landed(self, what: bytes, flight: _Flight[T]) -> None:
        self._forget(what, flight)
        flight.answer()
        task = flight.task
        if task.cancelled() or not isinstance(task.exception(), CiphertextError):
            return
        self._refused[what] = self._loop.time() + REMEMBER_SECONDS
        if len(self._refused) > MAX_REMEMBERED:
            self._refused.popitem(last=False)

    def _forget(self, what: bytes, flight: _Flight[T]) -> None:
        if self._flights.get(what) is flight:
            del self._flights[what]


def _expire(answer: asyncio.Future[T]) -> None:
    if not answer.done():
        answer.set_exception(TokenTimeoutError("the token did not answer in time"))
