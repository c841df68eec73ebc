"""Wrap and unwrap DEKs and local KEKs on the token, and describe canaries.

1. A record that `seal` returns was made under the given key, and carries its key_id.
2. A plaintext that `open` returns was authenticated by the token, with the record's own
   header as AAD.
"""

from __future__ import annotations

import hmac
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, Protocol

from hsm_kms.errors import CiphertextError, MechanismError, TokenError
from hsm_kms.ipc.messages import (
    Decrypt,
    Decrypted,
    Encrypt,
    Encrypted,
    GenerateRandom,
    Random,
    RunCanary,
)
from hsm_kms.ipc.values import Cipher
from hsm_kms.wrapping.nonce_budget import counts
from hsm_kms.wrapping.record import Algorithm, Header, Kind, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.ipc.values import KeptCanary, Mechanism
    from hsm_kms.keys.token_key import TokenKey

ALGORITHMS: Final = {
    Cipher.GCM: Algorithm.AES_256_GCM,
    Cipher.CBC_HMAC: Algorithm.AES_256_CBC_HMAC_SHA256,
}
CIPHERS: Final = {algorithm: cipher for cipher, algorithm in ALGORITHMS.items()}


class Sessions(Protocol):
    """Run requests on any session; `token.pool.Pool` does."""

    async def call(
        self,
        request: Request,
        *,
        deadline: float | None,
        before: Callable[[], None] | None = None,
    ) -> Reply:
        """Run one request; see `token.pool.Pool.call`."""
        ...


class Budget(Protocol):
    """Count wraps; `nonce_budget.NonceBudget` does."""

    def spend(self, fingerprint: str) -> None:
        """Count one wrap; see `nonce_budget.NonceBudget.spend`."""
        ...


def canary(
    key: TokenKey, mechanism: Mechanism, scope: str, kept: KeptCanary | None = None
) -> RunCanary:
    """Return the request that wraps and unwraps a canary under a key.

    Args:
        key: The key.
        mechanism: How.
        scope: Cluster name, as in the records.
        kept: An earlier canary that the key must decrypt as well, or None.
    """
    _, aad = _header(Kind.CANARY, key.cipher, key.key_id, scope)
    return RunCanary(
        ref=key.ref,
        fingerprint=key.fingerprint,
        mechanism=mechanism,
        aad=aad,
        kept=kept,
    )


def canary_seconds(request: RunCanary, call_timeout: float) -> float:
    """Return how many seconds a canary may take: `call_timeout` for each operation.

    Args:
        request: What `canary` returned.
        call_timeout: Longest time of one encryption or decryption, in seconds.
    """
    return call_timeout * (2 if request.kept is None else 3)


@lru_cache(maxsize=256)  # a key has the same ones in all its records
def _header(
    kind: Kind, cipher: Cipher, key_id: str, scope: str
) -> tuple[Header, bytes]:
    """Return the header of the records of a key, and their associated data."""
    header = Header(kind=kind, algorithm=ALGORITHMS[cipher], key_id=key_id)
    return header, header.aad(scope)


class ByToken:
    """Wrap and unwrap with the KEKs on the token.

    Args:
        sessions: Runs the requests.
        budget: Counts the wraps under each key.
        scope: The configured cluster name, 0 to 64 bytes of UTF-8, bound into every
            record.

    Attributes:
        scope: The configured cluster name.
    """

    def __init__(self, sessions: Sessions, budget: Budget, *, scope: str) -> None:
        self._sessions = sessions
        self._budget = budget
        self.scope = scope

    async def seal(
        self,
        key: TokenKey,
        kind: Kind,
        plaintext: bytes,
        *,
        deadline: float | None,
        verify: bool,
    ) -> Record:
        """Wrap a plaintext on the token.

        Args:
            key: The KEK.
            kind: Kind of the record: `DEK_BY_TOKEN` or `LOCAL_KEK_BY_TOKEN`.
            plaintext: The plaintext, 1 to 1,024 bytes.
            deadline: Latest time for the answer, in the loop's time; None for no limit
                but that of the pool.
            verify: Unwrap the record and compare before it is returned.

        Raises:
            NonceBudgetError: This node has wrapped under the key as often as is safe.
            HsmKmsError: The token failed, or cannot unwrap what it wrapped.
        """
        if key.mechanism is None:
            raise MechanismError("the token cannot wrap under the current key")
        header, aad = _header(kind, key.cipher, key.key_id, self.scope)
        request = Encrypt(
            ref=key.ref,
            fingerprint=key.fingerprint,
            mechanism=key.mechanism,
            aad=aad,
            plaintext=plaintext,
        )
        count = None
        if counts(key.cipher):
            count = partial(self._budget.spend, key.fingerprint)
        reply = await self._sessions.call(request, deadline=deadline, before=count)
        if not isinstance(reply, Encrypted):
            raise TokenError("the worker sent a wrong reply to an Encrypt")
        record = Record(header=header, iv=reply.iv, ciphertext=reply.ciphertext)
        if verify:
            await self._read_back(key, record, plaintext, deadline)
        return record

    async def open(
        self, key: TokenKey, record: Record, *, deadline: float | None
    ) -> bytes:
        """Unwrap a record on the token.

        Args:
            key: The KEK that the record names.
            record: The record.
            deadline: Latest time for the answer, in the loop's time; None for no limit
                but that of the pool.

        Returns:
            The authenticated plaintext.

        Raises:
            CiphertextError: The record is not authentic.
            HsmKmsError: The token failed.
        """
        request = Decrypt(
            ref=key.ref,
            fingerprint=key.fingerprint,
            cipher=key.cipher,
            aad=record.header.aad(self.scope),
            iv=record.iv,
            ciphertext=record.ciphertext,
        )
        reply = await self._sessions.call(request, deadline=deadline)
        if not isinstance(reply, Decrypted):
            raise TokenError("the worker sent a wrong reply to a Decrypt")
        return reply.plaintext

    async def random(self, count: int) -> bytes:
        """Return random bytes from the token (C_GenerateRandom).

        Args:
            count: Number of bytes.

        Raises:
            HsmKmsError: The token failed, or returned another number of bytes.
        """
        reply = await self._sessions.call(GenerateRandom(count=count), deadline=None)
        if not isinstance(reply, Random) or len(reply.data) != count:
            raise TokenError("the worker sent a wrong reply to a GenerateRandom")
        return reply.data

    async def _read_back(
        self, key: TokenKey, record: Record, plaintext: bytes, deadline: float | None
    ) -> None:
        try:
            again = await self.open(key, record, deadline=deadline)
        except CiphertextError:
            again = b""
        if not hmac.compare_digest(again, plaintext):
            raise TokenError("the token cannot read back what it has just wrapped")
