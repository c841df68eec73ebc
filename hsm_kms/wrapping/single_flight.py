"""Share one call among all callers that want the same record unwrapped.

1. A caller that is cancelled or times out does not cancel the shared call.
2. When the last caller has left, the shared call is cancelled.
3. That a record is not authentic is remembered for `REMEMBER_SECONDS`. Nothing else is
   remembered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from hsm_kms.errors import CiphertextError, HsmKmsError, TokenTimeoutError
from hsm_kms.wrapping.record import CIPHERTEXT_SENTENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

REMEMBER_SECONDS: Final = 5.0
MAX_REMEMBERED: Final = 4096  # records of at most 1.4 KB each

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    """Hold a call under way, and the number of callers that wait for it."""

    task: asyncio.Task[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Hold the calls under way, by the bytes that they unwrap."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[T]] = {}
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
        if deadline is not None and deadline <= asyncio.get_running_loop().time():
            raise TokenTimeoutError("no time is left for the token")
        # No await from here to the count of waiting callers: a call that is joined
        # cannot be cancelled because its last other caller leaves meanwhile.
        flight = self._flights.get(what)
        if flight is None:
            flight = _Flight(asyncio.create_task(call()))
            self._flights[what] = flight
            flight.task.add_done_callback(lambda task: self._landed(what, task))
        flight.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(flight.task)
        except TimeoutError:
            raise TokenTimeoutError("the token did not answer in time") from None
        except HsmKmsError as error:
            raise error.again() from None  # every caller gets a copy
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._forget(what, flight.task)
                flight.task.cancel()

    def _check(self, what: bytes) -> None:
        until = self._refused.get(what)
        if until is None:
            return
        if asyncio.get_running_loop().time() < until:
            raise CiphertextError(CIPHERTEXT_SENTENCE)
        del self._refused[what]

    def _landed(self, what: bytes, task: asyncio.Task[T]) -> None:
        self._forget(what, task)
        if task.cancelled() or not isinstance(task.exception(), CiphertextError):
            return
        until = asyncio.get_running_loop().time() + REMEMBER_SECONDS
        self._refused[what] = until
        if len(self._refused) > MAX_REMEMBERED:
            self._refused.popitem(last=False)

    def _forget(self, what: bytes, task: asyncio.Task[T]) -> None:
        flight = self._flights.get(what)
        if flight is not None and flight.task is task:
            del self._flights[what]
