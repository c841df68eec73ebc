"""Measure how long things take that happen once: recoveries, starts, commands."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from bench.common import HOT, SESSIONS, apis, pid_of, serving, start
from hsm_kms.api.rpc import kms_v1beta1_pb2
from tests.harness.command_line import HSM_KMS
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.plan import Plan
    from bench.results import Results
    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Shim

SUITE = "recovery"
OUTAGE = 3.0  # seconds
STATUSES = 500
HANG = 20_000  # milliseconds
DEVICE_ERROR = "rv=0x30"


def run(directory: Path, plan: Plan, results: Results) -> None:
    """Measure each recovery, in turns."""
    health = {"interval": "20s"}  # the default
    with serving(directory / "r", apis=apis("token"), health=health) as (plugin, shim):
        for _ in range(plan.recoveries):
            for name, measure in _RECOVERIES.items():
                plugin.wait_healthz("ok")
                taken, void = measure(plugin, shim)
                results.add(SUITE, {"what": name}, {"ms": taken}, void)


def _until_ok(plugin: Plugin) -> tuple[float, int]:
    """Return the milliseconds until an Encrypt is OK, and how many were not."""
    began = time.perf_counter()
    refusals = 0
    while code_of(lambda: plugin.v1_encrypt(b"d" * 32)) != "OK":
        refusals += 1
        time.sleep(0.01)
    return (time.perf_counter() - began) * 1000, refusals


def _workers_killed(plugin: Plugin, _shim: Shim) -> tuple[float, str]:
    for pid in plugin.worker_pids():
        os.kill(pid, signal.SIGKILL)
    taken, refusals = _until_ok(plugin)
    return taken, f"{refusals} were not OK" if refusals else ""


def _outage_ends(plugin: Plugin, shim: Shim) -> tuple[float, str]:
    shim.set(*(f"{name} {DEVICE_ERROR}" for name in HOT))
    wait_for(lambda: code_of(lambda: plugin.v1_encrypt(b"d" * 32)) == "UNAVAILABLE")
    time.sleep(OUTAGE)
    shim.clear()
    return _until_ok(plugin)[0], ""


def _server_restarted(plugin: Plugin, _shim: Shim) -> tuple[float, str]:
    plugin.stop()
    began = time.perf_counter()
    plugin.start(spawn=True)
    _until_ok(plugin)
    taken = (time.perf_counter() - began) * 1000
    plugin.wait_healthz("ok")
    return taken, ""


def _server_killed(plugin: Plugin, _shim: Shim) -> tuple[float, str]:
    os.kill(pid_of(plugin), signal.SIGKILL)
    plugin.kill()
    began = time.perf_counter()
    plugin.start(listening=False, spawn=True)
    _until_ok(plugin)
    taken = (time.perf_counter() - began) * 1000
    plugin.wait_healthz("ok")
    return taken, ""


def _status_while_hung(plugin: Plugin, shim: Shim) -> tuple[float, str]:
    """Return the p99 of Status in milliseconds while every session hangs."""
    shim.set(f"C_Encrypt sleep={HANG}")
    requests = [
        plugin.v1.Encrypt.future(
            kms_v1beta1_pb2.EncryptRequest(version="v1beta1", plain=b"d"), timeout=30
        )
        for _ in range(2 * SESSIONS)
    ]
    wait_for(lambda: shim.acted("C_Encrypt"))
    times = []
    for _ in range(STATUSES):
        began = time.perf_counter()
        plugin.status()
        times.append(time.perf_counter() - began)
    for request in requests:
        request.cancel()
    shim.clear()
    # The sessions hang for longer than they must: a new server has none that does.
    plugin.kill()
    start(plugin)
    return sorted(times)[int(len(times) * 0.99)] * 1000, ""


def _version(_plugin: Plugin, _shim: Shim) -> tuple[float, str]:
    return _command("--version")


def _status(plugin: Plugin, _shim: Shim) -> tuple[float, str]:
    return _command("status", "--socket", str(plugin.socket))


def _command(*arguments: str) -> tuple[float, str]:
    """Return the milliseconds that a command takes."""
    began = time.perf_counter()
    ended = subprocess.run([*HSM_KMS, *arguments], check=False, capture_output=True)
    taken = (time.perf_counter() - began) * 1000
    return taken, f"exit code {ended.returncode}" if ended.returncode else ""


_RECOVERIES: dict[str, Callable[[Plugin, Shim], tuple[float, str]]] = {
    "all workers killed: next Encrypt that is OK": _workers_killed,
    "the token works again: next Encrypt that is OK": _outage_ends,
    "server restarted: first Encrypt that is OK": _server_restarted,
    "server killed and started: first Encrypt that is OK": _server_killed,
    "every session hangs: Status, p99": _status_while_hung,
    "`hsm-kms --version`": _version,
    "`hsm-kms status`": _status,
}
