"""The study's tables, Markdown, from the cells' results; a cell that was not run is named where it is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.study.cells import Cell
from training.study.grid import Entry, Plan, Row, Section
from training.study.results import Result, Results, Split
from training.study.statistics import Spread, spread
from training.study.workshop import N_TRAIN

Cells = tuple[Cell, ...]
METRICS = ("accuracy", "precision", "recall", "f1")
PAPER = "paper, other data"
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Group:
    """The seeds of one system, with one track, teacher and set of options, on one task."""

    row: Row
    cells: Cells
    results: tuple[Result, ...]
    missing: Cells
    split: Split

    @property
    def first(self) -> Cell:
        return self.cells[0]

    def spread(self, name: str) -> Spread | None:
        """Over the runs that have the figure; None where none has."""
        found = [result.figure(name, self.split) for result in self.results]
        values = [value for value in found if value is not None]
        return spread(values) if values else None

    def ratio(self, name: str) -> Spread | None:
        """Accuracy per `name`, of each run that has any of it; None where none has."""
        pairs = [(r.figure("accuracy", self.split), r.figure(name, self.split)) for r in self.results]
        values = [accuracy / amount for accuracy, amount in pairs if accuracy is not None and amount]
        return spread(values) if values else None

    def to_json(self) -> dict[str, Any]:
        """Every figure that a table or a plot may print of it, unrounded."""
        cell = self.first
        figures = {name: self.spread(name) for name in (*METRICS, *_OF_THE_RUN)}
        ratios = {f"accuracy / {name}": self.ratio(name) for name in ("n_trainable", "distil_seconds")}
        return {
            "row": self.row,
            "system": cell.system,
            "task": cell.task,
            "track": cell.track,
            "teacher": cell.teacher,
            "options": cell.options.as_dict(),
            "seeds": [result.cell.seed for result in self.results],
            "missing": [missed.id for missed in self.missing],
            "figures": {name: value.to_json() for name, value in (figures | ratios).items() if value is not None},
        }


_OF_THE_RUN = ("n_trainable", "n_total", "distil_seconds", "inference_us")


def group(entries: Sequence[Entry], results: Results, split: Split) -> list[Group]:
    """Entries that differ by seed alone, in the order of their first."""
    found: dict[tuple[object, ...], dict[Cell, Row]] = {}
    for entry in entries:
        cell = entry.cell
        key = (entry.row, cell.system, cell.task, cell.track, cell.teacher, cell.options)
        found.setdefault(key, {})[cell] = entry.row
    groups = []
    for cells in found.values():
        got = {cell: results.get(cell, split) for cell in cells}
        groups.append(
            Group(
                next(iter(cells.values())),
                tuple(cells),
                tuple(result for result in got.values() if result is not None),
                tuple(cell for cell, result in got.items() if result is None),
                split,
            )
        )
    return groups


@dataclass
class Table:
    """A Markdown table and what is said below it."""

    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n\n".join([table, *self.notes])


def parameter_table(plan: Plan, results: Results, split: Split, paper: Mapping[str, str]) -> Table:
    """Table 3: parameters of every system, trained ones and all that an answer needs.

    Args:
        plan: The study.
        results: Of its cells.
        split: Texts that cells are measured on.
        paper: The paper's counts, by system.
    """
    table = Table(["system", "track", "teacher", *(f"{task}: trained / all" for task in plan.tasks), PAPER])
    for row in by_row(plan, "main", results, split):
        first = next(iter(row.values()))
        cells = [_parameters(row[task]) if task in row else "not planned" for task in plan.tasks]
        table.rows.append([*names(first), *cells, paper.get(first.first.system, NOT_GIVEN)])
    return table


def task_table(
    plan: Plan, task: str, results: Results, split: Split, marks: Mapping[Cells, str], paper: Mapping[str, float]
) -> Table:
    """Tables 4-6: quality of every system on one task, absolute, per parameter and per second of distillation.

    Args:
        plan: The study.
        task: Which.
        results: Of its cells.
        split: Texts that are measured on.
        marks: What is put behind a group's accuracy, by its cells.
        paper: The paper's accuracies on the task, by system.
    """
    columns = ["accuracy", "P", "R", "F1", "Acc/Param", "Acc/Tkd (1/s)", "Tkd (s)"]
    table = Table(["system", "track", "teacher", *columns, f"accuracy, {PAPER}"])
    for found in group(plan.entries("main", task), results, split):
        of_paper = f"{paper[found.first.system]:.4f}" if found.first.system in paper else NOT_GIVEN
        if not found.results:
            table.rows.append([*names(found), missing(found), *["not run"] * (len(columns) - 1), of_paper])
            continue
        accuracy, *others = (as_text(found.spread(name)) for name in METRICS)
        table.rows.append(
            [
                *names(found),
                accuracy + marks.get(found.cells, "") + _remarks(found),
                *others,
                as_text(found.ratio("n_trainable"), ".3g", "nothing trained"),
                as_text(found.ratio("distil_seconds"), ".3g", "not timed"),
                as_text(found.spread("distil_seconds"), ".3g", "not timed"),
                of_paper,
            ]
        )
    return table


def accuracy_table(
    plan: Plan, section: Section, first: str, results: Results, split: Split, paper: Mapping[str, float] | None = None
) -> Table:
    """Table 7 and those beside the plots: rows of a section, tasks as columns, accuracy in the cells.

    Args:
        plan: The study.
        section: Which.
        first: What a row is.
        results: Of the plan's cells.
        split: Texts that are measured on.
        paper: The paper's mean accuracies, by row; without, there are no means.
    """
    last = [] if paper is None else ["mean", f"mean, {PAPER}"]
    table = Table([first, "track", "teacher", *plan.tasks, *last])
    for row in by_row(plan, section, results, split):
        found = next(iter(row.values()))
        cells = [accuracy_text(row[task]) if task in row else "not planned" for task in plan.tasks]
        if paper is not None:
            spreads = [row[task].spread("accuracy") if task in row else None for task in plan.tasks]
            means = [value.mean for value in spreads if value is not None]
            cells.append(f"{sum(means) / len(means):.4f}" if len(means) == len(plan.tasks) else "not of every task")
            cells.append(f"{paper[str(found.row)]:.4f}" if str(found.row) in paper else NOT_GIVEN)
        table.rows.append([*names(found), *cells])
    return table


def sweep_table(plan: Plan, section: Section, axis: str, results: Results, split: Split) -> Table:
    """A sweep: a row for each system and point, the section's tasks as columns, accuracy in the cells.

    Args:
        plan: The study.
        section: Whose rows are the points.
        axis: What the points are.
        results: Of the plan's cells.
        split: Texts that are measured on.
    """
    tasks = [task for task in plan.tasks if plan.entries(section, task)]
    table = Table([axis, "system", "track", "teacher", *tasks])
    for row in by_row(plan, section, results, split):
        first = next(iter(row.values()))
        point, track, teacher = names(first)
        cells = [accuracy_text(row[task]) if task in row else "not planned" for task in tasks]
        table.rows.append([point, first.first.system, track, teacher, *cells])
    return table


def noise_table(plan: Plan, section: Section, axis: str, results: Results, split: Split) -> Table:
    """`sweep_table` of students on the emulated chip; below it, which stated fidelities its relaxation does not allow.

    Args:
        plan: The study.
        section: `fidelity`, `readout` or `shots`.
        axis: What the points are.
        results: Of the plan's cells.
        split: Texts that are measured on.
    """
    table = sweep_table(plan, section, axis, results, split)
    found = [results.get(entry.cell, split) for entry in plan.entries(section)]
    noises = [result.found["facts"].get("noise", {}) for result in found if result is not None]
    unmet = [noise for noise in noises if noise and noise["cz_fidelity"] > noise["cz_relaxation_limit"]]
    if unmet:
        limit = min(noise["cz_relaxation_limit"] for noise in unmet)
        table.notes.append(
            "With Baihua's published T1 and T2, relaxation during a CZ alone leaves an average fidelity of "
            f"{limit:.4f} on this chain: stated figures above it are not attained, and CZ has no other error there."
        )
    return table


def teachers_that_changed(plan: Plan, results: Results, split: Split) -> list[str]:
    """A line for each teacher and task whose cells heard several teachers of that name; from its logits' hashes.

    Cells with fewer texts (`n_train`) are left out: each has its own rows of the logits.
    """
    heard: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in plan.cells:
        result = results.get(cell, split)
        if result is not None and cell.teacher is not None and (found := _teacher_of(result)) is not None:
            heard.setdefault((cell.teacher, cell.task), {}).setdefault(found, []).append(cell)
    lines = []
    for (teacher, task), hashes in heard.items():
        if len(hashes) > 1:
            counts = ", ".join(f"{len(cells)} (such as `{cells[0].id}`)" for cells in hashes.values())
            lines.append(
                f"{teacher} on {task}: its logits are {len(hashes)} different ones, of as many cells as {counts}."
            )
    return lines


def missing_table(plan: Plan, results: Results, split: Split) -> Table:
    """Every group of cells that the tables lack, and why where that is known."""
    table = Table(["system", "task", "track", "teacher", "options", "seeds", "first cell", "what is known"])
    lacking: dict[tuple[str, ...], list[Cell]] = {}
    for cell in plan.cells:
        if results.get(cell, split) is not None:
            continue
        known = results.failure(cell)
        if known is None:
            other: Split = "validation" if split == "test" else "test"
            known = "not run" if results.get(cell, other) is None else f"measured on the {other} texts only"
        options = ", ".join(f"{name} = {value}" for name, value in cell.options.items())
        about = (cell.system, cell.task, cell.track, cell.teacher or "none", options or "none")
        lacking.setdefault((*about, " ".join(known.split())[:200]), []).append(cell)
    for alike, cells in lacking.items():
        seeds = ", ".join(str(cell.seed) for cell in cells)
        table.rows.append([*alike[:-1], seeds, f"`{cells[0].id}`", alike[-1]])
    return table


def by_row(plan: Plan, section: Section, results: Results, split: Split) -> list[dict[str, Group]]:
    """Groups of a section by task, one dictionary a row; tasks may differ in their options."""
    rows: dict[tuple[object, ...], dict[str, Group]] = {}
    for found in group(plan.entries(section), results, split):
        cell = found.first
        base = (found.row, cell.system, cell.track, cell.teacher)
        row = rows.setdefault(base, {})
        # A second set of options for a task of the row is a row of its own.
        (rows.setdefault((*base, cell.options), {}) if cell.task in row else row)[cell.task] = found
    return list(rows.values())


def accuracy_text(found: Group) -> str:
    """Accuracy, and what is missing."""
    return as_text(found.spread("accuracy")) + _remarks(found) if found.results else missing(found)


def as_text(value: Spread | None, form: str = ".4f", nothing: str = "not measured") -> str:
    """Mean ± standard deviation; one run has no deviation, and says so."""
    if value is None:
        return nothing
    if value.std is None:
        return f"{value.mean:{form}} (1 run)"
    return f"{value.mean:{form}} ± {value.std:{form}}"


def missing(found: Group) -> str:
    """`not run` with the id of the first cell; the table of missing cells says more."""
    more = f" and {len(found.missing) - 1} more" if len(found.missing) > 1 else ""
    return f"not run `{found.missing[0].id}`{more}"


def names(found: Group) -> list[str]:
    """Row, track and teacher."""
    return [str(found.row), found.first.track, found.first.teacher or "none"]


def _remarks(found: Group) -> str:
    hashes = {_teacher_of(result) for result in found.results} - {None}
    several = " (taught by several teachers of that name)" if len(hashes) > 1 else ""
    lacking = f" ({len(found.results)} of {len(found.cells)} runs; {missing(found)})" if found.missing else ""
    return several + lacking


def _teacher_of(result: Result) -> str | None:
    """Hash of the teacher's logits of all training texts; None where there is no teacher, or no hash of all."""
    if N_TRAIN in result.cell.options:
        return None
    found: str | None = result.found.get("teacher_sha256")
    return found


def _parameters(found: Group) -> str:
    if not found.results:
        return missing(found)
    counts = {(r.n_trainable, int(r.found["n_total"])) for r in found.results}
    return "; ".join(f"{trained:,} / {total:,}" for trained, total in sorted(counts))
