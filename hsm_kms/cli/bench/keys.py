"""Choose what to encrypt under: a key that each session generates, or the current KEK.

1. A key that a session generates is a session object: the token never stores it, no
   other process sees it, and it is destroyed with the session.
2. Encryptions under the KEK are counted in its nonce budget, before they are made.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from hsm_kms.cli.read_keyring import read_ring
from hsm_kms.errors import HsmKmsError, KeyNotFoundError, MechanismError, TokenError
from hsm_kms.ipc.messages import (
    Decrypt,
    Encrypt,
    Encrypted,
    Failure,
    GenerateSessionKey,
    KeyPage,
    Probe,
    Probed,
)
from hsm_kms.ipc.values import Cipher, KeyRef
from hsm_kms.keys.discovery import wanted_mechanisms
from hsm_kms.server.settings import key_settings
from hsm_kms.token.errors import error_from
from hsm_kms.wrapping.nonce_budget import counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.config.schema import Config
    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.ipc.values import Mechanism
    from hsm_kms.token.channel import Channel
    from hsm_kms.token.process import Worker
    from hsm_kms.wrapping.nonce_budget import NonceBudget

AAD: Final = b"hsm-kms bench"
"""No record has this as its AAD, so none of these ciphertexts is ever accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Name the key and the mechanism that one session is measured with.

    Args:
        ref: CKA_LABEL and CKA_ID of the key.
        fingerprint: Its fingerprint.
        mechanism: How it encrypts.
        spend: Counts one encryption, before it is made.
    """

    ref: KeyRef
    fingerprint: str
    mechanism: Mechanism
    spend: Callable[[], None]

    def encrypt(self, plaintext: bytes) -> Encrypt:
        """Return the request that encrypts."""
        return Encrypt(
            ref=self.ref,
            fingerprint=self.fingerprint,
            mechanism=self.mechanism,
            aad=AAD,
            plaintext=plaintext,
        )

    def decrypt(self, sealed: Encrypted) -> Decrypt:
        """Return the request that decrypts what was encrypted."""
        return Decrypt(
            ref=self.ref,
            fingerprint=self.fingerprint,
            cipher=self.mechanism.cipher,
            aad=AAD,
            iv=sealed.iv,
            ciphertext=sealed.ciphertext,
        )


class Keys(Protocol):
    """Give each session something to encrypt under."""

    name: str

    async def subject(self, channel: Channel) -> Subject:
        """Return what a session that was just opened is measured with."""
        ...


class TemporaryKeys:
    """Have each session generate a key of its own.

    Args:
        config: The configuration.
    """

    name = "a temporary key in each session"

    def __init__(self, config: Config) -> None:
        self._settings = key_settings(config)

    async def subject(self, channel: Channel) -> Subject:
        """Return a new key, with the first mechanism that works with it.

        Raises:
            HsmKmsError: The token generates no such key, or no mechanism works with it.
        """
        failed: HsmKmsError | None = None
        for cipher in Cipher:
            wanted = tuple(
                each
                for each in wanted_mechanisms(self._settings)
                if each.cipher is cipher
            )
            if not wanted:
                continue
            try:
                return await self._generated(channel, wanted, cipher)
            except MechanismError as error:
                failed = failed or error
        raise failed or MechanismError("the configuration allows no mechanism")

    async def _generated(
        self, channel: Channel, wanted: tuple[Mechanism, ...], cipher: Cipher
    ) -> Subject:
        ref = KeyRef("hsm-kms bench", os.urandom(8))
        paired = cipher is Cipher.CBC_HMAC
        page = await checked(
            channel,
            GenerateSessionKey(ref=ref, paired=paired, private=self._settings.private),
        )
        fingerprint = page.keys[0].fingerprint if isinstance(page, KeyPage) else None
        probed = await checked(
            channel,
            Probe(ref=ref, fingerprint=fingerprint or "", paired=paired, wanted=wanted),
        )
        if fingerprint is None or not isinstance(probed, Probed):
            raise TokenError("the worker sent a wrong reply to a GenerateSessionKey")
        return Subject(
            ref=ref,
            fingerprint=fingerprint,
            mechanism=probed.mechanism,
            spend=lambda: None,
        )


class CurrentKek:
    """Have each session use the key under which the server encrypts.

    Args:
        subject: The key.
        key_id: Its key_id.
    """

    def __init__(self, subject: Subject, key_id: str) -> None:
        self._subject = subject
        self.name = f"the key {key_id}"

    @classmethod
    async def read(
        cls, config: Config, worker: Worker, budget: NonceBudget
    ) -> CurrentKek:
        """Find the current key.

        Args:
            config: The configuration.
            worker: A worker that is logged in.
            budget: Counts the encryptions.

        Raises:
            HsmKmsError: There is no current key, or the token failed.
        """
        ring = await read_ring(config, worker)
        key = ring.current
        if key is None or key.mechanism is None:
            raise ring.fault or KeyNotFoundError("there is no current key")
        spend: Callable[[], None] = lambda: None  # noqa: E731 - one of two
        if counts(key.cipher):
            spend = partial(budget.spend, key.fingerprint)
        subject = Subject(
            ref=key.ref,
            fingerprint=key.fingerprint,
            mechanism=key.mechanism,
            spend=spend,
        )
        return cls(subject, key.key_id)

    async def subject(self, channel: Channel) -> Subject:
        """Return the key, which the session finds when it first encrypts."""
        self._subject.spend()
        await checked(channel, self._subject.encrypt(b"\0" * 32))
        return self._subject


async def checked(channel: Channel, request: Request) -> Reply:
    """Make one exchange on a channel.

    Args:
        channel: The channel.
        request: The request.

    Raises:
        HsmKmsError: The worker answered with an error, or is gone.
    """
    reply = await channel.exchange(request)
    if isinstance(reply, Failure):
        raise error_from(reply)
    return reply
