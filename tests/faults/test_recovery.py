"""Whatever a token does under load: the server goes on, and is soon well again."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import grpc
import pytest

from tests.faults.load import Load
from tests.support import code_of, wait_for

SESSION_HANDLE_INVALID = 0xB3
KEY_HANDLE_INVALID = 0x60
CALLS = 24  # that a fault of single calls hits: more than there are sessions


def both(fault, count=CALLS):
    """Rules that fail wrapping and unwrapping alike."""
    return [f"{name} count={count} {fault}" for name in ("C_EncryptInit", "C_Decrypt")]


def hit(rig, function, count):
    """Wait until the rules of a function have acted on so many calls since now."""
    wanted = rig.shim.acted(function) + count
    return lambda: rig.shim.acted(function) >= wanted


def kill_all(rig):
    """SIGKILL every worker."""
    for pid in rig.plugin.worker_pids():
        os.kill(pid, signal.SIGKILL)


# The faults: each returns once it has struck and whatever caused it is gone.


def session_lost(rig):
    struck = hit(rig, "C_EncryptInit", CALLS)
    rig.shim.set(*both(f"rv={SESSION_HANDLE_INVALID:#x}"))
    wait_for(struck)


def logged_out(rig):
    before = rig.shim.calls("C_Login")
    rig.shim.set("logged_out")
    wait_for(lambda: rig.shim.calls("C_Login") >= before + 2)
    rig.shim.clear()


def stale_handles(rig):
    struck = hit(rig, "C_EncryptInit", CALLS)
    rig.shim.set(*both(f"rv={KEY_HANDLE_INVALID:#x}"))
    wait_for(struck)


def token_away(rig):
    workers = set(rig.plugin.worker_pids())
    rig.hsm.take_away()
    wait_for(lambda: not workers & set(rig.plugin.worker_pids()))
    rig.hsm.put_back()


def module_replaced(rig):
    module = Path(rig.plugin.config["token"]["module"])
    new = module.with_suffix(".new")
    shutil.copy(module, new)
    new.rename(module)
    time.sleep(0.2)
    kill_all(rig)


def killed(rig):
    os.kill(rig.plugin.worker_pids()[0], signal.SIGKILL)


def all_killed(rig):
    kill_all(rig)


def stopped(rig):
    os.kill(rig.plugin.worker_pids()[0], signal.SIGSTOP)
    wait_for(lambda: rig.ends("hang") == 1)


def crash(rig):
    struck = hit(rig, "C_Encrypt", 1)
    rig.shim.set("C_Encrypt count=1 segv")
    wait_for(struck)


def login_hangs(rig):
    struck = hit(rig, "C_Login", 1)
    rig.shim.set("C_Login count=1 hang")
    kill_all(rig)
    wait_for(struck)


def one_session_hangs(rig):
    struck = hit(rig, "C_Encrypt", 1)
    rig.shim.set("C_Encrypt count=1 hang")
    wait_for(struck)
    wait_for(lambda: rig.ends("hang") == 1)


def all_sessions_hang(rig):
    rig.shim.set("C_Encrypt hang", "C_Decrypt hang")
    wait_for(lambda: rig.ends("hang") >= 2)
    rig.shim.clear()


def no_initialize(rig):
    struck = hit(rig, "C_Initialize", 6)
    rig.shim.set("C_Initialize rv=0x30")
    kill_all(rig)
    wait_for(struck)
    rig.shim.clear()


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (session_lost, 2),
        (logged_out, 5),
        (stale_handles, 2),
        (token_away, 15),
        (killed, 5),
        (all_killed, 8),
        (stopped, 8),
        (crash, 5),
        (login_hangs, 15),
        (one_session_hangs, 8),
        (all_sessions_hang, 20),
        (no_initialize, 15),
    ],
)
def test_recovers(rig, fault, seconds):
    """After a fault under load all streams are served again within `seconds`."""
    with Load(rig.plugin) as load:
        load.wait_well()
        began = time.monotonic()
        fault(rig)
        took = load.wait_well(since := time.monotonic(), seconds)
        rig.well(seconds)
        time.sleep(0.3)
    print(fault.__name__, f"{took:.2f}", len(load.failures()), len(load.answers), rig.admin()["workers"])
    load.check(began, since + took)
