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
from tests.harness.processes import alive
from tests.harness.wait import wait_for
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
from tests.unit.server.socket_tools import leave_stale_socket, lock_of
from tests.unit.server.test_socket import modes_seen

STOP_SECONDS = 3  # the bound of a stop


@pytest.mark.parametrize("mode", ["0600", "0660"])
def test_47_mode_from_the_first_instant(make_plugin, hsm, mode):
    """Nobody ever sees the socket with another mode than the configured one."""
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
    """A directory in which others could put a socket of theirs is refused."""
    plugin = make_plugin(hsm)
    plugin.directory.chmod(0o777)
    result = plugin.cli("serve")

    assert 1 == result.returncode
    assert "is writable by others" in result.stderr


def test_48_stale_socket(make_plugin, hsm):
    """A killed server's socket is replaced, and so is one of nobody."""
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
    """A second server is refused and leaves the first one's socket alone."""
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
    """In an overlapping restart the new server takes over; its socket survives."""
    first = make_plugin(hsm).start()
    first.wait_healthz("ok")
    second = make_plugin(hsm)
    second.config["listen"] = {"socket": str(first.socket), "lock_wait": "10s"}
    second.write_config()
    second.socket = first.socket
    second.start()
    time.sleep(0.5)

    assert 0 == first.stop()
    second.wait_healthz("ok")
    assert stat.S_ISSOCK(first.socket.stat().st_mode)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_49_reachable_after_a_restart(plugin, end):
    """A client waits less than 1 s for the next server; the bound is ten times that."""
    assert plugin.status().key_id
    began = time.monotonic()
    getattr(plugin, end)()
    stopped = time.monotonic()
    plugin.start()
    plugin.status()
    show(f"{end}", [stopped - began])
    show("reachable after", [time.monotonic() - stopped])

    assert stopped - began < STOP_SECONDS
    assert time.monotonic() - stopped < 10


async def test_49_calls_in_flight_finish(plugin):
    """SIGTERM ends no call under way: each is answered, then the server goes."""
    workers = workers_of(plugin)
    async with connected(plugin) as (client,):
        key_id = (await client.status()).key_id
        with stopped(workers):
            calls = [
                asyncio.create_task(client.encrypt(bytes([n]) * 32)) for n in range(8)
            ]
            await asyncio.sleep(0.2)
            plugin.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await asyncio.sleep(0.3)
            under_way = [call for call in calls if not call.done()]
        answers = await asyncio.gather(*calls)
    code = await asyncio.to_thread(plugin.wait)

    assert under_way
    assert [key_id] * 8 == [answer.key_id for answer in answers]
    assert 8 == len({answer.ciphertext for answer in answers})
    assert 0 == code
    assert time.monotonic() - began < STOP_SECONDS


async def test_49_stop_while_the_token_hangs(plugin):
    """Calls that cannot end do not keep the server longer than its bound."""
    workers = workers_of(plugin)
    async with connected(plugin) as (client,):
        held = (await client.status()).key_id
        cold = shaped(Kind.DEK_BY_TOKEN, held), shaped_local(held)
        with stopped(workers):
            calls = asyncio.gather(
                *(said(client.encrypt()) for _ in range(4)),
                *(said(client.decrypt(each, held)) for each in cold * 4),
            )
            await asyncio.sleep(0.2)
            began = time.monotonic()
            plugin.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(plugin.wait)
            took = time.monotonic() - began
        told = await calls
    show("stop", [took])

    assert 0 == code
    assert took < 2 * STOP_SECONDS
    assert "OK" not in {each.code for each in told}
    assert [] == [pid for pid in workers if alive(pid)]


@contextlib.contextmanager
def nobody_writes(hsm):
    """Let the token be read and not written: C_Login waits in the middle."""
    (file,) = hsm.tokens.glob("*/token.object")
    with file.open("rb") as held:
        fcntl.lockf(held, fcntl.LOCK_SH)
        yield file


def waits_for_a_lock(pid: int) -> bool:
    """Whether a process waits to write a file that somebody reads."""
    waiting = rf"-> POSIX +ADVISORY +WRITE {pid} "
    return bool(re.search(waiting, Path("/proc/locks").read_text()))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_49_no_worker_dies_inside_a_login(make_plugin, hsm, end):
    """SoftHSM rewrites the token's file in C_Login: a kill there would empty it."""
    plugin = make_plugin(hsm, token={"workers": 1})
    with nobody_writes(hsm) as file:
        plugin.start()
        (worker,) = wait_for(plugin.worker_pids)
        wait_for(lambda: waits_for_a_lock(worker))
        plugin.process.send_signal(end)
        time.sleep(0.4)
        assert alive(worker)
    wait_for(lambda: not alive(worker))
    plugin.wait()

    assert file.stat().st_size > 0
    plugin.start().wait_healthz("ok")


def test_50_starts_without_the_token(make_plugin, hsm):
    """Without the token it listens and says so; with it, it serves by itself."""
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
    """With a state directory from before, Status gives its key_id until it recovers."""
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
