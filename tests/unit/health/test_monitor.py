"""Inspections: how many of them, and which canaries, make a key current."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from hsm_kms.clock import now
from hsm_kms.errors import KeyForeignError
from hsm_kms.health.monitor import Monitor
from hsm_kms.keys.token_key import KeySettings
from hsm_kms.tasks import cancel_and_wait
from tests.harness.wait import until
from tests.unit.keys.node_rig import LABEL, Engine, make_key


class Watched:
    """A node of two workers on one token; the test decides who looks when."""

    def __init__(self, directory):
        self.wall = now()
        self.first = make_key(0, self.wall - 9000)
        self.token = {self.first}
        self.engine = Engine(
            KeySettings(label=LABEL, shared=True),
            directory,
            lambda: self.wall,
            self.token,
        ).take_effect()

    async def start(self):
        """Both workers come."""
        await self.engine.come()
        await self.engine.come()
        return self

    def makes(self, number, ahead, **kind):
        """A key is made, and all workers see it from now on."""
        key = make_key(number, self.wall + ahead, **kind)
        self.token.add(key)
        for peer in self.engine.peers.ready:
            peer.sees.add(key)
        return key

    async def look(self, rounds=1):
        """Every worker looks."""
        for _ in range(rounds):
            for peer in list(self.engine.peers.ready):
                await self.engine.look(peer)
        return self.engine.keyring.key_id


@pytest.fixture
def watched(tmp_path):
    """A node that is not started yet."""
    return Watched(tmp_path / "state")


async def test_switch(watched):
    """At its activation time a key is proven on every worker, and then current."""
    await watched.start()
    key = watched.makes(1, 60)
    assert watched.first.key_id == await watched.look()
    watched.wall += 60
    assert watched.first.key_id == await watched.look()

    assert key.key_id == await watched.look()
    assert "ok" == watched.engine.state().state


async def test_time_that_comes_after_the_look(watched):
    """A key whose time comes just after a round has judged the keys waits for no other.

    The clock passes the time when the round ends, before the pause is measured.
    """
    await watched.start()
    key = watched.makes(1, 60)
    peers = watched.engine.peers
    monitor = Monitor(
        peers,
        watched.engine.inspection,
        watched.engine.health,
        watched.engine.keyring,
        watched.engine.alarm,
        interval=3600.0,
    )
    looks = []

    def canary_passed():
        looks.append(watched.wall)
        if len(looks) == len(peers.ready):
            watched.wall += 60

    peers.canary_passed = canary_passed
    watched.engine.alarm.notify("the test begins")
    running = asyncio.create_task(monitor.run())
    await until(lambda: key.key_id == watched.engine.keyring.key_id)
    await cancel_and_wait(running)

    assert "ok" == watched.engine.state().state


async def test_two_keys_due_at_once(watched):
    """Of two keys that are due the younger one becomes current."""
    await watched.start()
    watched.makes(1, 60)
    younger = watched.makes(2, 70)
    watched.wall += 1000

    assert younger.key_id == await watched.look(3)


async def test_younger_of_two_fails(watched):
    """If the younger of two due keys fails on a worker, the older one is taken."""
    await watched.start()
    older, younger = watched.makes(1, 60), watched.makes(2, 70)
    watched.engine.peers.ready[0].fails.add(younger.fingerprint)
    watched.wall += 1000
    assert older.key_id == await watched.look(3)

    watched.engine.peers.ready[0].fails.clear()
    assert younger.key_id == await watched.look(3)


async def test_one_worker_does_not_see_it(watched):
    """A worker that does not see the key delays the switch until it does."""
    await watched.start()
    key = watched.makes(1, 60)
    blind = watched.engine.peers.ready[0]
    blind.sees.discard(key)
    await watched.look()
    watched.wall += 60
    assert watched.first.key_id == await watched.look(4)

    blind.sees.add(key)
    assert key.key_id == await watched.look(2)


async def test_planted_key(watched):
    """A key that the token did not generate becomes not current, and decrypts not."""
    await watched.start()
    planted = watched.makes(1, 60, born_here=False)
    watched.wall += 1000

    assert watched.first.key_id == await watched.look(4)
    with pytest.raises(KeyForeignError):
        watched.engine.keyring.announced_ring.for_decrypt(
            planted.key_id, planted.cipher
        )


async def test_visit_that_sees_more(watched):
    """A worker that still misses a key after a fresh worker saw it is replaced."""
    await watched.start()
    key = make_key(1, watched.wall + 60)
    watched.token.add(key)  # only fresh workers see it
    before = set(watched.engine.peers.ready)
    await watched.engine.visit()
    assert before == set(watched.engine.peers.ready)

    await watched.look()
    await watched.look()
    await watched.engine.visit()
    assert 1 == len(before & set(watched.engine.peers.ready))


async def test_current_key_out_of_sight(watched):
    """Workers that lost sight of the current key are replaced one by one.

    They are not ended before a fresh worker has seen it, which looks once.
    """
    watched.token.add(make_key(1, watched.wall + 600))
    await watched.start()
    engine = watched.engine
    before = set(engine.peers.ready)
    for peer in before:
        peer.sees.discard(watched.first)
    await watched.look()
    assert engine.inspection.asks
    assert before == set(engine.peers.ready)

    await engine.visit()
    await watched.look(2)
    assert not engine.inspection.asks
    assert before == set(engine.peers.ready)
    await engine.visit()
    assert 1 == len(before & set(engine.peers.ready))
    await engine.come()
    await engine.visit()
    await engine.come()
    await watched.look()
    assert not before & set(engine.peers.ready)
    assert ("ok", False) == (engine.state().state, engine.inspection.asks)


async def test_no_key_in_sight(watched):
    """A worker that sees no key any more is replaced once; a fresh one is believed."""
    await watched.start()
    watched.token.clear()
    before = set(watched.engine.peers.ready)
    for peer in before:
        peer.sees.clear()
    await watched.look()
    assert [] == watched.engine.peers.ready

    for _ in before:
        await watched.engine.come()
    fresh = set(watched.engine.peers.ready)
    await watched.look(9)
    assert 2 == len(fresh)
    assert fresh == set(watched.engine.peers.ready)
    assert "failed" == watched.engine.state().state


async def test_current_key_deleted(watched):
    """No worker ends for a deleted key, and a fresh worker looks for it once."""
    watched.token.add(make_key(1, watched.wall + 600))
    await watched.start()
    watched.token.remove(watched.first)
    before = set(watched.engine.peers.ready)
    for peer in before:
        peer.sees.discard(watched.first)
    await watched.look()
    assert watched.engine.inspection.asks
    await watched.engine.visit()
    for _ in range(9):
        await watched.look()
        assert not watched.engine.inspection.asks

    assert before == set(watched.engine.peers.ready)
    assert "failed" == watched.engine.state().state
    assert watched.first.key_id == watched.engine.state().key_id


async def test_worker_comes_while_the_key_is_missing(watched):
    """A new worker serves the other keys while no worker sees the current one."""
    watched.token.add(make_key(1, watched.wall + 600))
    await watched.engine.come()
    watched.token.remove(watched.first)
    watched.engine.peers.ready[0].sees.discard(watched.first)
    await watched.look()
    await watched.engine.come()
    await watched.look()

    assert 2 == len(watched.engine.peers.ready)


async def test_worker_leaves_while_it_is_inspected(watched):
    """A worker that leaves in order while it is inspected has failed no canary."""
    await watched.start()
    leaver, other = watched.engine.peers.ready
    leaver.leaving = True
    leaver.lost.set()
    await watched.engine.monitor.look(leaver)
    assert watched.engine.health.settled

    other.lost.set()
    await watched.engine.monitor.look(other)
    assert not watched.engine.health.settled


async def test_visit_before_all_have_looked(watched):
    """No worker is replaced for a key that it sees in its next look."""
    await watched.start()
    watched.makes(1, 60)
    before = set(watched.engine.peers.ready)
    await watched.engine.visit()
    await watched.look()
    await watched.engine.visit()

    assert before == set(watched.engine.peers.ready)


async def test_bug_does_not_end_the_watch(watched, monkeypatch):
    """An unexpected exception is logged, and the next look works."""
    await watched.start()

    def fails(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(watched.engine.keyring, "adopt", fails)
        await watched.look()
    assert ["bug in the monitor"] * 2 == [
        log["event"] for log in logs if log["log_level"] == "error"
    ]

    key = watched.makes(1, 60)
    await watched.look()
    watched.wall += 60
    assert key.key_id == await watched.look(2)
