"""Compare one run with the figures that hsm-kms should reach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from bench.cold import HERD
from bench.limits import share_of_possible
from bench.rates import PATHS
from bench.tables import NOTHING, number, ratio_of, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.results import Results, Series

_SHARE = 0.85  # of the empty handler, with a local KEK
_DIRECT = 0.65  # of what is possible, on the direct path
_COLD = 1.1


class Goal(NamedTuple):
    """Name one figure to reach.

    Args:
        what: What is measured, in words.
        measured: Takes it from a run; NaN if it was not measured.
        at_least: The figure to reach, or None.
        at_most: The figure not to exceed, or None.
        unit: Of the figure.
    """

    what: str
    measured: Callable[[Results], float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def wanted(self) -> str:
        """Return the figure to reach, in words."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}{self.unit}"
        return f"at most {self.at_most:g}{self.unit}"

    def reached(self, value: float) -> bool:
        """Return True if a value is good enough."""
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)


def goals(results: Results) -> str:
    """Return the table of all figures to reach, with what this run measured."""
    rows = []
    for goal in GOALS:
        value = goal.measured(results)
        if math.isnan(value):
            rows.append([goal.what, goal.wanted, NOTHING, NOTHING])
            continue
        verdict = "yes" if goal.reached(value) else "**no**"
        rows.append([goal.what, goal.wanted, f"{number(value)}{goal.unit}", verdict])
    return table(["", "wanted", "measured", "reached"], rows)


def _of_empty(streams: float) -> Callable[[Results], float]:
    return lambda results: ratio_of(
        _rate(results, "software", streams), _rate(results, "empty", streams), "rate"
    )


def _rate(results: Results, path: str, streams: float) -> Series | None:
    return results.get("rates", path=path, method="Encrypt", L=0, streams=streams)


def _of_possible(latency: float) -> Callable[[Results], float]:
    return lambda results: share_of_possible(results, latency)


def _median(suite: str, metric: str, **case: str | float) -> Callable[[Results], float]:
    """Return the largest median of the series whose case has these values."""

    def measured(results: Results) -> float:
        found = [each.median(metric) for each in results.of(suite, **case)]
        return max(found, default=math.nan)

    return measured


def _cold(results: Results) -> float:
    """Return how much longer a start takes with a slow token, one local KEK."""
    found = [
        each for each in results.of("cold") if str(each.case["what"]).endswith("DEKs")
    ]
    by_latency = {each.case["L"]: each for each in found}
    return ratio_of(by_latency.get(5.0), by_latency.get(0.0), "seconds")


def _recovery(called: str, at_most: float, what: str = "") -> Goal:
    """Return a goal of what the suite `recovery` measures, in milliseconds.

    Args:
        called: What is measured, in the words of the table.
        at_most: The time not to exceed.
        what: The suite's own words, if they are others.
    """
    measured = _median("recovery", "ms", what=what or called)
    return Goal(called, measured, at_most=at_most, unit=" ms")


GOALS = (
    Goal("local KEK, Encrypt, 1 at once, of the empty handler", _of_empty(1), _SHARE),
    Goal("the same, 16 at once", _of_empty(16), _SHARE),
    Goal(
        "direct path, C calls of an Encrypt",
        _median("calls", "c_calls", what=f"Encrypt, {PATHS['token']}"),
        at_most=2,
    ),
    Goal(
        "direct path, L = 1 ms, 1 at once, p50",
        _median("rates", "p50_ms", path="token", method="Encrypt", L=1, streams=1),
        at_most=3.2,
        unit=" ms",
    ),
    Goal(
        "direct path, L = 0, 16 at once, of what is possible", _of_possible(0), _DIRECT
    ),
    Goal("the same, L = 1 ms", _of_possible(1), _DIRECT),
    Goal("v1 DEKs under one local KEK, L = 5 ms against L = 0", _cold, at_most=_COLD),
    Goal(
        f"{HERD}, L = 100 ms",
        _median("cold", "seconds", what=HERD),
        at_most=1,
        unit=" s",
    ),
    Goal(
        "the same, calls of the token",
        _median("cold", "token_calls", what=HERD),
        at_most=1,
    ),
    _recovery(
        "Status while every session hangs, p99", 10, "every session hangs: Status, p99"
    ),
    _recovery(
        "all workers killed, next Encrypt that is OK",
        250,
        "all workers killed: next Encrypt that is OK",
    ),
    _recovery("`hsm-kms --version`", 150),
    _recovery("`hsm-kms status`", 400),
    Goal(
        "memory of the server, RSS",
        _median("memory", "server_rss_mb"),
        at_most=90,
        unit=" MB",
    ),
    Goal(
        "memory of a worker of 4 sessions, PSS",
        _median("memory", "worker_pss_mb"),
        at_most=20,
        unit=" MB",
    ),
)
