"""How we are: one immutable state, read by Status in microseconds.

The background monitor asks the token (a canary on every worker's control session),
keeps the keyring, and makes the state from what it saw. Status only reads.

1. "ok" means that wrap and unwrap under the announced key_id have just worked.
2. A failed canary costs its worker the job; the state turns to failed when a fresh
   worker fails too, or none came within `DOWN_SECONDS`.
3. The last announced key_id stays in every answer, whatever fails.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import structlog

from hsm_kms import sentences
from hsm_kms.errors import HsmKmsError, KeyLostError, TokenTimeoutError, WorkerLostError
from hsm_kms.keyring import Keyring, KeySettings, TokenKey, read_keyring
from hsm_kms.state import LastKey, StateCorruptError, StateWriteError
from hsm_kms.worker.messages import Prove
from hsm_kms.wrapping.record import Algorithm, Header, Kind

if TYPE_CHECKING:
    from hsm_kms.state import StateDir
    from hsm_kms.token.process import Worker
    from hsm_kms.token.workers import Workers

DOWN_SECONDS: Final = 25.0
RETRY_SECONDS: Final = 2.0
_JITTER: Final = 0.2
_AT_MOST_EVERY: Final = 0.2  # seconds between two looks, however many faults come

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


class Monitor:
    """Watches token and keys, and says how things are.

    Args:
        settings: The `keys` section.
        state: The state directory.
        scope: Cluster name, as in the records.
        interval: Seconds between canaries while all is well.
        call_timeout: Longest wait for one answer of the token, in seconds.
    """

    def __init__(
        self,
        settings: KeySettings,
        state: StateDir,
        *,
        scope: str,
        interval: float,
        call_timeout: float,
    ) -> None:
        self._settings = settings
        self._state_dir = state
        self._scope = scope
        self._interval = interval
        self._call_timeout = call_timeout
        self._workers: Workers | None = None
        self._ring: Keyring | None = None
        self._wake = asyncio.Event()
        self._not_ok_since: float | None = None
        self._canary_error: HsmKmsError | None = None
        self._state_fault: HsmKmsError | None = None
        self._last = self._remembered()
        self.detail = "the token has not been reached yet"
        self._health = self._unreached(None)

    # What requests read

    def announce(self) -> HealthState:
        """The state, at once."""
        return self._health

    def keyring(self) -> Keyring:
        """The keyring as last read.

        Raises:
            HsmKmsError: The token has not been reached since the start.
        """
        if self._ring is None:
            error = self._workers.last_error if self._workers else None
            raise error or WorkerLostError("the token has not been reached yet")
        return self._ring

    # What the token's side tells

    def fault_seen(self, error: HsmKmsError) -> None:
        """A request met an error that speaks about the token: look at once."""
        _log.info("token fault under a request", error=str(error))
        self._wake.set()

    def worker_changed(self) -> None:
        """A worker came, went, or could not start."""
        self._evaluate()
        self._wake.set()

    async def qualify(self, worker: Worker) -> None:
        """Read the keyring with a new worker and prove the keys on it.

        Raises:
            HsmKmsError: The worker cannot be used.
        """
        await self._inspect(worker)

    # The loop

    def attach(self, workers: Workers) -> None:
        """Tell the monitor whose workers it watches, before they start."""
        self._workers = workers

    async def run(self) -> None:
        """Look at every worker, again and again, until cancelled."""
        while True:
            await self._pause()
            for worker in list(self._workers.ready) if self._workers else ():
                await self._look(worker)
            self._evaluate()

    async def _pause(self) -> None:
        await asyncio.sleep(_AT_MOST_EVERY)
        well = self._health.state == "ok" and self._not_ok_since is None
        seconds = self._interval if well else min(RETRY_SECONDS, self._interval)
        seconds *= 1 + _JITTER * (secrets.SystemRandom().random() - 0.5)
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _look(self, worker: Worker) -> None:
        if worker.lost.is_set() or worker.retiring:
            return
        try:
            await self._inspect(worker)
        except TokenTimeoutError as error:
            self._canary_failed(error)  # perhaps slow: the hang watch decides
        except HsmKmsError as error:
            self._canary_failed(error)
            worker.retire(f"canary: {error}")
        else:
            self._canary_error = None

    async def _inspect(self, worker: Worker) -> None:
        ring = await read_keyring(
            worker, self._settings, self._last_key_id(), self._call_timeout
        )
        for key in ring.keys:
            await self._prove(worker, ring, key)
        self._adopt(ring, worker)

    async def _prove(self, worker: Worker, ring: Keyring, key: TokenKey) -> None:
        header = Header(
            kind=Kind.CANARY, algorithm=Algorithm.AES_256_GCM, key_id=key.key_id
        )
        request = Prove(ref=key.ref, aad=header.aad(self._scope))
        try:
            await worker.ask(request, self._call_timeout)
        except HsmKmsError:
            if key is ring.current and ring.fault is None:
                raise
            # A key that cannot encrypt may still decrypt.

    def _canary_failed(self, error: HsmKmsError) -> None:
        _log.warning("canary failed", error=str(error))
        self._canary_error = error
        self._evaluate()

    # Making the state

    def _adopt(self, ring: Keyring, worker: Worker) -> None:
        if self._state_fault is not None and self._settings.current is None:
            ring = Keyring(
                keys=ring.keys, current=ring.current, fault=self._state_fault
            )
        self._ring = ring
        if ring.fault is None and ring.current is not None:
            self._save(ring.current, worker)

    def _save(self, key: TokenKey, worker: Worker) -> None:
        if self._last is not None and self._last.key_id == key.key_id:
            return
        if not key.born_here:
            _log.warning(
                "the current key was imported, or could once be read from the token",
                key_id=key.key_id,
            )
        token = worker.started.token if worker.started else None
        self._last = LastKey(
            key_id=key.key_id,
            cka_id=key.ref.cka_id.hex(),
            token_serial=token.serial if token else "",
            label=key.ref.label,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
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

    def _evaluate(self) -> None:
        health = self._judge()
        if health.state == self._health.state and health == self._health:
            return
        _log.info(
            "health",
            state=health.state,
            sentence=health.sentence,
            detail=self.detail,
            key_id=health.key_id,
        )
        self._health = health

    def _judge(self) -> HealthState:
        ring = self._ring
        if ring is None:
            return self._unreached(self._workers.last_error if self._workers else None)
        if self._well():
            self._not_ok_since = None
            if ring.fault is not None:
                return self._failed(ring.fault)
            self.detail = "ok"
            return HealthState(state="ok", sentence="ok", key_id=self._key_id())
        return self._down()

    def _well(self) -> bool:
        ready = self._workers.ready if self._workers else ()
        return bool(ready) and self._canary_error is None

    def _down(self) -> HealthState:
        now = asyncio.get_running_loop().time()
        if self._not_ok_since is None:
            self._not_ok_since = now
        error = self._workers.last_error if self._workers else None
        if error is not None:
            return self._failed(error)
        if now - self._not_ok_since >= DOWN_SECONDS:
            return self._failed(
                self._canary_error or WorkerLostError("no token worker is there")
            )
        return self._health

    def _unreached(self, error: HsmKmsError | None) -> HealthState:
        return self._failed(error or WorkerLostError("the token is not reached yet"))

    def _failed(self, error: HsmKmsError) -> HealthState:
        self.detail = error.sentence
        key_id = self._key_id()
        return HealthState(
            state="failed" if key_id else "starting",
            sentence=sentences.health(error),
            key_id=key_id,
        )

    def _last_key_id(self) -> str | None:
        return self._last.key_id if self._last else None

    def _key_id(self) -> str:
        if self._last is not None:
            return self._last.key_id
        if self._ring is not None and self._ring.current is not None:
            return self._ring.current.key_id
        return ""
