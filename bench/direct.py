"""The direct path: every DEK wrapped by the token. Needs h2load, gcc, libp11-kit-dev.

    .venv/bin/python -m bench.direct [SECONDS_PER_RUN]

The token is SoftHSM2 behind the fault shim, which adds L ms to each C call of the hot
path. Figures are ratios within this run against a grpc.aio handler that does nothing;
a run in which any answer was not OK is void, and says so.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from hsm_kms.api.rpc import kms_v1beta1_pb2
from tests.shim_driver import Shim
from tests.support import PIN, Plugin, SoftHsm, wait_for

SESSIONS = 16
WORKERS = 4
ENDINGS = ("OK", "CANCELLED")  # h2load breaks off what runs at the end of its time
LATENCIES = (0.0, 0.5, 1.0, 5.0)  # milliseconds
HOT = ("C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt")
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0


def frame(directory: Path) -> Path:
    """A gRPC message with one v1 EncryptRequest."""
    request = kms_v1beta1_pb2.EncryptRequest(version="v1beta1", plain=os.urandom(32))
    body = request.SerializeToString()
    path = directory / "frame"
    path.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    return path


def h2load(socket: Path, data: Path, streams: int) -> float:
    """Requests a second over one connection."""
    result = subprocess.run(
        [
            *("h2load", "--duration", str(int(SECONDS)), "--warm-up-time", "1"),
            *("--clients", "1", "--max-concurrent-streams", str(streams)),
            *("--base-uri", f"unix:{socket}", "--data", str(data)),
            *("--header", "content-type: application/grpc", "--header", "te: trailers"),
            "http://localhost/v1beta1.KeyManagementService/Encrypt",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", result.stdout)
    if found is None:
        raise SystemExit(f"h2load said:\n{result.stdout}")
    return float(found[1])


def not_ok(plugin: Plugin) -> float:
    """Answers so far that were not OK, by the server's own count."""
    port = plugin.events("probes and metrics")[-1]["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        text = page.read().decode()
    counts = re.findall(r'hsm_kms_requests_total{code="(\w+)".*} ([\d.e+]+)', text)
    return sum(float(count) for code, count in counts if code not in ENDINGS)


def slow(shim: Shim, milliseconds: float) -> None:
    """Add a latency to each C call of the hot path."""
    if milliseconds:
        # The shim takes whole microseconds as a fraction of a millisecond.
        shim.set(*(f"{name} sleep={milliseconds:g}" for name in HOT))
    else:
        shim.clear()


def one_stream(plugin: Plugin, count: int = 300) -> float:
    """Median time of one v1 Encrypt after the other, in milliseconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        plugin.v1_encrypt(b"d" * 32)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def yardstick(directory: Path, data: Path, size: int) -> dict[int, float]:
    """Rate of the empty handler at 1 and 16 streams."""
    socket = directory / "empty.sock"
    command = [sys.executable, "-m", "bench.empty", str(socket), str(size)]
    process = subprocess.Popen(command)
    try:
        wait_for(socket.exists)
        return {streams: h2load(socket, data, streams) for streams in (1, 16)}
    finally:
        process.kill()
        process.wait()


def throughput(plugin: Plugin, shim: Shim, data: Path, empty: dict[int, float]) -> None:
    """The table over latencies."""
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
    """C calls of one v1 Encrypt."""
    before = sum(calls.calls for calls in shim.counts().values())
    for _ in range(count):
        plugin.v1_encrypt(b"d" * 32)
    after = sum(calls.calls for calls in shim.counts().values())
    return (after - before) / count


def kill_to_next(plugin: Plugin) -> float:
    """Milliseconds from SIGKILL of every worker to the next answer."""
    for pid in plugin.worker_pids():
        os.kill(pid, 9)
    began = time.perf_counter()
    plugin.v1_encrypt(b"d" * 32)
    return (time.perf_counter() - began) * 1000


def status_while_hung(plugin: Plugin, shim: Shim) -> float:
    """p99 of Status in milliseconds while every session hangs."""
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
    """RSS of the server and PSS of the largest worker, in MB."""
    status = Path(f"/proc/{plugin.process.pid}/status").read_text()
    rss = int(re.search(r"VmRSS:\s+(\d+)", status)[1])
    pss = max(
        int(
            re.search(r"Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())[1]
        )
        for pid in plugin.worker_pids()
    )
    return rss / 1024, pss / 1024


def prepare(directory: Path) -> tuple[Plugin, Shim]:
    """A token with a key, the shim before it, and a running server."""
    hsm = SoftHsm(directory / "hsm")
    hsm.init_token()
    pin = directory / "pin"
    pin.touch(mode=0o600)
    pin.write_text(PIN)
    (directory / "shim").mkdir()
    shim = Shim(directory / "shim")
    plugin = Plugin(directory, hsm, pin)
    token = plugin.config["token"]
    token |= {
        "module": str(shim.module),
        "workers": WORKERS,
        "sessions_per_worker": SESSIONS // WORKERS,
    }
    token["env"] |= shim.env
    plugin.config["health"] = {"interval": "1h"}
    plugin.config["log"] = {"level": "info"}
    plugin.write_config()
    result = plugin.cli("keys", "generate")
    if result.returncode:
        raise SystemExit(result.stderr)
    plugin.start().wait_healthz("ok")
    wait_for(lambda: len(plugin.events("token worker started")) == WORKERS)
    return plugin, shim


def main() -> None:
    """Measure and print."""
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is missing: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory(prefix="hsm-kms-bench-", dir="/tmp") as name:
        directory = Path(name)
        data = frame(directory)
        plugin, shim = prepare(directory)
        try:
            size = len(plugin.v1_encrypt(b"d" * 32))
            empty = yardstick(directory, data, size)
            print(
                f"empty handler: {empty[1]:.0f}/s at 1 stream, {empty[16]:.0f}/s at 16"
            )
            rss, pss = memory(plugin)
            throughput(plugin, shim, data, empty)
            print(f"\nC calls per wrap: {calls_per_wrap(plugin, shim):.2f}")
            print(
                f"every worker killed, next answer after {kill_to_next(plugin):.0f} ms"
            )
            wait_for(lambda: plugin.healthz() == "ok")
            hung = status_while_hung(plugin, shim)
            print(f"Status while every session hangs, p99: {hung:.1f} ms")
            print(f"memory: server {rss:.0f} MB RSS, a worker {pss:.0f} MB PSS")
        finally:
            plugin.close()


main()
