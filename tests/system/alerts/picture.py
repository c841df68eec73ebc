"""Draw the panels of the dashboard with matplotlib, where Grafana would have them.

`make dashboard-picture` calls this, and installs matplotlib before.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import matplotlib.figure
import matplotlib.ticker
from PIL import Image

from tests.harness.dashboard import Query, read

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.prometheus import Series
    from tests.system.alerts.faulted_run import FaultedRun

WIDTH, UNIT = 24, 0.36  # columns of Grafana's grid; inches for a row of it
INCHES = 17.0
DPI = 72
COLOURS = 256
MOST = 8  # entries of a legend
UNITS = {"s": "s", "bytes": "B", "reqps": "/s", "ops": "/s"}
GREY = "#d0d0d0"
LEGEND = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "frameon": False}


class Line(NamedTuple):
    """A series of a panel.

    Attributes:
        name: What the legend calls it.
        labels: Its labels.
        began: When the run began, in seconds since the Unix epoch.
        times: Seconds since then.
        values: Values at these times.
    """

    name: str
    labels: dict[str, str]
    began: float
    times: list[float]
    values: list[float]


def draw(run: FaultedRun, asked: dict[Query, list[Series]], file: Path) -> None:
    """Draw all panels into a PNG file.

    Args:
        run: The run.
        asked: What each query of the dashboard had in the run.
        file: The file to write.
    """
    panels = read()["panels"]
    height = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in panels)
    figure = mpl.figure.Figure((INCHES, height * UNIT), dpi=DPI)
    figure.patch.set_facecolor("#f4f5f5")
    for panel in panels:
        axes = figure.add_axes(box(panel, height))
        if panel["type"] == "row":
            axes.set_axis_off()
            axes.text(0, 0.3, panel["title"], fontsize=13, fontweight="bold")
            continue
        axes.set_title(panel["title"], fontsize=9, loc="left", pad=4)
        axes.spines[:].set_color(GREY)
        axes.tick_params(labelsize=7, color=GREY)
        KINDS[panel["type"]](panel, axes, lines_of(panel, asked, run))
    figure.savefig(file)
    with Image.open(file) as image:
        image.convert("RGB").quantize(COLOURS).save(file, optimize=True)


def box(panel, height: int) -> tuple[float, float, float, float]:
    """Return left, bottom, width and height of a panel, as parts of the picture."""
    place = panel["gridPos"]
    # Room in units of the grid: title above, numbers at the left, legend below.
    above, left, below = {
        "row": (0, 0.2, 0),
        "stat": (0.9, 0.2, 0.2),
        "table": (0.9, 0.2, 0.2),
    }.get(panel["type"], (0.9, 0.9, 1.8))
    return (
        (place["x"] + left) / WIDTH,
        1 - (place["y"] + place["h"] - below) / height,
        (place["w"] - left - 0.2) / WIDTH,
        (place["h"] - above - below) / height,
    )


def lines_of(panel, asked, run) -> list[Line]:
    """Return the series of a panel, with the names that its legend gives them."""
    return [
        Line(
            query.name(one.labels),
            one.labels,
            run.began,
            [at - run.began for at, _ in one.values],
            [value for _, value in one.values],
        )
        for query, got in asked.items()
        if query.panel == panel["title"]
        for one in got
    ]


def curves(panel, axes, lines: list[Line]) -> None:
    """Draw a curve for each series, and the limit if there is one."""
    for line in lines:
        axes.plot(line.times, line.values, linewidth=1, label=line.name)
    defaults = panel["fieldConfig"]["defaults"]
    for step in defaults.get("thresholds", {}).get("steps", ()):
        if step["value"] is not None:
            axes.axhline(step["value"], color="red", linewidth=0.8, linestyle="--")
    if "scaleDistribution" in defaults["custom"]:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(color="#e8e8e8", linewidth=0.5)
    unit = UNITS.get(defaults["unit"], "")
    axes.yaxis.set_major_formatter(mpl.ticker.EngFormatter(unit, sep=""))
    if defaults["unit"] == "percentunit":
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    axes.xaxis.set_major_formatter("{x:g}s")
    # Series that did something come first.
    drawn = sorted(axes.get_lines()[: len(lines)], key=flat)[:MOST]
    axes.legend(handles=drawn, ncols=3, fontsize=6, handlelength=1, **LEGEND)


def flat(curve) -> bool:
    """Return True if a curve has one value all the time."""
    return len(set(curve.get_ydata())) == 1


def states(panel, axes, lines: list[Line]) -> None:
    """Draw a bar for each node, in the colour of its state."""
    [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
    seen = {}
    for row, line in enumerate(lines):
        both = zip(line.times, line.values, strict=True)
        for value, group in itertools.groupby(both, key=lambda point: point[1]):
            state, times = mapping["options"][f"{value:.0f}"], [at for at, _ in group]
            place = {"left": times[0], "width": times[-1] - times[0] + 1}
            look = {"height": 0.7, "color": state["color"], "alpha": 0.8}
            seen[state["text"]] = axes.barh(row, **place, **look)
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.xaxis.set_major_formatter("{x:g}s")
    axes.legend(seen.values(), seen, ncols=4, fontsize=7, **LEGEND)


def numbers(panel, axes, lines: list[Line]) -> None:
    """Write the last value of each series."""
    write(axes, [f"{line.name}   {number(panel, line)}" for line in lines])


def number(panel, line: Line) -> str:
    """Return the last value of a series, as Grafana would write it."""
    defaults, value = panel["fieldConfig"]["defaults"], line.values[-1]
    if defaults["unit"] == "dateTimeFromNow":
        seconds = value / 1000 - (line.began + line.times[-1])
        return f"{abs(seconds):.0f} s ago" if seconds < 0 else f"in {seconds:.0f} s"
    for mapping in defaults.get("mappings", ()):
        return mapping["options"][f"{value:.0f}"]["text"]
    return f"{value:.0f} {UNITS.get(defaults['unit'], '')}"


def table(panel, axes, lines: list[Line]) -> None:
    """Write the labels of each series, and its last value if that is shown."""
    [organize] = panel["transformations"]
    hidden = {"__name__", *organize["options"]["excludeByName"]}
    value = organize["options"].get("renameByName", {}).get("Value")
    rows = []
    for line in lines:
        cells = [text for label, text in line.labels.items() if label not in hidden]
        last = (f"{value}: {line.values[-1]:g}",) if value else ()
        rows.append("   ".join((*cells, *last)))
    write(axes, rows)


def write(axes, rows: list[str]) -> None:
    """Write lines into a panel."""
    axes.set_xticks([])
    axes.set_yticks([])
    look = {"fontsize": 7.5, "va": "top", "clip_on": True}
    axes.text(0.02, 0.92, "\n".join(rows), transform=axes.transAxes, **look)


KINDS = {
    "timeseries": curves,
    "state-timeline": states,
    "stat": numbers,
    "table": table,
}
