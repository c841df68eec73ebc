"""How we are: one immutable state, read by Status in microseconds.

`monitor` asks the token; this part keeps what was learnt and makes the state of it.

1. "ok" means that wrap and unwrap under the announced key_id have just worked.
2. A failed canary alone does not turn the state: a fresh worker must fail too, or
   none have come within `DOWN_SECONDS`.
3. The last announced key_id stays in every answer, whatever fails; it is remembered
   in the state directory, and nothing else takes its place by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import structlog

from hsm_kms import sentences
from hsm_kms.errors import HsmKmsError, KeyLostError, WorkerLostError
from hsm_kms.keyring import Keyring, TokenKey
from hsm_kms.state import StateCorruptError, StateWriteError
from hsm_kms.state_records import LastKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.state import StateDir

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
    """Keyring, last key and state of this node.

    Args:
        state_dir: Where the last key is remembered.
        decided: `keys.current` is configured: it overrules what is remembered.
        workers: Tells how the workers are.
    """

    def __init__(
        self, state_dir: StateDir, *, decided: bool, workers: Callable[[], WorkersSeen]
    ) -> None:
        self._state_dir = state_dir
        self._decided = decided
        self._workers = workers
        self._ring: Keyring | None = None
        self._first_news = asyncio.Event()
        self._canary_error: HsmKmsError | None = None
        self._not_ok_since: float | None = None
        self._state_fault: HsmKmsError | None = None
        self._last = self._remembered()
        self._detail = ""
        self._state = self._failed(WorkerLostError("the token is not reached yet"))

    def announce(self) -> HealthState:
        """The state, at once."""
        return self._state

    def keyring(self) -> Keyring:
        """The keyring as last read.

        Raises:
            HsmKmsError: The token has not been reached since the start.
        """
        if self._ring is None:
            error = self._workers().error
            error = error or WorkerLostError("the token has not been reached yet")
            raise error.with_traceback(None)  # perhaps shared by all who ask
        return self._ring

    async def keyring_soon(self, until: float) -> Keyring:
        """The keyring as last read; right after the start, wait for the first one.

        Args:
            until: Longest wait, in the loop's time.

        Raises:
            HsmKmsError: The token could not be reached.
        """
        if self._ring is None and self._workers().error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._first_news.wait()
        return self.keyring()

    @property
    def detail(self) -> str:
        """Cause and cure with names and paths, for the log and the admin socket."""
        return self._detail

    @property
    def keys(self) -> tuple[TokenKey, ...]:
        """The keys as last read."""
        return self._ring.keys if self._ring is not None else ()

    @property
    def has_key(self) -> bool:
        """Whether a current key was seen when the keyring was read last."""
        return self._ring is not None and self._ring.current is not None

    @property
    def settled(self) -> bool:
        """Whether all is well and nothing is in doubt."""
        return self._state.state == "ok" and self._not_ok_since is None

    @property
    def last_key_id(self) -> str | None:
        """key_id last current on this node."""
        return self._last.key_id if self._last else None

    def adopt(self, ring: Keyring, token_serial: str) -> None:
        """A worker read the keyring, and its canary passed.

        Args:
            ring: What it found.
            token_serial: Serial number of its token.
        """
        self._canary_error = None
        if self._state_fault is not None and not self._decided:
            ring = Keyring(
                keys=ring.keys, current=ring.current, fault=self._state_fault
            )
        self._ring = ring
        if ring.fault is None and ring.current is not None:
            self._remember(ring.current, token_serial)

    def canary_failed(self, error: HsmKmsError) -> None:
        """A canary failed, or was not answered."""
        _log.warning("canary failed", error=str(error))
        self._canary_error = error

    def evaluate(self) -> None:
        """Make the state anew; log it when it changed."""
        if self._ring is not None or self._workers().error is not None:
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
        if self._ring is None:
            return self._failed(workers.error or WorkerLostError("not reached yet"))
        if not workers.ready or self._canary_error is not None:
            return self._down(workers)
        self._not_ok_since = None
        if self._ring.fault is not None:
            return self._failed(self._ring.fault)
        self._detail = "ok"
        return HealthState(state="ok", sentence="ok", key_id=self._key_id())

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
        key_id = self._key_id()
        return HealthState(
            state="failed" if key_id else "starting",
            sentence=sentences.health(error),
            key_id=key_id,
        )

    def _key_id(self) -> str:
        if self._last is not None:
            return self._last.key_id
        if self._ring is not None and self._ring.current is not None:
            return self._ring.current.key_id
        return ""

    def _remember(self, key: TokenKey, token_serial: str) -> None:
        if self.last_key_id == key.key_id:
            return
        if not key.born_here:
            _log.warning(
                "the current key was imported, or could once be read from the token",
                key_id=key.key_id,
            )
        self._last = LastKey(
            key_id=key.key_id,
            cka_id=key.ref.cka_id.hex(),
            token_serial=token_serial,
            label=key.ref.label,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._state_fault = None
        _log.info("current key", key_id=key.key_id)
        try:
            self._state_dir.save_last_key(self._last)
        except StateWriteError as error:
            _log.warning("the current key is not saved", error=error.sentence)

    def _remembered(self) -> LastKey | None:
        try:
            return self._state_dir.last_key()
        except StateCorruptError as error:
            self._state_fault = KeyLostError(str(error), hint=error.hint)
            _log.warning("state directory", error=error.sentence)
            return None
