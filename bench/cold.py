"""Measure cold starts: every DEK is decrypted once after a restart of the server.

The API server does so one after the other. The shim adds L ms to each C call of the
hot path, and counts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import load
from bench.common import apis, serving, settle, slow, start
from hsm_kms.wrapping.record import Record

if TYPE_CHECKING:
    from pathlib import Path

    from bench.plan import Plan
    from bench.results import Results
    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Shim

SUITE = "cold"
FEW_USES = 8  # of a local KEK, so that so many Secrets have about a thousand
LATENCIES = (0.0, 5.0)  # milliseconds
AT_ONCE = 200
HERD = f"{AT_ONCE} times the same DEK at once"
LONG_LATENCY = 100.0  # milliseconds


def run(directory: Path, plan: Plan, results: Results) -> None:
    """Measure starts with v1 DEKs and with v2 seeds."""
    one = directory / "one"
    with serving(one, apis=apis("software")) as (plugin, shim):
        records = _written(plugin, one, count=plan.deks, streams=16)
        name = f"{plan.deks:,} v1 DEKs"
        for _ in range(plan.cold_rounds):
            _starts(plugin, shim, records, name, results)
            _herd(plugin, shim, records, results)
        seeds = _written(plugin, one, count=plan.seeds, streams=16, api="v2")
        for _ in range(plan.cold_rounds):
            _starts(plugin, shim, seeds, f"{plan.seeds:,} v2 seeds", results, "v2")
    many = directory / "many"
    few = {"max_uses": FEW_USES}
    with serving(many, apis=apis("software"), local_keys=few) as (plugin, shim):
        records = _written(plugin, many, count=plan.deks, streams=1)
        name = f"{plan.deks:,} v1 DEKs, {_local_keks(records):,} local KEKs"
        _starts(plugin, shim, records, name, results)


def _starts(
    plugin: Plugin,
    shim: Shim,
    records: Path,
    name: str,
    results: Results,
    api: str = "v1",
) -> None:
    """Measure one start at each latency."""
    for latency in LATENCIES:
        metrics, void = _cold(plugin, shim, records, latency, api=api)
        results.add(SUITE, {"what": name, "L": latency}, metrics, void)


def _herd(plugin: Plugin, shim: Shim, records: Path, results: Results) -> None:
    """Measure many concurrent Decrypts of one cold record."""
    same = records.with_name("same")
    same.write_text((records.read_text().splitlines()[0] + "\n") * AT_ONCE)
    metrics, void = _cold(plugin, shim, same, LONG_LATENCY, streams=AT_ONCE)
    results.add(SUITE, {"what": HERD, "L": LONG_LATENCY}, metrics, void)


def _cold(
    plugin: Plugin,
    shim: Shim,
    records: Path,
    latency: float,
    *,
    streams: int = 1,
    api: str = "v1",
) -> tuple[dict[str, float], str]:
    """Restart the server, then decrypt every record once."""
    shim.clear()
    plugin.stop()
    start(plugin)
    settle(plugin, shim)
    slow(shim, latency)
    before = shim.calls("C_Decrypt")
    report = load.decrypt(plugin.socket, records, streams=streams, api=api)
    calls = shim.calls("C_Decrypt") - before
    shim.clear()
    return {"seconds": report.seconds, "token_calls": calls}, report.void


def _written(
    plugin: Plugin, directory: Path, *, count: int, streams: int, api: str = "v1"
) -> Path:
    """Write a file of records that the server made."""
    records = directory / f"{api}.records"
    report = load.encrypt(plugin.socket, records, count=count, streams=streams, api=api)
    if report.void:
        raise SystemExit(f"no records: {report.void}")
    return records


def _local_keks(records: Path) -> int:
    """Return how many local KEKs made the records of a file."""
    ciphers = (each["cipher"] for each in load.read_records(records))
    return len({Record.decode(cipher).header.nested for cipher in ciphers})
