from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_fakes import DATA, FakeWorkshop, Guess, cell, ran

from training.errors import ConfigError
from training.evaluate import measure
from training.study.results import CellFolders
from training.study.run import Runner, Work, run_cell, run_study
from training.study.runners import Processes, Ray, Sequential, make_runner

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the package ray")
RUNNERS = [
    pytest.param(lambda root: Sequential(), id="sequential"),
    pytest.param(lambda root: Processes(2, root), id="processes"),
    # Starting Ray takes seconds: this is the one test that does.
    pytest.param(lambda root: Ray(root, n_cpus=1), id="ray", marks=needs_ray),
]


def read(root: Path, name: str, folder: str) -> Any:
    return json.loads((root / folder / name).read_text(encoding="utf-8"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "study"


def test_cell_leaves_what_it_measured(root: Path) -> None:
    one = cell(teacher="bloom", share=0.9)
    (what,) = ran(root, one, final=False)
    assert (what.status, what.message) == ("done", "")
    assert sorted(p.name for p in (root / one.id).iterdir()) == ["cell.json", "predictions.npz", "result.json"]
    assert read(root, "cell.json", one.id) == one.to_json()
    found = read(root, "result.json", one.id)
    targets = DATA.validation.targets
    assert found["metrics"] == {
        "validation": measure(Guess(0.9).logits(DATA.validation).argmax(axis=1), targets, DATA.labels)
    }
    assert (found["n_trainable"], found["n_total"], found["seed"]) == (100, 1000, 0)
    assert found["data_sha256"] == DATA.sha256
    assert found["inference_us"] > 0
    assert found["distil_seconds"] > 0
    assert found["library_versions"]["numpy"] == np.__version__
    assert found["started"] <= found["ended"]


def test_predictions_are_the_logits_and_targets(root: Path) -> None:
    one = cell(share=0.9)
    ran(root, one)
    with np.load(root / one.id / "predictions.npz") as arrays:
        assert sorted(arrays) == ["test", "test_targets", "validation", "validation_targets"]
        np.testing.assert_array_equal(arrays["test"], Guess(0.9).logits(DATA.test))
        np.testing.assert_array_equal(arrays["test_targets"], DATA.test.targets)


def test_test_texts_are_left_alone_until_it_is_final(root: Path) -> None:
    one = cell()
    ran(root, one, final=False)
    with np.load(root / one.id / "predictions.npz") as arrays:
        assert sorted(arrays) == ["validation", "validation_targets"]
    assert CellFolders(root).get(one, "test") is None
    assert [what.status for what in ran(root, one, one)] == ["done", "skipped"]
    assert CellFolders(root).get(one, "test") is not None


def test_finished_cell_is_not_run_again(root: Path) -> None:
    one = cell()
    ran(root, one)
    before = read(root, "result.json", one.id)
    assert [what.status for what in ran(root, one, final=False)] == ["skipped"]
    assert FakeWorkshop(root.parent).made == [one.id]
    assert read(root, "result.json", one.id) == before


def test_epoch_takes_its_share_unless_the_system_knows_better(root: Path) -> None:
    timed, cached = cell(facts={"seconds_per_epoch": 3.5}), cell(facts={"seconds_per_epoch": None})
    ran(root, timed, cached)
    assert read(root, "result.json", timed.id)["distil_seconds"] == 3.5
    assert read(root, "result.json", cached.id)["distil_seconds"] is None


@pytest.mark.parametrize(
    ("fails", "kind", "said"),
    [
        ("diverges", "DivergedError", "the loss is nan in epoch 3"),
        ("nan", "StudyError", "student: logits of 1 of the 20 validation texts are not finite, the first is text 20"),
        ("narrow", "StudyError", r"student: logits of the validation texts have shape (20, 1), expected (20, 2)"),
    ],
)
def test_failed_cell_says_what_and_where(root: Path, fails: str, kind: str, said: str) -> None:
    one = cell(fails=fails)
    (what,) = ran(root, one)
    assert (what.status, what.message) == ("failed", f"{kind}: {said}")
    assert [p.name for p in (root / one.id).iterdir()] == ["error.json"]
    found = read(root, "error.json", one.id)
    assert (found["type"], found["message"], found["cell"]) == (kind, said, one.to_json())
    assert "Traceback" in found["traceback"]
    assert "run_cell" in found["traceback"]


def test_facts_that_json_cannot_hold_fail_the_cell_and_leave_no_half_of_it(root: Path) -> None:
    one = cell()
    what = run_cell(one, FakeWorkshop(root.parent, {"facts": {}, "epochs": 0, "n_trainable": 1}), root)
    assert what.status == "done"
    other = cell(seed=1)

    class Odd(FakeWorkshop):
        def system(self, cell: Any) -> Any:
            system = super().system(cell)
            learn = system.learn
            outcome = learn(self.lesson(cell))
            outcome.facts["path"] = Path()
            return type("System", (), {"name": "odd", "learn": lambda self, lesson: outcome})()

    assert run_cell(other, Odd(root.parent), root).message.startswith("TypeError")
    assert sorted(p.name for p in root.iterdir()) == sorted([".locks", one.id, other.id])


def test_failed_cell_is_run_again_and_its_error_goes(root: Path) -> None:
    one = cell(fails="diverges")
    ran(root, one)
    assert run_cell(one, FakeWorkshop(root.parent, {"fails": None}), root).status == "done"
    assert not (root / one.id / "error.json").exists()
    assert CellFolders(root).failure(one) is None


def test_untimed_cell_keeps_no_times_and_all_else(root: Path) -> None:
    ran(root, cell())
    workshop, timed = FakeWorkshop(root.parent), read(root, "result.json", cell().id)
    shutil.rmtree(root / cell().id)
    run_cell(cell(), workshop, root, final=True, timed=False)
    found = read(root, "result.json", cell().id)
    assert (found["distil_seconds"], found["inference_us"]) == (None, None)
    assert found["metrics"] == timed["metrics"]
    assert found["n_trainable"] == timed["n_trainable"]


def test_time_that_a_system_states_is_not_measured(root: Path) -> None:
    one = cell(facts={"inference_us": None})
    ran(root, one)
    assert read(root, "result.json", one.id)["inference_us"] is None


def test_ctrl_c_leaves_finished_cells_and_nothing_of_the_one_it_stopped(root: Path) -> None:
    cells = [cell(), cell(fails="ctrl-c"), cell(seed=2)]
    root.parent.mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        list(run_study(cells, Work(FakeWorkshop(root.parent), root, final=False), Sequential()))
    assert sorted(path.name for path in root.iterdir()) == [".locks", cells[0].id]


def test_final_run_that_fails_leaves_the_earlier_result(root: Path) -> None:
    one = cell()
    ran(root, one, final=False)
    before = read(root, "result.json", one.id)
    assert run_cell(one, FakeWorkshop(root.parent, {"fails": "nan"}), root, final=True).status == "failed"
    assert read(root, "result.json", one.id) == before
    assert "not finite" in str(CellFolders(root).failure(one))


@pytest.mark.parametrize("make", RUNNERS)
def test_study_goes_on_after_a_failure_and_takes_up_what_is_left(root: Path, make: Callable[[Path], Runner]) -> None:
    cells = [cell(seed=seed) for seed in range(3)]
    cells.insert(1, cell(fails="diverges"))
    root.parent.mkdir(exist_ok=True)
    ran(root, cells[0], final=False)
    work = Work(FakeWorkshop(root.parent), root, final=False)
    found = list(run_study(cells, work, make(root)))
    assert found[0].cell == cells[0]
    assert {what.cell.id: what.status for what in found} == {
        cells[0].id: "skipped",
        cells[1].id: "failed",
        cells[2].id: "done",
        cells[3].id: "done",
    }
    again = list(run_study(cells, work, Sequential()))
    assert [what.status for what in again] == ["skipped", "skipped", "skipped", "failed"]


def test_equal_cells_give_equal_predictions_in_any_runner(root: Path) -> None:
    one = cell(seed=3)
    for name, runner in (("a", Sequential()), ("b", Processes(1, root / "b"))):
        list(run_study([one], Work(FakeWorkshop(root.parent), root / name, final=True), runner))
    a, b = (CellFolders(root / name).get(one, "test") for name in ("a", "b"))
    assert a is not None
    assert b is not None
    assert a.found["metrics"] == b.found["metrics"]


def test_cell_whose_process_dies_is_a_failed_one(root: Path) -> None:
    one = cell(fails="dies")
    root.parent.mkdir(exist_ok=True)
    (what,) = run_study([one], Work(FakeWorkshop(root.parent), root, final=False), Processes(1, root))
    assert what.status == "failed"
    assert read(root, "error.json", one.id)["type"] == "BrokenProcessPool"


def test_runner_is_the_one_that_was_asked_for(root: Path) -> None:
    assert make_runner(root, 1, None) == Sequential()
    assert make_runner(root, 3, None) == Processes(3, root)
    with pytest.raises(ConfigError, match="--workers: expected at least 1, found 0"):
        make_runner(root, 0, None)


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_ray_is_asked_for_in_vain_where_it_is_not_installed(root: Path) -> None:
    assert make_runner(root, None, None) == Sequential()
    with pytest.raises(ConfigError, match="--ray-address: expected the package ray, found none"):
        make_runner(root, None, "auto")


@needs_ray
def test_ray_is_taken_where_it_is_installed(root: Path) -> None:
    assert make_runner(root, None, None) == Ray(root)
    assert make_runner(root, None, "local") == Ray(root)
    assert make_runner(root, None, "10.0.0.1:6379") == Ray(root, "10.0.0.1:6379")
