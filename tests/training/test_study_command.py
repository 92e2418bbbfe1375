from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from study_fakes import DATA, Fake
from tiny_teachers import LABELS

from training.cli import main
from training.data import SPLITS, TaskData, Texts
from training.errors import ConfigError, DataError
from training.study import command
from training.study.archive import Archive
from training.study.cells import Cell, Options, data_digest
from training.study.grid import read_plan
from training.study.system import Soft, System
from training.study.workshop import NamedWorkshop, first_rows

GRID = """
tasks = ["weather"]
seeds = [0, 1]
[[sections.main]]
system = "student"
[[sections.main]]
system = "student"
options = { fails = "diverges" }
"""


def fake(cell: Cell) -> System:
    return Fake(cell.system, cell.options, cell.seed)


def bloom(task: str, data: TaskData, cache: Path) -> Soft:
    """Tells rows apart: the logits of a text are its row."""
    train, validation = (np.repeat(np.arange(len(t))[:, None], 2, axis=1) for t in (data.train, data.validation))
    return Soft("bloom", train, validation, 10)


def write_data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for split in SPLITS:
        texts: Texts = getattr(DATA, split)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [(text, LABELS[target]) for text, target in zip(texts.texts, texts.targets, strict=True)]
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder


@pytest.fixture
def workshop(tmp_path: Path) -> NamedWorkshop:
    write_data(tmp_path / "data" / "weather")
    return NamedWorkshop({"student": fake}, {"bloom": bloom}, tmp_path / "data", tmp_path / "cache")


@pytest.fixture
def arguments(workshop: NamedWorkshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`qdtrain study` on a grid of two cells that learn and two that diverge."""
    monkeypatch.setattr(command, "SYSTEMS", workshop.systems)
    monkeypatch.setattr(command, "setup_digest", lambda cell, cache: "")
    (tmp_path / "grid.toml").write_text(GRID, encoding="utf-8")
    named = {"--data": workshop.data, "--cache": workshop.cache, "--workers": 1}
    return ["study", str(tmp_path / "grid.toml"), *(str(part) for pair in named.items() for part in pair)]


def make_cell(teacher: str | None = None, system: str = "student", task: str = "weather", **options: object) -> Cell:
    return Cell(system, task, "frozen", teacher, 0, data_digest(DATA), Options(options))


def statuses(capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    return Counter(line.split()[0] for line in capsys.readouterr().out.splitlines())


def test_study_runs_what_is_left_and_says_what_failed(
    arguments: list[str], workshop: NamedWorkshop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert Counter(line.split()[0] for line in out.splitlines()) == {"done": 2, "failed": 2}
    failed = [line for line in err.splitlines() if line.endswith("failed: DivergedError: the loss is nan in epoch 3")]
    ids = {line.split()[1] for line in out.splitlines() if line.startswith("failed")}
    assert {line.split()[0] for line in failed} == ids
    assert "2 cells failed" in err
    assert main(arguments) == 2
    assert statuses(capsys) == {"skipped": 2, "failed": 2}
    assert len(read_plan(workshop.cache / "study" / "plan.json").cells) == 4


def test_failed_cells_are_run_alone(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    capsys.readouterr()
    assert main([*arguments, "--failed"]) == 2
    assert statuses(capsys) == {"failed": 2}


def test_one_cell_is_run_alone(
    arguments: list[str], workshop: NamedWorkshop, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_cell()
    assert main([*arguments, "--cell", one.id, "--final"]) == 0
    assert statuses(capsys) == {"done": 1}
    found = json.loads((workshop.cache / "study" / one.id / "result.json").read_text(encoding="utf-8"))
    assert list(found["metrics"]) == ["validation", "test"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["seed=1"], {"done": 1, "failed": 1}),
        (["seed=0", "seed=1", "section=main"], {"done": 2, "failed": 2}),
        (["seed=0", "task=weather", "track=frozen", "teacher=none", "system=student"], {"done": 1, "failed": 1}),
    ],
)
def test_cells_are_chosen_by_what_they_are(
    arguments: list[str], where: list[str], expected: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*arguments, *(part for condition in where for part in ("--where", condition))])
    assert statuses(capsys) == expected


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("seed=7", r"--where seed=7: expected FIELD=VALUE, one of ['seed=0', 'seed=1']"),
        ("sed=7", "--where sed=7: expected FIELD=VALUE, with a field of ['section', 'system',"),
        ("seed", "--where seed: expected FIELD=VALUE, one of ['seed=0', 'seed=1']"),
    ],
)
def test_condition_that_no_cell_meets_is_refused(
    arguments: list[str], where: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--where", where]) == 2
    assert said in capsys.readouterr().err


def test_study_exports_what_the_report_reads_without_the_cache(
    arguments: list[str], workshop: NamedWorkshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "docs" / "study" / "cells.json"
    assert main([*arguments, "--final", "--export", str(cells)]) == 2
    outs = [tmp_path / "docs", tmp_path / "other"]
    assert main(["report", "--cells", str(cells), "--out", str(outs[0])]) == 0
    assert main(["report", "--cache", str(workshop.cache), "--out", str(outs[1])]) == 0
    for name in ("study.md", "study.json", "study/time.png"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    assert "2 of 4 cells are measured" in (outs[0] / "study.md").read_text(encoding="utf-8")


def test_study_goes_on_from_what_was_exported_where_no_cache_is_left(
    arguments: list[str], workshop: NamedWorkshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "cells.json"
    seed0 = [*arguments, "--final", "--export", str(cells), "--where", "seed=0"]
    assert main(seed0) == 2
    first = Archive(cells)
    shutil.rmtree(workshop.cache)
    capsys.readouterr()
    assert main([*arguments, "--final", "--export", str(cells)]) == 2
    assert statuses(capsys) == {"skipped": 1, "done": 1, "failed": 2}
    both, one = Archive(cells), make_cell()
    assert both.entry(one) == first.entry(one) != {}
    assert both.get(replace(one, seed=1), "test") is not None


def test_untimed_cells_stand_in_no_mean_of_times(arguments: list[str], tmp_path: Path) -> None:
    cells = tmp_path / "cells.json"
    main([*arguments, "--final", "--export", str(cells), "--where", "seed=0"])
    main([*arguments, "--final", "--export", str(cells), "--untimed"])
    times = [Archive(cells).entry(replace(make_cell(), seed=seed))["distil_seconds"] for seed in (0, 1)]
    assert times[0] > 0
    assert times[1] is None
    assert main(["report", "--cells", str(cells), "--out", str(tmp_path / "docs")]) == 0


def test_cell_that_was_exported_without_test_texts_is_run_for_them(
    arguments: list[str], workshop: NamedWorkshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "cells.json"
    main([*arguments, "--export", str(cells)])
    shutil.rmtree(workshop.cache)
    capsys.readouterr()
    main([*arguments, "--final", "--export", str(cells)])
    assert statuses(capsys) == {"done": 2, "failed": 2}
    assert Archive(cells).get(make_cell(), "test") is not None


def test_results_on_an_embedder_that_is_gone_stay(
    arguments: list[str], workshop: NamedWorkshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = tmp_path / "cells.json"
    monkeypatch.setattr(command, "setup_digest", lambda cell, cache: "abc")
    main([*arguments, "--export", str(cells)])
    plan = Archive(cells).plan
    shutil.rmtree(workshop.cache)
    monkeypatch.setattr(command, "setup_digest", lambda cell, cache: "")
    main([*arguments, "--export", str(cells), "--where", "seed=0"])
    assert Archive(cells).plan == plan
    assert Archive(cells).get(replace(make_cell(), seed=1, setup="abc"), "validation") is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "expected what `qdtrain study --export` writes"),
        (
            json.dumps(
                {
                    "schema": 1,
                    "plan": {"tasks": [], "students": [], "controls": [], "cells": [], "sections": {}},
                    "cells": {make_cell().id: 7},
                }
            ),
            f"cell {make_cell().id}: expected a result with metrics by split, found 7",
        ),
    ],
    ids=["no export", "a damaged cell"],
)
def test_export_that_cannot_be_read_is_refused_and_left_as_it_is(
    arguments: list[str],
    workshop: NamedWorkshop,
    tmp_path: Path,
    content: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = tmp_path / "cells.json"
    cells.write_text(content, encoding="utf-8")
    assert main([*arguments, "--export", str(cells), "--where", "seed=1"]) == 2
    out, err = capsys.readouterr()
    assert f"{cells}: {said}" in err
    assert not out
    assert cells.read_text(encoding="utf-8") == content
    assert not (workshop.cache / "study").exists()


@pytest.mark.parametrize("export", ["grid.toml/cells.json", "data"], ids=["below a file", "a folder"])
def test_export_that_cannot_be_written_is_refused_before_anything_runs(
    arguments: list[str], workshop: NamedWorkshop, tmp_path: Path, export: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--export", str(tmp_path / export)]) == 2
    out, err = capsys.readouterr()
    assert f"--export {tmp_path / export}: expected a file that can be written" in err
    assert not out
    assert not (workshop.cache / "study").exists()


def test_cell_that_the_grid_lacks_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--cell", "abc"]) == 2
    assert "--cell abc: expected the id of one of the grid's 4 cells" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (make_cell(system="nobody"), r"system 'nobody': expected one of \['student'\]"),
        (make_cell(teacher="gpt"), r"teacher 'gpt': expected one of \['bloom'\]"),
    ],
    ids=["system", "teacher"],
)
def test_unknown_name_is_refused_before_anything_runs(workshop: NamedWorkshop, cell: Cell, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        workshop.check([make_cell(), cell])


def test_lesson_is_the_tasks_texts_and_what_the_teacher_says(workshop: NamedWorkshop) -> None:
    assert workshop.lesson(make_cell()).soft is None
    lesson = workshop.lesson(make_cell("bloom"))
    assert lesson.data.sha256 == DATA.sha256
    assert lesson.soft is not None
    assert lesson.soft.train[:, 0].tolist() == list(range(40))


def test_teacher_is_asked_once_for_all_seeds_and_again_for_another_task(
    workshop: NamedWorkshop,
) -> None:
    asked = []

    def counted(task: str, data: TaskData, cache: Path) -> Soft:
        asked.append(task)
        return bloom(task, data, cache)

    counting = replace(workshop, teachers={"bloom": counted})
    write_data(workshop.data / "tides")
    for task, seed in (("weather", 0), ("weather", 1), ("tides", 0), ("weather", 2)):
        counting.lesson(replace(make_cell("bloom", task=task), seed=seed))
    assert asked == ["weather", "tides", "weather"]


def test_texts_that_changed_since_the_plan_are_refused(workshop: NamedWorkshop) -> None:
    path = workshop.data / "weather" / "train.csv"
    path.write_text(path.read_text(encoding="utf-8") + "one more,cold\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"weather: expected the texts with the digest .*changed since"):
        workshop.lesson(make_cell())


def test_fewer_texts_keep_their_logits_and_the_other_splits(workshop: NamedWorkshop) -> None:
    lesson = workshop.lesson(make_cell("bloom", n_train=10))
    assert lesson.soft is not None
    rows = lesson.soft.train[:, 0]
    assert lesson.data.train.texts == tuple(DATA.train.texts[i] for i in rows)
    np.testing.assert_array_equal(lesson.data.train.targets, DATA.train.targets[rows])
    assert lesson.data.validation.sha256 == DATA.validation.sha256
    assert len(lesson.soft.validation) == len(DATA.validation)
    assert lesson.whole is not None
    assert lesson.whole.sha256 == DATA.sha256


def test_system_does_not_see_how_many_texts_there_are(workshop: NamedWorkshop) -> None:
    system = workshop.system(make_cell(n_train=10, share=0.7))
    assert isinstance(system, Fake)
    assert dict(system.options) == {"share": 0.7}


def test_fewer_texts_are_among_more_and_every_class_keeps_its_share() -> None:
    sizes = [first_rows(DATA.train, n, seed=3) for n in (4, 10, 20, 40)]
    for n, rows in zip((4, 10, 20, 40), sizes, strict=True):
        assert np.bincount(DATA.train.targets[rows]).tolist() == [n // 2, n // 2]
    for few, more in pairwise(sizes):
        assert set(few) < set(more)
    assert set(first_rows(DATA.train, 10, seed=3)) != set(first_rows(DATA.train, 10, seed=4))


@pytest.mark.parametrize("n", [-1, 0, 1, 41])
def test_more_texts_than_there_are_or_too_few_are_refused(n: int) -> None:
    with pytest.raises(ConfigError, match=rf"n_train = {n}: toy texts 0 has 40 texts of 2 classes"):
        first_rows(DATA.train, n, seed=0)
