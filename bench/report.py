"""Write one run as Markdown, one section for each question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.goals import goals
from bench.limits import share_of_possible
from bench.overhead import BASE
from bench.rates import METHODS, PATHS
from bench.tables import NOTHING, figure, number, ratio, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bench.results import Results, Series

PEERS = "peers"  # the suite that `bench.peers` measures
LIKE_FOR_LIKE = "hsm-kms, verify_wraps: false"
TIMES = {"p50_ms": "p50", "p90_ms": "p90", "p99_ms": "p99", "p999_ms": "p99.9"}


def sections(results: Results) -> dict[str, str]:
    """Return the Markdown of each section that has figures, by its name."""
    found = {name: make(results) for name, (_, make) in _SECTIONS.items()}
    return {name: text for name, text in found.items() if text}


def whole(results: Results) -> str:
    """Return all sections as one page."""
    text = "# One run of `make bench`\n"
    for name, section in sections(results).items():
        text += f"\n## {_SECTIONS[name][0]}\n\n{section}"
    for name, why in results.skipped.items():
        text += f"\n`{name}`: {why}.\n"
    return text


def _machine(results: Results) -> str:
    rows = [[name, value] for name, value in results.machine.items()]
    took = ", ".join(f"{name} {taken:.0f} s" for name, taken in results.seconds.items())
    rows.append(["command", f"`{results.command}`"])
    rows.append(["took", took])
    return table(["what", ""], rows)


def _values(series: Iterable[Series], name: str) -> list[float]:
    return sorted({float(each.case[name]) for each in series})


def _rates(results: Results) -> str:
    every = results.of("rates")
    streams = _values(every, "streams")
    head = ["", "path", "L (ms)"]
    for each in streams:
        head += [f"{each:g} at once, per second", "of empty"]
    rows = []
    for method in METHODS:
        for path, latency in _lines(results, method):
            row = [method, PATHS[path], f"{latency:g}"]
            for each in streams:
                mine = _rate(results, path, method, latency, each)
                empty = _rate(results, "empty", method, 0, each)
                same = ratio(mine, empty, "rate") if not latency else NOTHING
                row += [figure(mine, "rate"), same]
            rows.append(row)
    return table(head, rows)


def _lines(results: Results, method: str) -> list[tuple[str, float]]:
    """Return the paths and latencies that were measured, in order."""
    every = results.of("rates", method=method)
    return [
        (path, latency)
        for path in PATHS
        for latency in _values([s for s in every if s.case["path"] == path], "L")
    ]


def _rate(
    results: Results, path: str, method: str, latency: float, streams: float
) -> Series | None:
    return results.get("rates", path=path, method=method, L=latency, streams=streams)


def _times(results: Results) -> str:
    return _times_of(results.of("rates", streams=16))


def _all_times(results: Results) -> str:
    return _times_of(results.of("rates"))


def _times_of(series: list[Series]) -> str:
    rows = []
    for each in series:
        case = each.case
        row = [str(case["method"]), PATHS[str(case["path"])]]
        row += [f"{case['L']:g}", f"{case['streams']:g}"]
        rows.append([*row, *(figure(each, metric) for metric in TIMES)])
    rows.sort(key=lambda row: (row[0], [*PATHS.values()].index(row[1])))
    return table(["", "path", "L (ms)", "at once", *TIMES.values()], rows)


def _cpu(results: Results) -> str:
    rows = []
    for each in results.of("rates", L=0):
        case = each.case
        row = [str(case["method"]), PATHS[str(case["path"])], f"{case['streams']:g}"]
        row += [figure(each, f"{who}_cpu_ms") for who in ("server", "workers")]
        rows.append(row)
    rows.sort(key=lambda row: (row[0], [*PATHS.values()].index(row[1])))
    return table(["", "path", "at once", "server (ms)", "workers (ms)"], rows)


def _direct(results: Results) -> str:
    rows = []
    for latency in _values(results.of("rates", path="token"), "L"):
        one = _rate(results, "token", "Encrypt", latency, 1)
        many = _rate(results, "token", "Encrypt", latency, 16)
        share = number(share_of_possible(results, latency))
        row = [f"{latency:g}", figure(one, "p50_ms"), figure(many, "rate"), share]
        rows.append(row)
    head = ["L (ms)", "one after the other, p50 (ms)", "16 at once, per second"]
    return table([*head, "of what is possible"], rows)


def _simple(
    suite: str, head: list[str], names: list[str], metrics: list[str]
) -> Callable[[Results], str]:
    """Return a section that has one row for each case of a suite."""

    def make(results: Results) -> str:
        rows = [
            [_shown(each.case[name]) for name in names]
            + [figure(each, metric) for metric in metrics]
            for each in results.of(suite)
        ]
        return table(head, rows)

    return make


def peers_table(results: Results) -> str:
    """Return what `bench.peers` measured: rates, times, and how hsm-kms compares."""
    rows = []
    for each in results.of(PEERS):
        ours = results.get(PEERS, **{**each.case, "name": LIKE_FOR_LIKE})
        row = [str(each.case["method"]), f"{each.case['streams']:g}"]
        row.append(str(each.case["name"]))
        row += [figure(each, metric) for metric in ("rate", "p50_ms", "p99_ms")]
        same = each.case["name"] == LIKE_FOR_LIKE
        rows.append([*row, "1" if same else ratio(ours, each, "rate")])
    head = ["", "at once", "plugin", "per second", "p50 (ms)", "p99 (ms)"]
    return table([*head, f"rate of `{LIKE_FOR_LIKE}` against it"], rows)


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,g}"


def _overhead(results: Results) -> str:
    base = results.get("overhead", variant=BASE)
    rows = [
        [
            str(each.case["variant"]),
            figure(each, "rate"),
            ratio(each, base, "rate"),
            figure(each, "server_cpu_ms"),
        ]
        for each in results.of("overhead")
    ]
    head = ["", "per second", f"of `{BASE}`", "CPU of the server per request (ms)"]
    return table(head, rows)


_COLD = ["seconds", "token calls"]
_SECTIONS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "machine": ("What was measured, and on what", _machine),
    "goals": ("Figures to reach", goals),
    "rates": ("Rates", _rates),
    "times": ("Times of a request with 16 at once, in milliseconds", _times),
    "direct": ("The direct path, and what is possible", _direct),
    "cpu": ("CPU of a request", _cpu),
    "calls": (
        "C calls",
        _simple("calls", ["what", "C calls"], ["what"], ["c_calls"]),
    ),
    "memory": (
        "Memory after the load, in MB",
        _simple(
            "memory",
            ["path", "server, RSS", "worker of 4 sessions, PSS"],
            ["path"],
            ["server_rss_mb", "worker_pss_mb"],
        ),
    ),
    "cold": (
        "Cold starts",
        _simple(
            "cold",
            ["decrypted once after a restart", "L (ms)", *_COLD],
            ["what", "L"],
            ["seconds", "token_calls"],
        ),
    ),
    "recovery": (
        "Recoveries, and commands",
        _simple("recovery", ["", "milliseconds"], ["what"], ["ms"]),
    ),
    "overhead": ("What logs, metrics and audit cost", _overhead),
    "sessions": (
        "More sessions",
        _simple(
            "sessions",
            ["workers", "sessions of each", "L (ms)", "per second", "p50", "p99"],
            ["workers", "each", "L"],
            ["rate", "p50_ms", "p99_ms"],
        ),
    ),
    "clients": (
        "More connections",
        _simple(
            "clients",
            ["path", "connections", "per second", "p50 (ms)", "p99 (ms)"],
            ["path", "clients"],
            ["rate", "p50_ms", "p99_ms"],
        ),
    ),
    "keys": (
        "More keys",
        _simple(
            "keys",
            ["keys", "start (ms)", "C calls of one inspection", "Decrypt (ms)"],
            ["keys"],
            ["start_ms", "c_calls", "decrypt_ms"],
        ),
    ),
    "secrets": (
        "More Secrets",
        _simple(
            "secrets",
            [
                "",
                "Secrets",
                "writes per second",
                "start of kube-apiserver (s)",
                "C_Decrypt calls",
                "`etcd scan` (s)",
            ],
            ["mode", "secrets"],
            ["writes_per_second", "seconds", "c_decrypts", "scan_seconds"],
        ),
    ),
    "all-times": ("Times of all requests, in milliseconds", _all_times),
}

NAMES = tuple(_SECTIONS)
