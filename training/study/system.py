"""What the study compares: a system learns one task's texts and is then asked for logits, whatever is inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from training.data import TaskData, Texts


@dataclass(frozen=True)
class Soft:
    """What a teacher says of a task's texts.

    Attributes:
        name: Of the teacher, or of the ensemble.
        train: Logits of shape (n_train, n_classes).
        validation: Likewise of the validation texts.
        n_parameters: Of the teacher, all of them.
        answer: Any other texts -> logits of shape (n_texts, n_classes), from the teacher's cache or its model; what the
            teacher's own accuracy is measured with. No student asks it. None where the teacher is known by its logits.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    n_parameters: int
    answer: Callable[[Texts], np.ndarray] | None = None


@dataclass(frozen=True)
class Lesson:
    """What a system learns from.

    Attributes:
        data: Texts and targets; a system never looks at `data.test`.
        soft: None for a system that learns from labels alone.
        seed: Of everything that is drawn.
        cache: Folder for embeddings and checkpoints.
        whole: The task's texts where `data` has fewer: its teachers learned from them.
    """

    data: TaskData
    soft: Soft | None
    seed: int
    cache: Path
    whole: TaskData | None = None


class Learned(Protocol):
    """A system that has learned."""

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of shape (n_texts, n_classes)."""


@dataclass(frozen=True)
class Outcome:
    """What came of a lesson.

    Attributes:
        n_trainable: Parameters that were trained.
        n_total: Parameters that an answer needs, frozen ones among them.
        epochs: Validation accuracy after each epoch, best chosen on it; empty where there are none.
        facts: Whatever else the tables or a reader need; JSON. `seconds_per_epoch` and `inference_us`, where a system
            states them, go before what the harness measures; None where nobody counted.
    """

    learned: Learned
    n_trainable: int
    n_total: int
    epochs: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class System(Protocol):
    """A way to learn a task."""

    @property
    def name(self) -> str:
        """As tables say it; unique."""

    def learn(self, lesson: Lesson) -> Outcome:
        """Learn from train texts, choose on validation texts.

        Raises:
            DivergedError: If the loss is no number; names the epoch, and leaves the last good checkpoint.
        """
