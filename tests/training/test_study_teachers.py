from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from toy_lessons import TOY

from training.config import load_config
from training.data import TaskData, Texts
from training.study import teachers
from training.study.system import Soft
from training.study.teachers import TEACHERS, ensemble
from training.study.workshop import AskTeacher


def logits_of(texts: Texts, seed: int) -> np.ndarray:
    """Some that depend on the text alone."""
    rows = [np.random.default_rng([seed, *text.encode()]).normal(scale=3, size=2) for text in texts.texts]
    return np.array(rows, dtype=np.float32)


def member(seed: int, answers: bool = True) -> AskTeacher:
    def ask(task: str, data: TaskData, cache: Path) -> Soft:
        answer: Callable[[Texts], np.ndarray] | None = partial(logits_of, seed=seed) if answers else None
        return Soft(f"member {seed}", logits_of(data.train, seed), logits_of(data.validation, seed), 100 + seed, answer)

    return ask


def mean_probabilities(texts: Texts, *seeds: int) -> np.ndarray:
    return np.asarray(np.mean([softmax(logits_of(texts, seed).astype(np.float64), axis=1) for seed in seeds], axis=0))


def test_ensemble_says_the_mean_of_its_members_probabilities(tmp_path: Path) -> None:
    soft = ensemble((member(1), member(2), member(3)), "toy", TOY, tmp_path)
    for found, texts in ((soft.train, TOY.train), (soft.validation, TOY.validation)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(softmax(found, axis=1), mean_probabilities(texts, 1, 2, 3), rtol=1e-5)
    mean_of_logits = np.mean([logits_of(TOY.train, seed) for seed in (1, 2, 3)], axis=0)
    assert np.abs(softmax(soft.train, axis=1) - softmax(mean_of_logits, axis=1)).max() > 0.1
    assert (soft.name, soft.n_parameters) == ("ensemble", 306)


def test_ensembles_answer_on_other_texts_is_the_mean_too(tmp_path: Path) -> None:
    soft = ensemble((member(1), member(2)), "toy", TOY, tmp_path)
    assert soft.answer is not None
    np.testing.assert_allclose(softmax(soft.answer(TOY.test), axis=1), mean_probabilities(TOY.test, 1, 2), rtol=1e-5)
    np.testing.assert_array_equal(soft.answer(TOY.train), soft.train)


def test_ensemble_with_a_member_that_is_known_by_its_logits_alone_has_no_answer(tmp_path: Path) -> None:
    soft = ensemble((member(1), member(2, answers=False)), "toy", TOY, tmp_path)
    assert soft.answer is None
    np.testing.assert_allclose(softmax(soft.train, axis=1), mean_probabilities(TOY.train, 1, 2), rtol=1e-5)


def test_members_that_are_sure_of_different_classes_leave_finite_logits(tmp_path: Path) -> None:
    def sure(task: str, data: TaskData, cache: Path, of: int) -> Soft:
        train, validation = (np.full((len(t), 2), -500, dtype=np.float32) for t in (data.train, data.validation))
        train[:, of] = validation[:, of] = 500
        return Soft("sure", train, validation, 1)

    divided = ensemble((partial(sure, of=0), partial(sure, of=1)), "toy", TOY, tmp_path)
    np.testing.assert_allclose(softmax(divided.train, axis=1), 0.5)
    agreed = ensemble((partial(sure, of=0), partial(sure, of=0)), "toy", TOY, tmp_path)
    assert np.isfinite(agreed.train).all()
    np.testing.assert_allclose(softmax(agreed.train, axis=1)[:, 0], 1)


def test_members_are_asked_for_the_task_and_with_the_cache_of_the_ensemble(tmp_path: Path) -> None:
    asked = []

    def note(task: str, data: TaskData, cache: Path) -> Soft:
        asked.append((task, data is TOY, cache))
        return member(1)(task, data, cache)

    ensemble((note, note), "toy", TOY, tmp_path)
    assert asked == [("toy", True, tmp_path)] * 2


def test_ensemble_of_the_study_is_of_two_of_its_teachers() -> None:
    together = TEACHERS["ensemble"]
    assert isinstance(together, partial)
    assert together.args == ((TEACHERS["SmolLM2"], TEACHERS["MiniLM"]),)


@pytest.mark.parametrize("task", ["emotion", "hiding", "thematic"])
def test_language_model_is_taught_as_the_tasks_frozen_configuration_has_it(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = []

    class _Teacher:
        def logits(self, texts: Texts, progress: bool) -> np.ndarray:
            return logits_of(texts, 1)

    def teach(*wanted: object, progress: bool) -> _Teacher:
        taught.append(wanted)
        return _Teacher()

    monkeypatch.setattr(teachers, "teach", teach)
    soft = TEACHERS["SmolLM2"](task, TOY, tmp_path)
    configs = Path(teachers.__file__).parents[1] / "configs" / "frozen"
    assert taught == [(TOY.train, load_config(configs / f"{task}.toml").teacher, tmp_path / "teachers")]
    np.testing.assert_array_equal(soft.train, logits_of(TOY.train, 1))
    assert soft.answer is not None
    np.testing.assert_array_equal(soft.answer(TOY.test), logits_of(TOY.test, 1))
