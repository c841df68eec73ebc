"""Orders of events that once went wrong, or nearly did."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from hsm_kms.keys.token_key import KeySettings
from tests.unit.keys.node_rig import LABEL, Engine, Peer, make_key

BEGAN = 1_800_000_000.0
AHEAD = 60


@dataclass
class TwoWorkers:
    """An engine with two workers that see all of the token."""

    engine: Engine
    token: set
    wall: float = BEGAN

    async def look(self, times: int = 3) -> None:
        """Regular looks of all workers."""
        for _ in range(times):
            for peer in self.engine.peers.ready:
                peer.sees = set(self.token)
                await self.engine.look(peer)

    @property
    def key_id(self) -> str:
        """What Status would say."""
        return self.engine.state().key_id


@pytest.fixture
async def node(directory):
    """A node with one key, and two workers."""
    token = {make_key(0, BEGAN - 1000)}
    made = TwoWorkers(None, token)
    settings = KeySettings(label=LABEL, shared=True)
    made.engine = Engine(
        settings, directory / "state", lambda: made.wall, token
    ).take_effect()
    for _ in range(2):
        await made.engine.come()
    assert "ok" == made.engine.state().state
    return made


async def test_the_younger_fails(node):
    """Of two keys that are due the older one is taken if the other fails."""
    older, younger = (make_key(n, BEGAN + AHEAD + n) for n in (1, 2))
    node.token |= {older, younger}
    await node.look()
    node.engine.peers.ready[0].fails = {younger.fingerprint}
    node.wall += AHEAD + 10
    await node.look()

    assert older.key_id == node.key_id
    node.engine.peers.ready[0].fails = set()
    await node.look()
    assert younger.key_id == node.key_id


async def test_two_start_at_once(node):
    """A worker that starts is not refused because another one came meanwhile."""
    slow = Peer(set(node.token))
    reads, goes_on = asyncio.Event(), asyncio.Event()

    async def ask(request, seconds):
        reads.set()
        await goes_on.wait()
        return await Peer.ask(slow, request, seconds)

    slow.ask = ask
    qualifying = asyncio.ensure_future(node.engine.inspection.qualify(slow))
    await reads.wait()
    await node.look()
    goes_on.set()
    await qualifying


async def test_named_otherwise_than_announced(node, directory):
    """A key_id announced before the keys were read binds v2 until the next Status."""
    before = node.key_id
    other = make_key(3, BEGAN - 500)
    node.token.add(other)
    settings = KeySettings(label=LABEL, shared=True, current=other.fingerprint)
    engine = Engine(
        settings, directory / "state", lambda: node.wall, node.token
    ).take_effect()
    said = engine.health.announce().key_id
    await engine.come()

    assert before == said
    assert said == engine.keyring.announced_ring.for_encrypt().key_id
    assert other.key_id == engine.health.announce().key_id
    assert other.key_id == engine.keyring.announced_ring.for_encrypt().key_id
