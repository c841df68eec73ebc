"""Forged ciphertexts at full rate harm nobody, whatever the token says of them."""

from __future__ import annotations

import secrets

import pytest

from hsm_kms.api.rpc import kms_v2_pb2
from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Fault
from hsm_kms.wrapping.record import Algorithm, Header, Kind, Record
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.faults.load import Flood, Load

PLAINTEXT = b"f" * 77  # of a length that no canary has
FORGED, GOOD = 24, 4  # answers to either client, for each return value
VENDOR = 0x8000_0123
VALUES = (*ckr.known(), 0x999, 0x8000_0001, VENDOR, 0xFFFF_FFFF)
SOME = (*(min(rv for rv in VALUES if ckr.fault(rv) is each) for each in Fault), VENDOR)
# Nothing but an alarm causes an inspection.
SELDOM = {"health": {"interval": "1h"}, "keys": {"discover": "1h"}}


@pytest.fixture
def server(make_rig):
    """A healthy server that inspects the token only after an alarm."""
    made = make_rig(**SELDOM)
    made.start()
    made.well()
    made.workers()
    made.wait_inspected()
    return made


@pytest.fixture
def pair_server(make_rig, shim, empty_hsm):
    """The same with an AES key and an HMAC key, on a token without AES-GCM."""
    shim.set("no_gcm")
    made = make_rig(on=empty_hsm, **SELDOM)
    assert 0 == made.plugin.cli("keys", "generate").returncode
    made.start()
    made.well()
    made.workers()
    return made


class Unharmed:
    """Asserts at the end that a server has noticed no fault of the token.

    Args:
        rig: The server.
    """

    def __init__(self, rig):
        self._rig = rig

    def __enter__(self):
        self._workers = self._rig.workers()
        self._rig.wait_inspected()
        self._opened = self._rig.reopened()
        self._read = self._rig.shim.calls("C_GetAttributeValue")
        self.load = Load(self._rig.plugin, 2)
        self.load.__enter__()
        return self

    def __exit__(self, *error):
        self.load.__exit__(*error)
        if error[0] is not None:
            return
        rig, load = self._rig, self.load
        assert [] == [*load.failures(), *load.wrong]
        assert self._workers == rig.worker_pids
        assert {} == rig.admin()["workers"]["ended"]
        assert self._opened == rig.reopened()
        assert [] == rig.plugin.events("breaker open")
        assert [] == rig.plugin.events("token fault during a request")
        # No attribute was read, so there was no inspection.
        assert self._read == rig.shim.calls("C_GetAttributeValue")

    def walk(self, flood, values, *more):
        """Let the token say each of these values of what is not authentic."""
        for rv in values:
            self._rig.shim.set(f"bad_tag={rv:#x}", *more)
            forged = flood.codes.total() + FORGED
            good = len(self.load.answers) + GOOD
            wait_for(
                lambda forged=forged, good=good: (
                    flood.codes.total() >= forged and len(self.load.answers) >= good
                )
            )


@pytest.mark.slow
def test_any_answer(server):
    """Every return value of PKCS#11, and vendors' values, are settled per record."""
    sealed = server.plugin.encrypt(PLAINTEXT)
    with Unharmed(server) as good, Flood(server.plugin, sealed) as flood:
        good.walk(flood, VALUES)

    assert {"INVALID_ARGUMENT"} == set(flood.codes)
    assert PLAINTEXT == server.plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_any_answer_to_a_pair(pair_server):
    """The same of a token that verifies an HMAC before it decrypts."""
    rig = pair_server
    sealed = rig.plugin.encrypt(PLAINTEXT)
    with Unharmed(rig) as good, Flood(rig.plugin, sealed) as flood:
        good.walk(flood, SOME, "no_gcm")

    assert {"INVALID_ARGUMENT"} == set(flood.codes)
    assert PLAINTEXT == rig.plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_refused_iv(server, shim):
    """An IV of a length that the token refuses is the fault of its record."""
    sealed = server.plugin.encrypt(PLAINTEXT)
    record = Record.decode(sealed.ciphertext)
    odd = Record(header=record.header, iv=bytes(16), ciphertext=record.ciphertext)
    forged = kms_v2_pb2.EncryptResponse(ciphertext=odd.encode(), key_id=sealed.key_id)
    refused = shim.calls("C_DecryptInit")
    with Unharmed(server) as good, Flood(server.plugin, forged) as flood:
        for rv in SOME:
            good.walk(flood, [rv], f"bad_iv={rv:#x}")

    assert {"INVALID_ARGUMENT"} == set(flood.codes)
    assert shim.calls("C_DecryptInit") > refused + FORGED


def test_no_known_good_record(pair_server, shim):
    """Of a key that nothing could prove, no failed Decrypt speaks against the token."""
    rig = pair_server
    (alone,) = (
        key["key_id"] for key in rig.admin()["keys"] if key["mechanism"] is None
    )
    header = Header(
        kind=Kind.DEK_BY_TOKEN, algorithm=Algorithm.AES_256_GCM, key_id=alone
    )
    record = Record(header=header, iv=bytes(12), ciphertext=secrets.token_bytes(48))
    forged = kms_v2_pb2.EncryptResponse(ciphertext=record.encode(), key_id=alone)
    shim.clear()
    with Unharmed(rig) as good, Flood(rig.plugin, forged) as flood:
        values = [rv for rv in SOME if ckr.fault(rv) is not Fault.SESSION]
        good.walk(flood, values)

    assert {"INVALID_ARGUMENT", "UNAVAILABLE"} == set(flood.codes)


@pytest.mark.parametrize("rv", [0x05, 0x30, 0x8000_0123])
def test_device(server, shim, rv):
    """If the known-good record fails too, the session is at fault: others serve."""
    sealed = server.plugin.encrypt(PLAINTEXT)
    # Twice the record, and after each failure the known-good one.
    shim.set(f"C_Decrypt count=4 rv={rv:#x} after")
    code = code_of(lambda: server.plugin.decrypt(sealed.ciphertext, sealed.key_id))

    assert "OK" == code
    assert 4 == shim.acted("C_Decrypt")
    wait_for(lambda: server.plugin.events("token fault during a request"))
    assert [] == server.plugin.events("breaker open")


@pytest.mark.parametrize("rv", [0x05, VENDOR])
def test_dead_device(server, shim, rv):
    """If no session decrypts, the first request notices it and a canary confirms it."""
    sealed = server.plugin.encrypt(PLAINTEXT)
    shim.set(f"C_Decrypt rv={rv:#x} after")
    code = code_of(lambda: server.plugin.decrypt(sealed.ciphertext, sealed.key_id))

    assert "UNAVAILABLE" == code
    wait_for(lambda: server.plugin.events("token fault during a request"))
    wait_for(lambda: server.plugin.events("canary failed"))
    shim.clear()
    wait_for(
        lambda: (
            "OK"
            == code_of(lambda: server.plugin.decrypt(sealed.ciphertext, sealed.key_id))
        )
    )
