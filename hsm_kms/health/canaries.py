"""Prove keys on workers with canaries.

A canary is a constant that a worker wraps and unwraps under one key. It may take
`call_timeout` for each encryption and decryption, as requests may.

1. The current key and the keys to come are proven at each inspection, any other key
   once per worker. With `health.canary: session` or `health.key` they are proven once
   per worker, when their activation time has come, and after a request met an error of
   the token.
2. The token counts as available while the latest canary passed and a worker serves.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from hsm_kms import clock
from hsm_kms.clock import Suspension
from hsm_kms.errors import HsmKmsError, TokenError, WorkerLostError
from hsm_kms.health.proofs import Proofs
from hsm_kms.ipc.messages import CheckKey, Encrypted
from hsm_kms.ipc.values import KeptCanary
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.repeats import Repeats
from hsm_kms.wrapping.by_token import canary, canary_seconds
from hsm_kms.wrapping.nonce_budget import counts

if TYPE_CHECKING:
    from hsm_kms.ipc.values import Mechanism
    from hsm_kms.keys.node_keyring import NodeKeyring
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.process import Worker
    from hsm_kms.wrapping.nonce_budget import NonceBudget

# A request makes two C calls within `call_timeout`, and a check makes six.
_CHECK_TIMEOUTS: Final = 3


class Canaries:
    """Run canaries, and say since when the token is available.

    Args:
        node_keyring: Knows which keys are in use.
        alarm: Raised when a key should be proven at once.
        budget: Counts the wraps.
        scope: Cluster name, authenticated in each canary.
        call_timeout: Longest time of one encryption or decryption, in seconds.
        spares_keks: Inspections prove the keys in use only when they must.

    Attributes:
        proofs: What was proven where.
        error: Why the latest canary failed; None if it passed, or none has run.
        passes: How many inspections have passed.
        passed_when: When the token last passed a canary, in seconds since the Unix
            epoch; None if it never did.
        failed_when: When an inspection last failed; None if none has.
        failure: Why it failed; "" if none has.
        slow: The latest canary under the current key passed, but took longer than
            `call_timeout`.
        spares_keks: Inspections prove the keys in use only when they must.
    """

    def __init__(
        self,
        node_keyring: NodeKeyring,
        alarm: Alarm,
        budget: NonceBudget,
        scope: str,
        *,
        call_timeout: float,
        spares_keks: bool = False,
    ) -> None:
        self._node_keyring = node_keyring
        self._budget = budget
        self._scope = scope
        self._call_timeout = call_timeout
        self.spares_keks = spares_keks
        self.proofs = Proofs(alarm)
        self._passed_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # whose time that is
        self._suspension = Suspension()  # since then
        self._repeats = Repeats(__name__)
        self.error: HsmKmsError | None = None
        self.passes = 0
        self.passed_when: float | None = None
        self.failed_when: float | None = None
        self.failure = ""
        self.slow = False

    # One key on one worker

    def is_due(self, worker: Worker, key: TokenKey) -> bool:
        """Return True if this inspection must prove `key` on `worker`."""
        if self._node_keyring.ring is None or not self.proofs.has_proven(worker, key):
            return True
        if not any(each.name == key.name for each in self.in_use):
            return False
        return not self.spares_keks or self.proofs.are_doubted(worker, key)

    @property
    def in_use(self) -> list[TokenKey]:
        """Return the keys that each inspection proves: the current one first."""
        ring = self._node_keyring.ring
        if ring is None:
            return []
        keys = [ring.current, *(each.key for each in ring.pending)]
        return [key for key in keys if key is not None]

    async def prove(
        self,
        worker: Worker,
        key: TokenKey,
        at_least: float = 0.0,
        *,
        needed: bool = False,
    ) -> bool:
        """Wrap and unwrap a canary under `key` on `worker`; return True if it passed.

        Args:
            worker: The worker.
            key: The key.
            at_least: Seconds to wait at least, also if the limit is lower.
            needed: The worker is of no use without this key.

        Raises:
            KeyReplacedError: The key in use is another key than before.
            HsmKmsError: The canary failed under a key that must work, or the worker
                is lost.
        """
        if key.mechanism is None:
            return False
        began = asyncio.get_running_loop().time()
        if counts(key.cipher):
            # A canary is counted, and never refused: health depends on it.
            self._budget.spend(key.fingerprint, refuse=False)
        try:
            kept = await self._run(worker, key, key.mechanism, at_least)
        except HsmKmsError as error:
            self.proofs.failed(worker, key, str(error))
            # A key that cannot encrypt may still decrypt.
            if needed or self._is_current(key) or isinstance(error, WorkerLostError):
                raise
            self._repeats.log(
                logging.INFO,
                "canary of another key failed",
                (key.key_id, str(error)),
                key_id=key.key_id,
                error=str(error),
            )
            return False
        self.proofs.passed(worker, key, began)
        self._node_keyring.memory.canary_passed(key, kept)
        if self._is_current(key):
            self.timed(asyncio.get_running_loop().time() - began)
        return True

    def timed(self, seconds: float) -> None:
        """Note how long a canary took that passed under a key in regular use."""
        slow = seconds > self._call_timeout
        if slow is not self.slow:
            self.slow = slow
            level = logging.WARNING if slow else logging.INFO
            event = "token slow" if slow else "token no longer slow"
            self._repeats.log_change(
                "slow", level, event, canary_seconds=round(seconds, 3)
            )

    async def _run(
        self, worker: Worker, key: TokenKey, mechanism: Mechanism, at_least: float
    ) -> KeptCanary:
        kept = self._node_keyring.memory.kept_canary(key)
        request = canary(key, mechanism, self._scope, kept)
        limit = canary_seconds(request, self._call_timeout)
        reply = await worker.ask(request, max(at_least, limit))
        if not isinstance(reply, Encrypted):
            raise TokenError("the worker answered a RunCanary with something else")
        return KeptCanary(
            cipher=key.cipher,
            aad=request.aad,
            iv=reply.iv,
            ciphertext=reply.ciphertext,
        )

    async def check(self, worker: Worker, key: TokenKey) -> None:
        """Have the control session of `worker` show a key, without the use of it.

        Raises:
            HsmKmsError: The session does not see the key, or is not logged in, or the
                worker is lost.
        """
        request = CheckKey(ref=key.ref, fingerprint=key.fingerprint, cipher=key.cipher)
        await worker.ask(request, _CHECK_TIMEOUTS * self._call_timeout)

    def _is_current(self, key: TokenKey) -> bool:
        ring = self._node_keyring.ring
        if ring is None:
            last = self._node_keyring.last_key_id
            return last is not None and fingerprint_in(last) == key.fingerprint
        if ring.current is None or ring.fault is not None:
            return False
        return ring.current.name == key.name

    # One inspection

    def passed(self, worker: Worker) -> None:
        """Note that an inspection with `worker` read the keys and proved them."""
        self.answered(worker)
        self.error = None
        self.passes += 1

    def answered(self, worker: Worker) -> None:
        """Note that the token answered an inspection with `worker`."""
        self.proofs.inspected(worker, self.heard())

    def heard(self) -> float:
        """Note that a canary passed just now; return the time, in the loop's time."""
        self._loop = asyncio.get_running_loop()
        self._passed_at = self._loop.time()
        self.passed_when = clock.now()
        self._suspension = Suspension()
        return self._passed_at

    def silent_for(self) -> float:
        """Return the seconds since the token answered; 0 if it never did."""
        if self._passed_at is None or self._loop is None:
            return 0.0
        return self._loop.time() - self._passed_at

    def failed(self, error: HsmKmsError) -> None:
        """Note that an inspection failed, or was not answered in time."""
        self._repeats.log(
            logging.WARNING, "canary failed", str(error), error=str(error)
        )
        self.error = error
        self.failed_when, self.failure = clock.now(), str(error)

    # All workers

    def offline_for(self) -> float | None:
        """Return the seconds since the token was last known to be available.

        Counted from the last canary that passed; None if none has passed yet. While a
        worker serves and no canary has failed since, only the time counts in which
        this node was suspended: what became of the token meanwhile is not known.
        """
        if self._passed_at is None:
            return None
        suspended = self._suspension.seconds()
        if self.error is None and self.proofs.a_worker_lives:
            return suspended
        return suspended + asyncio.get_running_loop().time() - self._passed_at
