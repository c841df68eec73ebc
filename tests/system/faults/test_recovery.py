"""Under load the server survives every fault of a token, and recovers by itself."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.harness.plugin import code_of
from tests.harness.wait import wait_for
from tests.system.faults.load import EXCUSED, Load

SESSION_HANDLE_INVALID = 0xB3
KEY_HANDLE_INVALID = 0x60
WORKERS = 2
SESSIONS = 8  # of both
MANY = 3 * SESSIONS
RESTORED = 60.0  # until all workers are back: after many ends there is a backoff


def strike(rig, *functions, fault, count=1, cause=None):
    """Let so many calls of each function fail, and wait until they have.

    Args:
        rig: The server.
        functions: Functions of the module.
        fault: What their calls do.
        count: How many calls of each.
        cause: Causes these calls, if the load does not.
    """
    wanted = {name: rig.shim.acted(name) + count for name in functions}
    rig.shim.set(*(f"{name} count={count} {fault}" for name in functions))
    if cause is not None:
        cause(rig)
    wait_for(lambda: all(rig.shim.acted(n) >= wanted[n] for n in functions))


def kill_all(rig):
    """SIGKILL every worker; the server must be healthy."""
    for pid in rig.workers():
        os.kill(pid, signal.SIGKILL)


# The faults: each returns after it has struck and its cause is gone.


def session_lost(rig):
    for _ in range(SESSIONS):
        strike(rig, "C_EncryptInit", fault=f"rv={SESSION_HANDLE_INVALID:#x}")


def sessions_lost(rig):
    functions = ("C_EncryptInit", "C_DecryptInit")
    strike(rig, *functions, fault=f"rv={SESSION_HANDLE_INVALID:#x}", count=MANY)


def stale_handle(rig):
    for _ in range(SESSIONS):
        strike(rig, "C_DecryptInit", fault=f"rv={KEY_HANDLE_INVALID:#x}")


def stale_handles(rig):
    functions = ("C_EncryptInit", "C_DecryptInit")
    strike(rig, *functions, fault=f"rv={KEY_HANDLE_INVALID:#x}", count=SESSIONS)


def logged_out(rig):
    before = rig.shim.calls("C_Login")
    rig.shim.set("logged_out")
    wait_for(lambda: rig.shim.calls("C_Login") >= before + 2)
    rig.shim.clear()


def token_away(rig):
    workers = set(rig.workers())
    rig.hsm.take_away()
    wait_for(lambda: not workers & set(rig.plugin.worker_pids()))
    rig.hsm.put_back()


def killed(rig):
    os.kill(rig.workers()[0], signal.SIGKILL)


def all_killed(rig):
    kill_all(rig)


def stopped(rig):
    os.kill(rig.workers()[0], signal.SIGSTOP)
    wait_for(lambda: rig.ends("hang"))


def crash(rig):
    strike(rig, "C_Encrypt", fault="segv")


def login_hangs(rig):
    strike(rig, "C_Login", fault="hang", cause=kill_all)


def one_session_hangs(rig):
    strike(rig, "C_Encrypt", fault="hang")
    wait_for(lambda: rig.ends("hang"))


def all_sessions_hang(rig):
    rig.shim.set("C_Encrypt hang", "C_Decrypt hang")
    wait_for(lambda: rig.ends("hang") >= 2)
    rig.shim.clear()


def no_initialize(rig):
    strike(rig, "C_Initialize", fault="rv=0x30", count=6, cause=kill_all)


@pytest.mark.parametrize(
    ("fault", "ended"),
    [
        (sessions_lost, {}),
        (stale_handles, {}),
        (logged_out, {"login": 2}),
        (token_away, {}),
        (all_killed, {"lost": 2}),
        (stopped, {"hang": 1}),
        (login_hangs, {}),
        (one_session_hangs, {"hang": 1}),
        (all_sessions_hang, {}),
        (no_initialize, {"lost": 2, "start": 6}),
    ],
)
def test_recovers(quick_rig, fault, ended):
    """After a fault under load all streams are served again."""
    under_load(quick_rig, fault)
    # On a busy machine more workers may hang, or start too slowly; others come.
    found = quick_rig.admin()["workers"]["ended"]
    assert {} == {end: n for end, n in ended.items() if found.get(end, 0) < n}


@pytest.mark.parametrize(
    ("fault", "ended"),
    [
        (session_lost, {}),
        (stale_handle, {}),
        (killed, {"lost": 1}),
        (crash, {"lost": 1}),
    ],
)
def test_nobody_notices(rig, fault, ended):
    """A call that was lost is made again, so no request fails."""
    load = under_load(rig, fault)
    assert [] == load.failures()
    found = rig.admin()["workers"]["ended"]
    # A fault that happens to hit a canary ends a worker too; its calls end well.
    assert found.pop("canary", 0) <= WORKERS
    assert ended == found


def under_load(rig, fault, old=()):
    """Let a fault happen, and wait until all streams and Status are well again."""
    server = rig.plugin.process.pid
    with Load(rig.plugin, old=old) as load:
        load.wait_well()
        began = time.monotonic()
        fault(rig)
        over = time.monotonic()
        took = load.wait_well(over)
        rig.well(RESTORED)
        load.wait_well(time.monotonic())
    load.check(began, over + took)
    assert rig.plugin.process.poll() is None
    assert server == rig.plugin.process.pid
    print(f"{fault.__name__}: {took:.2f} s, {len(load.failures())} failed")  # noqa: T201
    return load


def test_three_kills(quick_rig):
    """After three kills all workers still come back, if one of them serves."""
    with Load(quick_rig.plugin) as load:
        load.wait_well()
        for kills in range(1, 4):
            # Not the spare worker, which may be leaving.
            os.kill(quick_rig.workers()[1], signal.SIGSTOP)
            wait_for(lambda kills=kills: quick_rig.ends("hang") >= kills)
            quick_rig.well(RESTORED)
        # The spare worker leaves some seconds after the last stuck call.
        wait_for(lambda: len(quick_rig.worker_pids) == WORKERS, RESTORED)
        quick_rig.well(RESTORED)
    assert "continuing with one" in quick_rig.plugin.log()


def test_module_replaced(make_rig, directory, shim):
    """Workers that start after the module was replaced load the new one."""
    module = directory / "module.so"
    shutil.copy(shim.module, module)
    rig = make_rig(token={"module": str(module)})
    rig.start()
    rig.well()

    def replaced(_):
        new = directory / "new.so"
        shutil.copy(shim.module, new)
        new.rename(module)
        kill_all(rig)

    under_load(rig, replaced)
    inode = module.stat().st_ino
    for pid in rig.workers():
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        assert {str(inode)} == {line.split()[4] for line in maps if "module.so" in line}


def test_token_appears(make_rig, hsm):
    """A token that is unavailable at the start is used once it is available."""
    hsm.take_away()
    hsm.tokens.mkdir()
    rig = make_rig()
    rig.start()
    with Load(rig.plugin) as load:
        load.wait_failing()
        wait_for(lambda: "no token matches" in rig.admin()["detail"])
        assert "starting" == rig.admin()["state"]
        hsm.tokens.rename(hsm.directory / "none")
        hsm.put_back()
        came = time.monotonic()
        took = load.wait_well(came)
        rig.well()
    load.check(0.0, came + took)


def re_initialised(rig, template):
    """Replace the token by one without keys."""
    empty = template.copy(rig.hsm.directory / "empty")
    rig.hsm.take_away()
    empty.tokens.rename(rig.hsm.tokens)


def another_key(rig, _):
    """Delete the key, and make another with the same label."""
    objects = rig.hsm.directory / "kept"
    shutil.copytree(rig.hsm.tokens, objects)
    rig.hsm.pkcs11_tool("--delete-object", "--type", "secrkey", "--label", "k8s-kek")
    rig.hsm.pkcs11_tool(
        *("--keygen", "--key-type", "AES:32", "--label", "k8s-kek", "--id", "07"),
        *("--sensitive", "--usage-decrypt"),
    )
    objects.rename(rig.hsm.directory / "tokens.away")


def encrypts(rig):
    """Return the codes of as many Encrypts as there are sessions."""
    return {code_of(lambda: rig.plugin.encrypt(b"dek")) for _ in range(SESSIONS)}


@pytest.mark.parametrize("loss", [re_initialised, another_key])
def test_key_lost(rig, token_template, loss):
    """No other key replaces a lost current key, and Status and log name it."""
    key_id = rig.plugin.status().key_id
    old = rig.plugin.encrypt(b"dek")
    with Load(rig.plugin) as load:
        load.wait_well()
        loss(rig, token_template)
        rig.plugin.wait_healthz("the last current key", RESTORED)
        assert key_id == rig.plugin.status().key_id
        admin = rig.admin()
        assert ("failed", key_id) == (admin["state"], admin["key_id"])
        assert key_id in admin["detail"]
        assert key_id in rig.plugin.events("health")[-1]["detail"]
        assert 503 == rig.get("/readyz")[0]
        assert 200 == rig.get("/livez")[0]
        wait_for(lambda: {"FAILED_PRECONDITION"} == encrypts(rig))
        assert "OK" != code_of(lambda: rig.plugin.decrypt(old.ciphertext, key_id))
        rig.hsm.tokens.rename(rig.hsm.directory / "replaced")
        rig.hsm.put_back()
        load.wait_well(time.monotonic())
    assert [] == load.wrong
    assert {one.code for one in load.failures()} <= EXCUSED | {"FAILED_PRECONDITION"}
    assert key_id == rig.plugin.status().key_id
    assert b"dek" == rig.plugin.decrypt(old.ciphertext, key_id)
