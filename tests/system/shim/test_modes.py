"""Modes of the control file: properties of other tokens, imposed on a real one."""

from __future__ import annotations

import time

import pytest

from tests.harness.shim.running import DATA, IV
from tests.harness.softhsm import PIN

GENERAL_ERROR = 0x05
FUNCTION_FAILED = 0x06
ARGUMENTS_BAD = 0x07
DEVICE_ERROR = 0x30
DEVICE_REMOVED = 0x32
MECHANISM_INVALID = 0x70
MECHANISM_PARAM_INVALID = 0x71
OBJECT_HANDLE_INVALID = 0x82
SESSION_COUNT = 0xB1
ZEROS = "00" * 12


def test_lost(make_client, shim):
    """`lost` removes the device from running processes, not from later ones."""
    before = make_client()
    key = before.log_in()
    shim.set("lost")

    assert DEVICE_REMOVED == before.rv("encrypt", key, IV, DATA)
    shim.clear()
    assert DEVICE_REMOVED == before.rv("open")
    shim.set("lost")
    after = make_client()
    assert 0 == after.rv("encrypt", after.log_in(), IV, DATA)


def test_idle(client, shim):
    """`idle` removes the device from a process that has not used it for so long."""
    key = client.log_in()
    shim.set("idle=3600000")
    assert 0 == client.rv("encrypt", key, IV, DATA)
    shim.set("idle=1")
    time.sleep(0.01)
    assert 0 == client.rv("logged_in")

    assert DEVICE_REMOVED == client.rv("encrypt", key, IV, DATA)
    shim.clear()
    assert DEVICE_REMOVED == client.rv("encrypt", key, IV, DATA)


def test_initialize_fails(client, shim):
    """C_Initialize can fail a number of times, like any function."""
    shim.set("C_Initialize rv=0x30 count=1")

    assert DEVICE_ERROR == client.rv("start")
    assert 0 == client.rv("start")


def test_logged_out(make_client, shim):
    """`logged_out` hides keys and states until the next C_Login."""
    clients = [make_client(), make_client()]
    for client in clients:
        key = client.log_in()
    shim.set("logged_out")

    for client in clients:
        assert OBJECT_HANDLE_INVALID == client.rv("encrypt", key, IV, DATA)
        assert not client.do("logged_in")
        assert [] == client.do("find")
        client.do("login", PIN)
        assert 0 == client.rv("encrypt", client.do("find")[0], IV, DATA)
    assert 4 == shim.calls("C_Login")


def test_frozen(make_client, shim):
    """`frozen` hides new objects from all processes but new ones."""
    shim.set("frozen")
    old, maker = make_client(), make_client()
    key = old.log_in()
    maker.log_in()
    maker.do("generate", "0102")

    assert [key] == old.do("find")
    new = make_client()
    new.log_in()
    assert 2 == len(new.do("find"))
    shim.clear()
    assert 2 == len(old.do("find"))


def test_max_sessions(make_client, shim):
    """All processes share `max_sessions`; sessions of a dead one are freed."""
    first, second = make_client(), make_client()
    first.do("start")
    second.do("start")
    shim.set("max_sessions=2")
    first.do("open")
    first.do("open")

    assert SESSION_COUNT == second.rv("open")
    assert {first.pid: 2} == shim.sessions()
    first.do("close")
    assert 0 == second.rv("open")
    first.kill()
    assert 0 == second.rv("open")
    assert {second.pid: 2} == shim.sessions()


def test_keep_dead(make_client, shim):
    """With `keep_dead` the sessions of a dead process count until cleaned up."""
    shim.set("max_sessions=1 keep_dead")
    first, second = make_client(), make_client()
    second.do("start")
    first.do("start")
    first.do("open")
    first.kill()

    assert SESSION_COUNT == second.rv("open")
    shim.forget_sessions()
    assert 0 == second.rv("open")


@pytest.mark.parametrize(("mode", "locking"), [("", True), ("cant_lock", False)])
def test_cant_lock(client, shim, mode, locking):
    """`cant_lock` refuses CKF_OS_LOCKING_OK; without it C_Initialize works."""
    shim.set(mode)

    assert locking is client.do("start")
    assert 1 + (not locking) == shim.calls("C_Initialize")


def test_iv_by_token(client, shim):
    """`gcm_iv=token` writes its own IV over the caller's."""
    key = client.log_in()
    shim.set("gcm_iv=token")
    iv, sealed = client.do("encrypt", key, IV, DATA)
    again, _ = client.do("encrypt", key, IV, DATA)

    assert 3 == len({IV, iv, again})
    assert 2 * (32 + 16) == len(sealed)
    assert DATA == client.do("decrypt", key, iv, sealed)
    assert MECHANISM_PARAM_INVALID == client.rv("encrypt", key, "", DATA)


def test_iv_by_token_strict(client, shim):
    """With `strict` the shim accepts only 12 zero bytes as IV."""
    key = client.log_in()
    shim.set("gcm_iv=token strict")

    assert MECHANISM_PARAM_INVALID == client.rv("encrypt", key, IV, DATA)
    assert MECHANISM_PARAM_INVALID == client.rv("encrypt", key, "00" * 16, DATA)
    iv, sealed = client.do("encrypt", key, ZEROS, DATA)
    assert iv != ZEROS
    assert DATA == client.do("decrypt", key, iv, sealed)


@pytest.mark.parametrize("strict", ["", " strict"])
def test_iv_appended(client, shim, strict):
    """`gcm_iv=append` appends an IV of 16 bytes to the tag."""
    key = client.log_in()
    shim.set("gcm_iv=append" + strict)
    iv, sealed = client.do("encrypt", key, "", DATA)

    assert "" == iv
    assert 2 * (32 + 16 + 16) == len(sealed)
    assert DATA == client.do("decrypt", key, sealed[-32:], sealed[:-32])
    expected = MECHANISM_PARAM_INVALID if strict else 0
    assert expected == client.rv("encrypt", key, IV, DATA)
    assert 2 * 16 == len(client.do("ecb", key))


def test_iv_zero(client, shim):
    """`gcm_iv=zero` ignores the IV, so equal plaintexts give equal ciphertexts."""
    key = client.log_in()
    shim.set("gcm_iv=zero")
    iv, sealed = client.do("encrypt", key, IV, DATA)

    assert IV == iv
    assert DATA == client.do("decrypt", key, IV, sealed)
    assert sealed == client.do("encrypt", key, "b2" * 12, DATA)[1]
    shim.clear()
    assert DATA == client.do("decrypt", key, ZEROS, sealed)


@pytest.mark.parametrize("rv", [GENERAL_ERROR, FUNCTION_FAILED, ARGUMENTS_BAD, 0x40])
def test_bad_tag(client, shim, rv):
    """`bad_tag` sets the error for what is not authentic, and changes no other call."""
    key = client.log_in()
    _, sealed = client.do("encrypt", key, IV, DATA)
    shim.set(f"bad_tag={rv:#x}")

    assert rv == client.rv("decrypt", key, ZEROS, sealed)
    assert DATA == client.do("decrypt", key, IV, sealed)


def test_corrupt(client, shim):
    """`corrupt` flips one bit of one result."""
    key = client.log_in()
    _, good = client.do("encrypt", key, IV, DATA)
    shim.set("corrupt=2")
    got = [client.do("encrypt", key, IV, DATA)[1] for _ in range(4)]

    assert [good, good, good] == [got[0], *got[2:]]
    assert 1 == (int(got[1], 16) ^ int(good, 16)).bit_count()
    assert client.rv("decrypt", key, IV, got[1])


@pytest.mark.parametrize(
    ("mode", "name", "command"),
    [
        ("no_gcm", "AES_GCM", ("encrypt", IV, DATA)),
        ("no_ecb", "AES_ECB", ("ecb",)),
        ("no_cbc", "AES_CBC", ("cbc",)),
    ],
)
def test_no_mechanism(client, shim, mode, name, command):
    """A disabled mechanism is neither listed nor usable."""
    key = client.log_in()
    word, *rest = command
    with_it = client.do("token")["mechanisms"]
    assert 0 == client.rv(word, key, *rest)
    shim.set(mode)

    assert MECHANISM_INVALID == client.rv(word, key, *rest)
    without = client.do("token")["mechanisms"]
    assert {name} == {one for one in with_it if one not in without} - {"AES_CBC_PAD"}


def test_token_info(client, shim):
    """The shim adds flags to the token's own and reports a number of sessions."""
    client.log_in()
    before = client.do("token")
    shim.set("token_flags=0x10000", "max_session_count=16")

    after = client.do("token")
    assert before["flags"] | 0x10000 == after["flags"]
    assert (None, 16) == (before["sessions"], after["sessions"])
