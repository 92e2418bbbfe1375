from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from study_fakes import DATA, DIGEST, cell

from training.data import TaskData
from training.study.cells import Cell, Options, data_digest


def test_id_is_that_of_the_canonical_json() -> None:
    # Cells on disk would be run again if this changed.
    one = Cell("student", "emotion", "frozen", None, 0, "d" * 64, Options({"b": 1, "a": [1, 2]}))
    assert one.id == "3b1f5cb0958f0c9e"


def test_id_does_not_depend_on_the_order_of_options() -> None:
    assert cell(a=1, b="x").id == cell(b="x", a=1).id


@pytest.mark.parametrize(
    "change",
    [
        {"system": "other"},
        {"task": "other"},
        {"track": "adapted"},
        {"teacher": "bloom"},
        {"seed": 1},
        {"data": "0" * 64},
        {"options": Options({"a": 2})},
        {"setup": "0" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_id_depends_on_everything_that_makes_another_run(change: dict[str, Any]) -> None:
    one = cell(a=1)
    assert replace(one, **change).id != one.id


def test_cell_survives_json_and_pickling() -> None:
    one = cell(teacher="bloom", nested={"x": [1, 2]})
    for other in (Cell.from_json(one.to_json()), pickle.loads(pickle.dumps(one))):
        assert other == one
        assert hash(other) == hash(one)
        assert other.id == one.id


def test_options_do_not_follow_what_they_were_made_from() -> None:
    values: dict[str, Any] = {"layers": [1, 2]}
    options = Options(values)
    values["layers"].append(3)
    options["layers"].append(4)
    assert dict(options) == {"layers": [1, 2]}


def test_options_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Options({"rate": float("nan")})


def test_digest_depends_on_every_split() -> None:
    assert data_digest(TaskData(DATA.train, DATA.validation, DATA.validation)) != DIGEST
    assert data_digest(TaskData(DATA.validation, DATA.validation, DATA.test)) != DIGEST
