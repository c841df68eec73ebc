"""Calls into the module that a request costs, counted by OpenSC's pkcs11-spy."""

from __future__ import annotations

from collections import Counter

from tests.system.conformance.clients import DEK
from tests.system.conformance.spied import TIMES

NONE: Counter[str] = Counter()
ENCRYPT = Counter({"C_EncryptInit": TIMES, "C_Encrypt": TIMES})
DECRYPT = Counter({"C_DecryptInit": TIMES, "C_Decrypt": TIMES})


def test_unwrap_is_two_calls(spied):
    """A Decrypt is C_DecryptInit and C_Decrypt: no find, no login, no attribute."""
    plugin = spied.plugin
    sealed = plugin.encrypt(DEK)

    def v2():
        plugin.decrypt(sealed.ciphertext, sealed.key_id)

    assert DECRYPT == spied.cost(v2, DECRYPT)
    assert DECRYPT == spied.cost(lambda: plugin.v1_decrypt(sealed.ciphertext), DECRYPT)


def test_wrap_is_two_calls(spied):
    """A v1 Encrypt, which is not read back, is C_EncryptInit and C_Encrypt."""
    assert ENCRYPT == spied.cost(lambda: spied.plugin.v1_encrypt(DEK), ENCRYPT)


def test_read_back_is_two_more(spied):
    """A v2 Encrypt is decrypted again before it is answered."""
    both = ENCRYPT | DECRYPT

    assert both == spied.cost(lambda: spied.plugin.encrypt(DEK), both)


def test_status_is_none(spied):
    """Status costs the token nothing."""
    assert NONE == spied.cost(spied.plugin.status, NONE)


def test_os_locking_is_asked_for(spied):
    """C_Initialize allows the module to lock with the operating system's primitives."""
    initialize = spied.text().partition(": C_Initialize\n")[2].partition("Returned")[0]

    assert "CKF_OS_LOCKING_OK" in initialize


def test_32_checks_itself_at_the_start(spied):
    """Before the first request, the current key has wrapped and unwrapped a canary."""
    assert spied.at_start["C_Encrypt"] >= 1
    assert spied.at_start["C_Decrypt"] >= 1
