"""The background look at token and keys: the only source of `health`.

Every `interval`, when a key's time comes, and at once after a fault under a request,
each worker's control session lists the keys, and wraps and unwraps a canary. A worker
that fails is replaced; one that is merely slow is left to the hang watch of
`token.workers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Final

import structlog

from hsm_kms.errors import (
    HsmKmsError,
    KeyLostError,
    KeyNotFoundError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.health.canaries import Canaries
from hsm_kms.health.fresh_worker import FreshWorkerChecks, Seeker
from hsm_kms.health.state import Health, WorkersSeen
from hsm_kms.keys.inventory import Inventory
from hsm_kms.token.ends import End

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.ipc.messages import RunCanary
    from hsm_kms.ipc.values import Mechanism
    from hsm_kms.keys.discovery import Discovery, KeyListing
    from hsm_kms.keys.keyring import TokenKey
    from hsm_kms.keys.node_keyring import NodeKeyring
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.process import Worker
    from hsm_kms.token.workers import Workers

RETRY_SECONDS: Final = 2.0
FRESH_SECONDS: Final = 10.0  # younger workers are believed when they miss a key
_JITTER: Final = 0.2
_AT_MOST_EVERY: Final = 0.2  # seconds between two looks, however many faults come

_log = structlog.get_logger(__name__)


class Monitor:
    """Watches token and keys.

    Args:
        discovery: Reads the keys.
        holder: Holds them.
        alarm: Raised when something happened that a look should find.
        canary: The request that wraps and unwraps a canary under a key.
        interval: Seconds between looks while all is well.
        call_timeout: Longest wait for one answer of the token, in seconds.
        start_timeout: The same while a worker starts.

    Attributes:
        health: What was learnt of the token.
        holder: What was learnt of its keys.
    """

    def __init__(  # noqa: PLR0913 - one object each
        self,
        discovery: Discovery,
        holder: NodeKeyring,
        alarm: Alarm,
        *,
        canary: Callable[[TokenKey, Mechanism], RunCanary],
        interval: float,
        call_timeout: float,
        start_timeout: float,
    ) -> None:
        self._discovery = discovery
        self.holder = holder
        self.health = Health(holder, self._seen)
        self._interval = interval
        self._call_timeout = call_timeout
        self._start_timeout = start_timeout
        self._workers: Workers | None = None
        self._on_well: Callable[[], None] | None = None
        self._ready: Callable[[TokenKey], bool] = lambda _: True
        self._alarm = alarm
        self._looking = asyncio.Lock()
        self._sightings = Inventory()
        self._proofs = Canaries(holder, self._sightings, canary)
        self._due: dict[tuple[str, str], float] = {}
        self._seeker = Seeker(self._look_once)
        self._visits = FreshWorkerChecks(
            interval,
            read=self._read_visiting,
            is_behind=self._sightings.is_behind,
        )

    def attach(
        self,
        workers: Workers,
        on_well: Callable[[], None],
        ready: Callable[[TokenKey], bool] = lambda _: True,
    ) -> None:
        """Tell the monitor whose workers it watches, before they start.

        Args:
            workers: The workers.
            on_well: Called whenever a canary has passed.
            ready: Whether, beside the token, all is there to make a key current.
        """
        self._workers = workers
        self._on_well = on_well
        self._ready = ready

    async def qualify(self, worker: Worker) -> None:
        """Read the keys with a new worker and prove them on it.

        Raises:
            HsmKmsError: The worker cannot be used.
        """
        sighting = await self._read(worker, fresh=True)
        for key in sighting.keys:
            await self._proofs.prove(worker, key, self._start_timeout)
        if self._misses_current(worker):
            raise WorkerLostError("a fresh worker does not see the current key")
        ring = self.holder.preview(self._sightings, sighting.nameless, lambda _: False)
        current = ring.current if ring.fault is None else None
        if current is not None and self._sightings.proven(worker, current) is None:
            await self._proofs.prove(worker, current, self._start_timeout, needed=True)
        self._adopt(worker, sighting)

    async def run(self) -> None:
        """Look at every worker, again and again, until cancelled."""
        visits = asyncio.create_task(self._visit())
        try:
            while True:
                self.health.evaluate()  # time alone may change it
                await self._pause()
                for worker in self._serving():
                    await self._look(worker)
        finally:
            self._seeker.close()
            visits.cancel()
            await asyncio.gather(visits, return_exceptions=True)

    @property
    def error(self) -> HsmKmsError | None:
        """Why the latest worker could not start; None if it could, or none tried."""
        return self._seen().error

    async def first_news(self) -> None:
        """Wait until the keys have been read, or a worker could not start."""
        await self.health.first_news()

    async def look_again(self, until: float) -> None:
        """A request names a key that is not held: see whether it has just come.

        Args:
            until: Longest wait, in the loop's time.
        """
        if await self._seeker.seek(until):
            self._visits.soon()

    async def _visit(self) -> None:
        if self._workers is not None:
            await self._visits.run(self._workers)

    async def _look_once(self) -> None:
        for worker in self._serving()[:1]:
            await self._look(worker)

    def _serving(self) -> list[Worker]:
        ready = self._workers.ready if self._workers is not None else ()
        return [each for each in ready if not each.retiring and not each.lost.is_set()]

    def _seen(self) -> WorkersSeen:
        workers = self._workers
        if workers is None:
            return WorkersSeen(ready=0, error=None)
        return WorkersSeen(ready=len(workers.ready), error=workers.last_error)

    async def _pause(self) -> None:
        """Wait for the next look; an alarm changes the state of health at once."""
        loop = asyncio.get_running_loop()
        soonest = loop.time() + _AT_MOST_EVERY
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds_to_next()):
                await self._alarm.wait()
        self.health.evaluate()
        await asyncio.sleep(soonest - loop.time())
        self._alarm.clear()

    def _seconds_to_next(self) -> float:
        retry = min(RETRY_SECONDS, self._interval)
        seconds = self._interval if self.health.settled else retry
        seconds *= 1 + _JITTER * (secrets.SystemRandom().random() - 0.5)
        coming = self.holder.seconds_to_next()
        return seconds if coming is None else min(seconds, coming)

    # One worker's look

    async def _look(self, worker: Worker) -> None:
        async with self._looking:
            try:
                sighting = await self._read(worker, fresh=False)
                for key in sighting.keys:
                    if self._proofs.is_due(worker, key):
                        await self._proofs.prove(worker, key, self._call_timeout)
                self._doubt(worker)
                self._adopt(worker, sighting)
            except TokenTimeoutError as error:
                self.health.canary_failed(error)
            except HsmKmsError as error:
                self.health.canary_failed(error)
                worker.retire(End.CANARY, str(error))
            except Exception as error:  # noqa: BLE001 - a bug must not end the watch
                _log.error("bug in the monitor", exc_info=error)
            self.health.evaluate()

    async def _read(self, worker: Worker, *, fresh: bool) -> KeyListing:
        sighting = await self._discovery.read(
            worker, self.holder.last_key_id, fresh=fresh
        )
        self._sightings.note(worker, sighting, self.holder.clock())
        return sighting

    async def _read_visiting(self, worker: Worker) -> None:
        await self._read(worker, fresh=False)
        self._alarm.notify("a fresh worker read the keys")  # what do the others see?

    def _misses_current(self, worker: Worker) -> bool:
        """Whether a key that is held, and current, is not seen by this worker."""
        current = self.holder.current
        if current is None or self._sightings.sees(worker, current):
            return False
        return any(key.name == current.name for key in self._sightings.keys)

    def _doubt(self, worker: Worker) -> None:
        """Let a fresh worker look before a missing key is believed.

        Some modules show only what was there at C_Initialize, and some show nothing
        once their token went away and came back.

        Raises:
            KeyNotFoundError: This worker should be replaced.
        """
        if self._misses_current(worker):
            raise KeyNotFoundError("the current key is not seen: a fresh worker looks")
        ring = self.holder.ring
        missing = ring is not None and isinstance(
            ring.fault, KeyNotFoundError | KeyLostError
        )
        age = asyncio.get_running_loop().time() - worker.born
        if missing and age > FRESH_SECONDS:
            raise KeyNotFoundError("no current key is seen: a fresh worker looks")

    def _adopt(self, worker: Worker, sighting: KeyListing) -> None:
        there = [*self._serving(), worker]
        before, self._due = self._due, {}
        # Not by `there`: another one may just be starting, and serves soon.
        self._sightings.forget_lost()
        self.health.canary_passed()
        self.holder.adopt(
            self._sightings,
            sighting.nameless,
            lambda key: self._usable(key, there, before.get(key.name)),
            worker.token_serial,
        )
        if self.holder.current is not None and self._on_well is not None:
            self._on_well()

    def _usable(
        self, key: TokenKey, workers: list[Worker], since: float | None
    ) -> bool:
        """Whether wrap and unwrap have worked on every worker since its time came."""
        if since is None:
            since = asyncio.get_running_loop().time()
            self._alarm.notify("the activation time of a key has come")
        self._due[key.name] = since
        return self._sightings.proven_by_all(workers, key, since) and self._ready(key)
