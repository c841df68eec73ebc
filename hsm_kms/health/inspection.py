"""Inspect token and keys with one worker: prove, read, prove, adopt.

1. A new worker serves only after it has read the keys and proven them.
2. A worker that fails an inspection is ended. One that is merely slow is left to the
   hang watch of `token.watchdog`. An error of a worker that is leaving says nothing.
3. No worker is ended because the current key is missing: whether a fresh process sees
   more is asked once, of a fresh worker, and its answer is believed until the key is
   seen again. `health.fresh_worker` replaces the workers that see less than it. Only a
   worker that saw keys and sees none any more is ended: it has lost its token, or can
   serve nothing in any case.
4. That another key has the names of a key is believed at once, and every worker that
   is older is ended.
5. The keys in use are proven first, and again while the others are read for long: how
   long reading takes says nothing about health. See `health.prover`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    HsmKmsError,
    KeyLostError,
    KeyNotFoundError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.health.prover import Prover
from hsm_kms.keys.inventory import MISSED_SECONDS, Inventory
from hsm_kms.log import get_logger
from hsm_kms.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hsm_kms.health.canaries import Canaries
    from hsm_kms.health.health_key import HealthKey
    from hsm_kms.keys.discovery import Discovery, KeyListing
    from hsm_kms.keys.node_keyring import NodeKeyring
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.keys.trial import Trial
    from hsm_kms.token.breaker import Breaker
    from hsm_kms.token.process import Worker
    from hsm_kms.wrapping.standby import Standby

AGAIN_SECONDS: Final = 10.0  # at least, between two canaries while keys are read

_log = get_logger(__name__)


class Inspection:
    """Inspect the token through one worker at a time.

    Args:
        discovery: Reads the keys.
        node_keyring: Adopts them.
        canaries: Proves them.
        standby: Provides local KEKs for them.
        breaker: Closed when a key works.
        start_timeout: Longest wait for one answer while a worker starts, in seconds.
        interval: Seconds between regular inspections.
        health_key: Used in place of the KEKs; None if there is none.
    """

    def __init__(  # noqa: PLR0913 - one object each
        self,
        discovery: Discovery,
        node_keyring: NodeKeyring,
        canaries: Canaries,
        standby: Standby,
        breaker: Breaker,
        *,
        start_timeout: float,
        interval: float,
        health_key: HealthKey | None = None,
    ) -> None:
        self._discovery = discovery
        self._node_keyring = node_keyring
        self._canaries = canaries
        self._standby = standby
        self._start_timeout = start_timeout
        self._interval = interval
        # With a shorter interval the operator asks for quicker answers.
        self._inventory = Inventory(apart=min(interval, MISSED_SECONDS))
        self._answered: str | None = None  # the missing key a fresh worker looked for
        self._inspecting = asyncio.Lock()
        self._slow = Repeats(__name__)
        self._prover = Prover(
            node_keyring, canaries, self._inventory, breaker, health_key
        )

    async def qualify(self, worker: Worker) -> None:
        """Read the keys with a new worker and prove them on it.

        Raises:
            HsmKmsError: The worker cannot be used.
        """
        listing = await self._read(worker, fresh=True)
        for key in listing.keys:
            await self._prover.prove(worker, key, self._start_timeout)
        current = self._would_be_current(listing)
        # If no worker sees the current key, this one still serves the other keys.
        if current is not None and self._inventory.is_seen(current):
            if not self._inventory.sees(worker, current):
                raise WorkerLostError("a fresh worker does not see the current key")
            if not self._canaries.proofs.has_proven(worker, current):
                await self._canaries.prove(
                    worker, current, self._start_timeout, needed=True
                )
        await self._adopt(worker, listing)
        self._answered = self._missing()

    async def look(self, worker: Worker) -> bool:
        """Inspect the token with a worker that serves.

        Returns:
            True if a canary passed on it; False if it holds no key that works, or did
            not answer in time.

        Raises:
            HsmKmsError: The worker must be ended.
        """
        # One at a time: two inspections would each count a missing key.
        async with self._inspecting:
            try:
                in_use = self._canaries.in_use
                proven = await self._prover.prove_known(worker, in_use)
                listing = await self._read_in_time(worker, proven)
                if listing is None:
                    return True
                if self._inventory.has_lost_all(worker):
                    raise KeyLostError("a worker no longer sees any key")
                passed = await self._prover.prove_due(worker, listing, proven)
                await self._adopt(worker, listing)
            except HsmKmsError as error:
                if worker.leaving or self.is_outdated(worker):
                    return False  # it is ended for another reason than this
                self._canaries.failed(error)
                if isinstance(error, TokenTimeoutError):
                    return False
                raise
            return passed

    async def read_fresh(self, worker: Worker) -> None:
        """Read the keys with a worker that was started for this alone.

        Raises:
            HsmKmsError: The token could not be asked.
        """
        missing, listing = self._missing(), None
        if missing is None:
            listing = await self._discovery.read_names(worker, self._inventory.keys)
        if listing is None:
            await self._read(worker, fresh=False)
        else:
            self._note(worker, listing, fresh=False)
        self._answered = missing

    @property
    def asks(self) -> bool:
        """Return True if a fresh worker should look for the current key.

        The current key is missing, and no fresh worker has looked for it since.
        """
        missing = self._missing()
        return missing is not None and missing != self._answered

    def is_behind(self, worker: Worker) -> bool:
        """Return True if `worker` misses a key that a younger worker saw earlier."""
        return self._inventory.is_behind(worker)

    def is_outdated(self, worker: Worker) -> bool:
        """Return True if another key was found under known names since it started."""
        return self._prover.is_outdated(worker)

    async def _read_in_time(
        self, worker: Worker, proven: set[object]
    ) -> KeyListing | None:
        """Read the keys; return None if only that is too slow, and the token works.

        Args:
            worker: The worker.
            proven: The keys that have just been proven on it, to be kept up to date.
        """

        async def prove_again() -> None:
            if self._canaries.silent_for() >= max(self._interval, AGAIN_SECONDS):
                current = self._canaries.in_use[:1]
                proven.difference_update(key.found_by for key in current)
                proven.update(await self._prover.prove_known(worker, current))

        try:
            return await self._read(worker, fresh=False, between=prove_again)
        except TokenTimeoutError as error:
            current = self._node_keyring.current
            if current is None or current.found_by not in proven:
                raise
            self._slow.log(logging.WARNING, "keys not read in time", error=str(error))
            self._canaries.passed(worker)
            return None

    async def _read(
        self,
        worker: Worker,
        *,
        fresh: bool,
        between: Callable[[], Awaitable[None]] | None = None,
    ) -> KeyListing:
        last = self._node_keyring.last
        listing = await self._discovery.read(worker, last, fresh=fresh, between=between)
        self._note(worker, listing, fresh=fresh)
        return listing

    def _note(self, worker: Worker, listing: KeyListing, *, fresh: bool) -> None:
        """Take a listing in.

        Raises:
            WorkerLostError: It may be older than a change of names.
        """
        # What this worker read may be from before the change.
        if self.is_outdated(worker):
            raise WorkerLostError("another key was found under the names of a key")
        replaced = self._inventory.note(worker, listing, self._node_keyring.clock())
        for each in replaced:
            _log.warning(
                "another key has the names of a key",
                key_id=each.key.key_id,
                found=each.by.key_id,
                label=each.key.ref.label,
                cka_id=each.key.ref.cka_id.hex(),
            )
        if replaced:
            self._prover.outdate(worker if fresh else None)

    def _would_be_current(self, listing: KeyListing) -> TokenKey | None:
        """Return the key that the keys read so far make current, None if none."""
        ring = self._node_keyring.preview(self._inventory, listing.unidentified)
        return ring.current if ring.fault is None else None

    def _misses_current(self, worker: Worker) -> bool:
        """Return True if the current key is held, and this worker does not see it."""
        current = self._node_keyring.current
        return current is not None and not self._inventory.sees(worker, current)

    def _missing(self) -> str | None:
        """Return the key_id of a current key that a worker misses, "" if unknown.

        Returns None if every worker sees the current key. The key may be held still,
        or lost.
        """
        ring, current = self._node_keyring.ring, self._node_keyring.current
        if ring is not None and isinstance(ring.fault, KeyNotFoundError | KeyLostError):
            return self._node_keyring.last_key_id or ""
        if current is not None and self._inventory.is_missed(current):
            return current.key_id
        return None

    async def _adopt(self, worker: Worker, listing: KeyListing) -> None:
        """Rebuild the keyring, and say what the inspection means for health.

        Keyring and local KEKs change in one step of the event loop: the only await is
        in `NodeKeyring.adopt`, before the keyring changes.
        """
        self._inventory.forget_lost()
        self._canaries.proofs.forget(self._inventory.keys)
        if self._misses_current(worker) and self._would_be_current(listing):
            self._canaries.answered(worker)
            self._canaries.failed(KeyLostError("a worker does not see the current key"))
        else:
            self._canaries.passed(worker)
        on_workers = self._canaries.proofs.trials()

        def try_key(key: TokenKey) -> Trial:
            trial = on_workers(key)
            return self._standby.trial(key) if trial.passed else trial

        await self._node_keyring.adopt(
            self._inventory, listing.unidentified, try_key, worker.token_serial
        )
        if self._missing() is None:
            self._answered = None
        if self._node_keyring.current is not None:
            self._standby.keys_changed()
