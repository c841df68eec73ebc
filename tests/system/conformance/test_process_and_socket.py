"""Conformance, "Process and socket": items 47 to 50; 52 to 54 are in the next file."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from hsm_kms.wrapping.record import Kind
from tests.harness import command_line
from tests.harness.plugin import code_of
from tests.harness.processes import alive, has_open
from tests.harness.wait import patient, until, wait_for
from tests.system.conformance.clients import (
    DEK,
    connected,
    said,
    shaped,
    shaped_local,
    show,
    stopped,
    sync_said,
    workers_of,
)
from tests.system.conformance.inside import PATIENT, all_sessions_busy
from tests.unit.server.socket_tools import leave_stale_socket, lock_of
from tests.unit.server.test_socket import modes_seen

SESSIONS = 4  # of one worker
# `hsm-kms` with more time to stop: a test may be slow to let what is under way end.
UNHURRIED = f"""
from hsm_kms.server import serve
from hsm_kms.start import main
from hsm_kms.token import login

assert serve.DRAIN_SECONDS and login._LOGIN_END_SECONDS
serve.DRAIN_SECONDS = login._LOGIN_END_SECONDS = {patient()}
main()
"""


@pytest.fixture
def unhurried(make_plugin, hsm, monkeypatch):
    """Provide a server that waits long for what is under way; spawn it to start it."""
    program = (command_line.PYTHON, "-P", "-c", UNHURRIED)
    monkeypatch.setattr(command_line, "HSM_KMS", program)
    return make_plugin(hsm, token=PATIENT, audit={"stdout": True})


@pytest.mark.parametrize("mode", ["0600", "0660"])
def test_47_mode_from_the_first_instant(make_plugin, hsm, mode):
    """The socket never appears with another mode than the configured one."""
    plugin = make_plugin(hsm, listen={"mode": mode})
    stop, seen = threading.Event(), []
    watcher = threading.Thread(
        target=lambda: seen.append(modes_seen(plugin.socket, stop))
    )
    umask = os.umask(0)
    try:
        watcher.start()
        plugin.start()
        plugin.wait_healthz("ok")
    finally:
        os.umask(umask)
        stop.set()
        watcher.join()

    assert [{int(mode, 8)}] == [{mode for mode, _ in modes} for modes in seen]


def test_47_directory_writable_by_others(make_plugin, hsm):
    """The server refuses a socket directory that others can write to."""
    plugin = make_plugin(hsm)
    plugin.directory.chmod(0o777)
    result = plugin.cli("serve")

    assert 1 == result.returncode
    assert "is writable by others" in result.stderr


def test_48_stale_socket(make_plugin, hsm):
    """The server replaces a socket that no server listens on."""
    plugin = make_plugin(hsm)
    leave_stale_socket(plugin.socket)
    for _ in range(2):
        plugin.start().wait_healthz("ok")
        plugin.kill()
        assert plugin.socket.exists()
    plugin.start().wait_healthz("ok")
    plugin.stop()

    assert not plugin.socket.exists()


def test_48_live_owner(served, make_plugin):
    """A second server fails to start and leaves the first one's socket alone."""
    second = make_plugin(
        served.hsm, listen={"socket": str(served.socket), "lock_wait": "200ms"}
    )
    inode = served.socket.stat().st_ino
    result = second.cli("serve")

    assert 1 == result.returncode
    assert f"another hsm-kms holds {lock_of(served.socket)}" in result.stderr
    assert inode == served.socket.stat().st_ino
    assert "ok" == served.healthz()


def test_48_successor_waits_its_turn(make_plugin, hsm):
    """A server started before its predecessor has stopped takes over the socket."""
    first = make_plugin(hsm).start()
    first.wait_healthz("ok")
    second = make_plugin(hsm)
    second.config["listen"] = {"socket": str(first.socket), "lock_wait": "100s"}
    second.write_config()
    second.socket = first.socket
    second.start(listening=False)
    wait_for(lambda: has_open(second.process.pid, lock_of(first.socket)))

    assert 0 == first.stop()
    second.wait_healthz("ok")
    assert stat.S_ISSOCK(first.socket.stat().st_mode)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_49_reachable_after_a_restart(plugin, end):
    """A client reaches the next server, usually in less than a second."""
    key_id = plugin.status().key_id
    getattr(plugin, end)()
    began = time.monotonic()
    plugin.start()
    wait_for(lambda: code_of(plugin.status) == "OK")
    show(f"reachable after {end}", [time.monotonic() - began])

    assert key_id == plugin.status().key_id


async def test_49_calls_in_flight_finish(unhurried):
    """After SIGTERM the server answers every call under way before it exits."""
    plugin = unhurried.start(spawn=True)
    plugin.wait_healthz("ok")
    workers = workers_of(plugin)
    async with connected(plugin) as (client,):
        key_id = (await client.status()).key_id
        with stopped(workers):
            calls = [
                asyncio.create_task(client.encrypt(bytes([n]) * 32))
                for n in range(SESSIONS)
            ]
            await all_sessions_busy(plugin)
            plugin.process.send_signal(signal.SIGTERM)
            await until(lambda: plugin.events("stopping"))
            under_way = [call for call in calls if not call.done()]
        answers = await asyncio.gather(*calls)
    code = await asyncio.to_thread(plugin.wait)

    assert SESSIONS == len(under_way)
    assert {key_id} == {answer.key_id for answer in answers}
    assert SESSIONS == len({answer.ciphertext for answer in answers})
    assert 0 == code


async def test_49_stop_while_the_token_hangs(plugin):
    """Calls that hang do not keep the server from stopping."""
    workers = workers_of(plugin)
    async with connected(plugin) as (client,):
        held = (await client.status()).key_id
        cold = shaped(Kind.DEK_BY_TOKEN, held), shaped_local(held)
        with stopped(workers):
            calls = asyncio.gather(
                *(said(client.encrypt()) for _ in range(4)),
                *(said(client.decrypt(each, held)) for each in cold * 4),
            )
            await all_sessions_busy(plugin)
            began = time.monotonic()
            plugin.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(plugin.wait)
            took = time.monotonic() - began
        told = await calls
    show("stop", [took])

    assert 0 == code
    assert "OK" not in {each.code for each in told}
    assert [] == [pid for pid in workers if alive(pid)]


@contextlib.contextmanager
def nobody_writes(hsm):
    """Lock the token's file against writers, so that C_Login waits in the middle."""
    (file,) = hsm.tokens.glob("*/token.object")
    with file.open("rb") as held:
        fcntl.lockf(held, fcntl.LOCK_SH)
        yield file


def waits_for_a_lock(pid: int) -> bool:
    """Return True if a process waits for a lock to write a file."""
    waiting = rf"-> POSIX +ADVISORY +WRITE {pid} "
    return bool(re.search(waiting, Path("/proc/locks").read_text()))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_49_no_worker_dies_inside_a_login(unhurried, hsm, end):
    """The end of the server interrupts no C_Login, which rewrites the token's file."""
    plugin = unhurried
    with nobody_writes(hsm) as file:
        plugin.start(spawn=True)
        (worker,) = wait_for(plugin.worker_pids)
        wait_for(lambda: waits_for_a_lock(worker))
        plugin.process.send_signal(end)
        wait_for(lambda: plugin.events("stopping") or not alive(plugin.process.pid))
        assert alive(worker)
    wait_for(lambda: not alive(worker))
    plugin.wait()

    assert file.stat().st_size > 0
    accepted = [each["result"] for each in plugin.events("pin")]
    assert ["accepted"] * (end == signal.SIGTERM) == accepted
    plugin.start().wait_healthz("ok")


def test_50_starts_without_the_token(make_plugin, hsm):
    """Without the token the server listens and reports that; it serves once it can."""
    hsm.take_away()
    plugin = make_plugin(hsm).start()
    wait_for(lambda: plugin.events("token worker cannot start"))
    assert ("UNAVAILABLE", "the token is not ready: see hsm-kms check") == sync_said(
        plugin.status
    )
    hsm.put_back()
    plugin.wait_healthz("ok")
    sealed = plugin.encrypt(DEK)

    assert DEK == plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_50_starts_with_a_remembered_key(plugin, hsm):
    """After a restart in an outage Status gives the key_id of the state directory."""
    sealed = plugin.encrypt(DEK)
    pid = plugin.process.pid
    plugin.stop()
    hsm.take_away()
    plugin.start()
    away = plugin.status()
    hsm.put_back()
    plugin.wait_healthz("ok")

    assert pid != plugin.process.pid
    assert away.healthz not in {"", "ok"}
    assert sealed.key_id == away.key_id == plugin.status().key_id
    assert DEK == plugin.decrypt(sealed.ciphertext, sealed.key_id)
