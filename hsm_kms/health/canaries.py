"""Canaries: which key wraps and unwraps on which worker, as just tried."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from hsm_kms.errors import HsmKmsError, WorkerLostError
from hsm_kms.keys.key_id import fingerprint_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.ipc.messages import RunCanary
    from hsm_kms.ipc.values import Mechanism
    from hsm_kms.keys.inventory import Inventory
    from hsm_kms.keys.keyring import TokenKey
    from hsm_kms.keys.node_keyring import NodeKeyring
    from hsm_kms.token.process import Worker

_log = structlog.get_logger(__name__)


class Canaries:
    """Proves keys on workers.

    Args:
        holder: Knows which keys are in use.
        sightings: Where the outcome is noted.
        canary: The request that wraps and unwraps a canary under a key.
    """

    def __init__(
        self,
        holder: NodeKeyring,
        sightings: Inventory,
        canary: Callable[[TokenKey, Mechanism], RunCanary],
    ) -> None:
        self._holder = holder
        self._sightings = sightings
        self._canary = canary

    def is_due(self, worker: Worker, key: TokenKey) -> bool:
        """The current key and those to come, each time; any other once a worker."""
        ring = self._holder.ring
        if ring is None or self._sightings.proven(worker, key) is None:
            return True
        in_use = [ring.current, *(each.key for each in ring.pending)]
        return any(each is not None and each.name == key.name for each in in_use)

    async def prove(
        self, worker: Worker, key: TokenKey, seconds: float, *, needed: bool = False
    ) -> None:
        """Wrap and unwrap a canary.

        Args:
            worker: Where.
            key: Under which key.
            seconds: Longest wait.
            needed: The worker is of no use without it.

        Raises:
            HsmKmsError: It failed under a key that must work, or the worker is lost.
        """
        if key.mechanism is None:
            return
        began = asyncio.get_running_loop().time()
        try:
            await worker.ask(self._canary(key, key.mechanism), seconds)
        except HsmKmsError as error:
            self._sightings.prove(worker, key, None)
            # A key that cannot encrypt may still decrypt.
            if needed or self._is_current(key) or isinstance(error, WorkerLostError):
                raise
            _log.info("canary under another key", key_id=key.key_id, error=str(error))
        else:
            self._sightings.prove(worker, key, began)

    def _is_current(self, key: TokenKey) -> bool:
        ring = self._holder.ring
        if ring is None:
            last = self._holder.last_key_id
            return last is not None and fingerprint_in(last) == key.fingerprint
        if ring.current is None or ring.fault is not None:
            return False
        return ring.current.name == key.name
