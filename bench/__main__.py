"""Measure hsm-kms, and write what came of it: `python -m bench --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import (
    cold,
    growth,
    load,
    machine,
    overhead,
    plots,
    rates,
    recovery,
    report,
    stored,
)
from bench.plan import QUICK, WHOLE
from bench.results import OUT, Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.plan import Plan

    Suite = Callable[[Path, Plan, Results], None]

SUITES: dict[str, Suite] = {
    "rates": rates.run,
    "cold": cold.run,
    "recovery": recovery.run,
    "overhead": overhead.run,
    "sessions": growth.sessions,
    "clients": growth.clients,
    "keys": growth.keys,
    "secrets": stored.run,
}


def main() -> None:
    """Run the suites that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less: 3 minutes")
    parser.add_argument("--out", type=Path, default=OUT, help=f"directory ({OUT})")
    parser.add_argument(
        "--only", metavar="SUITE,...", default="", help=f"of {', '.join(SUITES)}"
    )
    given = parser.parse_args()
    chosen = [each for each in given.only.split(",") if each] or [*SUITES]
    if unknown := set(chosen) - {*SUITES}:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    load.require_tools()
    plan = QUICK if given.quick else WHOLE
    given.out.mkdir(parents=True, exist_ok=True)
    command = "make bench QUICK=1" if given.quick else "make bench"
    results = Results(machine=machine.describe(), plan=plan.name, command=command)
    for name in chosen:
        _run(name, plan, results)
        _write(given.out, results)  # so that an interrupted run is not lost
    print(f"\nwritten to {given.out}")


def _run(name: str, plan: Plan, results: Results) -> None:
    print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hsm-kms-bench-", dir="/tmp") as directory:
        SUITES[name](Path(directory), plan, results)
    results.seconds[name] = round(time.monotonic() - began, 1)
    why = results.skipped.get(name, f"{results.seconds[name]:.0f} s")
    print(why, file=sys.stderr)


def _write(directory: Path, results: Results) -> None:
    results.write(directory)
    (directory / "results.md").write_text(report.whole(results))
    plots.draw(results, directory)


main()
