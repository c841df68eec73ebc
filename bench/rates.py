"""Measure rates, times and CPU by path, latency and streams, beside an empty handler.

Encrypt of v1 by h2load, everything else by bench/client, which checks each answer. All
servers and cases take their turns in each round.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bench import load
from bench.common import (
    DEK_BYTES,
    answered,
    apis,
    c_calls,
    empty_handler,
    pid_of,
    serving,
    slow,
)
from bench.cpu import cpu_seconds, pss_mb, rss_mb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.plan import Plan
    from bench.results import Case, Results
    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Shim

SUITE = "rates"
RECORDS = 1000  # that Decrypt goes over
COUNTED = 100  # requests whose C calls are counted
PATHS = {
    "empty": "an empty grpc.aio handler",
    "software": "v1, wrapping: software",
    "token": "v1, wrapping: token",
    "v2": "v2, wrapping: token, each DEK is read back",
}


@dataclass(kw_only=True)
class Contender:
    """Describe one path that is measured in turns with the others.

    Args:
        path: One of `PATHS`.
        socket: Where its server listens.
        records: File of records that it decrypts.
        api: "v1" or "v2".
        pid: Process id of its server.
        plugin: The server, if it is one of ours.
        shim: What is before the token of the server.
        latencies: At which it is measured; others say nothing about it.
    """

    path: str
    socket: Path
    records: Path
    api: str = "v1"
    pid: int
    plugin: Plugin | None = None
    shim: Shim | None = None
    latencies: tuple[float, ...] = field(default=(0,))

    def encrypt(self, data: Path, streams: int, seconds: int) -> load.Report:
        """Encrypt for so long."""
        if self.api == "v2":
            return load.encrypt_for(
                self.socket, streams=streams, seconds=seconds, api="v2"
            )
        return load.h2load(self.socket, data, streams=streams, seconds=seconds)

    def decrypt(self, _data: Path, streams: int, seconds: int) -> load.Report:
        """Decrypt the records for so long, over and over."""
        return load.decrypt(
            self.socket, self.records, streams=streams, seconds=seconds, api=self.api
        )

    def measured(self, once: Callable[[], load.Report]) -> tuple[dict[str, float], str]:
        """Return the metrics of one run, CPU included, and why they do not count."""
        workers = self.plugin.worker_pids() if self.plugin else []
        before = self._used(workers)
        report = once()
        server, tokens, requests, failed = (
            after - early
            for after, early in zip(self._used(workers), before, strict=True)
        )
        # An empty handler counts nothing: the requests of its warm-up are reckoned.
        made = requests or report.requests * (1 + load.WARM_UP / report.seconds)
        metrics = report.metrics | {
            "server_cpu_ms": server / made * 1000,
            "workers_cpu_ms": tokens / made * 1000,
        }
        return metrics, report.void or ("not all OK" if failed else "")

    def _used(self, workers: list[int]) -> tuple[float, float, float, float]:
        """Return CPU of server and workers, requests, and those that were not OK."""
        requests, failed = answered(self.plugin) if self.plugin else (0.0, 0.0)
        return cpu_seconds([self.pid]), cpu_seconds(workers), requests, failed


METHODS = {"Encrypt": Contender.encrypt, "Decrypt": Contender.decrypt}


def run(directory: Path, plan: Plan, results: Results) -> None:
    """Measure all paths."""
    data = load.frame(directory)
    with ExitStack() as stack:
        contenders = _contenders(stack, directory, plan)
        for _ in range(plan.rounds):
            for latency in plan.latencies:
                _one_latency(contenders, data, latency, plan, results)
        for each in contenders:
            _memory(each, results)
            _c_calls(each, results)


def _contenders(stack: ExitStack, directory: Path, plan: Plan) -> list[Contender]:
    ours = []
    for path in ("software", "token"):
        plugin, shim = stack.enter_context(serving(directory / path, apis=apis(path)))
        records = directory / f"{path}.records"
        load.encrypt(plugin.socket, records, count=RECORDS, streams=16)
        ends = {plan.latencies[0], plan.latencies[-1]}
        ours.append(
            Contender(
                path=path,
                socket=plugin.socket,
                records=records,
                pid=pid_of(plugin),
                plugin=plugin,
                shim=shim,
                latencies=plan.latencies if path == "token" else tuple(sorted(ends)),
            )
        )
    by_token = ours[1]
    v2 = directory / "v2.records"
    load.encrypt(by_token.socket, v2, count=RECORDS, streams=16, api="v2")
    ours.append(
        Contender(
            path="v2",
            socket=by_token.socket,
            records=v2,
            api="v2",
            pid=by_token.pid,
            plugin=by_token.plugin,
            shim=by_token.shim,
            latencies=plan.latencies,
        )
    )
    size = len(load.read_records(ours[0].records)[0]["cipher"])
    socket, pid = stack.enter_context(empty_handler(directory, size))
    records = load.with_dek(
        ours[0].records, b"x" * DEK_BYTES, directory / "empty.records"
    )
    return [Contender(path="empty", socket=socket, records=records, pid=pid), *ours]


def _one_latency(
    contenders: list[Contender],
    data: Path,
    latency: float,
    plan: Plan,
    results: Results,
) -> None:
    for each in contenders:
        if each.shim is not None:
            slow(each.shim, latency)
    cases = [
        (streams, method, each)
        for streams in plan.streams
        for method in METHODS
        for each in contenders
        if latency in each.latencies
    ]
    for streams, method, each in cases:
        once = partial(METHODS[method], each, data, streams, plan.seconds)
        metrics, void = each.measured(once)
        case: Case = {
            "path": each.path,
            "method": method,
            "L": latency,
            "streams": streams,
        }
        results.add(SUITE, case, metrics, void)
    for each in contenders:
        if each.shim is not None:
            each.shim.clear()


def _c_calls(contender: Contender, results: Results) -> None:
    """Count the C calls of a request, with none of the background among them."""
    plugin, shim = contender.plugin, contender.shim
    if plugin is None or shim is None or contender.path == "software":
        return
    for method, make in _requests(contender, plugin).items():
        before = c_calls(shim)
        for _ in range(COUNTED):
            make()
        made = (c_calls(shim) - before) / COUNTED
        case: Case = {"what": f"{method}, {PATHS[contender.path]}"}
        results.add("calls", case, {"c_calls": made})


def _requests(contender: Contender, plugin: Plugin) -> dict[str, Callable[[], object]]:
    """Return what makes one request of each method."""
    dek = b"d" * DEK_BYTES
    if contender.api == "v1":
        cipher = plugin.v1_encrypt(dek)
        return {
            "Encrypt": partial(plugin.v1_encrypt, dek),
            "Decrypt": partial(plugin.v1_decrypt, cipher),
        }
    plugin.status()
    sealed = plugin.encrypt(dek)
    return {
        "Encrypt": partial(plugin.encrypt, dek),
        "Decrypt": partial(plugin.decrypt, sealed.ciphertext, sealed.key_id),
    }


def _memory(contender: Contender, results: Results) -> None:
    """Note the memory of the processes after all that load."""
    if contender.plugin is None or contender.path == "v2":
        return
    workers = [pss_mb(pid) for pid in contender.plugin.worker_pids()]
    metrics = {"server_rss_mb": rss_mb(contender.pid), "worker_pss_mb": max(workers)}
    results.add("memory", {"path": contender.path}, metrics)
