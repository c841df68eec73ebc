"""The API servers of some nodes, which encrypt and decrypt all the time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Self

import grpc.aio

from tests.harness.wait import patient, wait_for
from tests.system.conformance.clients import Client, connected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.system.rotation.nodes import RotationNode

POLL_SECONDS = 0.1
WRITTEN_SECONDS = 60.0


class Written(NamedTuple):
    """One Encrypt: when its answer came, by that node's clock, and what it held."""

    node: int
    time: float
    key_id: str
    plaintext: bytes
    ciphertext: bytes


class Said(NamedTuple):
    """One Status: when its answer came, by that node's clock, and what it said."""

    node: int
    time: float
    healthz: str
    key_id: str


class Cluster:
    """The API servers of some nodes, each in turn Status, Encrypt, and Decrypt.

    What one of them writes, all others read at once. From `with` to its end.

    Args:
        nodes: The nodes.

    Attributes:
        written: Every Encrypt that went well, in order.
        said: Every Status that was answered, in order.
        failures: Every call that was not, with the node and the method.
        wrong: What must never be.
    """

    def __init__(self, nodes: Sequence[RotationNode]) -> None:
        self.nodes = list(nodes)
        self.written: list[Written] = []
        self.said: list[Said] = []
        self.failures: list[tuple[int, str, str]] = []
        self.wrong: list[str] = []
        self._away: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(patient(60))
        assert not self._thread.is_alive()

    def excuse(self, node: int, *, away: bool) -> None:
        """Let failures of this node's Decrypts count no longer, or again."""
        (self._away.add if away else self._away.discard)(node)

    def switched(self, key_id: str) -> set[int]:
        """Return the nodes that wrote under this key_id."""
        return {one.node for one in list(self.written) if one.key_id == key_id}

    def wait_written(self, key_id: str, nodes: set[int]) -> None:
        """Wait until these nodes have written under this key_id."""
        wait_for(lambda: nodes <= self.switched(key_id) or self.wrong, WRITTEN_SECONDS)

    def wait_more(self, count: int = 5) -> None:
        """Wait until every node has answered so many more Statuses."""
        before = Counter(one.node for one in list(self.said))

        def asked() -> bool:
            more = Counter(one.node for one in list(self.said)) - before
            return all(more[node] >= count for node in range(len(self.nodes)))

        wait_for(asked)

    def order(self, node: int) -> list[str]:
        """Return the successive key_ids that one node's Status gave."""
        ids = [one.key_id for one in self.said if one.node == node]
        return [key_id for key_id, _ in itertools.groupby(ids)]

    def check(self, activation: dict[str, float]) -> None:
        """Assert that no node wrote with a key before its activation time.

        Args:
            activation: Activation time by key_id.
        """
        assert [] == self.wrong
        early = [
            one for one in self.written if one.time < activation.get(one.key_id, 0)
        ]
        assert [] == early

    async def _run(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                (await stack.enter_async_context(connected(node)))[0]
                for node in self.nodes
            ]
            everyone = range(len(clients))
            await asyncio.gather(*(self._node(each, clients) for each in everyone))
            for one in self.written[:: max(1, len(self.written) // 100)]:
                await self._read(one, clients)

    async def _node(self, node: int, clients: list[Client]) -> None:
        while not self._stop.is_set():
            key_id = await self._status(node, clients[node])
            sealed = key_id and await self._encrypt(node, clients[node], key_id)
            if sealed:
                await self._read(sealed, clients)
            await asyncio.sleep(POLL_SECONDS)

    async def _status(self, node: int, client: Client) -> str:
        try:
            status = await client.status()
        except grpc.aio.AioRpcError as error:
            self.failures.append((node, "Status", error.code().name))
            return ""
        now = self.nodes[node].clock.now()
        self.said.append(Said(node, now, status.healthz, status.key_id))
        return status.key_id

    async def _encrypt(
        self, node: int, client: Client, announced: str
    ) -> Written | None:
        plaintext = secrets.token_bytes(32)
        try:
            sealed = await client.encrypt(plaintext)
        except grpc.aio.AioRpcError as error:
            self.failures.append((node, "Encrypt", error.code().name))
            return None
        if announced != sealed.key_id:
            self.wrong.append(f"node {node} said {announced}, wrote {sealed.key_id}")
        now = self.nodes[node].clock.now()
        one = Written(node, now, sealed.key_id, plaintext, sealed.ciphertext)
        self.written.append(one)
        return one

    async def _read(self, one: Written, clients: list[Client]) -> None:
        readers = [each for each in range(len(clients)) if each not in self._away]
        await asyncio.gather(
            *(self._open(each, clients[each], one) for each in readers)
        )

    async def _open(self, node: int, client: Client, one: Written) -> None:
        try:
            opened = await client.decrypt(one.ciphertext, one.key_id)
        except grpc.aio.AioRpcError as error:
            if node not in self._away:
                self.failures.append((node, "Decrypt", error.code().name))
            return
        if one.plaintext != opened:
            self.wrong.append(f"node {node} opened something else")
