"""DEK in, record out, and back: by the token, or by a local KEK.

1. What `wrap` returns was made under the current key and carries its key_id, whoever
   wrapped it.
2. What `unwrap` returns was authenticated, by the token or by a local KEK that the
   token has authenticated.
3. A record names its key; keys are looked up among those held, never on the token, and
   before anything else: a key that is retired opens nothing, from memory neither.
4. A local KEK stands in for a token, never for a key that the keyring knows to be gone:
   what is wrapped under it could not be opened any more.
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

    from hsm_kms.keys.keyring import TokenKey
    from hsm_kms.keys.view import KeyView
    from hsm_kms.wrapping.kek_cache import KekCache
    from hsm_kms.wrapping.local_lifecycle import LocalKeks
    from hsm_kms.wrapping.record import Header
    from hsm_kms.wrapping.settings import WrapSettings

ANSWER_SECONDS: Final = 0.1  # kept of a client's time for the answer by a local KEK

_NESTED: Final = frozenset({Kind.LOCAL_KEK_BY_TOKEN})


class Path(StrEnum):
    """Who wrapped or unwrapped."""

    TOKEN = "token"  # noqa: S105 - of PKCS#11
    LOCAL = "local"  # a local KEK in memory
    LOCAL_COLD = "local-cold"  # a local KEK that the token opened for it


@dataclass(frozen=True, slots=True)
class Sealed:
    """What Encrypt answers.

    Args:
        ciphertext: A record, see docs/spec.md.
        key_id: The KEK it was made under.
        path: Who wrapped.
    """

    ciphertext: bytes = field(repr=False)
    key_id: str
    path: Path


@dataclass(frozen=True, slots=True)
class Unsealed:
    """What Decrypt answers.

    Args:
        plaintext: The DEK.
        path: Who unwrapped.
    """

    plaintext: bytes = field(repr=False)
    path: Path


class Opening:
    """What is being opened and has been; one for both APIs.

    Args:
        token: Opens what no local KEK in memory opens.
        keks: The local KEKs in memory.
    """

    def __init__(self, token: ByToken, keks: KekCache) -> None:
        self.token = token
        self.keks = keks
        self.deks: SingleFlight[bytes] = SingleFlight()
        self.locals: SingleFlight[LocalKek] = SingleFlight()


class DekWrapper:
    """Wraps and unwraps for one of the APIs.

    Args:
        opening: What both APIs share.
        local: The local KEKs to wrap with.
        keys: Where the keyring is.
        settings: How.
        on_unreached: Called when a client's call failed because the token was not
            reached.
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
            plaintext: 1 to 1,024 bytes.
            deadline: In the loop's time, or None.

        Raises:
            RequestError: The length is out of range.
            HsmKmsError: There is no key to use, or the token failed.
        """
        if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
            raise RequestError("plaintext must have 1 to 1,024 bytes")
        ring = self._keys.ring or await self._keys.ring_soon(self._until(deadline))
        key = ring.for_encrypt()
        if self._settings.wrapping == "software":
            # Where there is no local KEK yet, or none may be used, the token wraps.
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
        """Open a record.

        Args:
            ciphertext: What came back from etcd: hostile.
            key_id: The key_id that came with it; None in v1, which has none.
            deadline: In the loop's time, or None.

        Raises:
            CiphertextError: Malformed, another kind, or not authentic.
            LocalRefusedError: By a local KEK, and the configuration takes none.
            UnknownKeyIdError: Made under a key that is not held here.
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
        return Unsealed(kek.open(ciphertext), Path.LOCAL)

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
            return Unsealed(plaintext, Path.TOKEN)
        nested = Record.decode(header.nested, kinds=_NESTED)
        key = await self._key_of(nested.header, deadline)
        kek = await opening.locals.join(
            header.nested, partial(self._open_local, key, nested), deadline=deadline
        )
        return Unsealed(kek.open(ciphertext), Path.LOCAL_COLD)

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
            # Another node may have begun to use it a moment ago.
            ring = await self._keys.ring_after_look(self._until(deadline))
            return ring.for_decrypt(header.key_id, cipher)

    def _until(self, deadline: float | None) -> float:
        until = self._loop.time() + self._settings.patience
        return until if deadline is None else min(until, deadline)
