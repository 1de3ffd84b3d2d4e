"""Panels of the dashboard's picture, each on its place in the grid. Called by `picture`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_chart.prometheus_api import Course

CELL_WIDTH, CELL_HEIGHT = 0.55, 0.28
"""Inches: of one cell of the grid, in which panels have their places."""

LEFT, RIGHT, BOTTOM, TOP = 0.42, 0.08, 0.22, 0.2
"""Inches round what is drawn of a panel: for ticks and title."""

GRID = 24
FONT = 6
DPI = 100
MOST_ROWS = 11
MOST_NAMES = 12
COLOURS = {"0": "tab:green", "1": "tab:red"}

Raw = dict[str, Any]


class Found(NamedTuple):
    """A series of a panel, under the name that its legend gives it."""

    reference: str
    name: str
    course: Course


class Drawn(NamedTuple):
    """A panel with what it shows over so many seconds.

    Attributes:
        panel: of the dashboard's JSON.
        found: its series; their times are seconds since the picture's start.
        seconds: from the picture's start to its end.
        marks: seconds since the picture's start at which an alert began to fire.
    """

    panel: Raw
    found: list[Found]
    seconds: float
    marks: Sequence[float] = ()


def draw(rows: Mapping[str, Sequence[Drawn]], path: Path) -> None:
    """Write the picture; the path says in which format."""
    heights = [1 + _height(panels) for panels in rows.values()]
    # The same data gives the same file.
    with mpl.rc_context({"font.size": FONT, "svg.hashsalt": "dashboard", "svg.fonttype": "none"}):
        figure = Figure(figsize=(GRID * CELL_WIDTH, sum(heights) * CELL_HEIGHT))
        for number, (title, panels) in enumerate(rows.items()):
            _row(figure, title, panels, sum(heights[:number]))
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=DPI, metadata=metadata)


def _height(panels: Sequence[Drawn]) -> int:
    """Cells from the top of a row's panels to their bottom."""
    places = [each.panel["gridPos"] for each in panels]
    bottom: int = max(each["y"] + each["h"] for each in places)
    return bottom - int(min(each["y"] for each in places))


def _row(figure: Figure, title: str, panels: Sequence[Drawn], top: int) -> None:
    width, height = figure.get_size_inches()
    above = 1 - (top + 0.7) * CELL_HEIGHT / height
    figure.text(0.08 / width, above, title, fontweight="bold", fontsize=FONT + 3)
    first = min(each.panel["gridPos"]["y"] for each in panels)
    for drawn in panels:
        place = drawn.panel["gridPos"]
        left = place["x"] * CELL_WIDTH + LEFT
        lower = height - (top + 1 + place["y"] - first + place["h"]) * CELL_HEIGHT + BOTTOM
        across = place["w"] * CELL_WIDTH - LEFT - RIGHT
        upwards = place["h"] * CELL_HEIGHT - BOTTOM - TOP
        axes = figure.add_axes((left / width, lower / height, across / width, upwards / height))
        axes.set_title(drawn.panel["title"], fontsize=FONT + 1, pad=3)
        _KINDS[drawn.panel["type"]](axes, drawn)
        if not drawn.found:
            axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)


def _courses(axes: Axes, drawn: Drawn) -> None:
    defaults = drawn.panel["fieldConfig"]["defaults"]
    for each in drawn.found:
        times, values = zip(*each.course.values, strict=True)
        axes.plot([when / 60 for when in times], values, linewidth=0.8, label=each.name)
    for mark in drawn.marks:
        axes.axvline(mark / 60, color="tab:red", linestyle=":", linewidth=0.8)
    if defaults.get("custom", {}).get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log", nonpositive="mask")
    elif "min" in defaults or "max" in defaults:
        axes.set_ylim(defaults.get("min"), defaults.get("max"))
    _over_minutes(axes, drawn)
    if 0 < len(drawn.found) <= MOST_NAMES:
        axes.legend(fontsize=FONT - 1.5, loc="best", framealpha=0.6)


def _states(axes: Axes, drawn: Drawn) -> None:
    for height, each in enumerate(drawn.found):
        times = [when / 60 for when, _ in each.course.values]
        step = times[1] - times[0] if len(times) > 1 else drawn.seconds / 60
        colours = [COLOURS.get(f"{value:g}", "grey") for _, value in each.course.values]
        axes.broken_barh([(when, step) for when in times], (height - 0.4, 0.8), color=colours)
        axes.text(0, height, f" {each.name}", fontsize=FONT - 2, va="center")
    axes.set_yticks([])
    axes.invert_yaxis()
    _over_minutes(axes, drawn)


def _over_minutes(axes: Axes, drawn: Drawn) -> None:
    axes.set_xlim(0, drawn.seconds / 60)
    axes.xaxis.set_major_formatter("{x:g} min")
    axes.grid(visible=True, linewidth=0.3)
    axes.tick_params(length=2, pad=2, labelsize=FONT - 1)


def _digits(axes: Axes, drawn: Drawn) -> None:
    axes.set_axis_off()
    unit = drawn.panel["fieldConfig"]["defaults"].get("unit", "")
    shown = drawn.found[:MOST_ROWS]
    for number, each in enumerate(shown):
        height = 1 - (number + 0.5) / len(shown)
        value = _text(each.course.values[-1][1]) + (f" {unit}" if unit == "s" else "")
        axes.text(0.5, height, value, fontsize=2.5 * FONT, ha="center", va="bottom")
        axes.text(0.5, height, each.name, ha="center", va="top")


def _table(axes: Axes, drawn: Drawn) -> None:
    axes.set_axis_off()
    if not drawn.found:
        return
    references = [target["refId"] for target in drawn.panel["targets"]]
    heads = list(drawn.panel["transformations"][-1]["options"]["renameByName"].values())
    labels = list(dict.fromkeys(label for each in drawn.found for label in each.course.labels))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for each in drawn.found:
        key = tuple(each.course.labels.get(label, "") for label in labels)
        rows.setdefault(key, {})[each.reference] = _text(each.course.values[-1][1])
    cells = [
        [*key, *(values.get(reference, "") for reference in references)]
        for key, values in sorted(rows.items())
    ]
    table = axes.table(cells[:MOST_ROWS], colLabels=[*labels, *heads], loc="upper center")
    table.auto_set_font_size(False)
    table.set_fontsize(FONT - 1)


def _text(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) and abs(value) >= 1000 else f"{value:.3g}"


_KINDS = {
    "timeseries": _courses,
    "state-timeline": _states,
    "stat": _digits,
    "table": _table,
}
