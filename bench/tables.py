"""Write figures as Markdown: the median of all rounds, and their spread."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.results import Series

NOTHING = "-"
_THREE_DIGITS = 100
_TWO_DIGITS = 10


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; "" without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """Return a number with three digits that count."""
    if math.isnan(value):
        return NOTHING
    if abs(value) >= _THREE_DIGITS or value == round(value):
        return f"{value:,.0f}"
    if abs(value) >= _TWO_DIGITS:
        return f"{value:.1f}"
    return f"{value:.2f}"


def figure(series: Series | None, metric: str) -> str:
    """Return the median with the spread, and a mark if some runs do not count."""
    if series is None or metric not in series.values:
        return NOTHING
    shown = number(series.median(metric))
    low, high = (number(each) for each in series.spread(metric))
    if low != high:
        shown += f" ({low} to {high})"
    return shown + (" **void**" if series.void else "")


def ratio(series: Series | None, other: Series | None, metric: str) -> str:
    """Return the median ratio of two series that were measured in the same rounds."""
    return number(ratio_of(series, other, metric))


def ratio_of(series: Series | None, other: Series | None, metric: str) -> float:
    """Return the median ratio, NaN if one of the two was not measured."""
    if series is None or other is None:
        return math.nan
    pairs = zip(
        series.values.get(metric, []), other.values.get(metric, []), strict=False
    )
    ratios = [mine / theirs for mine, theirs in pairs if theirs]
    return statistics.median(ratios) if ratios else math.nan
