from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_fakes import DATA, DIGEST

from training import study
from training.errors import ConfigError, TeacherError
from training.study import registry
from training.study.cells import Cell, Options, Track
from training.study.grid import load_grid, plan_of
from training.study.registry import SYSTEMS, configured, setup_digest
from training.study.system import Lesson, Soft
from training.study.teacher_system import TeacherSystem

CONFIGS = Path(study.__file__).parents[1] / "configs"
TASKS = ("emotion", "hiding", "thematic")


def make_cell(
    system: str = "QD-LLM", track: Track = "frozen", teacher: str | None = None, task: str = "emotion", **options: Any
) -> Cell:
    return Cell(system, task, track, teacher, 0, DIGEST, Options(options))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Track, Path]:
    """Configurations of both tracks that a test may change; the adapted embedder is the frozen one by another name."""
    made: dict[Track, Path] = {"frozen": tmp_path / "frozen", "adapted": tmp_path / "adapted"}
    for folder in made.values():
        shutil.copytree(CONFIGS / "frozen", folder)
    monkeypatch.setattr(registry, "_FOLDERS", made)
    return made


def test_every_system_of_the_shipped_grid_is_registered_under_its_own_name_and_travels() -> None:
    plan = plan_of(load_grid(CONFIGS / "study.toml"), dict.fromkeys(TASKS, DIGEST), lambda cell: "")
    adapted = ("adapted", "adapted-large")
    of_few_tracks = {replace(c, track="frozen") if c.track in adapted else c for c in plan.cells if c.seed == 0}
    for cell in of_few_tracks:
        options = Options({name: value for name, value in cell.options.items() if name != "n_train"})
        make = pickle.loads(pickle.dumps(SYSTEMS[cell.system]))
        assert make(replace(cell, options=options)).name == cell.system
    assert {entry.row for entry in plan.entries("losses")} == {"CE", "KL", "JS", "KL+JS+CE"}
    assert {cell.seed for cell in plan.cells} == {0, 1, 2, 3, 4}


def test_option_changes_its_field_of_the_tasks_configuration() -> None:
    plain = configured(make_cell())
    changed = configured(make_cell(**{"student.n_layers": 3, "loss.kl": 0.5}))
    assert (changed.student.n_layers, changed.loss.kl) == (3, 0.5)
    assert changed.optimiser == plain.optimiser
    assert changed.task == plain.task == "emotion"
    assert plain.hardware is None


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("student.n_quibts", 3, r"option 'student\.n_quibts': expected a field"),
        ("nowhere.deep", 3, r"option 'nowhere\.deep': expected a field"),
        ("seed.deep", 3, r"option 'seed\.deep': expected a field"),
        ("hardware.shots", 3, r"option 'hardware\.shots': expected a field"),
        ("student.n_qubits", 1, r"student\.n_qubits: .*greater than or equal to 2, found 1"),
        ("student.embedder", "minilm-l6-adapted", r"student\.embedder is 'minilm-l6-adapted', expected 'minilm-l6'"),
    ],
)
def test_wrong_option_is_refused_and_named(option: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(make_cell(**{option: value}))


def test_track_has_its_own_configuration_and_embedder(folders: dict[Track, Path]) -> None:
    with pytest.raises(ConfigError, match="expected 'minilm-l6-adapted' on the track adapted"):
        configured(make_cell(track="adapted"))
    path = folders["adapted"] / "emotion.toml"
    text = path.read_text(encoding="utf-8").replace("[student]", '[student]\nembedder = "minilm-l6-adapted"')
    path.write_text(text, encoding="utf-8")
    assert configured(make_cell(track="adapted")).student.embedder == "minilm-l6-adapted"
    assert configured(make_cell()).student.embedder == "minilm-l6"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (make_cell(track="end-to-end"), "QD-LLM: track 'end-to-end', expected one of"),
        (make_cell("TextRCNN"), "TextRCNN: track 'frozen', expected 'end-to-end'"),
        (make_cell("PKD (loss)", "end-to-end", "SmolLM2"), "teacher 'SmolLM2', expected 'MiniLM'"),
        (make_cell("HiTIN", "end-to-end", word_sise=3), "HiTIN: option 'word_sise', expected one of .*word_size"),
        (make_cell("HiTIN", "end-to-end", encoder="x"), "HiTIN: option 'encoder', expected one of"),
        (make_cell("HiTIN", "end-to-end", **{"loop.epoch": 3}), r"option 'loop\.epoch', expected one of .*epochs"),
        (make_cell("teacher", "end-to-end"), "teacher: expected the name of a teacher and no options, found None"),
    ],
)
def test_cell_that_no_system_can_be_made_of_is_refused(cell: Cell, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SYSTEMS[cell.system](cell)


def test_options_of_a_baseline_reach_it_and_its_loop() -> None:
    system: Any = SYSTEMS["TinyBERT (loss)"](
        make_cell("TinyBERT (loss)", "end-to-end", "MiniLM", layers=[2, 6], **{"loop.epochs": 2, "loop.max_tokens": 64})
    )
    assert system.layers == (2, 6)
    assert (system.config.epochs, system.transfer.epochs, system.config.max_tokens) == (2, 2, 64)
    other: Any = SYSTEMS["TextRCNN"](make_cell("TextRCNN", "end-to-end", **{"loop.max_tokens": 64}))
    assert other.config.learning_rate == 2e-3  # its own default, not the loop's


def test_setup_follows_the_configuration_where_the_system_reads_it(folders: dict[Track, Path], tmp_path: Path) -> None:
    cells = [make_cell(), make_cell("logistic regression"), make_cell("TextRCNN", "end-to-end")]
    before = [setup_digest(cell, tmp_path) for cell in cells]
    path = folders["frozen"] / "emotion.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("guidance = 0.1", "guidance = 0.2"), encoding="utf-8")
    after = [setup_digest(cell, tmp_path) for cell in cells]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True]
    path.write_text(path.read_text(encoding="utf-8").replace('"mean:5"', '"mean:6"'), encoding="utf-8")
    assert setup_digest(cells[1], tmp_path) != before[1]
    assert before[2] == ""


def test_setup_does_not_follow_options_defaults_or_the_teacher(folders: dict[Track, Path], tmp_path: Path) -> None:
    before = setup_digest(make_cell(), tmp_path)
    path = folders["frozen"] / "emotion.toml"
    text = path.read_text(encoding="utf-8")
    text = text.replace("[teacher]\nepochs = 1\n", "[teacher]\nepochs = 3\n")
    text = text.replace("[student]\n", "[student]\nn_qubits = 11\n")
    path.write_text(text, encoding="utf-8")
    assert configured(make_cell()).teacher.epochs == 3
    assert setup_digest(make_cell(**{"loss.kl": 0.5}), tmp_path) == before


def test_setup_of_an_embedder_that_is_not_there_yet_is_empty(folders: dict[Track, Path], tmp_path: Path) -> None:
    assert setup_digest(make_cell(track="adapted"), tmp_path) == ""


def test_setup_follows_an_embedder_that_the_cache_has(tmp_path: Path) -> None:
    cell, found = make_cell(track="adapted-large"), []
    info = tmp_path / "embedders" / "mpnet-l6-adapted" / "embedder.json"
    info.parent.mkdir(parents=True)
    for weights in ("a", "b"):
        info.write_text(json.dumps({"files": {"model.onnx": weights}}), encoding="utf-8")
        found.append(setup_digest(cell, tmp_path))
    assert len({*found, ""}) == 3
    assert configured(cell).student.embedder == "mpnet-l6-adapted"


def test_teacher_answers_as_a_system(tmp_path: Path) -> None:
    logits = np.eye(2)[DATA.validation.targets]
    soft = Soft("bloom", np.eye(2)[DATA.train.targets], logits, 10, lambda texts: np.eye(2)[texts.targets])
    outcome = TeacherSystem().learn(Lesson(DATA, soft, 0, tmp_path))
    np.testing.assert_array_equal(outcome.learned.logits(DATA.test), np.eye(2)[DATA.test.targets])
    assert (outcome.n_trainable, outcome.n_total) == (0, 10)
    assert outcome.facts == {"seconds_per_epoch": None, "inference_us": None}


@pytest.mark.parametrize("soft", [None, Soft("bloom", np.zeros((40, 2)), np.zeros((20, 2)), 10)])
def test_teacher_that_does_not_answer_is_none(soft: Soft | None, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="teacher: expected a teacher that answers texts, found "):
        TeacherSystem().learn(Lesson(DATA, soft, 0, tmp_path))
