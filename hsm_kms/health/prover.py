"""Prove the keys of one inspection: those in use first, and then all that are due.

Any key that is proven closes the breaker. While the breaker is open, or there is no
current key, an inspection proves some key.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from hsm_kms.errors import (
    HsmKmsError,
    KeyReplacedError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.health.canaries import Canaries
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
    """

    def __init__(
        self,
        node_keyring: NodeKeyring,
        canaries: Canaries,
        inventory: Inventory,
        breaker: Breaker,
    ) -> None:
        self._node_keyring = node_keyring
        self._canaries = canaries
        self._inventory = inventory
        self._breaker = breaker
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
                if await self.prove(worker, key):
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
        due = [
            key
            for key in listing.keys
            if key.found_by not in proven and self._canaries.is_due(worker, key)
        ]
        passed = bool(proven)
        for key in due:
            passed |= await self.prove(worker, key)
        if self._breaker.is_open or self._node_keyring.current is None:
            for key in listing.keys:
                if not passed and key not in due:
                    passed = await self.prove(worker, key)
        return passed

    async def prove(self, worker: Worker, key: TokenKey, at_least: float = 0.0) -> bool:
        """Prove a key on a worker; return True if the canary passed.

        A key that is another than before is distrusted.
        """
        try:
            passed = await self._canaries.prove(worker, key, at_least)
        except KeyReplacedError as error:
            if self._node_keyring.memory.distrust(key):
                _log.warning("another key", key_id=key.key_id, error=str(error))
                self.outdate()
            return False
        if passed:
            self._breaker.close()
        return passed
