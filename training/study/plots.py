"""The study's plots, PNG, from the cells' results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from training.figures import save
from training.study.cells import Track
from training.study.grid import Plan, Section
from training.study.results import Results, Split
from training.study.tables import Group, group

_WIDE = 8  # of points that far apart the larger ones would hide the smaller ones
_COLOURS: dict[Track, str] = {"frozen": "C0", "adapted": "C1", "adapted-large": "C3", "end-to-end": "C2"}
Measure = Literal["accuracy", "distil_seconds", "inference_us"]
NAMES: dict[Measure, str] = {
    "accuracy": "accuracy",
    "distil_seconds": "distillation, CPU seconds an epoch",
    "inference_us": "inference, CPU µs a text",
}


def dots(plan: Plan, section: Section, measures: Sequence[Measure], results: Results, split: Split, path: Path) -> bool:
    """A section's rows as points: one panel for each measure and task, standard deviations as whiskers.

    Points, not bars: an axis of times far apart is logarithmic and an accuracy's does not start at 0, so that a bar's
    length would say nothing.

    Returns:
        Whether there was anything to draw; without, no file is left.
    """
    panels = [(measure, task) for measure in measures for task in plan.tasks]
    n_rows = max(len({(e.row, e.cell.track, e.cell.teacher) for e in plan.entries(section, t)}) for t in plan.tasks)
    figure, axes = _panels(len(measures), len(plan.tasks), height=1.2 + 0.2 * n_rows)
    drawn = False
    for axis, (measure, task) in zip(axes, panels, strict=True):
        found = [(g, g.spread(measure)) for g in group(plan.entries(section, task), results, split)]
        points = [(g, s) for g, s in found if s is not None]
        for place, (row, value) in enumerate(points):
            colour = _COLOURS[row.first.track]
            axis.errorbar(value.mean, place, xerr=value.std or 0.0, fmt="o", markersize=4, capsize=2, color=colour)
        axis.set_yticks(range(len(points)), [_label(g) for g, _ in points], fontsize=7)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_xlabel(NAMES[measure], fontsize=8)
        axis.set_title(task, fontsize=9)
        if not points:
            _say_not_run(axis)
        elif _far_apart([value.mean for _, value in points]):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        drawn = drawn or bool(points)
    return save(figure, path, drawn)


def curves(plan: Plan, section: Section, axis_name: str, results: Results, split: Split, path: Path) -> bool:
    """Accuracy against a section's points, a panel for each task that has any, one line a system and teacher.

    Returns:
        As `dots` does.
    """
    tasks = [task for task in plan.tasks if plan.entries(section, task)]
    figure, axes = _panels(1, len(tasks), height=3.4)
    drawn = False
    for axis, task in zip(axes, tasks, strict=True):
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for found in group(plan.entries(section, task), results, split):
            value = found.spread("accuracy")
            if value is not None and not isinstance(found.row, str):
                lines.setdefault(_line(found), []).append((float(found.row), value.mean, value.std or 0.0))
        for name, line in lines.items():
            points, means, errors = zip(*sorted(line), strict=True)
            axis.errorbar(points, means, yerr=errors, marker="o", markersize=3, capsize=2, label=name)
        ticks = sorted({point for line in lines.values() for point, _, _ in line})
        if ticks:
            axis.set_xscale("log" if _far_apart(ticks) else "linear")
            axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
            axis.set_xticks([], minor=True)
        axis.set_xlabel(axis_name, fontsize=8)
        axis.set_ylabel(NAMES["accuracy"], fontsize=8)
        axis.set_title(task, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if lines:
            axis.legend(fontsize=6)
        else:
            _say_not_run(axis)
        drawn = drawn or bool(lines)
    return save(figure, path, drawn)


def _far_apart(values: Sequence[float]) -> bool:
    return max(values) >= _WIDE * min(values) > 0


def _panels(n_rows: int, n_columns: int, height: float) -> tuple[Figure, list[Axes]]:
    # Without pyplot no display is looked for and no figure stays open.
    figure = Figure(figsize=(4.2 * n_columns, height * n_rows), layout="constrained")
    return figure, list(figure.subplots(n_rows, n_columns, squeeze=False).flat)


def _say_not_run(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", va="center", fontsize=8)


def _label(found: Group) -> str:
    return f"{found.row} ({found.first.track})"


def _line(found: Group) -> str:
    teacher = f", {found.first.teacher}" if found.first.teacher else ""
    return f"{found.first.system} ({found.first.track}{teacher})"
