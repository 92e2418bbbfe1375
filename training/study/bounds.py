"""Whether the targets are met, and what stands in the way: the teacher, the encoder, the number of texts."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from itertools import pairwise
from typing import Any

from training.pipeline import MAX_PARAMETERS
from training.study.cells import Cell
from training.study.controls import LogisticRegressionControl, UntaughtStudent
from training.study.grid import Entry, Plan, Section
from training.study.paper import TARGETS
from training.study.results import Results, Split
from training.study.statistics import Spread
from training.study.tables import PAPER, Group, Table, accuracy_text, by_row, group, names
from training.study.teacher_system import TeacherSystem
from training.study.workshop import N_TRAIN

_PROBE = LogisticRegressionControl.name
_TEACHER = TeacherSystem.name
_TRIED: tuple[Section, ...] = ("main", "losses", "teachers", "size", "qubits", "layers")


def target_lines(
    plan: Plan, results: Results, split: Split, targets: Mapping[str, float]
) -> tuple[list[str], list[dict[str, Any]]]:
    """A table of every student of the main section against its task's target, and the same for machines.

    Students that learn from fewer texts than there are stand beside baselines that do, and not here.
    """
    table = Table(
        ["task", "target", "student", "track", "teacher", f"accuracy, {split}", "trained parameters", "target is"]
    )
    found: list[dict[str, Any]] = []
    for task in plan.tasks:
        for student in _of(plan, results, split, "main", task, plan.students):
            if task not in targets or N_TRAIN in student.first.options:
                continue
            row, track, teacher = names(student)
            value, target = student.spread("accuracy"), targets[task]
            count = max((result.n_trainable for result in student.results), default=None)
            about = accuracy_text(student), "not run" if count is None else _count(count)
            verdict = _verdict(value, target, len(student.cells), split, count)
            table.rows.append([task, f"{target:.4f}", row, track, teacher, *about, verdict])
            found.append(
                {
                    "task": task,
                    "row": row,
                    "track": track,
                    "teacher": teacher,
                    "target": target,
                    "accuracy": None if value is None else value.to_json(),
                    "margin": None if value is None else value.mean - target,
                    "n_trainable": count,
                    "said": verdict,
                }
            )
    note = (
        f"The targets are of the test texts, means of {len(_seeds(plan))} seeds, with at most {MAX_PARAMETERS:,} "
        "trained parameters."
    )
    return [note, str(table)], found


def teacher_table(plan: Plan, results: Results, split: Split, paper: Mapping[str, Mapping[str, float]]) -> Table:
    """Table 8: every teacher's own accuracy, and its students' below it; the paper's students at the end."""
    table = Table(["teacher", "of whom", "parameters", *plan.tasks])
    rows = by_row(plan, "teachers", results, split)
    teachers = dict.fromkeys(next(iter(row.values())).first.teacher for row in rows)
    for teacher in teachers:
        for row in rows:
            first = next(iter(row.values()))
            if first.first.teacher != teacher:
                continue
            itself = first.first.system == _TEACHER
            counts = sorted(
                {int(r.found["n_total" if itself else "n_trainable"]) for g in row.values() for r in g.results}
            )
            cells = [accuracy_text(row[task]) if task in row else "not planned" for task in plan.tasks]
            of_whom = "the teacher itself" if itself else f"student, {first.first.track}"
            about = " or ".join(f"{count:,}" for count in counts) or "not run"
            table.rows.append([teacher or "none", of_whom, about, *cells])
    for teacher, accuracies in paper.items():
        cells = [f"{accuracies[task]:.4f}" if task in accuracies else "not given" for task in plan.tasks]
        table.rows.append([teacher, f"student, {PAPER}", "9,275", *cells])
    table.notes = ["Parameters are all of a teacher's, and a student's trained ones."]
    return table


def bounds_table(plan: Plan, results: Results, split: Split) -> Table:
    """Targets, teachers, linear probes, students and the last steps of the learning curves, side by side.

    Below the table each task's tracks that miss its target are held against teachers, probes and all that was tried;
    of test texts alone, which the targets are of.
    """
    table = Table(["accuracy", *plan.tasks])
    parts = {task: _parts(plan, task, results, split) for task in plan.tasks}
    for row in dict.fromkeys(row for found in parts.values() for row in found):
        table.rows.append([row, *(parts[task].get(row, "not planned") for task in plan.tasks)])
    if split == "test":
        table.notes = [line for task in plan.tasks if (line := _said(plan, task, results, split))]
    return table


def _parts(plan: Plan, task: str, results: Results, split: Split) -> dict[str, str]:
    """The rows of one task."""
    found = {"target (test)": f"{TARGETS[task]:.4f}" if task in TARGETS else "none"}
    for teacher in _of(plan, results, split, "teachers", task, (_TEACHER,)):
        found[f"teacher itself: {teacher.first.teacher}"] = accuracy_text(teacher)
    for probe in _of(plan, results, split, "main", task, (_PROBE,)):
        found[f"linear probe of the {probe.first.track} encoder ({_PROBE})"] = accuracy_text(probe)
    for student in _of(plan, results, split, "main", task, plan.students):
        row, track, taught_by = names(student)
        found[f"{row}, {track}, taught by {taught_by}"] = accuracy_text(student)
    for (system, name), curve in _learning_curves(plan, task, results, split).items():
        taught = f", taught by {name}" if name else ""
        for (few, low), (many, high) in list(pairwise(curve))[-1:]:
            found[f"{system}{taught}: what the last step in texts adds"] = (
                f"{high.mean - low.mean:+.4f} ({few:,} to {many:,} texts)"
            )
    return found


def _said(plan: Plan, task: str, results: Results, split: Split) -> str:
    """What bounds a task's students, in words that its figures decide; empty where there is nothing to say."""
    students = _best(_of(plan, results, split, "main", task, plan.students), lambda cell: cell.track)
    if task not in TARGETS or not students:
        return ""
    target = TARGETS[task]
    missed = {track: best for track, best in students.items() if best < target}
    if not missed:
        return f"{task.capitalize()}: the target is reached on every track."
    probes = _best(_of(plan, results, split, "main", task, (_PROBE,)), lambda cell: cell.track)
    reached = [track for track in students if track not in missed]
    said = [f"the target is reached on {' and '.join(reached)}"] if reached else []
    for track, best in missed.items():
        probe = f", a linear probe of its features {_beside(probes[track], target)}" if track in probes else ""
        said.append(f"on {track} the best student is {_beside(best, target)}{probe}")
    teachers = _best(_of(plan, results, split, "teachers", task, (_TEACHER,)), lambda cell: cell.teacher)
    if teachers:
        name = max(teachers, key=lambda teacher: teachers[teacher])
        said.append(f"the best teacher itself, {name}, is {_beside(teachers[name], target)}")
    tried = _tried(plan, task, results, split, set(missed))
    if len(tried) > len(missed):
        there = "there" if reached else "of all sections"
        said.append(
            f"of the {len(tried)} student configurations {there} the best on these very texts is "
            f"{_beside(max(tried), target)}"
        )
    for (system, teacher), curve in _learning_curves(plan, task, results, split).items():
        if teacher is None and len(curve) > 1:
            (few, low), (many, high) = curve[-2:]
            more = "still gains" if _apart(low, high) else "gains no more than its seeds differ:"
            said.append(f"{system} on {many:,} instead of {few:,} texts {more} {high.mean - low.mean:+.4f}")
    return f"{task.capitalize()}: {'; '.join(said)}."


def _best(groups: Sequence[Group], key: Callable[[Cell], str | None]) -> dict[str, float]:
    """The best mean accuracy by what a cell's `key` is, of those that were run."""
    found: dict[str, float] = {}
    for one in groups:
        if value := one.spread("accuracy"):
            name = key(one.first) or "none"
            found[name] = max(value.mean, found.get(name, 0.0))
    return found


def _tried(plan: Plan, task: str, results: Results, split: Split, tracks: Container[str]) -> list[float]:
    """Mean accuracy of each noise-free student configuration, whatever teacher, loss, circuit or number of texts."""
    entries = [
        Entry(entry.cell, "")  # one row: what is in several sections counts once
        for section in _TRIED
        for entry in plan.entries(section, task)
        if entry.cell.track in tracks and entry.cell.system in (*plan.students, UntaughtStudent.name)
    ]
    return [value.mean for g in group(entries, results, split) if (value := g.spread("accuracy"))]


def _learning_curves(
    plan: Plan, task: str, results: Results, split: Split
) -> dict[tuple[str, str | None], list[tuple[int, Spread]]]:
    """Accuracy by number of texts, ascending, of each system and teacher that has any."""
    curves: dict[tuple[str, str | None], list[tuple[int, Spread]]] = {}
    for found in group(plan.entries("size", task), results, split):
        value = found.spread("accuracy")
        if value is not None and not isinstance(found.row, str):
            curves.setdefault((found.first.system, found.first.teacher), []).append((int(found.row), value))
    return {key: sorted(curve, key=lambda point: point[0]) for key, curve in curves.items()}


def _of(plan: Plan, results: Results, split: Split, section: Section, task: str, systems: Sequence[str]) -> list[Group]:
    return [g for g in group(plan.entries(section, task), results, split) if g.first.system in systems]


def _verdict(value: Spread | None, target: float, planned: int, split: Split, count: int | None) -> str:
    """Met or missed by students of the paper's size on test texts; of all others no more than above or below."""
    if value is None:
        return "not measured"
    margin = value.mean - target
    if split != "test":
        said = f"{abs(margin):.4f} {'below' if margin >= 0 else 'above'} the accuracy on texts that chose the epoch"
    elif margin >= 0 and count is not None and count > MAX_PARAMETERS:
        said = f"reached, by {margin:.4f}, with too many parameters"
    else:
        said = f"met, by {margin:.4f}" if margin >= 0 else f"missed by {-margin:.4f}"
    return said if value.n == planned else f"{said} so far ({value.n} of {planned} runs)"


def _count(count: int) -> str:
    return f"{count:,}" if count <= MAX_PARAMETERS else f"{count:,}, more than {MAX_PARAMETERS:,}"


def _beside(value: float, target: float) -> str:
    return f"{abs(value - target):.4f} {'above' if value >= target else 'below'} it ({value:.4f})"


def _apart(low: Spread, high: Spread) -> bool:
    """Whether the step is larger than both standard deviations together."""
    return high.mean - low.mean > (low.std or 0.0) + (high.std or 0.0)


def _seeds(plan: Plan) -> set[int]:
    return {entry.cell.seed for entry in plan.entries("main") if entry.cell.system in plan.students}
