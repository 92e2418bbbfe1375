"""Students held against their controls, on the same texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from training.study.grid import Plan
from training.study.results import Results, Split
from training.study.statistics import Difference, McNemar, bootstrap_difference, mcnemar
from training.study.tables import Cells, Group, Table, group
from training.study.workshop import N_TRAIN

BEHIND, UNCERTAIN = " †", " ‡"
_SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Comparison:
    """A student and another system on the same texts of one task.

    Attributes:
        difference: Student minus other in accuracy, each averaged over its own seeds.
        test: Of single predictions, those of the lowest seed that both have.
        seed: That seed.
    """

    student: Group
    other: Group
    difference: Difference
    test: McNemar
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {
            "student": name(self.student),
            "other": name(self.other),
            "difference": asdict(self.difference),
            "mcnemar": asdict(self.test),
            "mcnemar_seed": self.seed,
        }


def compare(student: Group, other: Group) -> Comparison | None:
    """None where they have no seed in common."""
    first, second = ({r.cell.seed: r.correct(student.split) for r in found.results} for found in (student, other))
    common = first.keys() & second.keys()
    if not common:
        return None
    # A control that draws nothing has one run, which stands for all its seeds.
    ours, theirs = (np.array(list(found.values())) for found in (first, second))
    seed = min(common)
    return Comparison(
        student, other, bootstrap_difference(ours, theirs, _SEED), mcnemar(first[seed], second[seed]), seed
    )


def comparisons(plan: Plan, task: str, results: Results, split: Split) -> list[Comparison]:
    """Every student of the main section with what is on its features, and with what has none; then with each other.

    Systems that learned from different numbers of texts are not held against each other.
    """
    groups = [g for g in group(plan.entries("main", task), results, split) if g.results]
    students = [g for g in groups if g.first.system in plan.students]
    others = [g for g in groups if g.first.system not in plan.students]
    pairs = [(s, o) for s in students for o in others if o.first.track in (s.first.track, "end-to-end")]
    pairs += [(second, first) for first, second in combinations(students, 2)]
    found = (compare(student, other) for student, other in pairs if as_many_texts(student, other))
    return [comparison for comparison in found if comparison is not None]


def as_many_texts(first: Group, second: Group) -> bool:
    """Whether both learned from the same number of training texts, or from the very same ones.

    `n_train` may be all texts of a task: the hash of what a cell learned from says so.
    """
    if first.first.options.get(N_TRAIN) == second.first.options.get(N_TRAIN):
        return True
    ours, theirs = (
        {result.found.get("data_sha256", {}).get("train") for result in found.results} - {None}
        for found in (first, second)
    )
    return not ours.isdisjoint(theirs)


def marks(found: list[Comparison], controls: tuple[str, ...]) -> dict[Cells, str]:
    """† behind a student that does not beat every control, ‡ behind one that does, but not beyond chance."""
    marked: dict[Cells, str] = {}
    for comparison in found:
        if comparison.other.first.system not in controls:
            continue
        if comparison.difference.mean <= 0:
            marked[comparison.student.cells] = BEHIND
        elif not comparison.difference.certain:
            marked.setdefault(comparison.student.cells, UNCERTAIN)
    return marked


def notes(found: list[Comparison], controls: tuple[str, ...]) -> list[str]:
    """A sentence for each control that a student does not beat, or not beyond chance."""
    lines = []
    for comparison in found:
        difference = comparison.difference
        if comparison.other.first.system not in controls or (difference.mean > 0 and difference.certain):
            continue
        said = "does not beat" if difference.mean <= 0 else "is ahead, but not beyond chance, of"
        mark = (BEHIND if difference.mean <= 0 else UNCERTAIN).strip()
        lines.append(
            f"{mark} {name(comparison.student)} {said} the control {name(comparison.other)}: "
            f"difference {_interval(difference)}; McNemar, seed {comparison.seed}: {_p(comparison.test)}."
        )
    return lines


def comparison_table(found: list[Comparison]) -> Table:
    """Paired differences in accuracy, with the interval and the test behind each."""
    table = Table(
        [
            "student",
            "held against",
            "difference (95 % interval)",
            "said in words",
            "only student / other right",
            "McNemar",
        ]
    )
    for comparison in found:
        test = comparison.test
        table.rows.append(
            [
                name(comparison.student),
                name(comparison.other),
                _interval(comparison.difference),
                verdict(comparison.difference),
                f"{test.only_first} / {test.only_second}",
                _p(test),
            ]
        )
    return table


def verdict(difference: Difference) -> str:
    """What the interval allows to be said."""
    if not difference.certain:
        return "no difference beyond chance"
    return "student is better" if difference.mean > 0 else "student is worse"


def name(found: Group) -> str:
    """A group in a sentence."""
    teacher = f", {found.first.teacher}" if found.first.teacher else ""
    return f"{found.row} ({found.first.track}{teacher})"


def _interval(difference: Difference) -> str:
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"


def _p(test: McNemar) -> str:
    return "p < 0.0001" if test.p < 1e-4 else f"p = {test.p:.4f}"
