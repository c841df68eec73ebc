"""How we are: one immutable state, read by Status in microseconds.

`monitor` asks the token, `keyholder` knows the keys; this part makes the state of it.

1. "ok" means that wrap and unwrap under the announced key_id have just worked.
2. A failed canary alone does not turn the state: a fresh worker must fail too, or
   none have come within `DOWN_SECONDS`.
3. The last announced key_id stays in every answer, whatever fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import structlog

from hsm_kms import sentences
from hsm_kms.errors import HsmKmsError, WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.keyholder import KeyHolder
    from hsm_kms.keyring import Keyring

DOWN_SECONDS: Final = 25.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthState:
    """What Status answers.

    Args:
        state: "starting" until a key_id is known; Status is UNAVAILABLE then.
        sentence: "ok", or cause and cure in fixed words.
        key_id: The key to encrypt under; "" only while starting.
    """

    state: Literal["starting", "ok", "failed"]
    sentence: str
    key_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersSeen:
    """What the token's side knows of itself.

    Args:
        ready: How many workers serve.
        error: Why the latest one could not start; None since one could.
    """

    ready: int
    error: HsmKmsError | None


class Health:
    """State of this node.

    Args:
        holder: The keys.
        workers: Tells how the workers are.
    """

    def __init__(self, holder: KeyHolder, workers: Callable[[], WorkersSeen]) -> None:
        self._holder = holder
        self._workers = workers
        self._first_news = asyncio.Event()
        self._canary_error: HsmKmsError | None = None
        self._not_ok_since: float | None = None
        self._detail = ""
        self._state = self._failed(WorkerLostError("the token is not reached yet"))

    def look(self) -> HealthState:
        """The state, at once."""
        return self._state

    def announce(self) -> HealthState:
        """The state for the API server; v2 encrypts under its key_id from now on."""
        self._holder.announce(self._state.key_id)
        return self._state

    async def ring_soon(self, until: float, *, announced: bool) -> Keyring:
        """The keyring as last read; right after the start, wait for the first one.

        Args:
            until: Longest wait, in the loop's time.
            announced: Encrypt under the key that Status gave last, as v2 must.

        Raises:
            HsmKmsError: The token could not be reached.
        """
        if self._holder.ring is None and self._workers().error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._first_news.wait()
        ring = self._holder.announced_ring if announced else self._holder.ring
        if ring is None:
            error = self._workers().error
            error = error or WorkerLostError("the token has not been reached yet")
            raise error.with_traceback(None)  # perhaps shared by all who ask
        return ring

    @property
    def detail(self) -> str:
        """Cause and cure with names and paths, for the log and the admin socket."""
        return self._detail

    @property
    def settled(self) -> bool:
        """Whether all is well and nothing is in doubt."""
        return self._state.state == "ok" and self._not_ok_since is None

    def canary_passed(self) -> None:
        """A worker read the keys, and wrapped and unwrapped under the current one."""
        self._canary_error = None

    def canary_failed(self, error: HsmKmsError) -> None:
        """A canary failed, or was not answered."""
        _log.warning("canary failed", error=str(error))
        self._canary_error = error

    def evaluate(self) -> None:
        """Make the state anew; log it when it changed."""
        if self._holder.ring is not None or self._workers().error is not None:
            self._first_news.set()
        before = self._detail
        state = self._judge()
        if state == self._state and self._detail == before:
            return
        self._state = state
        _log.info(
            "health",
            state=state.state,
            sentence=state.sentence,
            detail=self._detail,
            key_id=state.key_id,
        )

    def _judge(self) -> HealthState:
        workers = self._workers()
        if self._holder.ring is None:
            return self._failed(workers.error or WorkerLostError("not reached yet"))
        if not workers.ready or self._canary_error is not None:
            return self._down(workers)
        self._not_ok_since = None
        if self._holder.ring.fault is not None:
            return self._failed(self._holder.ring.fault)
        self._detail = "ok"
        return HealthState(state="ok", sentence="ok", key_id=self._holder.key_id)

    def _down(self, workers: WorkersSeen) -> HealthState:
        now = asyncio.get_running_loop().time()
        if self._not_ok_since is None:
            self._not_ok_since = now
        if workers.error is not None:
            return self._failed(workers.error)
        if now - self._not_ok_since < DOWN_SECONDS:
            return self._state
        return self._failed(self._canary_error or WorkerLostError("no worker came"))

    def _failed(self, error: HsmKmsError) -> HealthState:
        self._detail = error.sentence
        key_id = self._holder.key_id
        return HealthState(
            state="failed" if key_id else "starting",
            sentence=sentences.health(error),
            key_id=key_id,
        )
