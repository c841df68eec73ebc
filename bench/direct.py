"""Measure the direct path: the token wraps every DEK. Needs h2load and gcc.

    .venv/bin/python -m bench.direct [SECONDS_PER_RUN]

The token is SoftHSM2 behind the fault shim, which adds L ms to each C call of the hot
path. Figures are ratios within this run against a grpc.aio handler that does nothing;
a run in which any answer was not OK is void, and says so.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import load
from bench.common import SESSIONS, empty_handler, not_ok, prepare, slow
from hsm_kms.api.rpc import kms_v1beta1_pb2
from tests.harness.plugin import code_of
from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Shim

LATENCIES = (0.0, 0.5, 1.0, 5.0)  # milliseconds
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0


def h2load(socket: Path, data: Path, streams: int) -> float:
    """Return the requests per second over one connection."""
    return load.h2load(socket, data, streams=streams, seconds=SECONDS)


def one_stream(plugin: Plugin, count: int = 300) -> float:
    """Return the median time of consecutive v1 Encrypts, in milliseconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        plugin.v1_encrypt(b"d" * 32)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def yardstick(directory: Path, data: Path, size: int) -> dict[int, float]:
    """Return the rate of the empty handler with 1 and 16 streams."""
    with empty_handler(directory, size) as socket:
        return {streams: h2load(socket, data, streams) for streams in (1, 16)}


def throughput(plugin: Plugin, shim: Shim, data: Path, empty: dict[int, float]) -> None:
    """Print the table of rates over latencies."""
    print(
        "\n| L (ms) | 1 stream, median (ms) | 16 streams (/s) | of what is possible |"
    )
    print("|---|---|---|---|")
    for latency in LATENCIES:
        slow(shim, latency)
        before = not_ok(plugin)
        median = one_stream(plugin)
        rate = h2load(plugin.socket, data, 16)
        possible = empty[16]
        if latency:
            possible = min(possible, SESSIONS / (2 * latency / 1000))
        void = "" if not_ok(plugin) == before else " (void: not all OK)"
        print(
            f"| {latency:g} | {median:.2f} | {rate:.0f} | {rate / possible:.2f}{void} |"
        )
    shim.clear()


def calls_per_wrap(plugin: Plugin, shim: Shim, count: int = 200) -> float:
    """Return the number of C calls of one v1 Encrypt."""
    before = sum(calls.calls for calls in shim.counts().values())
    for _ in range(count):
        plugin.v1_encrypt(b"d" * 32)
    after = sum(calls.calls for calls in shim.counts().values())
    return (after - before) / count


def kill_to_next(plugin: Plugin) -> str:
    """Return the milliseconds from SIGKILL of all workers to the next OK answer."""
    for pid in plugin.worker_pids():
        os.kill(pid, 9)
    began = time.perf_counter()
    refusals = 0
    while code_of(lambda: plugin.v1_encrypt(b"d" * 32)) != "OK":
        refusals += 1
    taken = (time.perf_counter() - began) * 1000
    void = f" (void: {refusals} were not OK)" if refusals else ""
    return f"{taken:.0f} ms{void}"


def status_while_hung(plugin: Plugin, shim: Shim) -> float:
    """Return the p99 of Status in milliseconds while every session hangs."""
    shim.set("C_Encrypt sleep=20000")
    requests = [
        plugin.v1.Encrypt.future(
            kms_v1beta1_pb2.EncryptRequest(version="v1beta1", plain=b"d"), timeout=30
        )
        for _ in range(2 * SESSIONS)
    ]
    time.sleep(0.5)
    times = []
    for _ in range(500):
        began = time.perf_counter()
        plugin.status()
        times.append(time.perf_counter() - began)
    for request in requests:
        request.cancel()
    shim.clear()
    return sorted(times)[int(len(times) * 0.99)] * 1000


def memory(plugin: Plugin) -> tuple[float, float]:
    """Return the RSS of the server and the PSS of the largest worker, in MB."""
    if plugin.process is None:
        raise SystemExit("the server does not run")
    rss = _kilobytes("VmRSS", Path(f"/proc/{plugin.process.pid}/status"))
    workers = plugin.worker_pids()
    pss = max(_kilobytes("Pss", Path(f"/proc/{pid}/smaps_rollup")) for pid in workers)
    return rss / 1024, pss / 1024


def _kilobytes(name: str, file: Path) -> int:
    """Read one field of a file of /proc."""
    found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{file} has no {name}")
    return int(found[1])


def main() -> None:
    """Measure and print."""
    load.require_tools()
    with tempfile.TemporaryDirectory(prefix="hsm-kms-bench-", dir="/tmp") as name:
        directory = Path(name)
        data = load.frame(directory)
        apis = {"v2": {"enabled": True}, "v1": {"enabled": True, "wrapping": "token"}}
        plugin, shim = prepare(directory, apis=apis)
        try:
            size = len(plugin.v1_encrypt(b"d" * 32))
            empty = yardstick(directory, data, size)
            print(
                f"empty handler: {empty[1]:.0f}/s at 1 stream, {empty[16]:.0f}/s at 16"
            )
            rss, pss = memory(plugin)
            throughput(plugin, shim, data, empty)
            print(f"\nC calls per wrap: {calls_per_wrap(plugin, shim):.2f}")
            print(f"every worker killed, next answer after {kill_to_next(plugin)}")
            wait_for(lambda: plugin.healthz() == "ok")
            hung = status_while_hung(plugin, shim)
            print(f"Status while every session hangs, p99: {hung:.1f} ms")
            print(f"memory: server {rss:.0f} MB RSS, a worker {pss:.0f} MB PSS")
        finally:
            plugin.close()


main()
