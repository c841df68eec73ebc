"""Keep the state of this node, and read it in microseconds for each Status.

The state follows from the keys (`keys.node_keyring`), the canaries, the workers, and
the local KEKs that stand by.

1. "ok" means that what `health.canary` names has just worked: within `INTERVALS`
   intervals, or `DOWN_SECONDS` if that is longer, whoever asks. By default that is wrap
   and unwrap under the announced key_id.
2. A failed canary alone does not change the state: a fresh worker must fail too, or
   none has come within `DOWN_SECONDS`.
3. Where Encrypt works without the token an outage is "degraded". Status still says ok
   for `grace` seconds after the first failed canary, if no request has failed.
4. The last announced key_id stays in every answer, whatever fails.
5. When the state has not been "ok" for `stop_writes_after` seconds Status answers no
   more, which alone stops the API server's writes (kubernetes/kubernetes#138950).
6. While requests are refused because they cannot be recorded, the state is "failed".
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from hsm_kms import clock
from hsm_kms.audit.port import UNAUDITED
from hsm_kms.errors import HsmKmsError, TokenTimeoutError, WorkerLostError
from hsm_kms.health import healthz
from hsm_kms.log import get_logger
from hsm_kms.repeats import Repeats

if TYPE_CHECKING:
    from hsm_kms.audit.port import Audit
    from hsm_kms.config import schema
    from hsm_kms.health.canaries import Canaries
    from hsm_kms.health.ports import Substitute, TokenWorkers
    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.keys.node_keyring import NodeKeyring

DOWN_SECONDS: Final = 25.0
INTERVALS: Final = 3
_IN_SOFTWARE: Final = "; writes continue with a local KEK"

_NOT_REACHED: Final = WorkerLostError("the token has not been reached yet")
_NO_WORKER: Final = WorkerLostError("no token worker could start in time")
_SILENT: Final = TokenTimeoutError("no canary has passed for three intervals")

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthState:
    """Hold what Status answers.

    Args:
        state: "starting" until a key_id is known; "degraded" while the token is
            unavailable and Encrypt works in software.
        healthz: "ok", also in a short outage in which no request has failed;
            otherwise an error message with cause and cure in fixed words.
        key_id: The key to encrypt under; "" only while starting.
        answers: True if Status answers; if not, it is UNAVAILABLE.
    """

    state: Literal["starting", "ok", "degraded", "failed"]
    healthz: str
    key_id: str
    answers: bool = True

    @property
    def ready(self) -> bool:
        """Return True if Status says ok, and so /readyz."""
        return self.answers and self.healthz == "ok"


class _Judgement(NamedTuple):
    """Hold a state with its cause.

    Args:
        state: The state.
        detail: Cause and cure with names and paths.
        error: Cause and cure; None if the state is ok.
    """

    state: HealthState
    detail: str
    error: HsmKmsError | None


class Health:
    """Judge the state of this node.

    Args:
        node_keyring: The keys.
        canaries: Whether the token works.
        workers: Whether the token can be reached.
        standby: Whether Encrypt works without the token.
        settings: How an outage is reported.
        audit: Whether requests can be recorded, if they must be.

    Attributes:
        since: When the state became what it is, in seconds since the Unix epoch.
    """

    def __init__(
        self,
        node_keyring: NodeKeyring,
        canaries: Canaries,
        workers: TokenWorkers,
        standby: Substitute,
        settings: schema.Health,
        *,
        audit: Audit = UNAUDITED,
    ) -> None:
        self._node_keyring = node_keyring
        self._canaries = canaries
        self._workers = workers
        self._standby = standby
        self._settings = settings
        self._audit = audit
        self._unrecorded: HsmKmsError | None = None
        self._first_news = asyncio.Event()
        self._call_failed_after = -1  # passed inspections before a request failed
        self._doubt_since: float | None = None
        self._not_ok_since: float | None = None
        self.since = clock.now()
        self._causes = Repeats(__name__)
        # What the state would be if requests can be recorded.
        self._by_token = self._failed(_NOT_REACHED)
        self._state, self._detail, self._error = self._by_token

    def adjust(self, settings: schema.Health) -> None:
        """Go on with other settings, in an outage under way as well.

        Args:
            settings: How an outage is reported.
        """
        self._settings = settings
        self.evaluate()

    def look(self) -> HealthState:
        """Return the state, at once."""
        # The monitor judges the state in time, unless it is what does not run.
        silent = self._state.state == "ok" and self._is_silent
        if silent or self._audit.fault is not self._unrecorded:
            self.evaluate()
        return self._state

    def announce(self) -> HealthState:
        """Return the state for the API server; v2 encrypts under its key_id now."""
        state = self.look()
        self._node_keyring.announce(state.key_id)
        return state

    async def first_news(self) -> None:
        """Wait until the keys have been read, or a worker could not start."""
        await self._first_news.wait()

    @property
    def detail(self) -> str:
        """Return cause and cure with names and paths, for log and admin socket."""
        return self._detail

    @property
    def error(self) -> HsmKmsError | None:
        """Return cause and cure of a state that is not ok; None if it is ok."""
        return self._error

    @property
    def works(self) -> bool:
        """Return True if the state is ok, or would be if requests could be recorded."""
        self.look()
        return self._by_token.state.state == "ok"

    @property
    def settled(self) -> bool:
        """Return True if all is well and nothing is in doubt."""
        return self._state.state == "ok" and self._doubt_since is None

    def call_failed(self) -> None:
        """Note that a request failed because the token was unavailable.

        This ends the grace of the present outage, and of one that begins before the
        next canary passes: the request may have been the first to meet it.
        """
        if not self._call_failed:
            self._call_failed_after = self._canaries.passes
            self.evaluate()

    @property
    def _is_silent(self) -> bool:
        """Return True if no canary has passed for so long that one must be missing."""
        limit = max(INTERVALS * self._settings.interval, DOWN_SECONDS)
        return self._canaries.silent_for() > limit

    @property
    def _call_failed(self) -> bool:
        """Return True if a request has failed since an inspection passed."""
        return self._call_failed_after == self._canaries.passes

    def evaluate(self) -> None:
        """Judge the state again, also because time has passed; log each change."""
        if self._node_keyring.ring is not None or self._workers.last_error is not None:
            self._first_news.set()
        before = self._detail
        now = asyncio.get_running_loop().time()
        state, self._detail, self._error = self._judge(now)
        if state.state == "ok":
            self._not_ok_since = None
        elif self._not_ok_since is None:
            self._not_ok_since = now
        answers = state.state != "starting" and not self._is_too_long(now)
        state = replace(state, answers=answers)
        if state == self._state and self._detail == before:
            return
        fields = {
            "state": state.state,
            "healthz": state.healthz,
            "detail": self._detail,
            "key_id": state.key_id,
            "status_available": state.answers,
        }
        same = replace(state, healthz=self._state.healthz) == self._state
        if same and state.ready == self._state.ready:
            # One outage can have several causes in turn, as often as it is inspected.
            self._causes.log(logging.INFO, "health", self._detail, **fields)
        else:
            _log.info("health", **fields)
        if state.state != self._state.state:
            self.since = clock.now()
        self._state = state

    def _judge(self, now: float) -> _Judgement:
        self._unrecorded = self._audit.fault
        self._by_token = self._judge_token(now)
        if self._unrecorded is not None and self._node_keyring.ring is not None:
            return self._failed(self._unrecorded)
        return self._by_token

    def _judge_token(self, now: float) -> _Judgement:
        ring = self._node_keyring.ring
        if ring is None:
            return self._failed(self._workers.last_error or _NOT_REACHED)
        in_doubt = not self._workers.ready or self._canaries.error is not None
        if in_doubt or self._is_silent:
            return self._down(ring, now)
        self._doubt_since = None
        if fault := self._fault(ring):
            return self._failed(fault)
        key_id = self._node_keyring.key_id
        state = HealthState(state="ok", healthz="ok", key_id=key_id)
        return _Judgement(state, "ok", None)

    def _down(self, ring: Keyring, now: float) -> _Judgement:
        if self._doubt_since is None:
            self._doubt_since = now
        doubted = now - self._doubt_since
        # A worker that could not start before the doubt began says nothing about it.
        came_after = self._workers.failed_at >= self._doubt_since
        start_error = self._workers.last_error if came_after else None
        silent = self._is_silent
        before = self._by_token.state.state
        known = start_error is not None or silent or before == "degraded"
        if not known and doubted < DOWN_SECONDS:
            return self._by_token
        error = start_error or self._canaries.error
        error = error or (_SILENT if silent else _NO_WORKER)
        if self._fault(ring) is not None or not self._standby.encrypts_without_token:
            return self._failed(error)
        spared = (
            doubted < self._settings.grace
            and not self._call_failed
            and not self._is_too_long(now)
        )
        state = HealthState(
            state="degraded",
            healthz="ok" if spared else healthz.health(error) + _IN_SOFTWARE,
            key_id=self._node_keyring.key_id,
        )
        return _Judgement(state, error.sentence + _IN_SOFTWARE, error)

    def _fault(self, ring: Keyring) -> HsmKmsError | None:
        """Return why the current key cannot encrypt, with or without the token."""
        return ring.fault or self._standby.spent

    def _is_too_long(self, now: float) -> bool:
        """Return True if the state has not been "ok" for `stop_writes_after`."""
        since, limit = self._not_ok_since, self._settings.stop_writes_after
        return since is not None and limit is not None and now - since >= limit

    def _failed(self, error: HsmKmsError) -> _Judgement:
        key_id = self._node_keyring.key_id
        state = HealthState(
            state="failed" if key_id else "starting",
            healthz=healthz.health(error),
            key_id=key_id,
            answers=bool(key_id),
        )
        return _Judgement(state, error.sentence, error)
