"""Wrap and unwrap canaries under a key that has no other use: `health.key`.

1. The health key is the one AES key on the token with the configured CKA_LABEL. It
   wraps by the same mechanism as the KEKs, so a pair for AES-CBC with HMAC must be one.
2. Whatever is wrong with the health key alone is a warning, and never a failure of the
   token: `health.prover` says what proves the token then.
3. An absent health key is looked for at each inspection, because that uses no key. One
   that failed is tried again by a new worker, and after `RETRY_SECONDS`: a failure
   makes the session forget its handles, and identify the KEKs again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    HsmKmsError,
    KeyAmbiguousError,
    KeyNotFoundError,
    KeyReplacedError,
    KeyUnsuitableError,
    TokenError,
)
from hsm_kms.ipc.messages import Encrypted, FindKeys
from hsm_kms.ipc.values import Cipher, Identify
from hsm_kms.keys.listing import list_keys
from hsm_kms.keys.token_key import TokenKey
from hsm_kms.repeats import Repeats
from hsm_kms.token.errors import error_from
from hsm_kms.wrapping.by_token import canary, canary_seconds

if TYPE_CHECKING:
    from hsm_kms.ipc.values import KeySeen, Mechanism
    from hsm_kms.token.process import Worker

RETRY_SECONDS: Final = 600.0
ABSENT: Final = (KeyNotFoundError, KeyAmbiguousError)
"""Errors of a search for the health key, which use no key."""


class HealthKey:
    """Prove the token with the health key.

    Args:
        label: CKA_LABEL of the health key.
        scope: Cluster name, authenticated in each canary.
        call_timeout: Longest time of one encryption or decryption, in seconds.
        seconds: Longest wait for each page of keys.

    Attributes:
        label: CKA_LABEL of the health key.
    """

    def __init__(
        self, label: str, scope: str, *, call_timeout: float, seconds: float
    ) -> None:
        self.label = label
        self._scope = scope
        self._call_timeout = call_timeout
        self._seconds = seconds
        self._found: dict[Worker, TokenKey] = {}
        self._errors: dict[Worker, tuple[float, HsmKmsError]] = {}
        self._repeats = Repeats(__name__)

    @property
    def error(self) -> HsmKmsError | None:
        """Return why the health key cannot be used; None if it can, or is untried."""
        failed = (each[1] for each in self._errors.values())
        return next(failed, None)

    def is_due(self, worker: Worker) -> bool:
        """Return True unless the key failed on this worker a short time ago."""
        since, error = self._errors.get(worker, (-math.inf, None))
        elapsed = asyncio.get_running_loop().time() - since
        return isinstance(error, ABSENT) or elapsed >= RETRY_SECONDS

    def has_failed(self, worker: Worker) -> bool:
        """Return True if the key could not be used the last time on this worker."""
        return worker in self._errors

    async def prove(self, worker: Worker, mechanism: Mechanism) -> float:
        """Wrap and unwrap a canary on `worker`; return the seconds that it took.

        Args:
            worker: A worker that is logged in.
            mechanism: How the KEKs wrap.

        Raises:
            HsmKmsError: The key cannot be used, or the token failed.
        """
        key = self._found.get(worker)
        if key is None:
            key = await self._find(worker, mechanism)
        try:
            took = await self._run(worker, key, mechanism)
        except (KeyNotFoundError, KeyReplacedError):  # it may have a successor
            del self._found[worker]
            key = await self._find(worker, mechanism)
            took = await self._run(worker, key, mechanism)
        self._errors.pop(worker, None)
        if self.error is None:
            self._repeats.log_change("key", logging.INFO, "health key usable")
        return took

    def unusable(self, worker: Worker, error: HsmKmsError) -> None:
        """Note that the token works on `worker`, and the health key does not."""
        now = asyncio.get_running_loop().time()
        self._errors[worker] = now, error
        self._found.pop(worker, None)
        self._repeats.log_change(
            "key", logging.WARNING, "health key unusable", error=error.sentence
        )

    def forget_lost(self) -> None:
        """Forget the workers that are gone."""
        for known in (self._found, self._errors):
            for worker in [each for each in known if each.lost.is_set()]:
                del known[worker]

    async def _find(self, worker: Worker, mechanism: Mechanism) -> TokenKey:
        ask = partial(worker.ask, seconds=self._seconds)
        # Of several keys, none may be used at each inspection.
        wanted = FindKeys(label=self.label, identify=Identify.ONCE)
        found = await list_keys(ask, wanted)
        paired = mechanism.cipher is Cipher.CBC_HMAC
        if not found:
            raise KeyNotFoundError(
                f"no AES key labelled {self.label!r} is on the token",
                hint="generate it, or correct health.key",
            )
        if len({each.ref for each in found}) > 1:
            raise KeyAmbiguousError(
                f"{len(found)} AES keys are labelled {self.label!r}",
                hint="delete all but one, or name another in health.key",
            )
        seen = found[0].partner if paired else found[0]
        fingerprint = self._fingerprint_of(seen)
        key = TokenKey(
            ref=found[0].ref,
            fingerprint=fingerprint,
            key_id=fingerprint,
            cipher=mechanism.cipher,
            mechanism=mechanism,
            activation=0,
            violations=(),
            born_here=True,
        )
        self._found[worker] = key
        return key

    def _fingerprint_of(self, seen: KeySeen | None) -> str:
        """Return the fingerprint of the key, or of the pair.

        Raises:
            HsmKmsError: It cannot be identified, or has no HMAC key beside it.
        """
        what = f"the health key labelled {self.label!r}"
        if seen is None:
            raise KeyUnsuitableError(
                f"{what} has no HMAC key beside it, which the mechanism needs",
                hint=f"generate it with the label {self.label}-hmac, and the CKA_ID "
                "of the AES key with 68 appended",
            )
        if seen.fingerprint is not None:
            return seen.fingerprint
        if seen.problem is None:
            raise KeyUnsuitableError(f"{what} cannot be identified")
        error = error_from(seen.problem)
        raise KeyUnsuitableError(
            f"{what} cannot be used: {error}", hint=error.hint, rv=error.rv
        )

    async def _run(self, worker: Worker, key: TokenKey, mechanism: Mechanism) -> float:
        # Not counted as a wrap: no secret is ever wrapped under this key.
        began = asyncio.get_running_loop().time()
        request = canary(key, mechanism, self._scope)
        limit = canary_seconds(request, self._call_timeout)
        reply = await worker.ask(request, limit)
        if not isinstance(reply, Encrypted):
            raise TokenError("the worker answered a RunCanary with something else")
        return asyncio.get_running_loop().time() - began
