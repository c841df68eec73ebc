"""Call a KMS plugin as kube-apiserver does, and take the time of each call."""

from __future__ import annotations

import uuid
from collections import defaultdict
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import grpc
import msgspec

from hsm_kms.api.call import OBSERVER
from hsm_kms.api.rpc import (
    kms_v1beta1_pb2,
    kms_v1beta1_pb2_grpc,
    kms_v2_pb2,
    kms_v2_pb2_grpc,
)
from hsm_kms.api.v1 import VERSION as V1_VERSION
from hsm_kms.config.formats import grpc_target
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.text import printable
from hsm_kms.interrupts import held_back

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

_MILLIS: Final = 1000.0
_SHOWN: Final = 256  # characters of a message of the plugin


class Cost(msgspec.Struct, frozen=True):
    """Say how long the calls of one method took, in milliseconds.

    Args:
        median: The median.
        slowest: The longest.
        calls: Number of calls.
    """

    median: float
    slowest: float
    calls: int


class CallError(HsmKmsError):
    """Raised when the plugin answers a call with an error, or not in time.

    Args:
        cause: What it answered.
        hint: What to do.
        unimplemented: The plugin does not serve this API.
    """

    def __init__(self, cause: str, hint: str, *, unimplemented: bool) -> None:
        super().__init__(cause, hint=hint)
        self.unimplemented = unimplemented


class Client:
    """Keep a connection to a KMS plugin.

    Args:
        socket: The KMS socket.
        timeout: Seconds for each call, as `timeout` of an EncryptionConfiguration.
    """

    def __init__(self, socket: Path, timeout: float) -> None:
        options = [("grpc.default_authority", "localhost")]
        self._channel = grpc.insecure_channel(grpc_target(socket.absolute()), options)
        self._timeout = timeout
        self._v2: Any = kms_v2_pb2_grpc.KeyManagementServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._v1: Any = kms_v1beta1_pb2_grpc.KeyManagementServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        with held_back():
            self._channel.close()

    def status(self) -> kms_v2_pb2.StatusResponse:
        """Call Status of KMS v2.

        Raises:
            CallError: The plugin answered with an error, or not in time; so do all
                other calls.
        """
        request = kms_v2_pb2.StatusRequest()
        reply: kms_v2_pb2.StatusResponse
        reply = self._timed("Status", self._v2.Status, request)
        return reply

    def encrypt(self, plaintext: bytes) -> kms_v2_pb2.EncryptResponse:
        """Call Encrypt of KMS v2."""
        request = kms_v2_pb2.EncryptRequest(plaintext=plaintext, uid=_uid())
        reply: kms_v2_pb2.EncryptResponse
        reply = self._timed("Encrypt", self._v2.Encrypt, request)
        return reply

    def decrypt(self, sealed: kms_v2_pb2.EncryptResponse) -> bytes:
        """Call Decrypt of KMS v2 with what an Encrypt returned."""
        request = kms_v2_pb2.DecryptRequest(
            ciphertext=sealed.ciphertext,
            key_id=sealed.key_id,
            annotations=sealed.annotations,
            uid=_uid(),
        )
        reply = self._timed("Decrypt", self._v2.Decrypt, request)
        return bytes(reply.plaintext)

    def serves_v2(self) -> bool:
        """Return True unless the plugin says that it does not serve KMS v2."""
        try:
            self._call(self._v2.Status, kms_v2_pb2.StatusRequest())
        except CallError as error:
            return not error.unimplemented
        return True

    def v1_version(self) -> kms_v1beta1_pb2.VersionResponse:
        """Call Version of KMS v1."""
        request = kms_v1beta1_pb2.VersionRequest(version=V1_VERSION)
        reply: kms_v1beta1_pb2.VersionResponse
        reply = self._timed("Version", self._v1.Version, request)
        return reply

    def v1_encrypt(self, plain: bytes) -> bytes:
        """Call Encrypt of KMS v1."""
        request = kms_v1beta1_pb2.EncryptRequest(version=V1_VERSION, plain=plain)
        return bytes(self._timed("Encrypt", self._v1.Encrypt, request).cipher)

    def v1_decrypt(self, cipher: bytes) -> bytes:
        """Call Decrypt of KMS v1."""
        request = kms_v1beta1_pb2.DecryptRequest(version=V1_VERSION, cipher=cipher)
        return bytes(self._timed("Decrypt", self._v1.Decrypt, request).plain)

    @property
    def costs(self) -> dict[str, Cost]:
        """Return how long the calls took that were answered, by method."""
        return {
            method: Cost(
                median=round(median(seconds) * _MILLIS, 3),
                slowest=round(max(seconds) * _MILLIS, 3),
                calls=len(seconds),
            )
            for method, seconds in self._seconds.items()
        }

    def _timed(self, method: str, call: Callable[..., Any], request: object) -> Any:
        began = perf_counter()
        reply = self._call(call, request)
        self._seconds[method].append(perf_counter() - began)
        return reply

    def _call(self, call: Callable[..., Any], request: object) -> Any:
        # Without OBSERVER hsm-kms would announce a new key, which the API server must
        # learn first: v2 encrypts under the key announced last. Others ignore it.
        try:
            return call(request, timeout=self._timeout, metadata=[(OBSERVER, "1")])
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: Any) -> CallError:
        code: grpc.StatusCode = error.code()
        hint = "read the log of the plugin; for hsm-kms, `hsm-kms check` says more"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            cause = f"no answer within {self._timeout:g} s"
        elif code is grpc.StatusCode.UNIMPLEMENTED:
            cause = "the plugin does not serve this API"
            hint = "enable the API in the plugin (apis.v2 and apis.v1 of hsm-kms)"
        else:
            details = printable(error.details() or "", _SHOWN)
            cause = f"{code.name}: {details}"
        unimplemented = code is grpc.StatusCode.UNIMPLEMENTED
        return CallError(cause, hint, unimplemented=unimplemented)


def _uid() -> str:
    return str(uuid.uuid4())
