"""Every return value of PKCS#11, and the status code that a client gets for it."""

from __future__ import annotations

import grpc
import pytest

from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Fault
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for, wait_quiet

# No request of the server itself, a canary or a read-back, has this length.
PLAINTEXT = b"f" * 77
LENGTHS = {"C_Encrypt": 77, "C_Decrypt": 77 + 16}
ODD = (0x999, 0x8000_0001, 0xFFFF_FFFF, 0x8000_0000_0000_0001)
RECORDS = 1000

CODES = {
    Fault.REQUEST: "INVALID_ARGUMENT",
    Fault.AMBIGUOUS: "OK",
    Fault.SESSION: "OK",
    Fault.LOGIN: "OK",
    Fault.DEVICE: "UNAVAILABLE",
    Fault.CAPACITY: "UNAVAILABLE",
    Fault.PIN: "FAILED_PRECONDITION",
    Fault.OPERATOR: "UNAVAILABLE",
}
REOPENED = {fault: int(fault in {Fault.SESSION, Fault.AMBIGUOUS}) for fault in Fault}
# A good ciphertext is decrypted at the second try, whatever the first was answered,
# unless the token itself says that the ciphertext is bad.
SETTLED = dict.fromkeys(Fault, "OK") | {Fault.REQUEST: "INVALID_ARGUMENT"}
NEVER = dict.fromkeys(Fault, 0)


@pytest.fixture
def server(make_plugin, hsm, shim):
    """A healthy server of one worker on the shim; canaries run only after faults."""
    plugin = make_plugin(
        hsm,
        token={
            "module": str(shim.module),
            "env": {**hsm.env, **shim.env},
            "workers": 1,
            "sessions_per_worker": 2,
        },
        health={"interval": "1h"},
        keys={"discover": "1h"},
    ).start()
    plugin.wait_healthz("ok")
    return plugin


class Client:
    """Encrypts or decrypts, so as to call the function at fault.

    It decrypts each record once, for a negative result is cached for a moment.
    """

    def __init__(self, server, function):
        self._server = server
        self._encrypts = "Encrypt" in function
        self._sealed = iter([] if self._encrypts else self._records())

    def _records(self):
        return [self._server.v1_encrypt(PLAINTEXT) for _ in range(RECORDS)]

    def _call(self):
        if self._encrypts:
            self._server.encrypt(PLAINTEXT)
        else:
            assert PLAINTEXT == self._server.v1_decrypt(next(self._sealed))

    def code(self):
        """Return the name of the status code of one call."""
        return code_of(self._call)

    def works(self):
        """Wait until a call works again."""
        wait_for(lambda: "OK" == self.code())
        return True


@pytest.mark.parametrize(
    ("function", "when", "codes", "reopened"),
    [
        ("C_Encrypt", "", CODES, None),
        ("C_Encrypt", "after", CODES, REOPENED),
        ("C_Decrypt", "", SETTLED, None),  # the operation stays open
        ("C_Decrypt", "after", SETTLED, NEVER),
    ],
)
def test_table(server, shim, function, when, codes, reopened):
    """Each return value gives the code of the table, and requests work again."""
    values = (*ckr.known(), *ODD)
    client = Client(server, function)
    workers = server.worker_pids()
    logins = shim.calls("C_Login")
    got, sessions = {}, {}
    for rv in values:
        opened = shim.calls("C_OpenSession")
        shim.set(f"{function} len={LENGTHS[function]} count=1 rv={rv:#x} {when}")
        got[rv] = client.code(), client.works()
        if reopened is not None:
            wanted = opened + reopened[ckr.fault(rv)]
            wait_for(lambda wanted=wanted: shim.calls("C_OpenSession") >= wanted)
        sessions[rv] = shim.calls("C_OpenSession") - opened

    assert {rv: (codes[ckr.fault(rv)], True) for rv in values} == got
    if reopened is not None:
        assert {rv: reopened[ckr.fault(rv)] for rv in values} == sessions
    assert len(values) == shim.acted(function)
    assert workers == server.worker_pids()
    assert logins == shim.calls("C_Login")
    server.wait_healthz("ok")


@pytest.mark.parametrize("function", ["C_EncryptInit", "C_DecryptInit"])
def test_init(server, shim, function):
    """C_EncryptInit and C_DecryptInit follow the same table.

    If the canary after the last fault meets the fault in place of the client, the
    value is tried again.
    """
    values = (0x05, 0x30, 0x40, 0x70, 0x82, 0x90, 0xB3, 0x101, 0x8000_0001)
    codes = CODES if function == "C_EncryptInit" else SETTLED
    client = Client(server, function)
    got = {}

    def struck(rv):
        wait_quiet(shim.counts)
        shim.set(f"{function} count=1 rv={rv:#x}")
        got[rv] = client.code(), client.works()
        return got[rv][0] != "OK" or codes[ckr.fault(rv)] == "OK"

    for rv in values:
        wait_for(lambda rv=rv: struck(rv))

    assert {rv: (codes[ckr.fault(rv)], True) for rv in values} == got
    assert len(values) <= shim.acted(function)


@pytest.mark.parametrize("rv", [0x05, 0x06, 0x07, 0x40])
def test_tampered(server, shim, rv):
    """A forged ciphertext ends no session and no worker, whatever the token returns."""
    good = server.encrypt(PLAINTEXT)
    workers, opened = server.worker_pids(), shim.calls("C_OpenSession")
    shim.set(f"bad_tag={rv:#x}")
    for place in range(1, 17):
        bad = bytearray(good.ciphertext)
        bad[-place] ^= 0x80
        with pytest.raises(grpc.RpcError) as caught:
            server.decrypt(bytes(bad), good.key_id)
        assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()

    assert PLAINTEXT == server.decrypt(good.ciphertext, good.key_id)
    assert (workers, opened) == (server.worker_pids(), shim.calls("C_OpenSession"))
    assert [] == server.events("token fault during a request")


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (Fault.REQUEST, "ENCRYPTED_DATA_INVALID ENCRYPTED_DATA_LEN_RANGE DATA_INVALID"),
        (Fault.REQUEST, "DATA_LEN_RANGE SIGNATURE_INVALID SIGNATURE_LEN_RANGE"),
        (
            Fault.REQUEST,
            "WRAPPED_KEY_INVALID WRAPPED_KEY_LEN_RANGE AEAD_DECRYPT_FAILED",
        ),
        (Fault.AMBIGUOUS, "GENERAL_ERROR FUNCTION_FAILED ARGUMENTS_BAD"),
        (Fault.SESSION, "SESSION_HANDLE_INVALID SESSION_CLOSED OPERATION_ACTIVE"),
        (Fault.SESSION, "OPERATION_NOT_INITIALIZED BUFFER_TOO_SMALL"),
        (Fault.LOGIN, "USER_NOT_LOGGED_IN OBJECT_HANDLE_INVALID KEY_HANDLE_INVALID"),
        (Fault.DEVICE, "DEVICE_ERROR DEVICE_REMOVED DEVICE_MEMORY HOST_MEMORY"),
        (Fault.DEVICE, "TOKEN_NOT_PRESENT TOKEN_NOT_RECOGNIZED SLOT_ID_INVALID"),
        (Fault.DEVICE, "CRYPTOKI_NOT_INITIALIZED"),
        (Fault.CAPACITY, "SESSION_COUNT"),
        (Fault.PIN, "PIN_INCORRECT PIN_INVALID PIN_LEN_RANGE PIN_EXPIRED PIN_LOCKED"),
        (Fault.OPERATOR, "USER_PIN_NOT_INITIALIZED MECHANISM_INVALID KEY_SIZE_RANGE"),
        (Fault.OPERATOR, "MECHANISM_PARAM_INVALID KEY_TYPE_INCONSISTENT"),
        (Fault.OPERATOR, "KEY_FUNCTION_NOT_PERMITTED TOKEN_WRITE_PROTECTED"),
    ],
)
def test_class(fault, names):
    """Return values that tokens are known to give have the class that helps."""
    for name in names.split():
        assert fault == ckr.fault(ckr.BY_NAME[f"CKR_{name}"]), name


@pytest.mark.parametrize("rv", [*ODD, 0x0F, 0x1FF, 0x8000_0000])
def test_unknown(rv):
    """An unknown return value counts as a device error and is named by its number."""
    assert Fault.DEVICE == ckr.fault(rv)
    assert f"{rv:#x}" in ckr.name(rv)
