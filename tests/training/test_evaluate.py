from __future__ import annotations

import numpy as np
import pytest

from training.evaluate import fit_control, measure

LABELS = ("a", "b", "c")
TARGETS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0, 2, 1, 0])


def separable(n: int, seed: int, shift: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that the first of 20 features tells apart, its scale far below that of the others."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 2
    embeddings = rng.normal(size=(n, 20)) * 1000
    embeddings[:, 0] = 1e-3 * (rng.normal(size=n) + shift * (2 * targets - 1)) + 5
    return embeddings.astype(np.float32), targets


def test_confusion_has_true_classes_in_rows() -> None:
    assert measure(PREDICTED, TARGETS, LABELS)["confusion"] == [[3, 1, 0], [1, 2, 0], [1, 1, 1]]


def test_metrics_are_macro_averages() -> None:
    found = measure(PREDICTED, TARGETS, LABELS)
    precision, recall = np.array([3 / 5, 2 / 4, 1 / 1]), np.array([3 / 4, 2 / 3, 1 / 3])
    f1 = 2 * precision * recall / (precision + recall)
    assert found["n"] == 10
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["precision"] == pytest.approx(precision.mean())
    assert found["recall"] == pytest.approx(recall.mean())
    assert found["f1"] == pytest.approx(f1.mean())
    assert list(found) == ["n", "accuracy", "precision", "recall", "f1", "confusion", "labels"]
    assert found["labels"] == list(LABELS)


def test_class_that_is_never_predicted_counts_as_zero() -> None:
    found = measure(np.zeros(4, dtype=int), np.array([0, 0, 1, 1]), ("a", "b"))
    assert (found["precision"], found["recall"]) == (0.25, 0.5)
    assert found["f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["confusion"] == [[2, 0], [2, 0]]


def test_class_that_does_not_occur_keeps_its_row() -> None:
    found = measure(np.array([0, 0]), np.array([0, 0]), ("a", "b"))
    assert found["confusion"] == [[2, 0], [0, 0]]
    assert found["accuracy"] == 1


def test_control_beats_chance_on_features_of_any_scale() -> None:
    control = fit_control(separable(200, seed=0), separable(60, seed=1))
    embeddings, targets = separable(200, seed=2)
    assert (control.predict(embeddings) == targets).mean() > 0.9


def test_control_does_not_depend_on_the_features_units() -> None:
    (train, targets), (validation, expected), (test, _) = (separable(100, seed=s, shift=0.7) for s in (3, 4, 5))
    units = np.geomspace(1, 1000, 20)
    offsets = np.linspace(-3, 3, 20)
    control = fit_control((train, targets), (validation, expected))
    moved = fit_control((train * units + offsets, targets), (validation * units + offsets, expected))
    np.testing.assert_array_equal(moved.predict(test * units + offsets), control.predict(test))


def test_control_takes_the_penalty_that_is_best_on_validation() -> None:
    train, validation = separable(60, seed=6, shift=0.5), separable(60, seed=7, shift=0.5)
    chosen = fit_control(train, validation)
    accuracy = (chosen.predict(validation[0]) == validation[1]).mean()
    others = [fit_control(train, (validation[0], 1 - validation[1])), fit_control(train, train)]
    assert all(accuracy >= (other.predict(validation[0]) == validation[1]).mean() for other in others)
    assert len({control.model.C for control in [chosen, *others]}) > 1
