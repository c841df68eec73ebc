"""Make the three calls of KMS v2 and of KMS v1, and judge their answers."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from hsm_kms.cli.probe import rules
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.api.rpc.kms_v2_pb2 import EncryptResponse
    from hsm_kms.cli.probe.client import Client
    from hsm_kms.errors import HsmKmsError

SEED_BYTES: Final = 32  # of a seed of v2, and of a DEK of v1
_PING: Final = b"ping"  # what kube-apiserver encrypts for its health check of v1


class Api(ABC):
    """Make the calls of one API; each call yields what is wrong with its answer.

    Args:
        client: Makes the calls, and raises `CallError` if one is not answered.

    Attributes:
        name: "v2" or "v1".
        greeting: The method that tells the version.
        first: What is encrypted first; later it is `SEED_BYTES` random bytes.
        version: What the plugin reported last; "" if nothing. So are `healthz` and
            `key_id`, which v1 does not have.
        size: Bytes of the last ciphertext; None if the last Encrypt was not answered.
    """

    name: ClassVar[str]
    greeting: ClassVar[str]

    def __init__(self, client: Client) -> None:
        self.first = secrets.token_bytes(SEED_BYTES)
        self.version = self.healthz = self.key_id = ""
        self.size: int | None = None
        self._client = client

    @abstractmethod
    def greet(self) -> Iterator[HsmKmsError]:
        """Call Status or Version."""

    @abstractmethod
    def encrypt(self, plaintext: bytes) -> Iterator[HsmKmsError]:
        """Call Encrypt."""

    @abstractmethod
    def decrypt(self, plaintext: bytes) -> Iterator[HsmKmsError]:
        """Call Decrypt with what the last Encrypt made of this plaintext."""

    @abstractmethod
    def greeted(self) -> str:
        """Return what Status or Version told, in words."""

    @abstractmethod
    def encrypted(self) -> str:
        """Return what Encrypt told beside the ciphertext, in words; "" if nothing."""


class ApiV2(Api):
    """Make the calls of KMS v2."""

    name = "v2"
    greeting = "Status"

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._known = False  # the answer to the last Status
        self._sealed: EncryptResponse | None = None

    def greet(self) -> Iterator[HsmKmsError]:
        """See `Api.greet`."""
        self._known = False
        reply = self._client.status()
        self._known = True
        before, self.version = self.version, reply.version
        self.healthz, self.key_id = reply.healthz, reply.key_id
        yield from rules.status_faults(reply, before)

    def encrypt(self, plaintext: bytes) -> Iterator[HsmKmsError]:
        """See `Api.encrypt`."""
        self.size = self._sealed = None
        reply = self._sealed = self._client.encrypt(plaintext)
        self.size = len(reply.ciphertext)
        if self._known and reply.key_id != self.key_id:
            # Someone may have rotated the key between the two calls.
            self.key_id = self._client.status().key_id
        yield from rules.encrypt_faults(reply, self.key_id if self._known else None)

    def decrypt(self, plaintext: bytes) -> Iterator[HsmKmsError]:
        """See `Api.decrypt`."""
        if self._sealed is not None:
            got = self._client.decrypt(self._sealed)
            yield from rules.decrypt_faults(got, plaintext)

    def greeted(self) -> str:
        """See `Api.greeted`."""
        key_id = printable(self.key_id)
        return f"healthz {self.healthz}, version {self.version}, key_id {key_id}"

    def encrypted(self) -> str:
        """See `Api.encrypted`."""
        names = sorted(self._sealed.annotations) if self._sealed else []
        more = f", annotations {printable(', '.join(names))}" if names else ""
        return f", the key_id is that of Status{more}"


class ApiV1(Api):
    """Make the calls of KMS v1."""

    name = "v1"
    greeting = "Version"

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.first = _PING
        self._runtime = ""
        self._cipher = b""

    def greet(self) -> Iterator[HsmKmsError]:
        """See `Api.greet`."""
        reply = self._client.v1_version()
        self.version = reply.version
        self._runtime = f"{reply.runtime_name} {reply.runtime_version}"
        yield from rules.version_faults(reply.version)

    def encrypt(self, plaintext: bytes) -> Iterator[HsmKmsError]:
        """See `Api.encrypt`."""
        self.size = None
        self._cipher = self._client.v1_encrypt(plaintext)
        self.size = len(self._cipher)
        yield from rules.cipher_faults(self._cipher)

    def decrypt(self, plaintext: bytes) -> Iterator[HsmKmsError]:
        """See `Api.decrypt`."""
        yield from rules.decrypt_faults(
            self._client.v1_decrypt(self._cipher), plaintext
        )

    def greeted(self) -> str:
        """See `Api.greeted`."""
        return f"version {self.version}, runtime {printable(self._runtime)}"

    def encrypted(self) -> str:
        """See `Api.encrypted`."""
        return ""
