"""Workers that are killed, stopped or cannot start again; a server that is killed."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests.harness.plugin import code_of
from tests.harness.processes import alive
from tests.harness.softhsm import softhsm_module
from tests.harness.wait import SECONDS, wait_for

SESSIONS = 2


def kill(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)))


def both_serve(plugin):
    """Wait for the second worker: one is enough to be healthy."""
    wait_for(lambda: len(plugin.events("token worker started")) == 2)


def test_one_worker_killed(make_plugin, hsm):
    """With one of two workers killed the next request is served, by the other."""
    plugin = make_plugin(hsm, token={"workers": 2}).start()
    both_serve(plugin)
    first = plugin.events("token worker started")[0]["pid"]
    kill(first)
    sealed = plugin.encrypt(b"d" * 32)

    assert b"d" * 32 == plugin.decrypt(sealed.ciphertext, sealed.key_id)
    wait_for(lambda: len(set(plugin.worker_pids()) - {first}) == 2)


def test_the_only_worker_killed(make_plugin, hsm):
    """With the only worker killed the next request waits for the new one."""
    token = {"session_wait": "20s", "call_timeout": "20s"}
    plugin = make_plugin(hsm, token=token).start()
    plugin.wait_healthz("ok")
    kill(*plugin.worker_pids())

    assert plugin.encrypt(b"d" * 32, timeout=SECONDS).ciphertext


def test_stopped_worker(make_plugin, hsm):
    """A worker that hangs costs each of its sessions one request, and is replaced."""
    token = {"workers": 2, "sessions_per_worker": SESSIONS}
    times = {"call_timeout": "5s", "session_wait": "5s", "hang_timeout": "8s"}
    plugin = make_plugin(hsm, token=token | times).start()
    plugin.wait_healthz("ok")
    both_serve(plugin)
    stopped, other = plugin.worker_pids()
    os.kill(stopped, signal.SIGSTOP)
    calls = []
    with ThreadPoolExecutor(2 * SESSIONS) as clients:
        while alive(stopped) and len(calls) < 10_000:
            calls.append(clients.submit(code_of, lambda: plugin.encrypt(b"d" * 32)))
            time.sleep(0.1)
        codes = [call.result() for call in calls]

    failed = [code for code in codes if code != "OK"]
    assert failed.count("UNAVAILABLE") == len(failed) <= SESSIONS
    assert codes.count("OK") > len(failed)
    wait_for(lambda: len(plugin.worker_pids()) >= 2)
    assert alive(other)
    assert "OK" == code_of(lambda: plugin.encrypt(b"d" * 32))
    plugin.wait_healthz("ok")


def test_server_killed(plugin):
    """Workers do not outlive a server that was killed."""
    pids = plugin.worker_pids()
    plugin.kill()

    wait_for(lambda: not any(map(alive, pids)))


def test_server_killed_leaves_the_socket_usable(plugin):
    """After SIGKILL the next server takes over the socket that was left behind."""
    sealed = plugin.encrypt(b"d" * 32)
    plugin.kill()
    plugin.start().wait_healthz("ok")

    assert b"d" * 32 == plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_workers_crash_in_a_loop(make_plugin, hsm, directory):
    """A module that was overwritten ends every new worker, never the server."""
    module, broken = directory / "module.so", directory / "broken.so"
    module.symlink_to(softhsm_module())
    broken.write_text("not a module\n" * 100)
    plugin = make_plugin(hsm, token={"module": str(module)}).start()
    plugin.wait_healthz("ok")
    key_id = plugin.status().key_id

    swap(module, broken)
    kill(*plugin.worker_pids())
    plugin.wait_healthz("the PKCS#11 module or the token was not found")
    assert key_id == plugin.status().key_id
    assert "UNAVAILABLE" == code_of(lambda: plugin.encrypt(b"d"))
    assert "invalid ELF header" in plugin.events("health")[-1]["detail"]

    swap(module, softhsm_module())
    plugin.wait_healthz("ok")
    assert plugin.encrypt(b"d").ciphertext


def swap(link, target):
    """Let the link point elsewhere, at once."""
    new = link.with_suffix(".new")
    new.symlink_to(target)
    new.rename(link)
