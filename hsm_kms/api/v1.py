"""Serve KMS v1: `v1beta1.KeyManagementService`.

Its requests name no key: the record itself says which key made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms import __version__
from hsm_kms.api.call import Call, Observe, handler, require, unobserved
from hsm_kms.api.rpc.kms_v1beta1_pb2 import (
    DecryptRequest,
    DecryptResponse,
    EncryptRequest,
    EncryptResponse,
    VersionRequest,
    VersionResponse,
)
from hsm_kms.audit.port import UNAUDITED
from hsm_kms.errors import RequestError
from hsm_kms.wrapping.record import MAX_PLAINTEXT_BYTES, MAX_RECORD_BYTES

if TYPE_CHECKING:
    from grpc import RpcMethodHandler

    from hsm_kms.api.ports import Wrapper
    from hsm_kms.audit.port import Audit

SERVICE: Final = "v1beta1.KeyManagementService"
VERSION: Final = "v1beta1"
RUNTIME_NAME: Final = "hsm-kms"


class KmsV1:
    """Serve the methods of KMS v1.

    Args:
        wrapper: Encrypts and decrypts DEKs.
        observe: As for `Call`.
        audit: As for `Call`.
    """

    def __init__(
        self,
        wrapper: Wrapper,
        observe: Observe = unobserved,
        audit: Audit = UNAUDITED,
    ) -> None:
        self._wrapper = wrapper
        self._observe = observe
        self._audit = audit

    def handlers(self) -> dict[str, RpcMethodHandler[bytes, bytes]]:
        """Return the gRPC handlers by method name."""
        return {
            "Version": handler(
                "v1.Version", VersionRequest.FromString, self.version, self._observe
            ),
            "Encrypt": handler(
                "v1.Encrypt",
                EncryptRequest.FromString,
                self.encrypt,
                self._observe,
                self._audit,
            ),
            "Decrypt": handler(
                "v1.Decrypt",
                DecryptRequest.FromString,
                self.decrypt,
                self._observe,
                self._audit,
            ),
        }

    async def version(self, request: VersionRequest, _call: Call) -> VersionResponse:
        """Return the API's version, and name and version of this program."""
        require_version(request.version)
        return VersionResponse(
            version=VERSION, runtime_name=RUNTIME_NAME, runtime_version=__version__
        )

    async def encrypt(self, request: EncryptRequest, call: Call) -> EncryptResponse:
        """Encrypt a DEK."""
        require_version(request.version)
        plain = request.plain
        require(given=len(plain), most=MAX_PLAINTEXT_BYTES, what="plain")
        sealed = await self._wrapper.wrap(plain, deadline=call.deadline)
        call.key_id, call.path = sealed.key_id, sealed.path
        return EncryptResponse(cipher=sealed.ciphertext)

    async def decrypt(self, request: DecryptRequest, call: Call) -> DecryptResponse:
        """Decrypt a record that `encrypt` made."""
        require_version(request.version)
        cipher = request.cipher
        require(given=len(cipher), most=MAX_RECORD_BYTES, what="cipher")
        opened = await self._wrapper.unwrap(cipher, key_id=None, deadline=call.deadline)
        call.key_id, call.path = opened.key_id, opened.path
        return DecryptResponse(plain=opened.plaintext)


def require_version(version: str) -> None:
    """Refuse a request of another API.

    Raises:
        RequestError: The version is not `VERSION`.
    """
    if version != VERSION:
        raise RequestError(f"the version is not {VERSION}")
