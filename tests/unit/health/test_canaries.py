"""Canaries: what has been proven on which worker, on a clock the test moves."""

from __future__ import annotations

import pytest

from hsm_kms.clock import now, since_boot
from hsm_kms.errors import MechanismError, TokenTimeoutError
from hsm_kms.health.canaries import Canaries
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.keys.token_key import KeySettings
from hsm_kms.keys.trial import PASSED, UNTRIED
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.alarm import Alarm
from tests.unit.keys.node_rig import LABEL, Peer, Uncounted, make_key

KEY = make_key(0, now() - 9000)


@pytest.fixture
async def alarm():
    """Asks for an inspection."""
    return Alarm()


@pytest.fixture
async def canaries(tmp_path, clock, alarm):
    """Nothing has been proven yet."""
    keyring = NodeKeyring(KeySettings(label=LABEL), StateDir(tmp_path / "state").open())
    return Canaries(keyring, alarm, Uncounted(), "", call_timeout=1.0)


async def prove(canaries, *workers):
    """Prove the key on each worker, as an inspection does."""
    for worker in workers:
        await canaries.prove(worker, KEY, 1.0)
        canaries.passed(worker)


async def test_proven_on_one_worker(canaries):
    """A canary that passed on one worker proves nothing about another."""
    first, second = Peer({KEY}), Peer({KEY})
    await prove(canaries, first)

    assert canaries.proofs.has_proven(first, KEY)
    assert not canaries.proofs.has_proven(second, KEY)
    assert canaries.is_due(second, KEY)


async def test_a_failure_ends_the_proof(canaries):
    """A key under which a canary failed is not proven any more."""
    worker = Peer({KEY})
    await prove(canaries, worker)
    worker.fails.add(KEY.fingerprint)
    await canaries.prove(worker, KEY, 1.0)
    assert not canaries.proofs.has_proven(worker, KEY)

    with pytest.raises(MechanismError):
        await canaries.prove(worker, KEY, 1.0, needed=True)


async def test_usable_once_proven_by_all(canaries, clock, alarm):
    """A key can be switched to once every worker has proven it since it came due."""
    first, second = Peer({KEY}), Peer({KEY})
    await prove(canaries, first, second)
    clock[0] += 1
    assert UNTRIED == canaries.proofs.trials()(KEY)
    assert "the activation time of a key has come" == alarm.reason

    await prove(canaries, first)
    assert UNTRIED == canaries.proofs.trials()(KEY)
    await prove(canaries, second)
    assert PASSED == canaries.proofs.trials()(KEY)


async def test_why_a_key_cannot_be_used(canaries, clock):
    """A trial that failed gives its reason: an error, or a worker that sees no key."""
    first, blind = Peer({KEY}), Peer(set())
    await prove(canaries, first)
    canaries.passed(blind)
    clock[0] += 1
    assert UNTRIED == canaries.proofs.trials()(KEY)
    clock[0] += 1
    await prove(canaries, first)
    canaries.passed(blind)
    assert "a worker does not see the key" == canaries.proofs.trials()(KEY).failure

    first.fails.add(KEY.fingerprint)
    await prove(canaries, first)
    assert "this key does not work here" == canaries.proofs.trials()(KEY).failure
    blind.retire()
    first.fails.clear()
    await prove(canaries, first)
    assert PASSED == canaries.proofs.trials()(KEY)


async def test_a_worker_that_leaves_is_not_waited_for(canaries, clock):
    """A switch does not wait for a worker that is retiring."""
    first, second = Peer({KEY}), Peer({KEY})
    await prove(canaries, first, second)
    clock[0] += 1
    canaries.proofs.trials()(KEY)
    await prove(canaries, first)
    second.retire()

    assert PASSED == canaries.proofs.trials()(KEY)


async def test_due_anew(canaries, clock):
    """A key that one adoption did not ask for must be proven anew later."""
    worker = Peer({KEY})
    await prove(canaries, worker)
    assert PASSED == canaries.proofs.trials()(KEY)
    canaries.proofs.trials()
    clock[0] += 1

    assert UNTRIED == canaries.proofs.trials()(KEY)


class Late(Peer):
    """A worker whose token takes so many seconds for a canary."""

    def __init__(self, clock, seconds):
        super().__init__({KEY})
        self._clock, self._seconds = clock, seconds

    async def ask(self, request, seconds):
        self._clock[0] += min(self._seconds, seconds)
        if self._seconds > seconds:
            raise TokenTimeoutError("no answer")
        return await super().ask(request, seconds)


@pytest.mark.parametrize(
    ("seconds", "slow", "passes"),
    [(1.9, False, True), (3.9, True, True), (6.1, None, False)],
)
async def test_late_canary(node, clock, seconds, slow, passes):
    """A canary may take `call_timeout` for each operation; late is slow, not failed.

    The first canary is one encryption and one decryption; later ones also decrypt
    what was kept of an earlier one.
    """
    canaries, key = node.canaries, node.keyring.current
    first, later = Late(clock, min(seconds, 3.9)), Late(clock, seconds)
    await canaries.prove(first, key)
    if passes:
        await canaries.prove(later, key)
        assert slow is canaries.slow
        await canaries.prove(Late(clock, 0.1), key)
        assert not canaries.slow
    else:
        with pytest.raises(TokenTimeoutError):
            await canaries.prove(later, key)


async def test_forget(canaries):
    """Nothing stays proven of a lost worker, nor of a key that is no longer held."""
    gone, worker = Peer({KEY}), Peer({KEY})
    await prove(canaries, gone, worker)
    gone.lost.set()
    canaries.proofs.forget([KEY])
    assert not canaries.proofs.has_proven(gone, KEY)
    assert canaries.proofs.has_proven(worker, KEY)

    canaries.proofs.forget([])
    assert not canaries.proofs.has_proven(worker, KEY)


async def test_offline_for(canaries, clock):
    """The token is available while a worker serves and no canary has failed."""
    assert canaries.offline_for() is None
    worker = Peer({KEY})
    await prove(canaries, worker)
    clock[0] += 20
    assert 0.0 == canaries.offline_for()

    canaries.failed(TokenTimeoutError("no answer"))
    assert 20.0 == canaries.offline_for()
    await prove(canaries, worker)
    assert 0.0 == canaries.offline_for()

    clock[0] += 5
    worker.lost.set()
    assert 5.0 == canaries.offline_for()


async def test_offline_while_suspended(canaries, clock, monkeypatch):
    """After a suspension the token counts as unavailable until a canary passes."""
    worker = Peer({KEY})
    await prove(canaries, worker)
    monkeypatch.setattr("hsm_kms.clock.since_boot", lambda: since_boot() + 1000)
    assert 990 < canaries.offline_for() <= 1000

    clock[0] += 20
    canaries.failed(TokenTimeoutError("no answer"))
    assert 1010 < canaries.offline_for() <= 1020
    await prove(canaries, worker)
    assert 0.0 == canaries.offline_for()
