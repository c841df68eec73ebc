"""Hold what one run measured: every value of every round, never one number alone."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TypeAlias

import msgspec

Case: TypeAlias = "dict[str, str | float]"

FILE = "results.json"
PEERS_FILE = "peers.json"
OUT = Path(".bench")


class Series(msgspec.Struct):
    """Hold the values of one case, one of each round.

    Args:
        suite: Which suite measured it.
        case: What was measured: names and values that tell it from others.
        values: The values of each metric; units are in its name.
        void: Why some of them do not count; empty if all do.
    """

    suite: str
    case: dict[str, str | float]
    values: dict[str, list[float]] = {}
    void: list[str] = []

    def median(self, metric: str) -> float:
        """Return the median of a metric, NaN if it was not measured."""
        found = self.values.get(metric)
        return statistics.median(found) if found else float("nan")

    def spread(self, metric: str) -> tuple[float, float]:
        """Return the least and the largest value of a metric."""
        found = self.values.get(metric) or [float("nan")]
        return min(found), max(found)


class Results(msgspec.Struct):
    """Hold one run.

    Args:
        machine: What was measured on, by name.
        plan: "whole" or "quick".
        command: The command line.
        seconds: How long each suite took.
        series: All that was measured.
        skipped: Suites that did not run, and why.
    """

    machine: dict[str, str]
    plan: str
    command: str
    seconds: dict[str, float] = {}
    series: list[Series] = []
    skipped: dict[str, str] = {}

    def add(
        self, suite: str, case: Case, metrics: dict[str, float], void: str = ""
    ) -> None:
        """Add the values of one round.

        Args:
            suite: Which suite measured it.
            case: What was measured.
            metrics: The values by metric.
            void: Why they do not count, "" if they do.
        """
        found = self.get(suite, **case)
        if found is None:
            found = Series(suite, dict(case))
            self.series.append(found)
        for name, value in metrics.items():
            found.values.setdefault(name, []).append(value)
        if void:
            found.void.append(void)

    def get(self, suite: str, **case: str | float) -> Series | None:
        """Return one series, or None if there is none."""
        return next(
            (each for each in self.of(suite) if each.case == case),
            None,
        )

    def of(self, suite: str, **case: str | float) -> list[Series]:
        """Return the series of a suite whose case has these values, in order."""
        return [
            each
            for each in self.series
            if each.suite == suite and case.items() <= each.case.items()
        ]

    def write(self, directory: Path, name: str = FILE) -> Path:
        """Write all of it as JSON, and return the file."""
        path = directory / name
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))
        return path


def read(directory: Path, name: str = FILE) -> Results:
    """Return the run that was written into a directory.

    Raises:
        FileNotFoundError: There is none.
    """
    return msgspec.json.decode((directory / name).read_bytes(), type=Results)
