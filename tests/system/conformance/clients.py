"""Clients as kube-apiserver has them, many at once, and how their calls end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import grpc
import grpc.aio

from hsm_kms.api import codes
from hsm_kms.api.rpc import (
    kms_v1beta1_pb2,
    kms_v1beta1_pb2_grpc,
    kms_v2_pb2,
    kms_v2_pb2_grpc,
)
from hsm_kms.wrapping.record import Algorithm, Header, Kind, Record
from tests.harness.processes import stop
from tests.harness.wait import patient, wait_for

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Sequence,
    )

    from tests.harness.plugin import Plugin

DEK = bytes(range(0x40, 0x60))
TIMEOUT = patient(10.0)  # seconds; the API server waits 3
SENTENCES = {row.sentence for row in codes.REFUSALS.values()}
BAD_REQUEST = "INVALID_ARGUMENT", "the request has an empty, oversized or wrong field"
NOT_AUTHENTIC = "INVALID_ARGUMENT", "the ciphertext is malformed or not authentic"
NOT_HELD = "FAILED_PRECONDITION", "this node does not hold the key that encrypted this"
STRANGER = "a" * 26  # a key_id of the right shape that is nobody's


class Said(NamedTuple):
    """Code and message with which a call ended."""

    code: str
    sentence: str


class Client:
    """One connection of its own, and the calls of both APIs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._v2 = kms_v2_pb2_grpc.KeyManagementServiceStub(channel)
        self._v1 = kms_v1beta1_pb2_grpc.KeyManagementServiceStub(channel)
        self._raw = channel.unary_unary("/v2.KeyManagementService/Decrypt")

    async def status(self, seconds: float = TIMEOUT) -> kms_v2_pb2.StatusResponse:
        """v2 Status."""
        return await self._v2.Status(kms_v2_pb2.StatusRequest(), timeout=seconds)

    async def encrypt(
        self, plaintext: bytes = DEK, seconds: float = TIMEOUT
    ) -> kms_v2_pb2.EncryptResponse:
        """v2 Encrypt."""
        request = kms_v2_pb2.EncryptRequest(plaintext=plaintext, uid="u")
        return await self._v2.Encrypt(request, timeout=seconds)

    async def decrypt(
        self, ciphertext: bytes, key_id: str, seconds: float = TIMEOUT, **more
    ) -> bytes:
        """v2 Decrypt."""
        request = kms_v2_pb2.DecryptRequest(
            **{"ciphertext": ciphertext, "key_id": key_id, "uid": "u", **more}
        )
        return (await self._v2.Decrypt(request, timeout=seconds)).plaintext

    async def raw_decrypt(self, message: bytes) -> bytes:
        """v2 Decrypt of a message that need not be one."""
        return await self._raw(message, timeout=TIMEOUT)

    async def v1_encrypt(self, plain: bytes = DEK) -> bytes:
        """v1 Encrypt."""
        request = kms_v1beta1_pb2.EncryptRequest(version="v1beta1", plain=plain)
        return (await self._v1.Encrypt(request, timeout=TIMEOUT)).cipher

    async def v1_decrypt(self, cipher: bytes) -> bytes:
        """v1 Decrypt."""
        request = kms_v1beta1_pb2.DecryptRequest(version="v1beta1", cipher=cipher)
        return (await self._v1.Decrypt(request, timeout=TIMEOUT)).plain


@contextlib.asynccontextmanager
async def connected(plugin: Plugin, count: int = 1) -> AsyncIterator[list[Client]]:
    """Open connections that share nothing."""
    options = [
        ("grpc.default_authority", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
    ]
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(f"unix:{plugin.socket}", options=options)
            )
            for _ in range(count)
        ]
        yield [Client(channel) for channel in channels]


def shaped(kind: Kind, key_id: str, nested: bytes = b"") -> bytes:
    """Return a record whose shape is right and whose bytes nobody made."""
    header = Header(
        kind=kind, algorithm=Algorithm.AES_256_GCM, key_id=key_id, nested=nested
    )
    return Record(header=header, iv=os.urandom(12), ciphertext=os.urandom(48)).encode()


def shaped_local(key_id: str) -> bytes:
    """Return such a record of a DEK by a local KEK."""
    kek = shaped(Kind.LOCAL_KEK_BY_TOKEN, key_id)
    return shaped(Kind.DEK_BY_LOCAL_KEK, key_id, kek)


async def said(call: Awaitable[object]) -> Said:
    """Make a call and return its code and sentence, ("OK", "") when it went well."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return Said(error.code().name, error.details() or "")
    return Said("OK", "")


def sync_said(call: Callable[[], object]) -> Said:
    """Return the same of a call by a blocking client."""
    try:
        call()
    except grpc.RpcError as error:
        return Said(error.code().name, error.details() or "")
    return Said("OK", "")


async def all_said(calls: Iterable[Awaitable[object]], most: int = 32) -> Counter[Said]:
    """Make calls, so many at once; return how often each ending came."""
    room = asyncio.Semaphore(most)

    async def one(call: Awaitable[object]) -> Said:
        async with room:
            return await said(call)

    return Counter(await asyncio.gather(*map(one, calls)))


async def in_turn(times: int, call: Callable[[], Awaitable[object]]) -> None:
    """Make calls one after the other."""
    for _ in range(times):
        await call()


async def timed(times: int, call: Callable[[], Awaitable[object]]) -> list[float]:
    """Make calls one after the other; return how many seconds each took."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return took


async def at_rate(
    per_second: float, seconds: float, call: Callable[[], Awaitable[object]]
) -> int:
    """Start calls at this rate, whether or not earlier ones ended; return how many."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(round(per_second * seconds)):
            await asyncio.sleep(began + number / per_second - loop.time())
            group.create_task(call())
    return round(per_second * seconds)


def show(name: str, took: Sequence[float]) -> None:
    """Print median and 99th percentile, in seconds; pytest shows them with -rP."""
    middle, most = quantile(took, 0.5), quantile(took, 0.99)
    sys.stdout.write(f"{name}: p50 {middle:.4f} s, p99 {most:.4f} s\n")


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of all does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def workers_of(plugin: Plugin) -> set[int]:
    """Wait until all workers are there; return their process ids."""

    def all_there() -> set[int]:
        now = _workers_now(plugin)
        return now if len(now) == plugin.workers else set()

    return wait_for(all_there)


def _workers_now(plugin: Plugin) -> set[int]:
    """Return the workers that serve, without those that only list the keys."""
    started = {event["pid"] for event in plugin.events("token worker started")}
    return started - {event["pid"] for event in plugin.events("token worker ended")}


@contextlib.contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Stop processes, as a token that hangs would block workers."""
    for pid in pids:
        stop(pid)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def take_token(plugin: Plugin) -> None:
    """Move the token away from a server all of whose workers serve.

    A worker that is just starting would find a token without its key instead.
    """
    workers_of(plugin)
    plugin.hsm.take_away()


@contextlib.contextmanager
def unharmed(plugin: Plugin) -> Iterator[None]:
    """Assert that server and workers outlive what is done here, and stay well.

    A spare worker may come and go.
    """
    process, workers = plugin.process.pid, workers_of(plugin)
    yield
    assert process == plugin.process.pid
    assert workers <= _workers_now(plugin)
    assert workers <= set(plugin.worker_pids())
    plugin.wait_healthz("ok")
