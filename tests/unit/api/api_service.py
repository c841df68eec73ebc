"""Serve both APIs on a real socket, over a wrapper that only reverses bytes.

For tests that need no token: status codes, limits, the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from hsm_kms.api.call import unobserved
from hsm_kms.api.rpc import (
    kms_v1beta1_pb2,
    kms_v1beta1_pb2_grpc,
    kms_v2_pb2,
    kms_v2_pb2_grpc,
)
from hsm_kms.api.server import build_server
from hsm_kms.audit.port import UNAUDITED
from hsm_kms.config.schema import Apis, ApiV1, ApiV2
from hsm_kms.server.kms_socket import UnixSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from hsm_kms.api.call import Observe
    from hsm_kms.audit.port import Audit

KEY_ID = "the-key-of-this-test"


@dataclass(frozen=True)
class Sealed:
    """Result of `Reverser.wrap`."""

    ciphertext: bytes
    key_id: str
    path: str


@dataclass(frozen=True)
class Unsealed:
    """Result of `Reverser.unwrap`."""

    plaintext: bytes
    key_id: str
    path: str


@dataclass(frozen=True)
class State:
    """State that `Health` announces."""

    state: str = "ok"
    healthz: str = "ok"
    key_id: str = KEY_ID
    answers: bool = True


@dataclass
class Reverser:
    """Reverses bytes, records its calls, and fails or stalls if the test says so."""

    error: BaseException | None = None
    stall: asyncio.Event | None = None
    path: str = "token"
    cancelled: int = 0
    asked: list[tuple[bytes, str | None, float | None]] = field(default_factory=list)

    async def wrap(self, plaintext: bytes, *, deadline: float | None) -> Sealed:
        """Return the plaintext in reverse."""
        return Sealed(await self._turn(plaintext, None, deadline), KEY_ID, self.path)

    async def unwrap(
        self, ciphertext: bytes, *, key_id: str | None, deadline: float | None
    ) -> Unsealed:
        """Return the ciphertext in reverse."""
        plaintext = await self._turn(ciphertext, key_id, deadline)
        return Unsealed(plaintext, KEY_ID, self.path)

    async def _turn(self, data: bytes, key_id, deadline) -> bytes:
        self.asked.append((data, key_id, deadline))
        if self.error is not None:
            raise self.error
        if self.stall is not None:
            try:
                await self.stall.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return data[::-1]


@dataclass
class Health:
    """Announces the state that the test sets, and counts announcements."""

    state: State = State()
    announced: int = 0

    def announce(self) -> State:
        """Return the state and count the call."""
        self.announced += 1
        return self.state

    def look(self) -> State:
        """Return the state."""
        return self.state


@dataclass
class Service:
    """A running server and a client of each API."""

    socket: Path
    wrapper: Reverser
    health: Health
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.v2 = kms_v2_pb2_grpc.KeyManagementServiceStub(self.channel)
        self.v1 = kms_v1beta1_pb2_grpc.KeyManagementServiceStub(self.channel)

    def call(self, method: str, **fields):
        """Begin one call by name, such as "v2.Decrypt", with valid fields else."""
        api, name = method.split(".")
        messages = {"v2": kms_v2_pb2, "v1": kms_v1beta1_pb2}[api]
        timeout = fields.pop("timeout", 10)
        metadata = fields.pop("metadata", None)
        request = getattr(messages, f"{name}Request")(**{**VALID[method], **fields})
        return getattr({"v2": self.v2, "v1": self.v1}[api], name)(
            request, timeout=timeout, metadata=metadata
        )


VALID = {
    "v2.Status": {},
    "v2.Encrypt": {"plaintext": b"abc", "uid": "u-1"},
    "v2.Decrypt": {"ciphertext": b"cba", "uid": "u-1", "key_id": KEY_ID},
    "v1.Version": {"version": "v1beta1"},
    "v1.Encrypt": {"version": "v1beta1", "plain": b"abc"},
    "v1.Decrypt": {"version": "v1beta1", "cipher": b"cba"},
}
PATHS = {
    method: "/{}.KeyManagementService/{}".format(
        *method.replace("v1.", "v1beta1.").split(".")
    )
    for method in VALID
}


@contextlib.asynccontextmanager
async def serve(
    *,
    v2: bool = True,
    v1: bool = True,
    version: str = "v2",
    observe: Observe = unobserved,
    audit: Audit = UNAUDITED,
) -> AsyncIterator[Service]:
    """Serve the APIs that are switched on."""
    apis = Apis(v2=ApiV2(enabled=v2, version=version), v1=ApiV1(enabled=v1))
    wrapper, health = Reverser(), Health()
    with tempfile.TemporaryDirectory(prefix="kms-") as directory:
        unix = UnixSocket(Path(directory) / "kms.sock")
        await unix.acquire()
        server = build_server(
            apis, v2=wrapper, v1=wrapper, health=health, observe=observe, audit=audit
        )
        unix.bind(server)
        await server.start()
        async with client(Path(directory) / "kms.sock") as channel:
            yield Service(Path(directory) / "kms.sock", wrapper, health, channel)
        await server.stop(0)
        unix.close()


def client(socket: Path) -> grpc.aio.Channel:
    """Return a channel to a socket."""
    return grpc.aio.insecure_channel(
        f"unix:{socket}", options=[("grpc.default_authority", "localhost")]
    )


async def refused(call) -> tuple[grpc.StatusCode, str]:
    """Return code and sentence of a call that must fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as e:
        return e.code(), e.details()
    raise AssertionError(f"answered {answer!r}")
