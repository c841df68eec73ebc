"""What the token wraps and unwraps: DEKs, local KEKs, canaries.

1. What `seal` returns was made under the key that was given, and carries its key_id.
2. What `open` returns was authenticated by the token, with the record's own header
   as AAD.
"""

from __future__ import annotations

import hmac
from functools import partial
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
    from hsm_kms.ipc.values import Mechanism
    from hsm_kms.keys.keyring import TokenKey

ALGORITHMS: Final = {
    Cipher.GCM: Algorithm.AES_256_GCM,
    Cipher.CBC_HMAC: Algorithm.AES_256_CBC_HMAC_SHA256,
}
CIPHERS: Final = {algorithm: cipher for cipher, algorithm in ALGORITHMS.items()}


class Sessions(Protocol):
    """Runs one request on some session; `token.pool.Pool` does."""

    async def call(
        self,
        request: Request,
        *,
        deadline: float | None,
        before: Callable[[], None] | None = None,
    ) -> Reply:
        """See `token.pool.Pool.call`."""
        ...


class Budget(Protocol):
    """Counts nonces; `nonce_budget.NonceBudget` does."""

    def spend(self, fingerprint: str) -> None:
        """See `nonce_budget.NonceBudget.spend`."""
        ...


def canary(key: TokenKey, mechanism: Mechanism, scope: str) -> RunCanary:
    """The request that wraps and unwraps a canary under a key.

    Args:
        key: The key.
        mechanism: How.
        scope: Cluster name, as in the records.
    """
    header = Header(
        kind=Kind.CANARY, algorithm=ALGORITHMS[key.cipher], key_id=key.key_id
    )
    return RunCanary(
        ref=key.ref,
        fingerprint=key.fingerprint,
        mechanism=mechanism,
        aad=header.aad(scope),
    )


class ByToken:
    """Makes and opens records with the KEKs on the token.

    Args:
        sessions: Where requests run.
        budget: What counts the nonces that are made here.
        scope: Cluster name, bound into every record; may be empty.

    Attributes:
        scope: The cluster name.
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
        """Wrap on the token.

        Args:
            key: The KEK.
            kind: Of the record; one that the token wraps.
            plaintext: 1 to 1,024 bytes.
            deadline: In the loop's time, or None.
            verify: Unwrap and compare before it is returned.

        Raises:
            NonceBudgetError: The key must not wrap any more.
            HsmKmsError: The token failed, or wrapped what it cannot unwrap.
        """
        if key.mechanism is None:
            raise MechanismError("the token cannot wrap under the current key")
        header = Header(kind=kind, algorithm=ALGORITHMS[key.cipher], key_id=key.key_id)
        request = Encrypt(
            ref=key.ref,
            fingerprint=key.fingerprint,
            mechanism=key.mechanism,
            aad=header.aad(self.scope),
            plaintext=plaintext,
        )
        count = None
        if counts(key.cipher):
            count = partial(self._budget.spend, key.fingerprint)
        reply = await self._sessions.call(request, deadline=deadline, before=count)
        if not isinstance(reply, Encrypted):
            raise TokenError("the worker answered an Encrypt with something else")
        record = Record(header=header, iv=reply.iv, ciphertext=reply.ciphertext)
        if verify:
            await self._read_back(key, record, plaintext, deadline)
        return record

    async def open(
        self, key: TokenKey, record: Record, *, deadline: float | None
    ) -> bytes:
        """Unwrap on the token.

        Args:
            key: The KEK that the record names.
            record: The record.
            deadline: In the loop's time, or None.

        Raises:
            CiphertextError: Not authentic.
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
            raise TokenError("the worker answered a Decrypt with something else")
        return reply.plaintext

    async def random(self, count: int) -> bytes:
        """Random bytes of the token's own (C_GenerateRandom).

        Args:
            count: How many bytes.

        Raises:
            HsmKmsError: The token failed, or gave another number of them.
        """
        reply = await self._sessions.call(GenerateRandom(count=count), deadline=None)
        if not isinstance(reply, Random) or len(reply.data) != count:
            raise TokenError(
                "the worker answered with something else than random bytes"
            )
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
