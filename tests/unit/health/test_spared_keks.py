"""Inspections that spare the KEKs: when a KEK is used, and what closes the breaker."""

from __future__ import annotations

import pytest

from hsm_kms.clock import now
from hsm_kms.errors import TokenError, TokenTimeoutError
from hsm_kms.health.canaries import Canaries
from hsm_kms.health.health_key import RETRY_SECONDS, HealthKey
from hsm_kms.health.prover import Prover
from hsm_kms.ipc.fingerprints import fingerprint_of
from hsm_kms.ipc.messages import CheckKey, Done, FindKeys, KeyPage, RunCanary
from hsm_kms.ipc.values import KeyRef, KeySeen
from hsm_kms.keys.discovery import KeyListing
from hsm_kms.keys.inventory import Inventory
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.keys.token_key import KeySettings
from hsm_kms.keys.trial import PASSED
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.alarm import Alarm
from hsm_kms.token.breaker import TRIP_AFTER, Breaker
from tests.unit.keys.node_rig import LABEL, Peer, Uncounted, make_key

KEK = make_key(0, now() - 9000)
HEALTH = KeySeen(
    ref=KeyRef("health", b"\1"),
    value_len=32,
    attributes={},
    fingerprint=fingerprint_of(b"health"),
)
SICK = TokenError("the device fails")


class Asked(Peer):
    """A worker with a KEK and a health key; it fails for the fingerprints in `fails`.

    Attributes:
        used: Fingerprints that canaries were asked for, and the checks of a session.
        error: How it fails.
    """

    def __init__(self):
        super().__init__({KEK})
        self.used = []
        self.error = SICK

    async def ask(self, request, seconds):
        match request:
            case FindKeys():
                return KeyPage(keys=(HEALTH,))
            case CheckKey(fingerprint=fingerprint):
                self.used.append(f"check {fingerprint}")
                return Done()
            case RunCanary(fingerprint=fingerprint):
                self.used.append(fingerprint)
                if fingerprint in self.fails:
                    raise self.error
        return await super().ask(request, seconds)

    def asked(self):
        """Return what was asked since the last time."""
        asked, self.used = self.used, []
        return asked


CHECKED = f"check {KEK.fingerprint}"


class Node:
    """What an inspection consists of, and one worker that serves."""

    def __init__(self, directory, health_key):
        self.alarm = Alarm()
        self.keyring = NodeKeyring(KeySettings(label=LABEL), StateDir(directory).open())
        self.canaries = Canaries(
            self.keyring,
            self.alarm,
            Uncounted(),
            "",
            call_timeout=1.0,
            spares_keks=True,
        )
        self.inventory = Inventory()
        self.breaker = Breaker()
        self.health_key = health_key
        self.prover = Prover(
            self.keyring, self.canaries, self.inventory, self.breaker, health_key
        )
        self.worker = Asked()

    async def well(self):
        """The worker has started, and the KEK is current."""
        self.inventory.note(self.worker, KeyListing(keys=(KEK,)), now())
        await self.prover.prove(self.worker, KEK)
        self.canaries.passed(self.worker)
        await self.keyring.adopt(self.inventory, (), lambda _: PASSED, "serial")
        self.worker.asked()
        return self

    async def inspect(self):
        """Return what one inspection asked the worker."""
        known = await self.prover.prove_known(self.worker, self.canaries.in_use)
        await self.prover.prove_due(self.worker, KeyListing(keys=(KEK,)), known)
        return self.worker.asked()


@pytest.fixture
async def by_session(tmp_path, clock):
    """A node with `canary: session`."""
    return await Node(tmp_path / "state", None).well()


@pytest.fixture
async def by_key(tmp_path, clock):
    """A node with `health.key`."""
    key = HealthKey("health", "", call_timeout=1.0, seconds=1.0)
    return await Node(tmp_path / "state", key).well()


async def test_quiet(by_session, by_key):
    """While nothing happens, no inspection uses the KEK."""
    assert [CHECKED] == await by_session.inspect()
    assert [HEALTH.fingerprint] == await by_key.inspect()
    assert [HEALTH.fingerprint] == await by_key.inspect()


async def test_after_a_fault(by_session, by_key, clock):
    """A fault during a request has the KEK proven, once on each worker."""
    for node, quiet in ((by_session, CHECKED), (by_key, HEALTH.fingerprint)):
        clock[0] += 1
        node.alarm.fault(SICK)
        clock[0] += 1
        assert [KEK.fingerprint] == await node.inspect()
        assert [quiet] == await node.inspect()


async def test_when_a_key_comes_due(by_session, clock):
    """A key that is due to be switched to is proven since then, and once."""
    clock[0] += 1
    by_session.canaries.proofs.trials()(KEK)
    clock[0] += 1
    assert [KEK.fingerprint] == await by_session.inspect()
    assert PASSED == by_session.canaries.proofs.trials()(KEK)
    assert [CHECKED] == await by_session.inspect()


async def test_what_closes_the_breaker(by_session, by_key):
    """Neither a session nor the health key closes the breaker, but the KEK does."""
    for node in (by_session, by_key):
        for _ in range(TRIP_AFTER):
            node.breaker.failed(SICK)
        node.worker.fails.add(KEK.fingerprint)
        with pytest.raises(TokenError):
            await node.inspect()
        assert node.breaker.is_open
        node.worker.fails.clear()
        assert KEK.fingerprint in await node.inspect()
        assert not node.breaker.is_open


async def test_damaged_health_key(by_key, clock):
    """The KEK settles once that the health key is at fault, which is tried later."""
    by_key.worker.fails.add(HEALTH.fingerprint)
    asked = await by_key.inspect()
    assert [HEALTH.fingerprint, KEK.fingerprint, CHECKED] == asked
    assert str(SICK) == str(by_key.health_key.error)
    assert [CHECKED] == await by_key.inspect()

    clock[0] += RETRY_SECONDS
    assert [HEALTH.fingerprint, CHECKED] == await by_key.inspect()
    clock[0] += RETRY_SECONDS
    by_key.worker.fails.clear()
    assert [HEALTH.fingerprint] == await by_key.inspect()
    assert by_key.health_key.error is None


async def test_token_and_health_key_fail(by_key):
    """If the KEK fails too, the token is at fault and not the health key."""
    by_key.worker.fails |= {HEALTH.fingerprint, KEK.fingerprint}
    with pytest.raises(TokenError):
        await by_key.inspect()

    assert by_key.health_key.error is None


async def test_slow_health_key(by_key):
    """A canary under the health key that is not answered in time is a slow token."""
    by_key.worker.fails.add(HEALTH.fingerprint)
    by_key.worker.error = TokenTimeoutError("no answer")
    with pytest.raises(TokenTimeoutError):
        await by_key.inspect()

    assert [HEALTH.fingerprint] == by_key.worker.asked()
    assert by_key.health_key.error is None
