"""Streams of Encrypt and Decrypt on a running server, every answer checked."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Self

import grpc.aio

from hsm_kms.api.rpc import kms_v2_pb2, kms_v2_pb2_grpc
from tests.harness.wait import patient, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.plugin import Plugin

STREAMS = 8
PAUSE_SECONDS = 0.005
TIMEOUT_SECONDS = patient(10.0)  # the API server has 3
RESTORED_SECONDS = 60.0  # usually two; after many ends there is a backoff
IN_A_ROW = 4  # right answers of each stream, for the server to count as well

# Codes a client may meet while the token is in trouble; anything else is a bug.
EXCUSED = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
OLD = "Decrypt of old"
_SEALED_BYTES = 16 + 16  # the tag, and what is before it
_KEPT = 8  # ciphertexts that a stream reads again and again


class Answer(NamedTuple):
    """One request and its end, in `time.monotonic()` seconds."""

    stream: int
    method: str
    began: float
    ended: float
    code: str
    sentence: str


class Kept(NamedTuple):
    """Something sealed, and what it must open to."""

    plaintext: bytes
    ciphertext: bytes
    key_id: str


class _Client:
    """Runs `_run` in a thread of its own, from `with` to its end.

    Args:
        streams: How many requests are under way at once.
    """

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2 * TIMEOUT_SECONDS)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        raise NotImplementedError


class Load(_Client):
    """A client with several streams, in a thread of its own.

    Args:
        plugin: The server.
        streams: How many requests are under way at once.
        old: What one more stream reads again and again, if anything; its requests are
            of the method `OLD`.

    Attributes:
        answers: Everything that was answered, in order of the answers.
        wrong: What must never be: other plaintexts, exceptions that are no status.
        sent: Requests begun.
    """

    def __init__(
        self, plugin: Plugin, streams: int = STREAMS, old: Sequence[Kept] = ()
    ) -> None:
        self.answers: list[Answer] = []
        self.wrong: list[str] = []
        self.sent = 0
        self._old = list(old)
        self._target = f"unix:{plugin.socket}"
        super().__init__(streams + bool(old))

    async def _run(self) -> None:
        options = (
            ("grpc.default_authority", "localhost"),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
        )
        async with grpc.aio.insecure_channel(self._target, options) as channel:
            stub = kms_v2_pb2_grpc.KeyManagementServiceStub(channel)
            streams = (self._stream(number, stub) for number in range(self._streams))
            await asyncio.gather(*streams)

    async def _stream(
        self, number: int, stub: kms_v2_pb2_grpc.KeyManagementServiceStub
    ) -> None:
        old = self._old if number == self._streams - 1 else []
        kept = list(old)
        turn = 0
        while not self._stop.is_set():
            turn += 1
            began = time.monotonic()
            self.sent += 1
            opens = bool(old or (kept and turn % 2))
            method = OLD if old else "Decrypt" if opens else "Encrypt"
            try:
                await (self._open(stub, kept) if opens else self._seal(stub, kept))
                code, sentence = "OK", ""
            except grpc.aio.AioRpcError as error:
                code, sentence = error.code().name, error.details() or ""
            except Exception as error:  # noqa: BLE001 - told by the test
                code, sentence = repr(error), ""
                self.wrong.append(code)
            ended = time.monotonic()
            answer = Answer(number, method, began, ended, code, sentence)
            self.answers.append(answer)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _seal(
        self, stub: kms_v2_pb2_grpc.KeyManagementServiceStub, kept: list[Kept]
    ) -> None:
        plaintext = secrets.token_bytes(32)
        request = kms_v2_pb2.EncryptRequest(plaintext=plaintext, uid="load")
        sealed = await stub.Encrypt(
            request, timeout=TIMEOUT_SECONDS, wait_for_ready=True
        )
        kept.append(Kept(plaintext, sealed.ciphertext, sealed.key_id))
        del kept[:-_KEPT]

    async def _open(
        self, stub: kms_v2_pb2_grpc.KeyManagementServiceStub, kept: list[Kept]
    ) -> None:
        one = secrets.choice(kept)
        request = kms_v2_pb2.DecryptRequest(
            ciphertext=one.ciphertext, key_id=one.key_id, uid="load"
        )
        got = await stub.Decrypt(request, timeout=TIMEOUT_SECONDS, wait_for_ready=True)
        if got.plaintext != one.plaintext:
            self.wrong.append("a plaintext that was never sealed there")

    # What came of it

    def wait_well(self, since: float = 0.0) -> float:
        """Wait until every stream is served again.

        Args:
            since: Answers to requests begun earlier do not count.

        Returns:
            Seconds from `since` to then.
        """
        wait_for(lambda: self._served(since), RESTORED_SECONDS)
        return time.monotonic() - since

    def _served(self, since: float) -> bool:
        answers = [one for one in self.answers[-2000:] if one.began >= since]
        rows = (
            [one.code for one in answers if one.stream == number][-IN_A_ROW:]
            for number in range(self._streams)
        )
        return all(row == ["OK"] * IN_A_ROW for row in rows)

    def failures(self, *methods: str) -> Sequence[Answer]:
        """Return the answers that are not OK, of these methods if any are given."""
        return [
            one
            for one in self.answers
            if one.code != "OK" and (not methods or one.method in methods)
        ]

    def wait_failing(self) -> None:
        """Wait until a request has failed."""
        wait_for(self.failures)

    def check(self, began: float, over: float) -> None:
        """Assert that only requests around the fault failed, with the right codes.

        Args:
            began: When the fault began.
            over: When every stream was served again.
        """
        assert [] == self.wrong
        assert self.sent == len(self.answers)
        failures = self.failures()
        inexcusable = [one for one in failures if one.code not in EXCUSED]
        assert not inexcusable, inexcusable
        early = [one for one in failures if one.ended < began]
        late = [one for one in failures if one.began > over]
        assert [] == [*early, *late]


class Flood(_Client):
    """Tampered ciphertexts as fast as they are answered, in a thread of its own.

    Args:
        plugin: The server.
        sealed: What is tampered with: tag and ciphertext are others each time.
        streams: How many requests are under way at once.

    Attributes:
        codes: How often each status code came.
    """

    def __init__(
        self, plugin: Plugin, sealed: kms_v2_pb2.EncryptResponse, streams: int = STREAMS
    ) -> None:
        self.codes: Counter[str] = Counter()
        self._plugin = plugin
        self._sealed = sealed
        super().__init__(streams)

    async def _run(self) -> None:
        target = f"unix:{self._plugin.socket}"
        options = (("grpc.default_authority", "localhost"),)
        async with grpc.aio.insecure_channel(target, options) as channel:
            stub = kms_v2_pb2_grpc.KeyManagementServiceStub(channel)
            await asyncio.gather(*(self._stream(stub) for _ in range(self._streams)))

    async def _stream(self, stub: kms_v2_pb2_grpc.KeyManagementServiceStub) -> None:
        while not self._stop.is_set():
            head = self._sealed.ciphertext[:-_SEALED_BYTES]
            bad = head + secrets.token_bytes(_SEALED_BYTES)  # never from a cache
            request = kms_v2_pb2.DecryptRequest(
                ciphertext=bad, key_id=self._sealed.key_id, uid="flood"
            )
            try:
                await stub.Decrypt(request, timeout=TIMEOUT_SECONDS)
                self.codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                self.codes[error.code().name] += 1
