"""The fault shim does what its control file says, in front of a real token."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.shim_driver import Shim
from tests.support import PIN, SECONDS, TOKEN_LABEL, wait_for

GENERAL_ERROR = 0x05
FUNCTION_FAILED = 0x06
ARGUMENTS_BAD = 0x07
DEVICE_ERROR = 0x30
DEVICE_REMOVED = 0x32
MECHANISM_INVALID = 0x70
MECHANISM_PARAM_INVALID = 0x71
OBJECT_HANDLE_INVALID = 0x82
PIN_INCORRECT = 0xA0
SESSION_COUNT = 0xB1

IV = "a1" * 12
ZEROS = "00" * 12
DATA = "d0" * 32
NO_ANSWER = object()


class Failed(Exception):
    """The client's answer was a CK_RV other than CKR_OK."""

    def __init__(self, rv, function):
        super().__init__(f"{function}: {rv:#x}")
        self.rv = rv


class Client:
    """tests/shim/client.py, running."""

    def __init__(self, shim, hsm):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.shim.client", shim.module, TOKEN_LABEL],
            env={**os.environ, **hsm.env, **shim.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self):
        return self._process.pid

    def ask(self, *command):
        """Send a command and do not wait."""
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def read(self, seconds=SECONDS):
        """The answer, or `NO_ANSWER` in this time."""
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return NO_ANSWER
        answer = json.loads(self._process.stdout.readline())
        if "rv" in answer:
            raise Failed(answer["rv"], answer["function"])
        return answer["result"]

    def do(self, *command):
        self.ask(*command)
        return self.read()

    def rv(self, *command):
        """CK_RV of a command, 0 where it works."""
        try:
            self.do(*command)
        except Failed as error:
            return error.rv
        return 0

    def log_in(self):
        """Start, open a session, log in; the handle of the one key."""
        self.do("start")
        self.do("open")
        self.do("login", PIN)
        return self.do("find")[0]

    def wait(self):
        """Exit code and stderr."""
        stderr = self._process.communicate(timeout=SECONDS)[1]
        return self._process.returncode, stderr

    def kill(self):
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.fixture
def shim(directory) -> Shim:
    """A shim that does nothing yet."""
    return Shim(directory)


@pytest.fixture
def make_client(shim, hsm) -> Iterator:
    """Start clients; all are gone at the end."""
    made = []

    def make():
        made.append(Client(shim, hsm))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def client(make_client) -> Client:
    """A client that has not yet started its module."""
    return make_client()


def test_forwards(client, shim):
    """Without a rule everything works, and every call is counted."""
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
    """A rule answers the calls it is for, and no other."""
    key = client.log_in()
    shim.set("# a comment", rule)

    # A C_Encrypt answered in its place leaves the operation active.
    got = []
    for _ in expected:
        got.append(client.rv("encrypt", key, IV, DATA))
        if got[-1] and rule.startswith("C_Encrypt ") and "after" not in rule:
            client.do("open")
    assert expected == got


def test_rules_of_one_function(client, shim):
    """Several lines for one function each count its calls for themselves."""
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
    """A count is shared by all processes, and starts anew with a new control file."""
    clients = [make_client() for _ in range(3)]
    keys = [client.log_in() for client in clients]
    both = list(zip(clients, keys, strict=True))

    for _ in range(2):
        shim.set("C_EncryptInit count=1 rv=0x30")
        got = [client.rv("encrypt", key, IV, DATA) for client, key in both]
        assert [DEVICE_ERROR, 0, 0] == got
    assert 2 == shim.acted("C_EncryptInit")
    assert 6 == shim.calls("C_EncryptInit")


def test_after(client, shim):
    """`after` does the real thing first: the login is there, and said not to be."""
    client.do("start")
    client.do("open")
    shim.set("C_Login rv=0xA0 after")

    assert PIN_INCORRECT == client.rv("login", PIN)
    assert client.do("logged_in")


@pytest.mark.parametrize(
    ("rule", "least", "most"),
    [
        ("C_Encrypt sleep=80", 0.08, 1),
        ("C_Encrypt sleep=40 after", 0.04, 1),
        ("* sleep=20.5", 0.041, 1),
        ("C_Encrypt jitter=50", 0, 0.5),
    ],
)
def test_sleep(client, shim, rule, least, most):
    """A sleep is as long as it says, and the call works then."""
    key = client.log_in()
    shim.set(rule)
    began = time.monotonic()
    client.do("encrypt", key, IV, DATA)

    assert least <= time.monotonic() - began < most


@pytest.mark.parametrize("when", ["", "after"])
def test_hang(client, shim, when):
    """A call that hangs does not return, whatever the control file says later."""
    key = client.log_in()
    shim.set(f"C_Encrypt hang {when}")
    client.ask("encrypt", key, IV, DATA)
    wait_for(lambda: shim.acted("C_Encrypt"))
    shim.clear()

    assert client.read(0.2) is NO_ANSWER


@pytest.mark.parametrize(
    ("word", "number"), [("abort", signal.SIGABRT), ("segv", signal.SIGSEGV)]
)
def test_crash(client, shim, word, number):
    """The process dies inside the call, by the signal a real fault would raise."""
    key = client.log_in()
    shim.set(f"C_Encrypt {word}")
    client.ask("encrypt", key, IV, DATA)

    assert -number == client.wait()[0]


@pytest.mark.parametrize("line", ["C_Enc rv=1", "C_Encrypt rvv=1", "lots", "gcm_iv=x"])
def test_misspelt(client, shim, line):
    """A control file that is not understood ends the process and says the word."""
    shim.set(line)
    client.ask("start")
    code, stderr = client.wait()

    assert 99 == code
    assert line.split()[-1].partition("=")[0] in stderr or line.split()[0] in stderr


def test_lost(make_client, shim):
    """`lost` takes the device from who is there, and not from who comes."""
    before = make_client()
    key = before.log_in()
    shim.set("lost")

    assert DEVICE_REMOVED == before.rv("encrypt", key, IV, DATA)
    shim.clear()
    assert DEVICE_REMOVED == before.rv("open")
    shim.set("lost")
    after = make_client()
    assert 0 == after.rv("encrypt", after.log_in(), IV, DATA)


def test_initialize_fails(client, shim):
    """C_Initialize can fail for a while like any function."""
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
    """`frozen` hides what was made since, from all but new processes."""
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
    """The cap holds for all processes together; those of a dead one come free."""
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
    """With `strict` it wants 12 zero bytes there."""
    key = client.log_in()
    shim.set("gcm_iv=token strict")

    assert MECHANISM_PARAM_INVALID == client.rv("encrypt", key, IV, DATA)
    assert MECHANISM_PARAM_INVALID == client.rv("encrypt", key, "00" * 16, DATA)
    iv, sealed = client.do("encrypt", key, ZEROS, DATA)
    assert iv != ZEROS
    assert DATA == client.do("decrypt", key, iv, sealed)


@pytest.mark.parametrize("strict", ["", " strict"])
def test_iv_appended(client, shim, strict):
    """`gcm_iv=append` puts 16 bytes of IV behind the tag."""
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
    """`gcm_iv=zero` goes round, and gives itself away by repeating itself."""
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
    """`bad_tag` chooses the error of what is not authentic, and touches no other."""
    key = client.log_in()
    _, sealed = client.do("encrypt", key, IV, DATA)
    shim.set(f"bad_tag={rv:#x}")

    assert rv == client.rv("decrypt", key, ZEROS, sealed)
    assert DATA == client.do("decrypt", key, IV, sealed)


def test_corrupt(client, shim):
    """`corrupt` flips one bit of one result, once."""
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
    """A mechanism that is not there is neither listed nor done."""
    key = client.log_in()
    word, *rest = command
    with_it = client.do("token")["mechanisms"]
    assert 0 == client.rv(word, key, *rest)
    shim.set(mode)

    assert MECHANISM_INVALID == client.rv(word, key, *rest)
    without = client.do("token")["mechanisms"]
    assert {name} == {one for one in with_it if one not in without} - {"AES_CBC_PAD"}


def test_token_info(client, shim):
    """Flags are added to the token's own, and the number of sessions is told."""
    client.log_in()
    before = client.do("token")
    shim.set("token_flags=0x10000", "max_session_count=16")

    after = client.do("token")
    assert before["flags"] | 0x10000 == after["flags"]
    assert (None, 16) == (before["sessions"], after["sessions"])
