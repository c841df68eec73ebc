"""Measure software wrapping: v1 with a local KEK. Needs h2load, Go, gcc.

    .venv/bin/python -m bench.software [SECONDS_PER_RUN]

Rates are ratios to a grpc.aio handler that does nothing, the median of rounds in which
all take their turns: Encrypt by h2load, Decrypt by bench/client, which goes over 1,000
records. A cold start is a restart of the server, after which the client decrypts every
record once, one after the other, as the API server does; the shim adds L ms to each C
call of the hot path, and counts. A run in which any answer was not OK is void, and
says so.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import load
from bench.common import (
    DEK_BYTES,
    empty_handler,
    not_ok,
    prepare,
    slow,
    start,
)
from hsm_kms.wrapping.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Shim

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
ROUNDS = 5
COLD_ROUNDS = 3
STREAMS = (1, 16)
RECORDS = 1000  # that Decrypt goes over
SECRETS = 10_000
FEW_USES = 8  # of a local KEK, so that so many Secrets have about a thousand
AT_ONCE = 200
LATENCY = 5.0  # milliseconds
LONG_LATENCY = 100.0


class Cold(NamedTuple):
    """Hold the result of one run of decrypts after a restart."""

    report: load.Report
    token_calls: int


@contextmanager
def serving(directory: Path, **sections: object) -> Iterator[tuple[Plugin, Shim]]:
    """Yield a server with a token of its own, in a new directory."""
    directory.mkdir()
    plugin, shim = prepare(directory, **sections)
    try:
        yield plugin, shim
    finally:
        plugin.close()


def apis(wrapping: str) -> dict[str, object]:
    """Return the section that sets this wrapping mode for v1."""
    return {"v2": {"enabled": True}, "v1": {"enabled": True, "wrapping": wrapping}}


# Rates


@dataclass(kw_only=True)
class Contender:
    """Describe one of the servers that are measured in turns.

    Args:
        name: In the table.
        socket: Where it listens.
        records: A file of records that it opens.
        data: An Encrypt for h2load.
        plugin: It, if it is one of ours.
        void: Set when an answer was not OK.
    """

    name: str
    socket: Path
    records: Path
    data: Path
    plugin: Plugin | None = None
    void: str = ""

    def encrypt(self, streams: int) -> float:
        """Return the Encrypts per second."""
        before = self._failures()
        rate = load.h2load(self.socket, self.data, streams=streams, seconds=SECONDS)
        if self._failures() != before:
            self.void = " (void: not all OK)"
        return rate

    def decrypt(self, streams: int) -> float:
        """Return the Decrypts per second."""
        report = load.decrypt(
            self.socket, self.records, streams=streams, seconds=SECONDS
        )
        self.void = self.void or report.void
        return report.rate

    def _failures(self) -> float:
        return not_ok(self.plugin) if self.plugin is not None else 0


def rates(directory: Path) -> None:
    """Print the table of rates."""
    data = load.frame(directory)
    with ExitStack() as stack:
        ours = []
        for name in ("software", "token"):
            plugin, _ = stack.enter_context(serving(directory / name, apis=apis(name)))
            records = directory / f"{name}.records"
            load.encrypt(plugin.socket, records, count=RECORDS, streams=16)
            ours.append(
                Contender(
                    name=name,
                    socket=plugin.socket,
                    records=records,
                    data=data,
                    plugin=plugin,
                )
            )
        empty = Contender(
            name="empty",
            socket=stack.enter_context(empty_handler(directory, record_size(ours[0]))),
            records=of_the_empty(ours[0].records, directory / "empty.records"),
            data=data,
        )
        print("| v1 | | 1 stream (/s) | of empty | 16 streams (/s) | of empty |")
        print("|---|---|---|---|---|---|")
        table("Encrypt", [empty, *ours], Contender.encrypt)
        table("Decrypt", [empty, *ours], Contender.decrypt)


def table(
    method: str,
    contenders: list[Contender],
    measure: Callable[[Contender, int], float],
) -> None:
    """Print the rows of one method, measured in turns."""
    runs = {
        streams: [
            {each.name: measure(each, streams) for each in contenders}
            for _ in range(ROUNDS)
        ]
        for streams in STREAMS
    }
    for each in contenders:
        cells = [
            f"{statistics.median(one[each.name] for one in run):.0f} | "
            f"{statistics.median(one[each.name] / one['empty'] for one in run):.2f}"
            for run in runs.values()
        ]
        print(f"| {method} | {each.name} | {' | '.join(cells)} |{each.void}")


def record_size(contender: Contender) -> int:
    """Return the size of the server's records in bytes."""
    return len(pairs(contender.records)[0][1])


def of_the_empty(records: Path, mine: Path) -> Path:
    """Write the same records with the DEK that the empty handler answers."""
    dek = b"x" * DEK_BYTES
    mine.write_text(
        "".join(f"{dek.hex()} {record.hex()}\n" for _, record in pairs(records))
    )
    return mine


def pairs(records: Path) -> list[tuple[bytes, bytes]]:
    """Return the DEKs and records of a file."""
    lines = (line.split(" ") for line in records.read_text().splitlines())
    return [(bytes.fromhex(dek), bytes.fromhex(record)) for dek, record in lines]


# Cold starts


def cold_starts(directory: Path) -> None:
    """Print the table of cold starts."""
    print("\n| Secrets | local KEKs | L (ms) | seconds | ratio | token calls |")
    print("|---|---|---|---|---|---|")
    one = directory / "one"
    with serving(one, apis=apis("software")) as (plugin, shim):
        records = written(plugin, one, streams=16)
        cold_rows(plugin, shim, records)
        at_once = herd(plugin, shim, records)
    many = directory / "many"
    few = {"max_uses": FEW_USES}
    with serving(many, apis=apis("software"), local_keys=few) as (plugin, shim):
        cold_rows(plugin, shim, written(plugin, many, streams=1), rounds=1)
    print(f"\n{at_once}")


def cold_rows(
    plugin: Plugin, shim: Shim, records: Path, rounds: int = COLD_ROUNDS
) -> None:
    """Print cold starts without and with latency, in turns."""
    latencies = (0.0, LATENCY)
    runs = [
        {at: cold(plugin, shim, records, at) for at in latencies} for _ in range(rounds)
    ]
    for latency in latencies:
        each = [run[latency] for run in runs]
        seconds = statistics.median(run.report.seconds for run in each)
        ratio = statistics.median(
            run[latency].report.seconds / run[0.0].report.seconds for run in runs
        )
        calls = "/".join(sorted({str(run.token_calls) for run in each}))
        void = "".join({run.report.void for run in each})
        print(
            f"| {SECRETS} | {local_keks(records)} | {latency:g} | {seconds:.2f} "
            f"| {ratio:.2f} | {calls}{void} |"
        )


def herd(plugin: Plugin, shim: Shim, records: Path) -> str:
    """Return a row about many concurrent Decrypts of one cold record."""
    same = records.with_name("same")
    same.write_text((records.read_text().splitlines()[0] + "\n") * AT_ONCE)
    run = cold(plugin, shim, same, LONG_LATENCY, streams=AT_ONCE)
    return (
        f"{AT_ONCE} identical cold Decrypts at once, L = {LONG_LATENCY:g} ms: "
        f"{run.report.seconds:.2f} s, token calls: {run.token_calls}{run.report.void}"
    )


def cold(
    plugin: Plugin, shim: Shim, records: Path, latency: float, streams: int = 1
) -> Cold:
    """Restart the server, then decrypt every record once."""
    shim.clear()
    plugin.stop()
    start(plugin)
    settle(plugin, shim)
    slow(shim, latency)
    before = shim.calls("C_Decrypt")
    report = load.decrypt(plugin.socket, records, streams=streams)
    calls = shim.calls("C_Decrypt") - before
    shim.clear()
    return Cold(report, calls)


def settle(plugin: Plugin, shim: Shim) -> None:
    """Wait until the server has a local KEK and does not use the token."""
    plugin.v1_encrypt(b"d" * DEK_BYTES)
    seen = None
    while seen != (seen := shim.counts()):
        time.sleep(0.5)


def written(plugin: Plugin, directory: Path, streams: int) -> Path:
    """Write a file of records that the server made."""
    records = directory / "records"
    report = load.encrypt(plugin.socket, records, count=SECRETS, streams=streams)
    if report.void:
        raise SystemExit(f"no records: {report.codes}")
    return records


def local_keks(records: Path) -> int:
    """Return how many local KEKs made the records of a file."""
    return len({Record.decode(record).header.nested for _, record in pairs(records)})


def main() -> None:
    """Measure and print."""
    load.require_tools()
    with tempfile.TemporaryDirectory(prefix="hsm-kms-bench-", dir="/tmp") as name:
        rates(Path(name))
        cold_starts(Path(name))


main()
