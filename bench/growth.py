"""Measure how cost grows: with sessions, with keys on the ring, and with clients."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bench import load
from bench.common import answered, apis, serving, slow
from bench.ring import many_keys, one_inspection

if TYPE_CHECKING:
    from pathlib import Path

    from bench.plan import Plan
    from bench.results import Results
    from tests.harness.plugin import Plugin

STREAMS = 64
SESSION_LATENCIES = (0.0, 1.0)  # milliseconds
DECRYPTS = 300


def sessions(directory: Path, plan: Plan, results: Results) -> None:
    """Measure the rate of the direct path with more workers and sessions."""
    data = load.frame(directory)
    with ExitStack() as stack:
        servers = {}
        for workers, each in plan.sessions:
            token = {"workers": workers, "sessions_per_worker": each}
            servers[workers, each] = stack.enter_context(
                serving(
                    directory / f"s{workers}x{each}", apis=apis("token"), token=token
                )
            )
        for _ in range(plan.rounds):
            for latency in SESSION_LATENCIES:
                for (workers, each), (plugin, shim) in servers.items():
                    slow(shim, latency)
                    metrics, void = _rate(plugin, data, plan, streams=STREAMS)
                    shim.clear()
                    case: dict[str, str | float] = {"workers": workers, "each": each}
                    results.add("sessions", {**case, "L": latency}, metrics, void)


def clients(directory: Path, plan: Plan, results: Results) -> None:
    """Measure the rate with more connections, which share the same streams."""
    data = load.frame(directory)
    with ExitStack() as stack:
        servers = {
            path: stack.enter_context(serving(directory / path, apis=apis(path)))[0]
            for path in ("software", "token")
        }
        for _ in range(plan.rounds):
            for number in plan.clients:
                for path, plugin in servers.items():
                    streams = max(STREAMS, number)
                    metrics, void = _rate(
                        plugin, data, plan, streams=streams, clients=number
                    )
                    case: dict[str, str | float] = {"path": path, "clients": number}
                    results.add("clients", case, metrics, void)


def keys(directory: Path, plan: Plan, results: Results) -> None:
    """Measure start, inspection and Decrypt with more keys on the ring."""
    for _ in range(plan.rounds):
        for number in plan.keys:
            with many_keys(directory, number) as (plugin, shim):
                began = time.perf_counter()
                plugin.start(spawn=True).wait_healthz("ok")
                start = (time.perf_counter() - began) * 1000
                metrics = {
                    "start_ms": start,
                    "c_calls": one_inspection(shim),
                    "decrypt_ms": _decrypt(plugin),
                }
            results.add("keys", {"keys": number}, metrics)


def _rate(
    plugin: Plugin, data: Path, plan: Plan, *, streams: int, clients: int = 1
) -> tuple[dict[str, float], str]:
    _, before = answered(plugin)
    report = load.h2load(
        plugin.socket, data, streams=streams, seconds=plan.seconds, clients=clients
    )
    plugin.wait_healthz("ok")
    _, after = answered(plugin)
    return report.metrics, "" if after == before else "not all OK"


def _decrypt(plugin: Plugin) -> float:
    """Return the median time of one v1 Decrypt, in milliseconds."""
    cipher = plugin.v1_encrypt(b"d" * 32)
    times = []
    for _ in range(DECRYPTS):
        began = time.perf_counter()
        plugin.v1_decrypt(cipher)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000
