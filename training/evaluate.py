"""Measure students, teachers and controls: accuracy, macro precision, recall and F1 (eq. 15-18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from models.bundle import Bundle
from models.embedder import Embedder
from training.data import Texts

# Inverse penalties of the control, on standardised features; the best on validation is taken.
_CONTROL_PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def measure(predicted: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy and macro averages of predicted class indices.

    Args:
        predicted: Shape (n,).
        targets: Shape (n,).
        labels: Class names.

    Returns:
        `n`, `accuracy`, `precision`, `recall`, `f1` (the mean over classes of each class's value), `confusion`
        (rows are true classes, columns predicted ones) and `labels`.
    """
    classes = np.arange(len(labels))
    precision, recall, f1, _ = precision_recall_fscore_support(
        targets, predicted, labels=classes, average="macro", zero_division=0
    )
    return {
        "n": len(targets),
        "accuracy": float((predicted == targets).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "confusion": confusion_matrix(targets, predicted, labels=classes).tolist(),
        "labels": list(labels),
    }


def evaluate_bundle(bundle: Bundle, texts: Texts, embedder: Embedder, engine: str = "compiled") -> dict[str, Any]:
    """`measure` of a bundle on texts, as the service would answer them."""
    student = bundle.student(engine)
    angles = student.angles(embedder.embed(texts.texts, bundle.features))
    return measure(student.logits(angles).argmax(axis=1), texts.targets, bundle.manifest.labels)


@dataclass(frozen=True)
class Control:
    """Logistic regression on the student's own features: what a linear classifier makes of them."""

    model: LogisticRegression
    mean: np.ndarray
    scale: np.ndarray

    def predict(self, embeddings: np.ndarray) -> np.ndarray:
        """Class indices, shape (n,)."""
        return np.asarray(self.model.predict((embeddings - self.mean) / self.scale))


def fit_control(train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]) -> Control:
    """Fit the control on (embeddings, targets), its penalty chosen by validation accuracy."""
    mean, scale = train[0].mean(axis=0), train[0].std(axis=0) + 1e-6
    candidates = []
    for penalty in _CONTROL_PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=1000).fit((train[0] - mean) / scale, train[1])
        candidates.append(Control(model, mean, scale))
    return max(candidates, key=lambda c: float((c.predict(validation[0]) == validation[1]).mean()))
