"""Decrypt records as the server would."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    CiphertextError,
    KeyAmbiguousError,
    KeyForeignError,
    KeyNotFoundError,
    KeyReplacedError,
    KeyRetiredError,
    MechanismError,
    TokenError,
    UnknownKeyIdError,
)
from hsm_kms.etcd.refusals import (
    FOREIGN,
    LOCAL,
    NO_KEY,
    NOT_AUTHENTIC,
    REFUSED,
    RETIRED,
    RefusedError,
)
from hsm_kms.ipc.messages import Decrypt, Decrypted
from hsm_kms.wrapping.by_local_kek import LocalKek
from hsm_kms.wrapping.by_token import CIPHERS, canary
from hsm_kms.wrapping.record import Kind, Record

if TYPE_CHECKING:
    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.keys.listing import Ask
    from hsm_kms.keys.token_key import TokenKey

MAX_LOCAL_KEKS: Final = 1024
"""Most local KEKs kept in memory at one time."""

_NESTED: Final = frozenset({Kind.LOCAL_KEK_BY_TOKEN})


class TokenOpener:
    """Decrypt records with one worker.

    Args:
        ask: Sends requests to a worker that is logged in.
        ring: The keyring of the worker's token.
        scope: The configured cluster name.
        accept_local: Decrypt records made with local KEKs.
    """

    def __init__(
        self, ask: Ask, ring: Keyring, scope: str, *, accept_local: bool
    ) -> None:
        self._ask = ask
        self._ring = ring
        self._scope = scope
        self._accept_local = accept_local
        self._proven: set[str] = set()
        self._local_keks: OrderedDict[bytes, LocalKek] = OrderedDict()

    async def why_not(self, record: Record) -> str:
        """Return why a record cannot be decrypted; "" if it can.

        Args:
            record: A record of kind 1 or 2.

        Raises:
            HsmKmsError: The token failed.
        """
        try:
            await self.open(record)
        except RefusedError as error:
            return str(error)
        return ""

    async def open(self, record: Record) -> bytes:
        """Return the DEK or seed in a record.

        Args:
            record: A record of kind 1 or 2.

        Raises:
            RefusedError: The record cannot be decrypted.
            HsmKmsError: The token failed.
        """
        try:
            if record.header.kind is Kind.DEK_BY_LOCAL_KEK:
                if not self._accept_local:
                    raise RefusedError(LOCAL)
                local_kek = await self._local_kek(record.header.nested)
                return local_kek.open(record.encode())
            return await self._by_token(record)
        except CiphertextError:
            raise RefusedError(NOT_AUTHENTIC) from None

    async def _local_kek(self, nested: bytes) -> LocalKek:
        known = self._local_keks.pop(nested, None)
        if known is None:
            record = Record.decode(nested, kinds=_NESTED)
            known = LocalKek(record, await self._by_token(record), self._scope)
        self._local_keks[nested] = known
        if len(self._local_keks) > MAX_LOCAL_KEKS:
            self._local_keks.popitem(last=False)
        return known

    async def _by_token(self, record: Record) -> bytes:
        key = self._key_of(record)
        await self._prove(key)
        request = Decrypt(
            ref=key.ref,
            fingerprint=key.fingerprint,
            cipher=key.cipher,
            aad=record.header.aad(self._scope),
            iv=record.iv,
            ciphertext=record.ciphertext,
        )
        try:
            reply = await self._ask(request)
        except (KeyNotFoundError, KeyAmbiguousError, KeyReplacedError):
            raise RefusedError(NO_KEY) from None
        except MechanismError as error:
            raise RefusedError(f"{REFUSED}: {error}") from None
        if not isinstance(reply, Decrypted):
            raise TokenError("the worker answered a Decrypt with something else")
        return reply.plaintext

    def _key_of(self, record: Record) -> TokenKey:
        cipher = CIPHERS[record.header.algorithm]
        try:
            return self._ring.for_decrypt(record.header.key_id, cipher)
        except KeyRetiredError:
            raise RefusedError(RETIRED) from None
        except KeyForeignError:
            raise RefusedError(FOREIGN) from None
        except UnknownKeyIdError:
            raise RefusedError(NO_KEY) from None

    async def _prove(self, key: TokenKey) -> None:
        """Give the session a known-good record, which settles ambiguous errors."""
        if key.mechanism is None or key.key_id in self._proven:
            return
        self._proven.add(key.key_id)
        try:
            await self._ask(canary(key, key.mechanism, self._scope))
        except MechanismError:
            return  # a key that cannot encrypt can still decrypt
