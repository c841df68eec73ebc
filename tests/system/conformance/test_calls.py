"""How many calls into the module a request costs, counted by OpenSC's pkcs11-spy."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest

from tests.harness.wait import wait_for
from tests.system.conformance.clients import DEK

TIMES = 10
QUIET_SECONDS = 0.7  # without a call: the looks of the start are over
ENCRYPT = {"C_EncryptInit": TIMES, "C_Encrypt": TIMES}
DECRYPT = {"C_DecryptInit": TIMES, "C_Decrypt": TIMES}


@pytest.fixture(scope="module")
def counted(watched):
    """A running server whose one session has found its key, and a counter of calls."""
    plugin, file = watched
    plugin.start().wait_healthz("ok")
    sealed = plugin.encrypt(DEK)

    def calls() -> Counter[str]:
        text = file.read_text(errors="replace")
        return Counter(re.findall(r"^\d+: (C_\w+)$", text, re.MULTILINE))

    def quiet() -> bool:
        before = calls()
        time.sleep(QUIET_SECONDS)
        return before == calls()

    def cost(call) -> Counter[str]:
        before = calls()
        for _ in range(TIMES):
            call()
        return calls() - before

    wait_for(quiet)

    return plugin, sealed, cost


def test_unwrap_is_two_calls(counted):
    """A Decrypt is C_DecryptInit and C_Decrypt: no find, no login, no attribute."""
    plugin, sealed, cost = counted

    assert DECRYPT == cost(lambda: plugin.decrypt(sealed.ciphertext, sealed.key_id))
    assert DECRYPT == cost(lambda: plugin.v1_decrypt(sealed.ciphertext))


def test_wrap_is_two_calls(counted):
    """A v1 Encrypt, which is not read back, is C_EncryptInit and C_Encrypt."""
    plugin, _, cost = counted

    assert ENCRYPT == cost(lambda: plugin.v1_encrypt(DEK))


def test_read_back_is_two_more(counted):
    """A v2 Encrypt is unwrapped again before it is answered."""
    plugin, _, cost = counted

    assert ENCRYPT | DECRYPT == cost(lambda: plugin.encrypt(DEK))


def test_status_is_none(counted):
    """Status costs the token nothing."""
    plugin, _, cost = counted

    assert {} == cost(plugin.status)


@pytest.mark.usefixtures("counted")
def test_os_locking_is_asked_for(watched):
    """C_Initialize says that threads of the module's host lock as the system does."""
    text = watched[1].read_text(errors="replace")
    initialize = text.partition(": C_Initialize\n")[2].partition("Returned")[0]

    assert "CKF_OS_LOCKING_OK" in initialize
