"""A teacher as a system of the study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.baselines.transformer import FINE_TUNING
from training.data import Texts
from training.errors import TeacherError
from training.study.system import Lesson, Outcome

MINILM_LOOP = FINE_TUNING
"""How MiniLM becomes a task's teacher, and the one whose states the compression baselines copy."""


@dataclass(frozen=True)
class TeacherSystem:
    """What a lesson's teacher itself says: its accuracy beside its students'. Nothing is trained, nothing is timed."""

    name: str = "teacher"

    def learn(self, lesson: Lesson) -> Outcome:
        """Hand the teacher over.

        Raises:
            TeacherError: If the lesson has none, or one that does not answer.
        """
        if lesson.soft is None or lesson.soft.answer is None:
            found = "none" if lesson.soft is None else f"{lesson.soft.name}, which has no more than its logits"
            raise TeacherError(f"{self.name}: expected a teacher that answers texts, found {found}")
        facts = {"seconds_per_epoch": None, "inference_us": None}
        return Outcome(_Answers(lesson.soft.answer), 0, lesson.soft.n_parameters, facts=facts)


@dataclass(frozen=True)
class _Answers:
    answer: Callable[[Texts], np.ndarray]

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of shape (n_texts, n_classes)."""
        return self.answer(texts)
