"""The background look at token and keys: the only source of `health`.

Every `interval`, and at once after a fault under a request, each worker's control
session lists the keys and wraps and unwraps a canary. A worker that fails is replaced;
one that is merely slow is left to the hang watch of `token.workers`.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final

import structlog

from hsm_kms.discovery import Discovery
from hsm_kms.errors import (
    HsmKmsError,
    KeyNotFoundError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.health import Health, WorkersSeen
from hsm_kms.token.counts import End
from hsm_kms.wrapping.wrapper import canary

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.keyring import Keyring, KeySettings, TokenKey
    from hsm_kms.state import StateDir
    from hsm_kms.token.process import Worker
    from hsm_kms.token.workers import Workers

RETRY_SECONDS: Final = 2.0
FRESH_SECONDS: Final = 10.0  # younger workers are believed when they miss a key
MISSES_BELIEVED: Final = 3  # fresh workers in a row that do not see the key
_JITTER: Final = 0.2
_AT_MOST_EVERY: Final = 0.2  # seconds between two looks, however many faults come

_log = structlog.get_logger(__name__)


class Monitor:
    """Watches token and keys.

    Args:
        settings: The `keys` section.
        state_dir: The state directory.
        scope: Cluster name, as in the records.
        interval: Seconds between canaries while all is well.
        call_timeout: Longest wait for one answer of the token, in seconds.
        start_timeout: The same while a worker starts.

    Attributes:
        health: What was learnt.
    """

    def __init__(
        self,
        settings: KeySettings,
        state_dir: StateDir,
        *,
        scope: str,
        interval: float,
        call_timeout: float,
        start_timeout: float,
    ) -> None:
        self._discovery = Discovery(
            settings,
            state_dir,
            seconds=call_timeout,
            start_seconds=start_timeout,
            freeze=True,
        )
        self._scope = scope
        self._interval = interval
        self._call_timeout = call_timeout
        self._start_timeout = start_timeout
        self._workers: Workers | None = None
        self._on_well: Callable[[], None] | None = None
        self._wake = asyncio.Event()
        self._misses = 0
        self.health = Health(
            state_dir, decided=settings.current is not None, workers=self._seen
        )

    def attach(self, workers: Workers, on_well: Callable[[], None]) -> None:
        """Tell the monitor whose workers it watches, before they start.

        Args:
            workers: The workers.
            on_well: Called whenever a canary has passed.
        """
        self._workers = workers
        self._on_well = on_well

    def fault_seen(self, error: HsmKmsError) -> None:
        """A request met an error that speaks about the token: look at once."""
        _log.info("token fault under a request", error=str(error))
        self._wake.set()

    def worker_changed(self) -> None:
        """A worker came, went, or could not start."""
        self.health.evaluate()
        self._wake.set()

    async def qualify(self, worker: Worker) -> None:
        """Read the keyring with a new worker and prove the keys on it.

        Raises:
            HsmKmsError: The worker cannot be used.
        """
        ring = await self._inspect(worker, fresh=True)
        if ring.current is None and self.health.has_key:
            self._misses += 1
            if self._misses < MISSES_BELIEVED:
                raise WorkerLostError("a fresh worker does not see the current key")
        self._adopt(ring, worker)

    async def run(self) -> None:
        """Look at every worker, again and again, until cancelled."""
        while True:
            await self._pause()
            for worker in list(self._workers.ready) if self._workers else ():
                if not worker.retiring and not worker.lost.is_set():
                    await self._look(worker)
            self.health.evaluate()

    def _seen(self) -> WorkersSeen:
        workers = self._workers
        if workers is None:
            return WorkersSeen(ready=0, error=None)
        return WorkersSeen(ready=len(workers.ready), error=workers.last_error)

    async def _pause(self) -> None:
        await asyncio.sleep(_AT_MOST_EVERY)
        retry = min(RETRY_SECONDS, self._interval)
        seconds = self._interval if self.health.settled else retry
        seconds *= 1 + _JITTER * (secrets.SystemRandom().random() - 0.5)
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _look(self, worker: Worker) -> None:
        try:
            ring = await self._inspect(worker, fresh=False)
            self._doubt(ring, worker)
        except TokenTimeoutError as error:
            self.health.canary_failed(error)
        except HsmKmsError as error:
            self.health.canary_failed(error)
            worker.retire(End.CANARY, str(error))
        except Exception as error:  # noqa: BLE001 - a bug must not end the watch
            _log.error("bug in the monitor", exc_info=error)
        else:
            self._adopt(ring, worker)
        self.health.evaluate()

    def _adopt(self, ring: Keyring, worker: Worker) -> None:
        self._misses = 0
        self.health.adopt(ring, worker.token_serial)
        if ring.current is not None and self._on_well is not None:
            self._on_well()

    def _doubt(self, ring: Keyring, worker: Worker) -> None:
        """Let a fresh worker look before a missing key is believed.

        Some modules show only what was there at C_Initialize, and some show nothing
        once their token went away and came back.

        Raises:
            KeyNotFoundError: This worker should be replaced.
        """
        age = asyncio.get_running_loop().time() - worker.born
        if ring.current is None and (self.health.has_key or age > FRESH_SECONDS):
            raise KeyNotFoundError("the current key is not seen: a fresh worker looks")

    async def _inspect(self, worker: Worker, *, fresh: bool) -> Keyring:
        ring = await self._discovery.read(worker, self.health.last_key_id, fresh=fresh)
        seconds = self._start_timeout if fresh else self._call_timeout
        for key in ring.keys:
            await self._prove(worker, ring, key, seconds)
        return ring

    async def _prove(
        self, worker: Worker, ring: Keyring, key: TokenKey, seconds: float
    ) -> None:
        if key.mechanism is None:
            return
        try:
            await worker.ask(canary(key, key.mechanism, self._scope), seconds)
        except HsmKmsError:
            if key is ring.current and ring.fault is None:
                raise
            # A key that cannot encrypt may still decrypt.
