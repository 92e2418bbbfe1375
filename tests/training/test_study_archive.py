from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_fakes import cell, ran

from training.errors import StudyError
from training.study.archive import Archive, write_archive
from training.study.cells import Cell
from training.study.grid import Entry, Plan
from training.study.results import CellFolders, Split

SPLITS: tuple[Split, ...] = ("validation", "test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "study"


def plan(*cells: Any, section: str = "main") -> Plan:
    return Plan(("weather",), ("student",), ("control",), {section: tuple(Entry(c, c.system) for c in cells)})


def archived(root: Path, found: Plan) -> Archive:
    path = root.parent / "docs" / "cells.json"
    write_archive(path, found, CellFolders(root))
    return Archive(path)


def test_archive_says_what_the_folders_say(root: Path) -> None:
    cells = [cell(share=0.9), cell("control", seed=1, share=0.7, facts={"seconds_per_epoch": None})]
    ran(root, *cells)
    archive, folders = archived(root, plan(*cells)), CellFolders(root)
    for one in cells:
        for split in SPLITS:
            kept, original = archive.get(one, split), folders.get(one, split)
            assert kept is not None
            assert original is not None
            for name in ("accuracy", "precision", "recall", "f1", "n_trainable", "distil_seconds", "inference_us"):
                assert kept.figure(name, split) == original.figure(name, split)
            np.testing.assert_array_equal(kept.correct(split), original.correct(split))
            assert kept.correct(split).dtype == bool


def test_plan_survives_with_cells_of_several_sections(root: Path) -> None:
    one, two = cell(teacher="bloom", layers=[1, 2]), cell(seed=1)
    found = Plan(
        ("weather", "tides"), ("student",), (), {"main": (Entry(one, "x"), Entry(two, "x")), "size": (Entry(two, 300),)}
    )
    assert archived(root, found).plan == found


def test_cell_that_was_not_run_or_failed_or_lacks_a_split_is_none(root: Path) -> None:
    never, failed, validated = cell(), cell(fails="diverges"), cell(seed=3)
    ran(root, failed)
    ran(root, validated, final=False)
    archive = archived(root, plan(never, failed, validated))
    assert [archive.get(one, "test") for one in (never, failed, validated)] == [None, None, None]
    assert archive.get(validated, "validation") is not None
    assert archive.failure(failed) == "DivergedError: the loss is nan in epoch 3"
    assert archive.failure(never) is None


def test_failure_does_not_say_where_the_study_ran(root: Path) -> None:
    one = cell()
    (root / one.id).mkdir(parents=True)
    error = {"type": "DivergedError", "message": f"the last epoch is in {root.parent / 'runs' / 'a.pt'}"}
    (root / one.id / "error.json").write_text(json.dumps(error), encoding="utf-8")
    assert archived(root, plan(one)).failure(one) == "DivergedError: the last epoch is in CACHE/runs/a.pt"


def test_equal_studies_give_equal_files_of_a_line_a_cell(root: Path) -> None:
    cells = [cell(seed=seed) for seed in range(3)]
    ran(root, *cells)
    path = archived(root, plan(*cells)).path
    first = path.read_bytes()
    assert archived(root, plan(*cells)).path.read_bytes() == first
    lines = first.decode().splitlines()
    assert [sum(f'"{one.id}"' in line for line in lines) for one in cells] == [1, 1, 1]
    assert b"toy text" not in first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; expected what `qdtrain study --export` writes"),
        ("{", "expected what `qdtrain study --export` writes, found"),
        ('{"schema": 2, "plan": {}, "cells": {}}', "expected an archive of schema 1"),
        ("[]", "expected an archive of schema 1"),
    ],
)
def test_other_file_is_refused_and_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "cells.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(StudyError, match=rf"cells\.json: {said}"):
        _ = Archive(path).plan


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found, name: found["plan"].update(cells=[]), "expected the plan of a study"),
        (lambda found, name: found["cells"].update({name: [1]}), "expected a result with metrics by split"),
        (lambda found, name: found["cells"][name].pop("n_total"), "found .*'n_trainable'"),
        (lambda found, name: found["cells"][name]["correct"].update(test="zz"), "expected a bit a test text"),
        (lambda found, name: found["cells"][name]["correct"].update(test="ff"), "found .*8 bits for 30 texts"),
    ],
    ids=["plan", "result", "field", "no bits", "too few bits"],
)
def test_damaged_archive_is_refused_and_named(root: Path, spoil: Callable[[Any, str], None], said: str) -> None:
    one = cell()
    ran(root, one)
    path = archived(root, plan(one)).path
    found = json.loads(path.read_text(encoding="utf-8"))
    spoil(found, one.id)
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(StudyError, match=rf"cells\.json: .*{said}"):
        _read(Archive(path), one)


def _read(archive: Archive, one: Cell) -> None:
    """As a report does."""
    assert archive.plan.cells == [one]
    result = archive.get(one, "test")
    assert result is not None
    result.correct("test")
