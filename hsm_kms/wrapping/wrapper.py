"""Wrap and unwrap DEKs for one API, by the token or by a local KEK.

1. A record that `wrap` returns was made under the current key and carries its key_id,
   whether the token or a local KEK wrapped the DEK.
2. A DEK that `unwrap` returns was authenticated by the token, or by a local KEK that
   the token has authenticated.
3. A record names its key. Before anything else the key is looked up among the keys
   held, never on the token: a retired key decrypts nothing, not even from memory.
4. A local KEK replaces an unavailable token, never a key that the keyring knows to be
   gone: its records could never be decrypted again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    CiphertextError,
    KeyForeignError,
    KeyRetiredError,
    LocalRefusedError,
    RequestError,
    UnavailableError,
    UndecidedError,
    UnknownKeyIdError,
)
from hsm_kms.wrapping.by_local_kek import LocalKek
from hsm_kms.wrapping.by_token import CIPHERS, ByToken
from hsm_kms.wrapping.record import MAX_PLAINTEXT_BYTES, Kind, Record
from hsm_kms.wrapping.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.keys.view import KeyView
    from hsm_kms.wrapping.kek_cache import KekCache
    from hsm_kms.wrapping.local_lifecycle import LocalKeks
    from hsm_kms.wrapping.record import Header
    from hsm_kms.wrapping.settings import WrapSettings

ANSWER_SECONDS: Final = 0.1  # of the client's time, kept for a local KEK's answer

_NESTED: Final = frozenset({Kind.LOCAL_KEK_BY_TOKEN})


class Path(StrEnum):
    """Name what wrapped or unwrapped a DEK."""

    TOKEN = "token"  # noqa: S105 - of PKCS#11
    LOCAL = "local"  # a local KEK in memory
    LOCAL_UNCACHED = (
        "local-uncached"  # a local KEK that the token unwrapped for this request
    )


@dataclass(frozen=True, slots=True)
class Sealed:
    """Hold the answer to an Encrypt.

    Args:
        ciphertext: The record, see docs/spec.md.
        key_id: Names the KEK that the record was made under.
        path: What wrapped the DEK.
    """

    ciphertext: bytes = field(repr=False)
    key_id: str
    path: Path


@dataclass(frozen=True, slots=True)
class Unsealed:
    """Hold the answer to a Decrypt.

    Args:
        plaintext: The DEK, 1 to 1,024 bytes.
        key_id: The key_id in the record, authenticated.
        path: What unwrapped the DEK.
    """

    plaintext: bytes = field(repr=False)
    key_id: str
    path: Path


class Opening:
    """Share unwrapped local KEKs and calls under way between both APIs.

    Args:
        token: Unwraps what no local KEK in memory unwraps.
        keks: The local KEKs in memory.
    """

    def __init__(self, token: ByToken, keks: KekCache) -> None:
        self.token = token
        self.keks = keks
        self.deks: SingleFlight[bytes] = SingleFlight()
        self.locals: SingleFlight[LocalKek] = SingleFlight()

    @property
    def joined(self) -> int:
        """Return how many requests have joined the token call of another one."""
        return self.deks.joined + self.locals.joined


class DekWrapper:
    """Wrap and unwrap DEKs for one API.

    Args:
        opening: Shared by both APIs.
        local: The local KEKs to wrap with.
        keys: The keyring that this API goes by.
        settings: What the configuration says about this API.
        on_unreached: Called when a request failed because the token is unavailable.
    """

    def __init__(
        self,
        opening: Opening,
        local: LocalKeks,
        keys: KeyView,
        settings: WrapSettings,
        on_unreached: Callable[[], None],
    ) -> None:
        self._opening = opening
        self._token = opening.token
        self._local = local
        self._keys = keys
        self._settings = settings
        self._on_unreached = on_unreached
        self._loop = asyncio.get_running_loop()

    async def wrap(self, plaintext: bytes, *, deadline: float | None) -> Sealed:
        """Wrap a DEK under the current key.

        Args:
            plaintext: The DEK, 1 to 1,024 bytes.
            deadline: Deadline of the request, in the loop's time, or None.

        Raises:
            RequestError: The length of the DEK is out of range.
            HsmKmsError: There is no key to encrypt under, or the token failed.
        """
        if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
            raise RequestError("plaintext must have 1 to 1,024 bytes")
        ring = self._keys.ring or await self._keys.ring_soon(self._until(deadline))
        key = ring.for_encrypt()
        if self._settings.wrapping == "software":
            # The token wraps if there is no local KEK yet, or none may be used.
            sealed = self._by_local(key, plaintext)
            if sealed is not None:
                return sealed
        try:
            return await self._by_token(key, plaintext, deadline)
        except UnavailableError:
            if self._settings.wrapping == "fallback":
                sealed = self._by_local(key, plaintext)
                if sealed is not None:
                    return sealed
            self._on_unreached()
            raise

    def _by_local(self, key: TokenKey, plaintext: bytes) -> Sealed | None:
        # No await from here to `seal`: the limits of the sealer were checked just now.
        sealer = self._local.sealer(key)
        if sealer is None:
            return None
        return Sealed(sealer.seal(plaintext), key.key_id, Path.LOCAL)

    async def _by_token(
        self, key: TokenKey, plaintext: bytes, deadline: float | None
    ) -> Sealed:
        if deadline is not None and self._settings.wrapping == "fallback":
            deadline -= ANSWER_SECONDS
        record = await self._token.seal(
            key,
            Kind.DEK_BY_TOKEN,
            plaintext,
            deadline=deadline,
            verify=self._settings.verify,
        )
        return Sealed(record.encode(), key.key_id, Path.TOKEN)

    async def unwrap(
        self, ciphertext: bytes, *, key_id: str | None, deadline: float | None
    ) -> Unsealed:
        """Unwrap a record.

        Args:
            ciphertext: The record, which comes from etcd and may be hostile.
            key_id: The key_id of the request; None for v1, whose requests have none.
            deadline: Deadline of the request, in the loop's time, or None.

        Raises:
            CiphertextError: The record is malformed, of another kind, or not authentic.
            LocalRefusedError: The record was made with a local KEK, and
                `local_keys.accept_local` is false.
            UnknownKeyIdError: This node does not hold the key that the record names.
            HsmKmsError: The token failed.
        """
        try:
            kek = self._opening.keks.find(ciphertext, self._token.scope)
            if kek is not None:
                return await self._from_memory(kek, ciphertext, key_id, deadline)
            return await self._cold(ciphertext, key_id, deadline)
        except UndecidedError:
            raise  # a hostile record can cause it: no evidence against the token
        except UnavailableError:
            self._on_unreached()
            raise

    async def _from_memory(
        self,
        kek: LocalKek,
        ciphertext: bytes,
        key_id: str | None,
        deadline: float | None,
    ) -> Unsealed:
        self._check(Kind.DEK_BY_LOCAL_KEK, kek.key_id, key_id)
        await self._key_of(kek.nested.header, deadline)
        return Unsealed(kek.open(ciphertext), kek.key_id, Path.LOCAL)

    async def _cold(
        self, ciphertext: bytes, key_id: str | None, deadline: float | None
    ) -> Unsealed:
        record = Record.decode(ciphertext)
        header = record.header
        self._check(header.kind, header.key_id, key_id)
        opening, token = self._opening, self._token
        if header.kind is Kind.DEK_BY_TOKEN:
            key = await self._key_of(header, deadline)
            call = partial(token.open, key, record, deadline=None)
            plaintext = await opening.deks.join(ciphertext, call, deadline=deadline)
            return Unsealed(plaintext, header.key_id, Path.TOKEN)
        nested = Record.decode(header.nested, kinds=_NESTED)
        key = await self._key_of(nested.header, deadline)
        # The call serves every caller that joins it: it has no deadline of its own.
        kek = await opening.locals.join(
            header.nested, partial(self._open_local, key, nested), deadline=deadline
        )
        return Unsealed(kek.open(ciphertext), kek.key_id, Path.LOCAL_UNCACHED)

    async def _open_local(self, key: TokenKey, nested: Record) -> LocalKek:
        material = await self._token.open(key, nested, deadline=None)
        kek = LocalKek(nested, material, self._token.scope)
        self._opening.keks.add(kek)
        return kek

    def _check(self, kind: Kind, its_key_id: str, key_id: str | None) -> None:
        if key_id is not None and key_id != its_key_id:
            raise CiphertextError("the record was made under another key_id")
        if kind is Kind.DEK_BY_LOCAL_KEK and not self._settings.accept_local:
            raise LocalRefusedError("local_keys.accept_local is false")

    async def _key_of(self, header: Header, deadline: float | None) -> TokenKey:
        cipher = CIPHERS[header.algorithm]
        ring = self._keys.ring or await self._keys.ring_soon(self._until(deadline))
        try:
            return ring.for_decrypt(header.key_id, cipher)
        except (KeyRetiredError, KeyForeignError):
            raise
        except UnknownKeyIdError:
            # Another node may have begun to use the key a moment ago.
            ring = await self._keys.ring_after_look(self._until(deadline))
            return ring.for_decrypt(header.key_id, cipher)

    def _until(self, deadline: float | None) -> float:
        until = self._loop.time() + self._settings.patience
        return until if deadline is None else min(until, deadline)
