"""Serve KMS v2: `v2.KeyManagementService`.

Status never waits: it reports what is known now. Encrypt and Decrypt check the sizes
of all fields and leave everything else to the wrapper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.api.call import Call, Observe, handler, require, unobserved
from hsm_kms.api.rpc.kms_v2_pb2 import (
    DecryptRequest,
    DecryptResponse,
    EncryptRequest,
    EncryptResponse,
    StatusRequest,
    StatusResponse,
)
from hsm_kms.audit.port import UNAUDITED
from hsm_kms.errors import RequestError, TokenError
from hsm_kms.wrapping.record import MAX_PLAINTEXT_BYTES, MAX_RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from grpc import RpcMethodHandler

    from hsm_kms.api.ports import HealthSource, Wrapper
    from hsm_kms.audit.port import Audit

SERVICE: Final = "v2.KeyManagementService"
MAX_KEY_ID_BYTES: Final = 1024  # the API server's own limit
MAX_ANNOTATION_BYTES: Final = 32768  # keys and values together; also its limit


class KmsV2:
    """Serve the methods of KMS v2.

    Args:
        wrapper: Encrypts and decrypts DEKs.
        health: Source of Status.
        version: The version that Status reports, "v2" or "v2beta1".
        observe: As for `Call`.
        audit: As for `Call`.
    """

    def __init__(
        self,
        wrapper: Wrapper,
        health: HealthSource,
        version: str,
        observe: Observe = unobserved,
        audit: Audit = UNAUDITED,
    ) -> None:
        self._wrapper = wrapper
        self._observe = observe
        self._audit = audit
        self._health = health
        self._version = version

    def handlers(self) -> dict[str, RpcMethodHandler[bytes, bytes]]:
        """Return the gRPC handlers by method name."""
        return {
            "Status": handler(
                "v2.Status", StatusRequest.FromString, self.status, self._observe
            ),
            "Encrypt": handler(
                "v2.Encrypt",
                EncryptRequest.FromString,
                self.encrypt,
                self._observe,
                self._audit,
            ),
            "Decrypt": handler(
                "v2.Decrypt",
                DecryptRequest.FromString,
                self.decrypt,
                self._observe,
                self._audit,
            ),
        }

    async def status(self, _request: StatusRequest, call: Call) -> StatusResponse:
        """Announce health and key_id.

        Raises:
            TokenError: The token was never available, so there is no key_id yet; or it
                has been unavailable for so long that writes must stop.
        """
        state = self._health.look()
        if not state.answers:
            raise TokenError(state.healthz)
        if not call.only_observes:
            state = self._health.announce()
        call.key_id = state.key_id
        return StatusResponse(
            version=self._version, healthz=state.healthz, key_id=state.key_id
        )

    async def encrypt(self, request: EncryptRequest, call: Call) -> EncryptResponse:
        """Encrypt a seed, from which the API server derives its DEKs."""
        call.uid = request.uid
        plaintext = request.plaintext
        require(given=len(plaintext), most=MAX_PLAINTEXT_BYTES, what="plaintext")
        sealed = await self._wrapper.wrap(plaintext, deadline=call.deadline)
        call.key_id, call.path = sealed.key_id, sealed.path
        return EncryptResponse(ciphertext=sealed.ciphertext, key_id=sealed.key_id)

    async def decrypt(self, request: DecryptRequest, call: Call) -> DecryptResponse:
        """Decrypt a record; of its annotations, check only the size."""
        call.uid = request.uid
        ciphertext, key_id = request.ciphertext, request.key_id
        require(given=len(key_id.encode()), most=MAX_KEY_ID_BYTES, what="key_id")
        call.key_id = key_id
        require(given=len(ciphertext), most=MAX_RECORD_BYTES, what="ciphertext")
        if request.annotations:
            bound(request.annotations)
        opened = await self._wrapper.unwrap(
            ciphertext, key_id=key_id, deadline=call.deadline
        )
        call.path = opened.path
        return DecryptResponse(plaintext=opened.plaintext)


def bound(annotations: Mapping[str, bytes]) -> None:
    """Refuse annotations that no API server can have stored.

    Raises:
        RequestError: The annotations are larger than `MAX_ANNOTATION_BYTES`.
    """
    # Keys differ, so all but one have at least one byte: too many are always too large.
    if len(annotations) > MAX_ANNOTATION_BYTES + 1:
        raise RequestError(f"{len(annotations)} annotations are too many")
    size = sum(len(key.encode()) + len(value) for key, value in annotations.items())
    require(given=size, least=0, most=MAX_ANNOTATION_BYTES, what="annotations")
