"""Draw the dashboards of `deploy/grafana` with what a Prometheus has seen, without a Grafana.

    python -m benchmarks.panels http://127.0.0.1:9090 FOLDER [--minutes 15]

Writes `backends.png` and `service.png`: every panel at its place, with its title, unit and legend.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

import httpx
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from benchmarks.serving import ROOT

DASHBOARDS = ROOT / "deploy" / "grafana"
_N_STEPS = 240
_MAX_LEGEND = 12
_LETTERS_IN_A_COLUMN = 12
# Below a graph: its times, and lines of a legend. There is always room for two, so that neighbours are as high.
_TIMES_INCHES, _LEGEND_INCHES, _MIN_LEGEND = 0.27, 0.17, 2
# Grafana's page is 24 columns wide; a row of its grid is 30 pixels high.
_COLUMN_INCHES, _ROW_INCHES = 0.75, 0.31
_COLOURS = {"green": "#2c8a4b", "orange": "#d9822b", "red": "#c53030", "blue": "#3b6fb6", "purple": "#7b52ab"}
_LINES = ("#3b6fb6", "#d9822b", "#2c8a4b", "#7b52ab", "#c53030", "#1c9aa8", "#8c6d31", "#c2569b", "#6b7280", "#9aa524")
_GREY, _FAINT = "#5b6470", "#d7dbe0"


@dataclass(frozen=True)
class Series:
    """One line of a panel: times in seconds since the epoch, and what was seen then."""

    name: str
    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]

    @property
    def latest(self) -> float:
        """The last value that is a number; not a number if there is none."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), math.nan)


class Source:
    """A Prometheus, asked for the last minutes.

    Args:
        http: Reaches it.
        minutes: How far back.
    """

    def __init__(self, http: httpx.Client, minutes: float) -> None:
        self._http = http
        self.end = time()
        self.start = self.end - 60 * minutes
        self._step = max(1.0, 60 * minutes / _N_STEPS)
        targets = self._get("targets")["activeTargets"]
        scrape = max((_seconds(target["scrapeInterval"]) for target in targets), default=15.0)
        self._rate_interval = f"{math.ceil(max(4 * scrape, self._step + scrape))}s"

    def series(self, expression: str, legend: str = "") -> list[Series]:
        """What an expression was, at each step.

        Raises:
            RuntimeError: If Prometheus cannot evaluate it.
        """
        sent = expression.replace("$__rate_interval", self._rate_interval).replace("$task", ".*")
        found = self._get("query_range", query=sent, start=str(self.start), end=str(self.end), step=str(self._step))[
            "result"
        ]
        return [Series(_named(legend, each["metric"]), each["metric"], *self._with_gaps(each)) for each in found]

    def _with_gaps(self, found: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        """Times and values, with one that is no number where there was none: no line is drawn across."""
        times: list[float] = []
        values: list[float] = []
        for at, value in found["values"]:
            if times and at - times[-1] > 1.5 * self._step:
                times.append(times[-1] + self._step)
                values.append(math.nan)
            times.append(float(at))
            values.append(float(value))
        return times, values

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._http.get(f"/api/v1/{path}", params=parameters).json()
        if answer["status"] != "success":
            raise RuntimeError(f"{parameters}: {answer['error']}")
        return answer["data"]


def _named(legend: str, labels: Mapping[str, str]) -> str:
    """A legend with the labels in it."""
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of the Prometheus")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--minutes", type=float, default=15.0, help="how far back (15)")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    with httpx.Client(base_url=options.url, timeout=60) as http:
        source = Source(http, options.minutes)
        for name in ("backends", "service"):
            dashboard = json.loads((DASHBOARDS / f"{name}.json").read_text("utf-8"))
            draw(dashboard, source, options.folder / f"{name}.png")
    return 0


def draw(dashboard: Mapping[str, Any], source: Source, path: Path) -> None:
    """Write a picture of a dashboard.

    Raises:
        RuntimeError: If Prometheus cannot evaluate one of its expressions.
    """
    panels = dashboard["panels"]
    n_rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    marks = _annotations(dashboard, source)
    with plt.rc_context({"font.size": 8, "font.family": "DejaVu Sans", "axes.edgecolor": _FAINT}):
        figure = plt.figure(figsize=(24 * _COLUMN_INCHES, n_rows * _ROW_INCHES + 0.6), facecolor="white")
        top = 1 - 0.6 / figure.get_figheight()
        grid = GridSpec(n_rows, 24, figure, left=0.01, right=0.99, top=top, bottom=0.005, wspace=0.0, hspace=0.0)
        until = datetime.fromtimestamp(source.end, UTC)
        minutes = (source.end - source.start) / 60
        figure.text(0.012, 1 - 0.32 / figure.get_figheight(), dashboard["title"], fontsize=15, weight="bold")
        figure.text(
            0.988,
            1 - 0.3 / figure.get_figheight(),
            f"{minutes:.3g} minutes until {until:%Y-%m-%d %H:%M} UTC",
            ha="right",
            color=_GREY,
        )
        for panel in panels:
            place = panel["gridPos"]
            cell = grid[place["y"] : place["y"] + place["h"], place["x"] : place["x"] + place["w"]]
            _draw_panel(figure, cell.get_position(figure), panel, source, marks)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _draw_panel(figure: Figure, cell: Bbox, panel: Mapping[str, Any], source: Source, marks: Sequence[float]) -> None:
    inch = 1 / figure.get_figheight()
    if panel["type"] == "row":
        y = cell.y0 + 0.3 * cell.height
        figure.text(cell.x0, y, panel["title"], fontsize=11, weight="bold", color=_GREY)
        return
    # Room for the title above, for times and legend below, and for the axis at the left.
    below_a_graph = _TIMES_INCHES + _MIN_LEGEND * _LEGEND_INCHES
    above, below = 0.33 * inch, (below_a_graph if panel["type"] == "timeseries" else 0.3) * inch
    left = 0.03 if panel["type"] in ("timeseries", "bargauge") else 0.004
    axes = figure.add_axes((cell.x0 + left, cell.y0 + below, cell.width - left - 0.012, cell.height - above - below))
    figure.text(cell.x0 + 0.004, cell.y1 - 0.2 * inch, panel["title"], fontsize=9, weight="bold")
    found = [
        each for target in panel["targets"] for each in source.series(target["expr"], target.get("legendFormat", ""))
    ]
    if panel["type"] in ("timeseries", "state-timeline"):
        _times(axes, source, marks)
    _DRAWN[panel["type"]](axes, panel, found)
    if not any(math.isfinite(each.latest) for each in found):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=_COLOURS["red"])


def _annotations(dashboard: Mapping[str, Any], source: Source) -> list[float]:
    """When something was, as the annotations say: their values are milliseconds."""
    queries = dashboard.get("annotations", {}).get("list", [])
    values = {value / 1000 for query in queries for each in source.series(query["expr"]) for value in each.values}
    return sorted(value for value in values if source.start < value < source.end)


def _times(axes: Axes, source: Source, marks: Sequence[float]) -> None:
    axes.set_xlim(datetime.fromtimestamp(source.start, UTC), datetime.fromtimestamp(source.end, UTC))  # type: ignore[arg-type]
    # Fewer than 3 of a unit are less than 180 of the next, and its widest step of 30 may be taken 6 times.
    locator = AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # type: ignore[no-untyped-call]
    for at in marks:
        axes.axvline(datetime.fromtimestamp(at, UTC), color=_COLOURS["purple"], linewidth=1, linestyle=":")  # type: ignore[arg-type]


def _graph(axes: Axes, panel: Mapping[str, Any], found: Sequence[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    seen = [each for each in found if math.isfinite(each.latest)]
    for number, each in enumerate(seen):
        moments = [datetime.fromtimestamp(at, UTC) for at in each.times]
        style = "-" if number < len(_LINES) else "--"
        colour = _LINES[number % len(_LINES)]
        axes.plot(moments, each.values, style, color=colour, linewidth=1.3, label=each.name)  # type: ignore[arg-type]
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif any(value for each in seen for value in each.values if math.isfinite(value)):
        axes.set_ylim(0, min(axes.get_ylim()[1], defaults.get("max", math.inf) * 1.03))
    else:
        axes.set_ylim(0, 0.05 if defaults["unit"] == "percentunit" else 1)
    low, high = axes.get_ylim()
    for step in defaults.get("thresholds", {}).get("steps", []) if custom.get("thresholdsStyle") else []:
        if step["value"] is not None and low < step["value"] < high:
            axes.axhline(step["value"], color=_COLOURS[step["color"]], linewidth=0.9, linestyle="--")
    named = FuncFormatter(lambda value, _: said(value, defaults["unit"]))
    axes.yaxis.set_major_formatter(named)
    if axes.get_yscale() == "log" and high < 20 * low:  # too few powers of ten to read it by
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(named)
    axes.grid(color=_FAINT, linewidth=0.6)
    _bare(axes)
    if seen:
        _legend(axes, panel["gridPos"]["w"])


def _legend(axes: Axes, columns: int) -> None:
    """Below the times, as many names in a line as there is room for; the graph gives way to further lines."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > _MAX_LEGEND:
        labels[_MAX_LEGEND - 1] += f" and {len(labels) - _MAX_LEGEND} more"
    handles, labels = handles[:_MAX_LEGEND], labels[:_MAX_LEGEND]
    in_a_line = max(1, columns * _LETTERS_IN_A_COLUMN // (max(map(len, labels)) + 6))
    further = max(0, math.ceil(len(labels) / in_a_line) - _MIN_LEGEND)
    place = axes.get_position()
    inch = axes.figure.dpi / axes.figure.bbox.height
    height = place.height - further * _LEGEND_INCHES * inch
    axes.set_position((place.x0, place.y1 - height, place.width, height))
    axes.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(-0.02, -_TIMES_INCHES * inch / height),
        borderaxespad=0,
        ncols=in_a_line,
        frameon=False,
        fontsize=7,
        handlelength=1.2,
        columnspacing=1.0,
        borderpad=0,
    )


def _figure(axes: Axes, panel: Mapping[str, Any], found: Sequence[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    seen = [each for each in found if math.isfinite(each.latest)]
    named = {int(value): name for mapping in defaults.get("mappings", []) for value, name in mapping["options"].items()}
    for number, each in enumerate(seen):
        y = 1 - (number + 0.5) / len(seen)
        name = named.get(int(each.latest)) if each.latest.is_integer() else None
        text = name["text"] if name else said(each.latest, defaults["unit"])
        colour = name["color"] if name else _level(defaults, each.latest)
        size = 20 if len(seen) == 1 else 14 if len(seen) == 2 else 11
        axes.text(0.97, y, text, ha="right", va="center", fontsize=size, weight="bold", color=_COLOURS[colour])
        axes.text(0.03, y, each.name, ha="left", va="center", fontsize=8, color=_GREY)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_locator(NullLocator())


def _bars(axes: Axes, panel: Mapping[str, Any], found: Sequence[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    seen = [each for each in found if math.isfinite(each.latest)]
    colours = [_COLOURS[_level(defaults, each.latest)] for each in seen]
    drawn = axes.bar([each.name for each in seen], [each.latest for each in seen], color=colours, width=0.7)
    axes.bar_label(drawn, fmt="%.3f", fontsize=7, color=_GREY)
    highest = max((each.latest for each in seen), default=0.0)
    axes.set_ylim(0, min(defaults["max"], max(1.3 * highest, 0.1)))
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    _bare(axes)


def _states(axes: Axes, panel: Mapping[str, Any], found: Sequence[Series]) -> None:
    names = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    axes.set_ylim(-0.6, max(len(found), 1) - 0.2)
    for row, each in enumerate(reversed(found)):
        for begun, ended, value in _spells(each):
            if math.isnan(value):
                continue
            name = names.get(f"{value:g}", {"text": f"{value:g}", "color": "blue"})
            ends = [datetime.fromtimestamp(at, UTC) for at in (begun, ended)]
            (bar,) = axes.barh(row, ends[1] - ends[0], left=ends[0], height=0.7, color=_COLOURS[name["color"]])  # type: ignore[arg-type]
            text = axes.annotate(
                name["text"],
                (ends[0], row),
                (3, 0),
                textcoords="offset points",
                va="center",
                color="white",
                fontsize=7,
                clip_on=True,
            )  # type: ignore[arg-type]
            if text.get_window_extent().x1 > bar.get_window_extent().x1:
                text.remove()  # it would run into the next one
        axes.annotate(each.name, (0.0, row + 0.42), xycoords=("axes fraction", "data"), fontsize=7, color=_GREY)
    axes.yaxis.set_major_locator(NullLocator())
    _bare(axes)


def _spells(series: Series) -> Iterator[tuple[float, float, float]]:
    """Begin, end and value of each time for which the value stayed the same."""
    begun = 0
    for now in range(1, len(series.values) + 1):
        if now == len(series.values) or series.values[now] != series.values[begun]:
            yield series.times[begun], series.times[min(now, len(series.times) - 1)], series.values[begun]
            begun = now


def _table(axes: Axes, panel: Mapping[str, Any], found: Sequence[Series]) -> None:
    (organised,) = [each["options"] for each in panel["transformations"] if each["id"] == "organize"]
    columns = {
        label: organised["renameByName"][label]
        for label in sorted(organised["indexByName"], key=organised["indexByName"].get)
    }
    latest = max((each.times[-1] for each in found), default=0.0)
    now = [each for each in found if each.times[-1] == latest]
    rows = [[each.labels.get(label, f"{each.latest:g}") for label in columns] for each in now]
    axes.axis("off")
    if rows:
        drawn = axes.table(rows, colLabels=list(columns.values()), loc="upper left", cellLoc="left", edges="horizontal")
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7)
        drawn.auto_set_column_width(list(range(len(columns))))
        drawn.scale(1, 1.3)


def _level(defaults: Mapping[str, Any], value: float) -> str:
    """The colour of the highest threshold that a value has reached."""
    steps = defaults["thresholds"]["steps"]
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return str(reached[-1]["color"])


def said(value: float, unit: str) -> str:
    """A value in a unit of Grafana's."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        for size, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s"
    per = {"reqps": " req/s", "ops": " /s"}.get(unit, "")
    if abs(value) >= 999_500:
        return f"{value / 1e6:.3g} M{per}"
    return f"{value / 1e3:.3g} k{per}" if abs(value) >= 1e4 else f"{value:.3g}{per}"


def _seconds(duration: str) -> float:
    """Seconds of Prometheus' notation, such as `1m30s`."""
    sizes = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
    return sum(float(number) * sizes[unit] for number, unit in re.findall(r"(\d+)(ms|[hms])", duration))


def _bare(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(which="both", color=_FAINT, labelcolor=_GREY, labelsize=7)


_DRAWN = {
    "timeseries": _graph,
    "stat": _figure,
    "bargauge": _bars,
    "state-timeline": _states,
    "table": _table,
}

if __name__ == "__main__":
    sys.exit(main())
