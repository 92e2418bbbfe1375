from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from study_fakes import DATA, Guess, cell, ran

from training.study import bounds
from training.study.bounds import bounds_table, target_lines, teacher_table
from training.study.grid import Entry, Plan
from training.study.results import CellFolders

TASK = "weather"


def accuracy(share: float) -> float:
    return float((Guess(share).logits(DATA.test).argmax(axis=1) == DATA.test.targets).mean())


def plan(**sections: tuple[Entry, ...]) -> Plan:
    return Plan((TASK,), ("student",), ("logistic regression",), dict(sections))  # type: ignore[arg-type]


def students(share: float, n: int = 2) -> tuple[Entry, ...]:
    return tuple(Entry(cell(seed=seed, teacher="bloom", share=share, n_trainable=9000), "student") for seed in range(n))


@pytest.fixture
def results(tmp_path: Path) -> CellFolders:
    return CellFolders(tmp_path / "study")


@pytest.mark.parametrize(("target", "said"), [(0.5, "met, by 0."), (0.99, "missed by 0.")])
def test_target_is_met_or_missed_by_what_the_runs_give(results: CellFolders, target: float, said: str) -> None:
    entries = students(0.9)
    ran(results.root, *(entry.cell for entry in entries))
    lines, found = target_lines(plan(main=entries), results, "test", {TASK: target})
    mean = np.mean([accuracy(0.9), accuracy(0.9 - 0.05)])
    assert found[0]["margin"] == pytest.approx(mean - target)
    assert found[0]["said"].startswith(said)
    assert f"{abs(mean - target):.4f}" in found[0]["said"]
    assert found[0]["said"] in lines[1]
    assert "means of 2 seeds" in lines[0]


def test_target_is_met_only_so_far_while_runs_are_missing(results: CellFolders) -> None:
    entries = students(0.9, n=3)
    ran(results.root, entries[0].cell)
    _, found = target_lines(plan(main=entries), results, "test", {TASK: 0.5})
    assert found[0]["said"].endswith("so far (1 of 3 runs)")
    _, found = target_lines(plan(main=students(0.8)), results, "test", {TASK: 0.5})
    assert (found[0]["said"], found[0]["margin"]) == ("not measured", None)


def test_student_of_fewer_texts_is_held_against_no_target(results: CellFolders) -> None:
    few = Entry(cell(teacher="bloom", n_train=10, share=0.9), "student, 10 texts")
    found = plan(main=(few, *students(0.8)))
    ran(results.root, *found.cells)
    _, targets = target_lines(found, results, "test", {TASK: 0.5})
    assert [target["row"] for target in targets] == ["student"]


def test_student_that_is_too_large_is_said_to_be(results: CellFolders) -> None:
    one = Entry(cell(n_trainable=9276), "student")
    ran(results.root, one.cell)
    lines, _ = target_lines(plan(main=(one,)), results, "test", {TASK: 0.5})
    assert "9,276, more than 9,275" in lines[1]


def test_teacher_stands_above_its_students(results: CellFolders) -> None:
    itself = Entry(cell("teacher", track="end-to-end", teacher="bloom", share=0.95), "teacher itself")
    ours = Entry(cell(teacher="bloom", share=0.9, n_trainable=50), "student")
    untaught = Entry(cell("student without a teacher", share=0.8), "student")
    ran(results.root, itself.cell, ours.cell)
    table = teacher_table(plan(teachers=(itself, untaught, ours)), results, "test", {"OPT": {TASK: 0.8157}})
    assert table.rows == [
        ["bloom", "the teacher itself", "1,000", f"{accuracy(0.95):.4f} (1 run)"],
        ["bloom", "student, frozen", "50", f"{accuracy(0.9):.4f} (1 run)"],
        ["none", "student, frozen", "not run", f"not run `{untaught.cell.id}`"],
        ["OPT", "student, paper, other data", "9,275", "0.8157"],
    ]


def size(system: str, points: dict[int, float]) -> tuple[Entry, ...]:
    return tuple(Entry(cell(system, n_train=n, share=share), n) for n, share in points.items())


def test_what_bounds_a_student_is_said_by_its_figures(results: CellFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TARGETS", {TASK: 0.9})
    main = (*students(0.7, n=1), Entry(cell("logistic regression", share=0.8), "logistic regression"))
    teachers = (Entry(cell("teacher", track="end-to-end", teacher="bloom", share=1.0), "teacher itself"),)
    curve = size("logistic regression", {1000: 0.8, 300: 0.6, 2400: 0.9})
    found = plan(main=main, teachers=teachers, size=curve)
    ran(results.root, *found.cells)
    table = bounds_table(found, results, "test")
    gain = accuracy(0.9) - accuracy(0.8)
    assert {row[0]: row[1] for row in table.rows} == {
        "target (test)": "0.9000",
        "teacher itself: bloom": "1.0000 (1 run)",
        "linear probe of the frozen encoder (logistic regression)": f"{accuracy(0.8):.4f} (1 run)",
        "student, frozen, taught by bloom": f"{accuracy(0.7):.4f} (1 run)",
        "logistic regression: what the last step in texts adds": f"{gain:+.4f} (1,000 to 2,400 texts)",
    }
    (said,) = table.notes
    assert f"on frozen the best student is {0.9 - accuracy(0.7):.4f} below it ({accuracy(0.7):.4f}), a linear" in said
    assert f"a linear probe of its features {0.9 - accuracy(0.8):.4f} below it" in said
    assert "the best teacher itself, bloom, is 0.1000 above it (1.0000)" in said
    assert f"logistic regression on 2,400 instead of 1,000 texts still gains {gain:+.4f}" in said


def test_nothing_bounds_a_student_that_reaches_its_target(
    results: CellFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "TARGETS", {TASK: 0.5})
    found = plan(main=students(0.9))
    ran(results.root, *found.cells)
    assert bounds_table(found, results, "test").notes == ["Weather: the target is reached on every track."]


def test_track_that_misses_is_told_from_one_that_reaches(results: CellFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TARGETS", {TASK: 0.8})
    small, large = cell(share=0.7), cell(track="adapted", share=0.9)
    tried = Entry(cell(layers=3, share=0.5), 3), Entry(cell(track="adapted", layers=3, share=0.9), 3)
    found = plan(main=(Entry(small, "student"), Entry(large, "student")), layers=tried)
    ran(results.root, *found.cells)
    (said,) = bounds_table(found, results, "test").notes
    below = f"{0.8 - accuracy(0.7):.4f} below it ({accuracy(0.7):.4f})"
    assert said == (
        f"Weather: the target is reached on adapted; on frozen the best student is {below}; "
        f"of the 2 student configurations there the best on these very texts is {below}."
    )


def test_validation_texts_say_nothing_of_a_target(results: CellFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TARGETS", {TASK: 0.99})
    found = plan(main=students(0.7))
    ran(results.root, *found.cells)
    assert bounds_table(found, results, "test").notes
    assert bounds_table(found, results, "validation").notes == []


def test_every_student_that_was_tried_counts_once(results: CellFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TARGETS", {TASK: 0.99})
    main = students(0.7)
    ce = Entry(cell("student without a teacher", share=0.6), "CE")
    deep, control = Entry(cell(layers=3, share=0.9), 3), Entry(cell("logistic regression", share=1.0), 300)
    found = plan(main=main, losses=(*(Entry(e.cell, "all") for e in main), ce), layers=(deep,), size=(control,))
    ran(results.root, *found.cells)
    (said,) = bounds_table(found, results, "test").notes
    margin = 0.99 - accuracy(0.9)
    assert f"of the 3 student configurations of all sections the best on these very texts is {margin:.4f} below" in said
