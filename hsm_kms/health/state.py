"""How we are: one immutable state, read by Status in microseconds.

`monitor` asks the token, `keyholder` knows the keys; this part makes the state of it.

1. "ok" means that wrap and unwrap under the announced key_id have just worked.
2. A failed canary alone does not turn the state: a fresh worker must fail too, or
   none have come within `DOWN_SECONDS`.
3. Where Encrypt works without the token an outage is "degraded". Status still says ok
   for `grace` seconds after the first failed canary, if no client has felt it.
4. The last announced key_id stays in every answer, whatever fails.
5. When the state has not been "ok" for `stop_writes_after` seconds Status answers no
   more, which alone stops the API server's writes (kubernetes/kubernetes#138950).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import structlog

from hsm_kms.errors import HsmKmsError, WorkerLostError
from hsm_kms.health import healthz

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.keys.node_keyring import NodeKeyring

DOWN_SECONDS: Final = 25.0
_IN_SOFTWARE: Final = "; meanwhile Encrypt works in software"

_NOT_REACHED: Final = WorkerLostError("the token is not reached yet")
_NO_WORKER: Final = WorkerLostError("no worker came")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthState:
    """What Status answers.

    Args:
        state: "starting" until a key_id is known; "degraded" while the token is away
            and Encrypt works in software.
        sentence: healthz: "ok", also in a short outage that no client has felt; or
            cause and cure in fixed words.
        key_id: The key to encrypt under; "" only while starting.
        answers: Whether Status answers; if not, it is UNAVAILABLE.
    """

    state: Literal["starting", "ok", "degraded", "failed"]
    sentence: str
    key_id: str
    answers: bool = True

    @property
    def ready(self) -> bool:
        """Whether Status says ok, and so /readyz."""
        return self.answers and self.sentence == "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """What an outage may look like from outside.

    Args:
        grace: Seconds from the first failed canary in which healthz stays ok, where
            Encrypt works without the token.
        stop_writes_after: Seconds after which Status answers no more, counted from
            when the state stopped being "ok"; None for never.
    """

    grace: float = 60.0
    stop_writes_after: float | None = None


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
        settings: See `HealthSettings`.

    Attributes:
        settings: May be replaced at any time.
        software: Whether Encrypt works without the token now.
        spent: Why the token wraps no more under the current key, None where it does.
    """

    def __init__(
        self,
        holder: NodeKeyring,
        workers: Callable[[], WorkersSeen],
        settings: HealthSettings | None = None,
    ) -> None:
        self._holder = holder
        self._workers = workers
        self.settings = settings or HealthSettings()
        self.software: Callable[[], bool] = lambda: False
        self.spent: Callable[[], HsmKmsError | None] = lambda: None
        self._passed_at: float | None = None
        self._first_news = asyncio.Event()
        self._canary_error: HsmKmsError | None = None
        self._call_failed = False
        self._doubt_since: float | None = None
        self._not_ok_since: float | None = None
        self._detail = ""
        self._state = self._failed(_NOT_REACHED)

    def look(self) -> HealthState:
        """The state, at once."""
        return self._state

    def announce(self) -> HealthState:
        """The state for the API server; v2 encrypts under its key_id from now on."""
        self._holder.announce(self._state.key_id)
        return self._state

    async def first_news(self) -> None:
        """Wait until the keys have been read, or a worker could not start."""
        await self._first_news.wait()

    @property
    def detail(self) -> str:
        """Cause and cure with names and paths, for the log and the admin socket."""
        return self._detail

    @property
    def settled(self) -> bool:
        """Whether all is well and nothing is in doubt."""
        return self._state.state == "ok" and self._doubt_since is None

    @property
    def offline_for(self) -> float | None:
        """Seconds since the token was last known to be well.

        0 while nothing is in doubt; else since a canary passed last; None before the
        first one.
        """
        if self.settled:
            return 0.0
        if self._passed_at is None:
            return None
        return asyncio.get_running_loop().time() - self._passed_at

    def canary_passed(self) -> None:
        """A worker read the keys, and wrapped and unwrapped under the current one."""
        self._passed_at = asyncio.get_running_loop().time()
        self._canary_error = None
        self._call_failed = False

    def canary_failed(self, error: HsmKmsError) -> None:
        """A canary failed, or was not answered."""
        _log.warning("canary failed", error=str(error))
        self._canary_error = error

    def call_failed(self) -> None:
        """A client's call failed for want of the token.

        It ends the grace of the present outage, and of one that begins before the
        next canary passes: this call may have been the first to feel it.
        """
        if not self._call_failed:
            self._call_failed = True
            self.evaluate()

    def evaluate(self) -> None:
        """Make the state anew, also because time has passed; log it when it changed."""
        if self._holder.ring is not None or self._workers().error is not None:
            self._first_news.set()
        before = self._detail
        now = asyncio.get_running_loop().time()
        state = self._judge(now)
        if state.state == "ok":
            self._not_ok_since = None
        elif self._not_ok_since is None:
            self._not_ok_since = now
        answers = state.state != "starting" and not self._is_too_long(now)
        state = replace(state, answers=answers)
        if state == self._state and self._detail == before:
            return
        self._state = state
        _log.info(
            "health",
            state=state.state,
            sentence=state.sentence,
            detail=self._detail,
            key_id=state.key_id,
            answers=state.answers,
        )

    def _judge(self, now: float) -> HealthState:
        workers, ring = self._workers(), self._holder.ring
        if ring is None:
            return self._failed(workers.error or _NOT_REACHED)
        if not workers.ready or self._canary_error is not None:
            return self._down(workers, ring, now)
        self._doubt_since = None
        if fault := self._fault(ring):
            return self._failed(fault)
        self._detail = "ok"
        return HealthState(state="ok", sentence="ok", key_id=self._holder.key_id)

    def _down(self, workers: WorkersSeen, ring: Keyring, now: float) -> HealthState:
        if self._doubt_since is None:
            self._doubt_since = now
        doubted = now - self._doubt_since
        known = workers.error is not None or self._state.state == "degraded"
        if not known and doubted < DOWN_SECONDS:
            return self._state
        error = workers.error or self._canary_error or _NO_WORKER
        if self._fault(ring) is not None or not self.software():
            return self._failed(error)
        self._detail = error.sentence + _IN_SOFTWARE
        spared = (
            doubted < self.settings.grace
            and not self._call_failed
            and not self._is_too_long(now)
        )
        return HealthState(
            state="degraded",
            sentence="ok" if spared else healthz.health(error) + _IN_SOFTWARE,
            key_id=self._holder.key_id,
        )

    def _fault(self, ring: Keyring) -> HsmKmsError | None:
        """Why the current key cannot encrypt, be the token there or not."""
        return ring.fault or self.spent()

    def _is_too_long(self, now: float) -> bool:
        """Whether the state has not been "ok" for so long that writes shall stop."""
        since, limit = self._not_ok_since, self.settings.stop_writes_after
        return since is not None and limit is not None and now - since >= limit

    def _failed(self, error: HsmKmsError) -> HealthState:
        self._detail = error.sentence
        key_id = self._holder.key_id
        return HealthState(
            state="failed" if key_id else "starting",
            sentence=healthz.health(error),
            key_id=key_id,
            answers=bool(key_id),
        )
