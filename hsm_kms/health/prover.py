"""Prove the keys of one inspection: those in use first, and then all that are due.

1. A key that is due wraps and unwraps a canary, see `health.canaries`. Any KEK that is
   proven closes the breaker. While the breaker is open, or there is no current key, an
   inspection proves some key.
2. A key in use that is not due is spared: the health key wraps and unwraps in its
   place, or the session shows that it is logged in and sees the key. Neither closes
   the breaker, because neither says that requests work again.
3. If the health key fails and the KEK does not, the health key is at fault: that is a
   warning, and the session must do. One canary under the KEK tells the two apart.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from hsm_kms.errors import (
    HsmKmsError,
    KeyReplacedError,
    SessionLostError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.health.health_key import ABSENT
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.health.canaries import Canaries
    from hsm_kms.health.health_key import HealthKey
    from hsm_kms.keys.discovery import KeyListing
    from hsm_kms.keys.inventory import Inventory
    from hsm_kms.keys.node_keyring import NodeKeyring
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.token.breaker import Breaker
    from hsm_kms.token.process import Worker

_log = get_logger(__name__)


class Prover:
    """Prove keys, and know which workers are older than a change of names.

    Args:
        node_keyring: The keys of this node.
        canaries: Proves one key on one worker.
        inventory: Knows which worker sees which key.
        breaker: Closed when a key works.
        health_key: Used in place of the KEKs; None if there is none.
    """

    def __init__(
        self,
        node_keyring: NodeKeyring,
        canaries: Canaries,
        inventory: Inventory,
        breaker: Breaker,
        health_key: HealthKey | None,
    ) -> None:
        self._node_keyring = node_keyring
        self._canaries = canaries
        self._inventory = inventory
        self._breaker = breaker
        self._health_key = health_key
        self._outdated_before = -math.inf  # in the loop's time

    def is_outdated(self, worker: Worker) -> bool:
        """Return True if another key was found under known names since it started."""
        return worker.born < self._outdated_before

    def outdate(self, since: Worker | None = None) -> None:
        """Have every worker ended that may hold handles from before a change.

        Args:
            since: Only those that are older than this worker; None for all.
        """
        now = asyncio.get_running_loop().time()
        self._outdated_before = now if since is None else since.born

    async def prove_known(
        self, worker: Worker, keys: Sequence[TokenKey]
    ) -> set[object]:
        """Prove those of the keys that the worker saw last; return what passed.

        A key that fails is judged once the keys have been read: it may have gone.

        Raises:
            HsmKmsError: The worker is lost, or did not answer in time.
        """
        proven: set[object] = set()
        for key in keys:
            if not self._inventory.sees(worker, key):
                continue
            try:
                if await self._prove_in_use(worker, key):
                    proven.add(key.found_by)
            except (TokenTimeoutError, WorkerLostError):
                raise
            except HsmKmsError:
                continue
        if proven:
            self._canaries.heard()
        return proven

    async def prove_due(
        self, worker: Worker, listing: KeyListing, proven: set[object]
    ) -> bool:
        """Prove the keys that are due and not in `proven`.

        Returns:
            True if a canary passed, now or before.
        """
        canaries = self._canaries
        in_use = {key.found_by for key in canaries.in_use}
        due = [
            key
            for key in listing.keys
            if key.found_by not in proven
            and (key.found_by in in_use or canaries.is_due(worker, key))
        ]
        passed = bool(proven)
        for key in due:
            passed |= await self._prove_in_use(worker, key)
        if self._breaker.is_open or self._node_keyring.current is None:
            for key in listing.keys:
                if key not in due and self._lacks_proof(passed=passed):
                    passed |= await self.prove(worker, key)
        # Where KEKs are spared, the listing itself came from a session that answers.
        return passed or (canaries.spares_keks and bool(listing.keys))

    def _lacks_proof(self, *, passed: bool) -> bool:
        """Return True if an inspection must prove a key that is not due."""
        if self._canaries.spares_keks:
            return self._breaker.is_open
        return not passed

    async def _prove_in_use(self, worker: Worker, key: TokenKey) -> bool:
        """Prove a key in use, or spare it (rule 2); return True if that passed.

        Raises:
            HsmKmsError: As `prove` and `_check`.
        """
        if self._canaries.is_due(worker, key):
            return await self.prove(worker, key)
        first = [each.found_by for each in self._canaries.in_use[:1]]
        if self._health_key is not None and key.found_by in first:
            self._health_key.forget_lost()
            if self._health_key.is_due(worker) and await self._prove_by_health_key(
                self._health_key, worker, key
            ):
                return True
        return await self._check(worker, key)

    async def _prove_by_health_key(
        self, health_key: HealthKey, worker: Worker, key: TokenKey
    ) -> bool:
        """Return True if a canary passed under the health key, False if it is at fault.

        Raises:
            HsmKmsError: The token is at fault, or `key` is.
        """
        if key.mechanism is None:
            return False
        try:
            self._canaries.timed(await health_key.prove(worker, key.mechanism))
        except (TokenTimeoutError, WorkerLostError, SessionLostError):
            raise
        except HsmKmsError as error:
            settled = isinstance(error, ABSENT) or health_key.has_failed(worker)
            if not settled and not await self.prove(worker, key):
                raise
            health_key.unusable(worker, error)
            return False
        return True

    async def _check(self, worker: Worker, key: TokenKey) -> bool:
        """Have the session show that it is logged in and sees a key.

        Raises:
            HsmKmsError: It is not, or does not, or the token failed.
        """
        try:
            await self._canaries.check(worker, key)
        except KeyReplacedError as error:
            self._distrust(key, error)
            return False
        return True

    async def prove(self, worker: Worker, key: TokenKey, at_least: float = 0.0) -> bool:
        """Prove a key on a worker; return True if the canary passed.

        A key that is another than before is distrusted.
        """
        try:
            passed = await self._canaries.prove(worker, key, at_least)
        except KeyReplacedError as error:
            self._distrust(key, error)
            return False
        if passed:
            self._breaker.close()
        return passed

    def _distrust(self, key: TokenKey, error: KeyReplacedError) -> None:
        if self._node_keyring.memory.distrust(key):
            _log.warning("another key", key_id=key.key_id, error=str(error))
            self.outdate()
