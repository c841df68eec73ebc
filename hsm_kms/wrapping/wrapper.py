"""DEK in, record out, and back: each one wrapped by the token.

1. What `wrap` returns was made under the current key and carries its key_id.
2. What `unwrap` returns was authenticated by the token, under the key that the
   record names, with the record's own header as AAD.
3. A record names its key; keys are looked up among those held, never on the token.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from hsm_kms.errors import (
    CiphertextError,
    KeyRetiredError,
    MechanismError,
    RequestError,
    TokenError,
    UnknownKeyIdError,
)
from hsm_kms.worker.messages import Decrypt, Decrypted, Encrypt, Encrypted, Prove
from hsm_kms.worker.values import Cipher
from hsm_kms.wrapping.record import (
    MAX_PLAINTEXT_BYTES,
    Algorithm,
    Header,
    Kind,
    Record,
)

if TYPE_CHECKING:
    from hsm_kms.keyring import Keyring, TokenKey
    from hsm_kms.worker.messages import Reply, Request
    from hsm_kms.worker.values import Mechanism


ALGORITHMS: Final = {
    Cipher.GCM: Algorithm.AES_256_GCM,
    Cipher.CBC_HMAC: Algorithm.AES_256_CBC_HMAC_SHA256,
}
_CIPHERS: Final = {algorithm: cipher for cipher, algorithm in ALGORITHMS.items()}


class Sessions(Protocol):
    """Runs one request on some session; `token.pool.Pool` does."""

    async def call(self, request: Request, *, deadline: float | None) -> Reply:
        """See `token.pool.Pool.call`."""
        ...


class Keyholder(Protocol):
    """Knows the keyring; `engine.Keys` does."""

    async def ring_soon(self, until: float) -> Keyring:
        """The keyring; right after the start, wait for the first one."""
        ...

    async def ring_after_look(self, until: float) -> Keyring:
        """The keyring, after a look for keys that have just come."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What Encrypt answers.

    Args:
        ciphertext: A record, see docs/spec.md.
        key_id: The KEK it was made under.
    """

    ciphertext: bytes = field(repr=False)
    key_id: str


def canary(key: TokenKey, mechanism: Mechanism, scope: str) -> Prove:
    """The request that wraps and unwraps a canary under a key.

    Args:
        key: The key.
        mechanism: How.
        scope: Cluster name, as in the records.
    """
    header = Header(
        kind=Kind.CANARY, algorithm=ALGORITHMS[key.cipher], key_id=key.key_id
    )
    return Prove(ref=key.ref, mechanism=mechanism, aad=header.aad(scope))


class TokenWrapper:
    """Wraps every DEK with the token.

    Args:
        sessions: Where requests run.
        keys: Where the keyring is.
        scope: Cluster name, bound into every record; may be empty.
        verify: Unwrap and compare each result before it is returned.
        patience: Longest wait for a keyring, in seconds.
    """

    def __init__(
        self,
        sessions: Sessions,
        keys: Keyholder,
        *,
        scope: str,
        verify: bool,
        patience: float,
    ) -> None:
        self._sessions = sessions
        self._keys = keys
        self._scope = scope
        self._verify = verify
        self._patience = patience

    async def wrap(self, plaintext: bytes, *, deadline: float | None) -> Sealed:
        """Wrap a DEK under the current key.

        Args:
            plaintext: 1 to 1,024 bytes.
            deadline: In the loop's time, or None.

        Raises:
            RequestError: The length is out of range.
            HsmKmsError: There is no key to use, or the token failed.
        """
        if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
            raise RequestError("plaintext must have 1 to 1,024 bytes")
        key = (await self._keys.ring_soon(self._until(deadline))).for_encrypt()
        if key.mechanism is None:
            raise MechanismError("the token cannot wrap under the current key")
        header = Header(
            kind=Kind.DEK_BY_TOKEN, algorithm=ALGORITHMS[key.cipher], key_id=key.key_id
        )
        aad = header.aad(self._scope)
        reply = await self._sessions.call(
            Encrypt(ref=key.ref, mechanism=key.mechanism, aad=aad, plaintext=plaintext),
            deadline=deadline,
        )
        if not isinstance(reply, Encrypted):
            raise TokenError("the worker answered an Encrypt with something else")
        record = Record(header=header, iv=reply.iv, ciphertext=reply.ciphertext)
        if self._verify:
            await self._read_back(key, record, plaintext, deadline)
        return Sealed(ciphertext=record.encode(), key_id=key.key_id)

    async def unwrap(
        self, ciphertext: bytes, *, key_id: str | None, deadline: float | None
    ) -> bytes:
        """Open a record.

        Args:
            ciphertext: What came back from etcd: hostile.
            key_id: The key_id that came with it; None in v1, which has none.
            deadline: In the loop's time, or None.

        Raises:
            CiphertextError: Malformed, another kind, or not authentic.
            UnknownKeyIdError: Made under a key that is not held here.
            HsmKmsError: The token failed.
        """
        record = Record.decode(ciphertext)
        header = record.header
        if header.kind is not Kind.DEK_BY_TOKEN:
            raise CiphertextError("the record holds no DEK wrapped by the token")
        if key_id is not None and key_id != header.key_id:
            raise CiphertextError("the record was made under another key_id")
        key = await self._key_of(header, self._until(deadline))
        return await self._open(key, record, deadline)

    async def _key_of(self, header: Header, until: float) -> TokenKey:
        cipher = _CIPHERS[header.algorithm]
        ring = await self._keys.ring_soon(until)
        try:
            return ring.for_decrypt(header.key_id, cipher)
        except KeyRetiredError:
            raise
        except UnknownKeyIdError:
            # Another node may have begun to use it a moment ago.
            ring = await self._keys.ring_after_look(until)
            return ring.for_decrypt(header.key_id, cipher)

    def _until(self, deadline: float | None) -> float:
        until = asyncio.get_running_loop().time() + self._patience
        return until if deadline is None else min(until, deadline)

    async def _open(
        self, key: TokenKey, record: Record, deadline: float | None
    ) -> bytes:
        request = Decrypt(
            ref=key.ref,
            cipher=key.cipher,
            aad=record.header.aad(self._scope),
            iv=record.iv,
            ciphertext=record.ciphertext,
        )
        reply = await self._sessions.call(request, deadline=deadline)
        if not isinstance(reply, Decrypted):
            raise TokenError("the worker answered a Decrypt with something else")
        return reply.plaintext

    async def _read_back(
        self, key: TokenKey, record: Record, plaintext: bytes, deadline: float | None
    ) -> None:
        try:
            again = await self._open(key, record, deadline)
        except CiphertextError:
            again = b""
        if not hmac.compare_digest(again, plaintext):
            raise TokenError("the token cannot read back what it has just wrapped")
