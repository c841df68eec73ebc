"""A KMS plugin that is not ours, and answers as a test wants."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc

from hsm_kms.api.rpc import kms_v1beta1_pb2, kms_v2_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY_ID = "projects/p/keys/k/versions/1"
ANNOTATIONS = {"version.kms.example.io": b"1", "nonce.kms.example.io": b""}


class OddPlugin:
    """Serve KMS on a socket; its wrapping is an exclusive or.

    Args:
        socket: Path of the socket.
        apis: The services.
        answers: Changes to the answers: by method, the fields that differ, or what is
            called with the answer and changes it.

    Attributes:
        calls: Number of calls by method.
    """

    def __init__(
        self, socket: Path, *apis: str, **answers: dict[str, Any] | Callable[..., None]
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.metadata: list[tuple[str, Any]] = []
        self._answers = answers
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(4))
        for api in apis or ("v2",):
            service, handlers = getattr(self, f"_{api}")()
            self._server.add_generic_rpc_handlers(
                [grpc.method_handlers_generic_handler(service, handlers)]
            )
        self._server.add_insecure_port(f"unix:{socket}")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def _v2(self) -> tuple[str, dict[str, Any]]:
        made = {
            "Status": lambda _: kms_v2_pb2.StatusResponse(
                version="v2", healthz="ok", key_id=KEY_ID
            ),
            "Encrypt": lambda request: kms_v2_pb2.EncryptResponse(
                ciphertext=turned(request.plaintext),
                key_id=KEY_ID,
                annotations=ANNOTATIONS,
            ),
            "Decrypt": lambda request: kms_v2_pb2.DecryptResponse(
                plaintext=turned(request.ciphertext)
                if (request.key_id, dict(request.annotations)) == (KEY_ID, ANNOTATIONS)
                else b""
            ),
        }
        return "v2.KeyManagementService", self._handlers(kms_v2_pb2, made)

    def _v1(self) -> tuple[str, dict[str, Any]]:
        made = {
            "Version": lambda _: kms_v1beta1_pb2.VersionResponse(
                version="v1beta1", runtime_name="odd", runtime_version="0.0.1"
            ),
            "Encrypt": lambda request: kms_v1beta1_pb2.EncryptResponse(
                cipher=turned(request.plain)
            ),
            "Decrypt": lambda request: kms_v1beta1_pb2.DecryptResponse(
                plain=turned(request.cipher)
            ),
        }
        return "v1beta1.KeyManagementService", self._handlers(kms_v1beta1_pb2, made)

    def _handlers(self, protocol: Any, made: dict[str, Any]) -> dict[str, Any]:
        return {
            method: grpc.unary_unary_rpc_method_handler(
                self._answering(method, make),
                getattr(protocol, f"{method}Request").FromString,
                lambda reply: reply.SerializeToString(),
            )
            for method, make in made.items()
        }

    def _answering(self, method: str, make: Callable[[Any], Any]) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with self._lock:
                self.calls[method] += 1
                self.metadata += context.invocation_metadata()
            reply = make(request)
            change = self._answers.get(method, {})
            if callable(change):
                change(reply, context)
                return reply
            for field, value in change.items():
                if field == "annotations":
                    reply.annotations.clear()
                    for name, each in value.items():
                        reply.annotations[name] = each
                else:
                    setattr(reply, field, value)
            return reply

        return answer


def turned(data: bytes) -> bytes:
    """Return the bytes, each one turned into another."""
    return bytes(each ^ 0x5A for each in data)
