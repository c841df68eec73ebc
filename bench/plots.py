"""Draw how rates and times grow, as SVG that reads on a light and on a dark page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from bench.common import SESSIONS
from bench.limits import of_sessions
from bench.plan import GROWING
from bench.rates import PATHS
from bench.report import TIMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from bench.results import Results, Series

_STYLE = {
    "svg.fonttype": "none",  # text that can be searched, in the fonts of the reader
    "svg.hashsalt": "hsm-kms",  # the same file from the same figures
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.facecolor": "white",  # a plot must also read on a dark page
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")  # Okabe and Ito
_SIZE = (6.4, 3.4)  # inches


class Line(NamedTuple):
    """One line of a plot, with the spread of each point.

    Args:
        name: In the legend.
        points: x, median, least and largest value.
    """

    name: str
    points: list[tuple[float, float, float, float]]


def line(name: str, series: Iterable[Series], x: str, metric: str) -> Line:
    """Return a line through the medians of some series.

    Args:
        name: In the legend.
        series: One for each point.
        x: The part of the case that is drawn along the x axis.
        metric: The metric.
    """
    points = [
        (float(each.case[x]), each.median(metric), *each.spread(metric))
        for each in series
        if metric in each.values
    ]
    return Line(name, sorted(points))


def draw(results: Results, directory: Path) -> list[Path]:
    """Draw every plot for which there are figures, and return the files."""
    made = []
    with mpl.rc_context(_STYLE):
        for name, plot in _PLOTS.items():
            figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
            if plot(results, axes):
                path = directory / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None})
                made.append(path)
            plt.close(figure)
    return made


def _lines(axes: Any, lines: Iterable[Line]) -> bool:
    drawn = False
    for each, colour in zip(lines, _COLOURS, strict=False):
        if not each.points:
            continue
        xs, medians, least, most = zip(*each.points, strict=True)
        axes.plot(xs, medians, marker="o", markersize=4, label=each.name, color=colour)
        axes.fill_between(xs, least, most, alpha=0.15, color=colour, linewidth=0)
        drawn = True
    if drawn:
        axes.legend(frameon=False, fontsize=8)
    return drawn


def _label(
    axes: Any, x: str, y: str, *, logx: bool = False, logy: bool = False
) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if logx:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if logy:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)


def _rate_by_streams(results: Results, axes: Any) -> bool:
    drawn = _lines(
        axes,
        (
            line(
                text,
                results.of("rates", path=path, method="Encrypt", L=0),
                "streams",
                "rate",
            )
            for path, text in PATHS.items()
        ),
    )
    _label(axes, "requests at once", "Encrypt per second", logx=True)
    return drawn


def _rate_by_latency(results: Results, axes: Any) -> bool:
    every = results.of("rates", path="token", method="Encrypt")
    streams = sorted({float(each.case["streams"]) for each in every})
    drawn = _lines(
        axes,
        (
            line(
                f"{each:g} at once",
                [one for one in every if one.case["streams"] == each],
                "L",
                "rate",
            )
            for each in streams
        ),
    )
    if drawn:
        top = axes.get_ylim()[1]
        longest = max(float(each.case["L"]) for each in every)
        latencies = [longest * each / 100 for each in range(1, 101)]
        limit = [of_sessions(each) for each in latencies]
        name = f"{SESSIONS} sessions / 2 L"
        axes.plot(latencies, limit, "k--", linewidth=0.8, label=name)
        axes.set_ylim(0, top)
        axes.legend(frameon=False, fontsize=8)
    _label(axes, "milliseconds of each C call (L)", "Encrypt per second")
    return drawn


def _times(results: Results, axes: Any) -> bool:
    every = results.of("rates", path="token", method="Encrypt", L=0)
    drawn = _lines(
        axes,
        (line(text, every, "streams", metric) for metric, text in TIMES.items()),
    )
    _label(axes, "requests at once", "milliseconds", logx=True, logy=True)
    return drawn


def _sessions(results: Results, axes: Any) -> bool:
    def by_latency(latency: float) -> Line:
        points = [
            (float(workers * each), found.median("rate"), *found.spread("rate"))
            for workers, each in GROWING
            if (found := results.get("sessions", workers=workers, each=each, L=latency))
        ]
        return Line(f"L = {latency:g} ms", points)

    latencies = sorted({float(each.case["L"]) for each in results.of("sessions")})
    drawn = _lines(axes, map(by_latency, latencies))
    _label(axes, "sessions", "Encrypt per second, 64 at once", logx=True)
    return drawn


def _clients(results: Results, axes: Any) -> bool:
    drawn = _lines(
        axes,
        (
            line(PATHS[path], results.of("clients", path=path), "clients", "rate")
            for path in ("software", "token")
        ),
    )
    _label(axes, "connections", "Encrypt per second, 64 at once", logx=True)
    return drawn


def _keys(results: Results, axes: Any) -> bool:
    every = results.of("keys")
    drawn = _lines(
        axes,
        (
            line("C calls of one inspection", every, "keys", "c_calls"),
            line("start, ms", every, "keys", "start_ms"),
            line("one Decrypt, ms", every, "keys", "decrypt_ms"),
        ),
    )
    _label(axes, "keys on the ring", "calls, or milliseconds", logx=True, logy=True)
    return drawn


def _secrets(results: Results, axes: Any) -> bool:
    every = results.of("secrets")
    modes = list(dict.fromkeys(str(each.case["mode"]) for each in every))
    drawn = _lines(
        axes,
        (
            line(mode, results.of("secrets", mode=mode), "secrets", "seconds")
            for mode in modes
        ),
    )
    _label(axes, "Secrets", "seconds until all are listed", logy=True)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return drawn


_PLOTS: dict[str, Callable[[Results, Any], bool]] = {
    "performance-streams": _rate_by_streams,
    "performance-latency": _rate_by_latency,
    "performance-times": _times,
    "performance-sessions": _sessions,
    "performance-clients": _clients,
    "performance-keys": _keys,
    "performance-secrets": _secrets,
}
