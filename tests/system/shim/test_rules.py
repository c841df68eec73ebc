"""Rules of the control file: they act on the calls they are for, in a real token."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.harness.processes import state
from tests.harness.shim.running import DATA, IV, NO_ANSWER
from tests.harness.softhsm import PIN
from tests.harness.wait import patient, wait_for

GENERAL_ERROR = 0x05
DEVICE_ERROR = 0x30
PIN_INCORRECT = 0xA0


def test_forwards(client, shim):
    """Without a rule the shim passes every call on, and counts it."""
    key = client.log_in()
    iv, sealed = client.do("encrypt", key, IV, DATA)

    assert IV == iv
    assert DATA == client.do("decrypt", key, IV, sealed)
    counts = {name: count for name, count in shim.counts().items() if count.calls}
    assert 1 == counts["C_Encrypt"].calls == counts["C_Login"].calls
    assert 0 == sum(count.acted for count in counts.values())
    assert 68 == len(shim.counts())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("C_Encrypt rv=0x30", [DEVICE_ERROR] * 4),
        ("C_Encrypt rv=0x80000042", [0x80000042] * 4),
        ("C_EncryptInit rv=0x30 count=2", [DEVICE_ERROR, DEVICE_ERROR, 0, 0]),
        ("C_Encrypt skip=1 count=1 rv=0x30 after", [0, DEVICE_ERROR, 0, 0]),
        ("C_EncryptInit skip=2 rv=48  # decimal", [0, 0, DEVICE_ERROR, DEVICE_ERROR]),
        ("C_Encrypt len=31 rv=0x30", [0, 0, 0, 0]),
        ("C_Encrypt len=32 count=1 rv=0x30 after", [DEVICE_ERROR, 0, 0, 0]),
        ("* rv=0x30", [DEVICE_ERROR] * 4),
        ("C_Decrypt rv=0x30", [0, 0, 0, 0]),
        ("", [0, 0, 0, 0]),
    ],
)
def test_rule(client, shim, rule, expected):
    """A rule changes the calls that it names, and no other."""
    key = client.log_in()
    shim.set("# a comment", rule)

    # A C_Encrypt answered in its place leaves the operation active.
    got = []
    for _ in expected:
        got.append(client.rv("encrypt", key, IV, DATA))
        if got[-1] and rule.startswith("C_Encrypt ") and "after" not in rule:
            client.do("open")
    assert expected == got


def test_many_control_files(client, shim):
    """Replacing the control file many times exhausts nothing."""
    key = client.log_in()
    for number in range(300):
        shim.set(f"C_EncryptInit count=1 rv={0x100 + number % 2:#x}")
        expected = [0x100 + number % 2, 0]
        assert expected == [client.rv("encrypt", key, IV, DATA) for _ in range(2)]


def test_rules_of_one_function(client, shim):
    """Several rules for one function count its calls independently."""
    key = client.log_in()
    shim.set(
        "C_EncryptInit count=1 rv=0x30",
        "C_EncryptInit skip=1 count=1 rv=0x05",
    )

    assert [DEVICE_ERROR, 0, GENERAL_ERROR, 0] == [
        client.rv("encrypt", key, IV, DATA) for _ in range(4)
    ]
    assert 2 == shim.acted("C_EncryptInit")


def test_once_means_once(make_client, shim):
    """All processes share a rule's count, which a new control file resets."""
    clients = [make_client() for _ in range(3)]
    keys = [client.log_in() for client in clients]
    both = list(zip(clients, keys, strict=True))

    for _ in range(2):
        shim.set("C_EncryptInit count=1 rv=0x30")
        got = [client.rv("encrypt", key, IV, DATA) for client, key in both]
        assert [DEVICE_ERROR, 0, 0] == got
    assert 2 == shim.acted("C_EncryptInit")
    assert 6 == shim.calls("C_EncryptInit")


def test_threads(make_client, shim):
    """Concurrent threads and processes lose no call, and no rule acts too often."""
    clients = [make_client(), make_client()]
    keys = [client.log_in() for client in clients]
    shim.set("C_EncryptInit skip=100 count=30 rv=0x30", "* jitter=0.1")
    for client, key in zip(clients, keys, strict=True):
        client.ask("storm", key, 4, 100)

    assert 30 == sum(client.read() for client in clients)
    assert 800 == shim.calls("C_EncryptInit")
    assert 770 == shim.calls("C_Encrypt")


def test_after(client, shim):
    """With `after` the real call comes first: the login succeeds despite its error."""
    client.do("start")
    client.do("open")
    shim.set("C_Login rv=0xA0 after")

    assert PIN_INCORRECT == client.rv("login", PIN)
    assert client.do("logged_in")


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        ("C_Encrypt sleep=80", 0.08),
        ("C_Encrypt sleep=40 after", 0.04),
        ("* sleep=20.5", 0.041),
        ("C_Encrypt jitter=50", 0),
    ],
)
def test_sleep(client, shim, rule, least):
    """A call sleeps at least as long as the rule says, and then works."""
    key = client.log_in()
    shim.set(rule)
    began = time.monotonic()
    client.do("encrypt", key, IV, DATA)

    assert least <= time.monotonic() - began < patient(10)


@pytest.mark.parametrize("when", ["", "after"])
def test_hang(client, shim, when):
    """A call that hangs never returns, even if the control file changes."""
    key = client.log_in()
    shim.set(f"C_Encrypt hang {when}")
    client.ask("encrypt", key, IV, DATA)
    wait_for(lambda: shim.acted("C_Encrypt"))
    shim.clear()

    assert client.read(0.2) is NO_ANSWER


def test_held(client, shim):
    """A call that is held returns as soon as the control file changes."""
    key = client.log_in()
    shim.set("C_Encrypt held")
    client.ask("encrypt", key, IV, DATA)
    wait_for(lambda: shim.acted("C_Encrypt"))

    assert client.read(0.2) is NO_ANSWER
    shim.clear()
    assert client.read() is not NO_ANSWER


@pytest.mark.parametrize(
    ("word", "number"), [("abort", signal.SIGABRT), ("segv", signal.SIGSEGV)]
)
def test_crash(client, shim, word, number):
    """The process dies inside the call, with the signal of a real crash."""
    key = client.log_in()
    shim.set(f"C_Encrypt {word}")
    client.ask("encrypt", key, IV, DATA)

    assert -number == client.wait()[0]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("C_Enc rv=1", "C_Enc"),
        ("C_Encrypt rvv=1", "rvv"),
        ("C_Encrypt sleep", "sleep"),
        ("lots", "lots"),
        ("gcm_iv=x", "gcm_iv"),
    ],
)
def test_misspelt(client, shim, line, word):
    """An invalid control file ends the process with a message that names the word."""
    shim.set(line)
    client.ask("start")
    code, stderr = client.wait()

    assert 99 == code
    assert stderr.endswith(f": {word}\n")


def test_undying(client, shim):
    """A process that SIGKILL does not end, until the control file changes."""
    key = client.log_in()
    shim.set("C_Encrypt undying")
    client.do("encrypt", key, IV, DATA)
    os.kill(client.pid, signal.SIGKILL)
    wait_for(lambda: state(client.pid) == "t")

    assert os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    shim.clear()
    assert -signal.SIGKILL == client.wait()[0]
