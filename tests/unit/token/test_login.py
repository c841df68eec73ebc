"""The PIN: waited for, tried once, never shown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from hsm_kms.errors import PinRejectedError, WorkerLostError
from hsm_kms.ipc.messages import Configure
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.ends import End
from hsm_kms.token.login import PinLogin
from hsm_kms.token.pin_file import PinSource
from hsm_kms.token.process import Worker
from tests.harness.plugin import code_of
from tests.harness.processes import alive, command_lines
from tests.harness.softhsm import PIN, TOKEN_LABEL, softhsm_module
from tests.harness.spy import Spy
from tests.harness.wait import SECONDS, until, wait_for

WAITING = "there is no PIN, or it cannot be tried yet; run hsm-kms check on the node"
REJECTED = "the token rejected the PIN; write the correct PIN to the PIN file"
LOW = "the token reports failed PIN tries, so an unproven PIN is not tried"
WRONG = "1111-Wrong-PIN"


@pytest.fixture
def own_pin(directory):
    """A PIN file of this test's own, not there yet."""
    return directory / "own-pin"


@pytest.fixture
def spied(make_plugin, hsm, own_pin, directory):
    """Servers whose calls into the module are counted, with a wrong PIN to begin."""
    write(own_pin, WRONG)
    spy = Spy(directory / "spy.log")
    token = {
        "module": spy.module,
        "pin_file": str(own_pin),
        "env": hsm.env | spy.env,
        "sessions_per_worker": 1,
    }
    return make_plugin(hsm, token=token), spy


def write(path, pin, mode=0o600):
    """Replace the file's content; for two seconds it is then too young to be used."""
    path.write_text(pin)
    path.chmod(mode)


def causes(plugin):
    """Why no worker could start, each cause once, in order."""
    return [event["error"] for event in plugin.events("token worker cannot start")]


def sentences(plugin):
    """What Status would have said, in order."""
    return [event["healthz"] for event in plugin.events("health")]


def test_absent_empty_open_right(make_plugin, hsm, own_pin):
    """A PIN file is waited for until it is there, not empty, closed and still."""
    plugin = make_plugin(hsm, token={"pin_file": str(own_pin)}).start()
    wait_for(lambda: WAITING in sentences(plugin))
    assert "UNAVAILABLE" == code_of(plugin.status)
    absent = f"the PIN file {own_pin} cannot be read: No such file or directory"
    create = "create it with mode 0400 and write the PIN to it"
    assert_check(plugin, absent, f"{create}, or correct token.pin_file")

    own_pin.touch(0o600)
    assert_told(plugin, f"the PIN file {own_pin} is empty")
    write_it = "write the PIN to the file; a running server then uses it by itself"
    assert_check(plugin, f"the PIN file {own_pin} is empty", write_it)

    write(own_pin, PIN, mode=0o644)
    told = f"the PIN file {own_pin} is open to others (mode 0644)"
    assert_told(plugin, told)
    cure = f"run chmod 0600 {own_pin}; others may have read the PIN"
    assert_check(plugin, told, cure)

    own_pin.chmod(0o600)
    assert_told(plugin, "waiting until the PIN file has not changed for 2 s")
    plugin.wait_healthz("ok")
    assert 0 == plugin.cli("check").returncode
    assert_no_pin(plugin, PIN)


def assert_told(plugin, cause):
    wait_for(lambda: any(cause in told for told in causes(plugin)))


def assert_check(plugin, cause, hint):
    check = plugin.cli("check")
    assert (1, "") == (check.returncode, check.stderr)
    shown = f"✗ PIN: {cause}\n" + (f"  hint: {hint}\n" if hint else "✓ KMS socket")
    assert shown in check.stdout


def assert_no_pin(plugin, pin):
    """The PIN is in no argument or environment of a process and in no output."""
    assert plugin.worker_pids()
    for pid in (plugin.process.pid, *plugin.worker_pids()):
        assert pin not in command_lines(pid)
    assert pin not in plugin.log()
    for file in plugin.state_dir.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a temporary one, renamed
            assert pin not in file.read_text()


@pytest.mark.parametrize(
    ("make", "cause", "hint"),
    [
        (lambda path: path.mkdir(), "is not a regular file", None),
        (lambda path: os.mkfifo(path, 0o600), "is not a regular file", None),
        (
            lambda path: (write(path, PIN), os.chown(path, 12345, -1)),
            "belongs to uid 12345",
            "the file must belong to root or to the user hsm-kms runs as",
        ),
    ],
    ids=["directory", "fifo", "foreign"],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_no_pin_file(make_plugin, hsm, own_pin, make, cause, hint):
    """A PIN file that is not a regular file, or another user's, is not opened."""
    make(own_pin)
    plugin = make_plugin(hsm, token={"pin_file": str(own_pin)})

    assert_check(plugin, f"the PIN file {own_pin} {cause}", hint)


def test_wrong_pin_is_tried_once(spied, own_pin):
    """Four workers, a restart, a check and a list try a wrong PIN once in all."""
    plugin, spy = spied
    plugin.config["token"]["workers"] = 4
    plugin.write_config()
    for _ in range(2):
        plugin.start()
        wait_for(lambda: REJECTED in plugin.log())
        plugin.stop()
        assert 1 == spy.count("C_Login")
        plugin.log_file.unlink()
    check, keys = plugin.cli("check"), plugin.cli("keys", "list")

    assert 1 == spy.count("C_Login")
    rejected = "the token rejected the PIN in the PIN file"
    cure = (
        "put the right PIN into the PIN file; if it is right already, run "
        "`hsm-kms token retry-pin`"
    )
    cure = plugin.hint(cure)
    assert 1 == check.returncode
    assert f"✗ PIN: {rejected}\n  hint: {cure}\n" in check.stdout
    assert (1, f"hsm-kms: {rejected}\nhint: {cure}\n") == (keys.returncode, keys.stderr)
    assert WRONG not in check.stdout + keys.stdout


def test_right_pin_after_wrong(spied, own_pin):
    """After a wrong PIN a new one waits for `token retry-pin`, and then serves."""
    plugin, spy = spied
    plugin.start()
    wait_for(lambda: REJECTED in sentences(plugin))
    assert "FAILED_PRECONDITION" == code_of(lambda: plugin.v1_encrypt(b"d"))

    write(own_pin, PIN)
    assert_told(plugin, LOW)
    wait_for(lambda: sentences(plugin)[-1] == WAITING)
    check = plugin.cli("check")
    assert 1 == spy.count("C_Login")
    cure = "make sure that the PIN file is right, then run `hsm-kms token retry-pin`"
    assert 1 == check.returncode
    assert f"✗ PIN: {LOW}\n  hint: {plugin.hint(cure)}\n" in check.stdout

    retry = plugin.cli("token", "retry-pin")
    plugin.wait_healthz("ok")
    assert (0, "the token accepts the PIN\n") == (retry.returncode, retry.stdout)
    assert WRONG not in plugin.log()
    assert_no_pin(plugin, PIN)


def test_retry_with_a_wrong_pin(spied, own_pin):
    """`token retry-pin` uses up one try, says what came of it, and latches again."""
    plugin, spy = spied
    first = plugin.cli("token", "retry-pin")
    again = plugin.cli("keys", "list")

    assert 1 == spy.count("C_Login")
    assert (1, 1) == (first.returncode, again.returncode)
    assert first.stderr == (
        f"hsm-kms: the token rejected the PIN in {own_pin}: "
        "C_Login returned CKR_PIN_INCORRECT\n"
        "hint: put the right PIN into the PIN file; the rejected one is not tried "
        "again\n"
    )


def test_odd_pin_file_costs_no_try(spied, own_pin):
    """A PIN with a stray byte is not tried; the server and `check` name the cause."""
    plugin, spy = spied
    own_pin.write_bytes(PIN.encode() + b"\r\n")
    plugin.start()
    told = f"{own_pin} ends with a carriage return"
    assert_told(plugin, told)
    check = plugin.cli("check")
    cure = "give only the PIN; in a PIN file, at most one newline may follow the PIN"
    assert f"✗ PIN: {told}\n  hint: {cure}\n" in check.stdout
    assert (1, 0) == (check.returncode, spy.count("C_Login"))

    write(own_pin, f"{PIN}\n")
    plugin.wait_healthz("ok")
    assert_no_pin(plugin, PIN)


def test_proven_pin_needs_no_lock(make_plugin, hsm):
    """A proven PIN logs in again after a worker is gone, as often as need be."""
    token = {"session_wait": "20s", "call_timeout": "20s"}
    plugin = make_plugin(hsm, token=token).start()
    plugin.wait_healthz("ok")
    for _ in range(2):
        (pid,) = wait_for(lambda: len(pids := plugin.worker_pids()) == 1 and pids)
        os.kill(pid, 9)
        wait_for(lambda pid=pid: not alive(pid))
        assert plugin.encrypt(b"d" * 32, timeout=SECONDS).ciphertext


async def test_killed_inside_login(hsm, directory, pin_file):
    """A worker that dies inside C_Login has used up a try, and there are two."""
    state = StateDir(directory / "state").open()
    gate = PinLogin(PinSource(path=pin_file, user_type=1), state)
    for _ in range(2):
        await die_inside_login(hsm, gate)

    with pytest.raises(PinRejectedError, match="two logins with this PIN"):
        gate.verdict.check()


async def die_inside_login(hsm, gate):
    worker = await Worker.spawn(0, hsm.env)
    await worker.configure(Configure(module=softhsm_module(), token_label=TOKEN_LABEL))
    os.kill(worker.pid, signal.SIGSTOP)
    login = asyncio.ensure_future(gate.login(worker))
    await until(lambda: worker.control.busy_since is not None)
    worker.retire(End.LOST, "a test")
    with pytest.raises(WorkerLostError):
        await login
    await worker.leave()
