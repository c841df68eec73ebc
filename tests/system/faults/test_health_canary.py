"""What proves the token at each inspection: the KEK, a key of its own, or a session."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from hsm_kms.ipc.values import KeyRef
from tests.harness.administrator import Destroy, Generate, change
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.faults.observed import NO_CANARY

HEALTH = KeyRef("health", b"\x0e")
CRYPTO, SESSION, KEY = {}, {"canary": "session"}, {"key": HEALTH.label}
MODES = pytest.mark.parametrize(
    "mode", [CRYPTO, SESSION, KEY], ids=["crypto", "session", "key"]
)
BUSY = 20  # inspections of a worker in which operations are counted
WORKERS = 2
DOWN_SECONDS = 60.0
UNKNOWN = "a" * 26
# C_GetSessionInfo calls of one inspection: for the listing, and to check the key.
INFOS = {"crypto": 1, "session": 2}


class Used(NamedTuple):
    """Operations on the token so far, with whatever key."""

    encrypts: int
    decrypts: int
    infos: int
    wraps: float


def used(rig):
    """Count the operations of all processes; wraps are those that the KEK made.

    No operation begins while the wraps are read: else both are read again.
    """

    def read():
        before = operations(rig)
        wraps = [
            value
            for name, value in rig.metrics().items()
            if name.startswith("hsm_kms_kek_wraps{")
        ]
        return Used(*before, sum(wraps)) if before == operations(rig) else None

    return wait_for(read)


def operations(rig):
    """Return the counts of `Used` that are the shim's."""
    counts = rig.shim.counts()
    functions = ("C_EncryptInit", "C_DecryptInit", "C_GetSessionInfo")
    return [counts[each].calls for each in functions]


def inspected(rig, times, per_inspection):
    """Wait for inspections of all workers; return what they used."""
    before = used(rig)
    least = before.infos + times * WORKERS * per_inspection
    wait_for(lambda: used(rig).infos >= least)
    after = used(rig)
    return Used(*(b - a for a, b in zip(before, after, strict=True)))


@pytest.fixture
def start(make_rig):
    """Start a healthy server whose inspections follow each other closely."""

    def start(mode, **sections):
        health = {"interval": "300ms"} | mode
        rig = make_rig(health=health, **sections)
        rig.start()
        rig.well()
        rig.workers()
        inspected(rig, 3, 1)  # what a new worker must prove is proven
        return rig

    return start


@pytest.fixture
def with_health_key(hsm):
    """The token has a health key."""
    change(hsm, Generate(HEALTH))


def test_operations_under_the_kek(start):
    """By default an inspection encrypts twice and decrypts once, under the KEK."""
    seen = inspected(start(CRYPTO), BUSY, INFOS["crypto"])
    inspections = seen.infos / INFOS["crypto"]

    assert seen.encrypts == pytest.approx(2 * inspections, abs=2 * WORKERS)
    assert seen.decrypts == pytest.approx(inspections, abs=WORKERS)
    assert seen.wraps == pytest.approx(inspections, abs=WORKERS)


def test_operations_of_a_session(start):
    """With `canary: session` inspections use no key at all."""
    seen = inspected(start(SESSION), BUSY, INFOS["session"])

    assert (0, 0, 0) == (seen.encrypts, seen.decrypts, seen.wraps)


@pytest.mark.usefixtures("with_health_key")
def test_operations_under_a_health_key(start):
    """With `health.key` an inspection encrypts and decrypts once, under that key."""
    rig = start(KEY)
    seen = inspected(rig, BUSY, INFOS["crypto"])

    assert seen.encrypts == pytest.approx(seen.infos, abs=WORKERS)
    assert seen.decrypts == pytest.approx(seen.infos, abs=WORKERS)
    assert 0 == seen.wraps
    assert 1 == rig.metrics()["hsm_kms_health_key_usable"]


@pytest.mark.usefixtures("with_health_key")
@pytest.mark.parametrize("mode", [SESSION, KEY], ids=["session", "key"])
def test_operations_of_a_fresh_worker(start, shim, mode):
    """A fresh worker that lists the keys does not use the KEK either."""
    rig = start(mode)
    shim.set("C_Encrypt sleep=300")  # every session is used, and identifies the key
    assert {"OK"} == {*rig.plugin.encrypt_at_once(b"d", 8)}
    shim.clear()
    logins = rig.shim.calls("C_Login")
    before = used(rig)
    sealed = rig.plugin.encrypt(b"d")
    unknown = sealed.ciphertext.replace(sealed.key_id.encode(), UNKNOWN.encode())
    # A request that names an unknown key has a fresh worker started within seconds.
    code = code_of(lambda: rig.plugin.decrypt(unknown, UNKNOWN))
    assert "FAILED_PRECONDITION" == code
    wait_for(lambda: rig.shim.calls("C_Login") > logins, DOWN_SECONDS)
    wait_for(lambda: len(rig.worker_pids) == WORKERS)
    after = used(rig)

    assert 1 == after.wraps - before.wraps
    encrypts = after.encrypts - before.encrypts
    if mode is SESSION:
        assert 1 == encrypts
    else:  # one for each inspection, of which one for each worker may be under way
        assert encrypts <= 1 + after.infos - before.infos + WORKERS


@pytest.mark.usefixtures("with_health_key")
@MODES
def test_token_dies(start, hsm, mode):
    """Status tells that the token has gone, without a request, and that it is back."""
    rig = start(mode)
    hsm.take_away()
    wait_for(lambda: rig.plugin.healthz() != "ok", DOWN_SECONDS)
    hsm.put_back()
    rig.well(DOWN_SECONDS)

    assert "OK" == code_of(lambda: rig.plugin.encrypt(b"d"))


@pytest.mark.usefixtures("with_health_key")
@pytest.mark.parametrize("mode", [SESSION, KEY], ids=["session", "key"])
def test_a_request_that_fails_has_the_kek_proven(start, shim, mode):
    """After a fault the KEK must wrap a canary; it alone says that requests work."""
    rig = start(mode)
    shim.set("C_EncryptInit len=77 rv=0x30", "C_Encrypt len=77 rv=0x30")
    before = used(rig).wraps
    rig.wait_breaker_open()
    shim.clear()
    wait_for(lambda: code_of(lambda: rig.plugin.encrypt(NO_CANARY)) == "OK")

    assert used(rig).wraps > before + len(rig.plugin.events("breaker open"))
    assert "closed" == rig.admin()["breaker"]


def test_only_requests_fail(start, shim):
    """A session that answers says ok until a request fails; then a KEK must work."""
    rig = start(SESSION)
    shim.set("C_EncryptInit rv=0x30", "C_DecryptInit rv=0x30")
    inspected(rig, BUSY, INFOS["session"])
    assert "ok" == rig.plugin.healthz()

    wait_for(lambda: code_of(lambda: rig.plugin.encrypt(b"d")) == "UNAVAILABLE")
    rig.plugin.wait_healthz("the token", DOWN_SECONDS)
    shim.clear()
    rig.well(DOWN_SECONDS)
    assert "OK" == code_of(lambda: rig.plugin.encrypt(b"d"))


def usable(rig):
    """Return True if the health key is used, and Status says ok."""
    assert "ok" == rig.plugin.healthz()
    return rig.metrics()["hsm_kms_health_key_usable"] == 1


def error(rig):
    """Return why the health key cannot be used."""
    return rig.admin()["canary"]["health_key"]["error"]


def test_health_key_comes_and_goes(start, hsm):
    """Without its key health goes on by sessions, with a warning, and uses no KEK."""
    rig = start(KEY)
    assert not usable(rig)
    assert error(rig).startswith("no AES key labelled 'health' is on the token")
    assert 0 == inspected(rig, BUSY, INFOS["session"]).encrypts
    change(hsm, Generate(HEALTH))
    wait_for(lambda: usable(rig))
    change(hsm, Destroy(HEALTH))
    wait_for(lambda: not usable(rig))
    inspected(rig, 3, INFOS["session"])
    seen = inspected(rig, BUSY, INFOS["session"])

    assert (0, 0) == (seen.encrypts, seen.decrypts)
    assert rig.plugin.events("health key unusable")


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([Generate(HEALTH, usage=("DECRYPT",))], "the health key labelled 'health'"),
        ([Generate(HEALTH, key_type="GENERIC_SECRET")], "no AES key labelled"),
        ([Generate(HEALTH), Generate(KeyRef("health", b"2"))], "2 AES keys"),
        ([Generate(HEALTH, usage=("ENCRYPT",))], "C_DecryptInit"),
    ],
    ids=["cannot encrypt", "not AES", "two", "cannot decrypt"],
)
def test_health_key_of_a_wrong_kind(start, hsm, steps, says):
    """A health key that cannot do it is named with the cause, and Status stays ok."""
    change(hsm, *steps)
    rig = start(KEY)
    wait_for(lambda: not usable(rig))
    before = used(rig)

    assert says in error(rig)
    assert "; " in error(rig)  # the cure
    seen = inspected(rig, BUSY, INFOS["session"])
    assert (0, 0) == (seen.encrypts, seen.decrypts)
    assert before.wraps == used(rig).wraps
