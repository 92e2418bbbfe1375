from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_fakes import DATA, Guess, cell, ran

from training.errors import StudyError
from training.study.cells import Cell
from training.study.comparing import comparison_table, comparisons, marks, notes
from training.study.grid import Entry, Plan, Row
from training.study.results import CellFolders
from training.study.statistics import bootstrap_difference, mcnemar
from training.study.tables import (
    Table,
    accuracy_table,
    as_text,
    group,
    missing_table,
    parameter_table,
    sweep_table,
    task_table,
)

TASK = "weather"
PAPER = {"student": 0.8}  # accuracy, by system


def right(share: float) -> np.ndarray:
    """Which test texts a fake gets right."""
    return np.asarray(Guess(share).logits(DATA.test).argmax(axis=1) == DATA.test.targets)


def seeds(row: Row, n: int = 2, **options: Any) -> list[Entry]:
    return [Entry(cell(str(row), seed=seed, **options), row) for seed in range(n)]


def plan(*entries: Entry, section: str = "main") -> Plan:
    return Plan((TASK,), ("student",), ("control",), {section: entries})


def cells_of(*entries: Entry) -> list[Cell]:
    return [entry.cell for entry in entries]


@pytest.fixture
def results(tmp_path: Path) -> CellFolders:
    return CellFolders(tmp_path / "study")


def marked(found: Plan, results: CellFolders) -> tuple[Table, list[str]]:
    pairs = comparisons(found, TASK, results, "test")
    return task_table(found, TASK, results, "test", marks(pairs, found.controls), PAPER), notes(pairs, found.controls)


def test_row_is_the_mean_and_deviation_of_the_result_files(results: CellFolders) -> None:
    entries = seeds("student", n=3, share=0.9, n_trainable=50, facts={"seconds_per_epoch": 2.0})
    ran(results.root, *cells_of(*entries))
    table, _ = marked(plan(*entries), results)
    accuracies = [right(share).mean() for share in (0.9, 0.9 - 0.05, 0.9)]  # at seeds 0, 1, 2
    (row,) = table.rows
    assert row[:3] == ["student", "frozen", "none"]
    mean, std = np.mean(accuracies), np.std(accuracies, ddof=1)
    assert row[3] == f"{mean:.4f} ± {std:.4f}"
    assert row[7] == f"{mean / 50:.3g} ± {std / 50:.3g}"
    assert row[8] == f"{mean / 2:.3g} ± {std / 2:.3g}"
    assert row[9:] == ["2 ± 0", "0.8000"]
    columns = ["accuracy", "P", "R", "F1", "Acc/Param", "Acc/Tkd (1/s)", "Tkd (s)", "accuracy, paper, other data"]
    assert table.header[3:] == columns


def test_figures_come_from_the_split_that_was_asked_for(results: CellFolders) -> None:
    entries = seeds("student", n=1, share=0.5)
    ran(results.root, *cells_of(*entries), final=False)
    (on_validation,) = group(entries, results, "validation")
    assert as_text(on_validation.spread("accuracy")) == "0.5000 (1 run)"
    (on_test,) = group(entries, results, "test")
    assert on_test.results == ()


def test_cell_that_was_not_run_is_named(results: CellFolders) -> None:
    entries = seeds("student", n=3)
    table, _ = marked(plan(*entries), results)
    missed = f"not run `{entries[0].cell.id}` and 2 more"
    assert table.rows == [["student", "frozen", "none", missed, *["not run"] * 6, "0.8000"]]
    assert "" not in table.rows[0]


def test_row_that_lacks_a_seed_says_which(results: CellFolders) -> None:
    entries = seeds("student", n=3)
    ran(results.root, entries[0].cell, entries[2].cell)
    table, _ = marked(plan(*entries), results)
    assert table.rows[0][3].endswith(f"(2 of 3 runs; not run `{entries[1].cell.id}`)")


def test_missing_cells_are_listed_with_what_is_known(results: CellFolders) -> None:
    failed, validated, never = cell(fails="diverges"), cell(seed=1), cell(seed=2, teacher="bloom", layers=3)
    ran(results.root, failed)
    ran(results.root, validated, final=False)
    done = cell(seed=4)
    ran(results.root, done)
    table = missing_table(plan(*(Entry(c, "x") for c in (failed, validated, never, done))), results, "test")
    assert [(row[6], row[7]) for row in table.rows] == [
        (f"`{failed.id}`", "DivergedError: the loss is nan in epoch 3"),
        (f"`{validated.id}`", "measured on the validation texts only"),
        (f"`{never.id}`", "not run"),
    ]
    assert table.rows[2][:6] == ["student", TASK, "frozen", "bloom", "layers = 3", "2"]


def test_time_that_nobody_counted_is_not_made_up(results: CellFolders) -> None:
    entries = seeds("student", facts={"seconds_per_epoch": None})
    ran(results.root, *cells_of(*entries))
    table, _ = marked(plan(*entries), results)
    assert table.rows[0][8:10] == ["not timed", "not timed"]


def test_system_that_trains_nothing_has_no_accuracy_per_parameter(results: CellFolders) -> None:
    entries = seeds("student", n_trainable=0)
    ran(results.root, *cells_of(*entries))
    table, _ = marked(plan(*entries), results)
    assert table.rows[0][7] == "nothing trained"


@pytest.mark.parametrize(
    ("student", "control", "mark"),
    [(0.5, 0.9, " †"), (0.8, 0.8, " †"), (0.9, 0.85, " ‡"), (0.95, 0.4, "")],
    ids=["behind", "level", "ahead by chance", "ahead"],
)
def test_student_that_does_not_beat_a_control_is_marked(
    results: CellFolders, student: float, control: float, mark: str
) -> None:
    entries = [*seeds("student", share=student), *seeds("control", share=control)]
    ran(results.root, *cells_of(*entries))
    table, said = marked(plan(*entries), results)
    student_row, control_row = table.rows
    assert student_row[3].removeprefix(student_row[3].rstrip(" †‡")) == mark
    assert not control_row[3].endswith(("†", "‡"))
    assert [line[0] for line in said] == ([mark.strip()] if mark else [])
    if mark == " †":
        assert "student (frozen) does not beat the control control (frozen): difference -" in said[0] or student == 0.8


def test_control_of_another_task_marks_nothing(results: CellFolders) -> None:
    ours = seeds("student", share=0.5)
    theirs = [Entry(cell("control", task="other", share=0.9), "control")]
    ran(results.root, *cells_of(*ours, *theirs))
    _, said = marked(plan(*ours, *theirs), results)
    assert said == []


def test_student_is_compared_on_its_own_features_and_with_what_has_none(results: CellFolders) -> None:
    entries = [
        Entry(cell(system, track=track), system)
        for system, track in (
            ("student", "frozen"),
            ("student", "adapted"),
            ("control", "frozen"),
            ("control", "adapted"),
            ("TinyBERT", "end-to-end"),
        )
    ]
    ran(results.root, *cells_of(*entries))
    found = comparison_table(comparisons(plan(*entries), TASK, results, "test"))
    assert [tuple(row[:2]) for row in found.rows] == [
        ("student (frozen)", "control (frozen)"),
        ("student (frozen)", "TinyBERT (end-to-end)"),
        ("student (adapted)", "control (adapted)"),
        ("student (adapted)", "TinyBERT (end-to-end)"),
        ("student (adapted)", "student (frozen)"),
    ]


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.95, "student is better"), (0.9, "no difference beyond chance"), (0.5, "student is worse")],
)
def test_words_are_those_that_the_interval_allows(results: CellFolders, share: float, said: str) -> None:
    entries = [
        *seeds("student", share=share),
        *seeds("control", share=0.9 if share == 0.5 else 0.85 if share == 0.9 else 0.4),
    ]
    ran(results.root, *cells_of(*entries))
    (row,) = comparison_table(comparisons(plan(*entries), TASK, results, "test")).rows
    assert row[3] == said


def test_baseline_that_is_ahead_is_compared_but_no_mark(results: CellFolders) -> None:
    entries = [*seeds("student", share=0.5), *seeds("TinyBERT", share=0.9)]
    ran(results.root, *cells_of(*entries))
    found = plan(*entries)
    _, said = marked(found, results)
    assert said == []
    (row,) = comparison_table(comparisons(found, TASK, results, "test")).rows
    assert row[:2] == ["student (frozen)", "TinyBERT (frozen)"]


def test_comparison_is_of_the_stored_predictions(results: CellFolders) -> None:
    entries = [*seeds("student", n=3, share=0.9), *seeds("control", n=2, share=0.7)]
    ran(results.root, *cells_of(*entries))
    (found,) = comparisons(plan(*entries), TASK, results, "test")
    assert found.seed == 0
    assert found.test == mcnemar(right(0.9), right(0.7))
    ours = np.array([right(0.9), right(0.9 - 0.05), right(0.9)])  # at seeds 0, 1, 2
    theirs = np.array([right(0.7), right(0.7 - 0.05)])
    assert found.difference == bootstrap_difference(ours, theirs, seed=0)


def test_systems_without_a_common_seed_are_not_compared(results: CellFolders) -> None:
    entries = [Entry(cell("student", seed=0), "student"), Entry(cell("control", seed=1), "control")]
    ran(results.root, *cells_of(*entries))
    assert comparisons(plan(*entries), TASK, results, "test") == []


def test_parameters_are_those_of_the_results(results: CellFolders) -> None:
    entries = [*seeds("student", n_trainable=9275), *seeds("control", n_trainable=8)]
    ran(results.root, *cells_of(*entries[:2]))
    table = parameter_table(plan(*entries), results, "test", {"student": "9,275"})
    assert [row[3:] for row in table.rows] == [
        ["9,275 / 1,000", "9,275"],
        [f"not run `{entries[2].cell.id}` and 1 more", "not given"],
    ]


def test_accuracy_table_has_rows_in_order_and_tasks_as_columns(results: CellFolders) -> None:
    losses = [entry for row in ("CE", "KL", "all") for entry in seeds(row, share=0.9)]
    ran(results.root, *cells_of(*losses[:2]))
    found = Plan((TASK, "other"), (), (), {"losses": tuple(losses)})
    table = accuracy_table(found, "losses", "loss", results, "test", {"CE": 0.7388})
    assert table.header == ["loss", "track", "teacher", TASK, "other", "mean", "mean, paper, other data"]
    assert [row[0] for row in table.rows] == ["CE", "KL", "all"]
    first = np.array([right(0.9).mean(), right(0.9 - 0.05).mean()])
    assert table.rows[0][3] == f"{first.mean():.4f} ± {first.std(ddof=1):.4f}"
    assert [row[4:] for row in table.rows] == [
        ["not planned", "not of every task", "0.7388"],
        ["not planned", "not of every task", "not given"],
        ["not planned", "not of every task", "not given"],
    ]


def test_mean_is_that_of_the_tasks(results: CellFolders) -> None:
    entries = [Entry(cell(task=task, share=share), "CE") for task, share in ((TASK, 0.9), ("tides", 0.7))]
    ran(results.root, *cells_of(*entries))
    found = Plan((TASK, "tides"), (), (), {"losses": tuple(entries)})
    (row,) = accuracy_table(found, "losses", "loss", results, "test", {}).rows
    assert row[5:] == [f"{(right(0.9).mean() + right(0.7).mean()) / 2:.4f}", "not given"]


def test_tasks_with_other_options_share_a_row_and_a_second_set_of_one_task_does_not(results: CellFolders) -> None:
    entries = [
        Entry(cell(task=task, epochs=epochs), "x") for task, epochs in (("weather", 2), ("tides", 4), ("tides", 6))
    ]
    found = Plan(("weather", "tides"), (), (), {"related": tuple(entries)})
    table = accuracy_table(found, "related", "system", results, "test")
    missed = [f"not run `{entry.cell.id}`" for entry in entries]
    assert [row[3:] for row in table.rows] == [[missed[0], missed[1]], ["not planned", missed[2]]]


def test_sweep_has_its_points_in_order_and_only_its_tasks(results: CellFolders) -> None:
    entries = [
        Entry(cell(system, seed=seed, point=point, share=share), point)
        for system in ("student", "control")
        for point, share in ((2, 0.7), (10, 0.9))
        for seed in (0, 1)
    ]
    ran(results.root, *cells_of(*entries)[:4])
    found = Plan((TASK, "other"), (), (), {"qubits": tuple(entries)})
    table = sweep_table(found, "qubits", "qubits", results, "test")
    assert table.header == ["qubits", "system", "track", "teacher", TASK]
    assert [row[:2] for row in table.rows] == [["2", "student"], ["10", "student"], ["2", "control"], ["10", "control"]]
    mean = np.mean([right(0.9).mean(), right(0.9 - 0.05).mean()])
    assert table.rows[1][4].startswith(f"{mean:.4f} ±")
    assert table.rows[2][4] == f"not run `{entries[4].cell.id}` and 1 more"


def test_tracks_are_rows_of_their_own(results: CellFolders) -> None:
    entries = [Entry(cell(track=track), "student") for track in ("frozen", "adapted")]
    table, _ = marked(plan(*entries), results)
    assert [row[1] for row in table.rows] == ["frozen", "adapted"]


def test_table_is_markdown() -> None:
    assert (
        str(Table(["a", "b"], [["1", "x|y"]], ["Said below."]))
        == "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n\nSaid below."
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": {}}'])
def test_damaged_result_is_refused_and_named(results: CellFolders, content: str) -> None:
    one = cell()
    (results.root / one.id).mkdir(parents=True)
    (results.root / one.id / "result.json").write_text(content, encoding="utf-8")
    with pytest.raises(StudyError, match=rf"{one.id}/result\.json: not a cell's result"):
        results.get(one, "test")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"], ids=["empty", "a zip cut short", "no zip"])
def test_damaged_predictions_are_refused_and_named(results: CellFolders, content: bytes) -> None:
    one = cell()
    ran(results.root, one)
    (results.root / one.id / "predictions.npz").write_bytes(content)
    result = results.get(one, "test")
    assert result is not None
    with pytest.raises(StudyError, match=rf"{one.id}/predictions\.npz: no predictions: .*run the cell again"):
        result.correct("test")


def test_damaged_failure_is_still_a_failure(results: CellFolders) -> None:
    one = cell(fails="diverges")
    ran(results.root, one)
    (results.root / one.id / "error.json").write_text("[]", encoding="utf-8")
    assert results.failure(one) == "failed, and its error.json cannot be read"
