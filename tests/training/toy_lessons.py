"""Lessons on toy texts, small enough to learn in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_teachers import toy_texts

from training.data import TaskData
from training.study.system import Learned, Lesson, Soft

TOY = TaskData(toy_texts(120, seed=10), toy_texts(40, seed=11), toy_texts(60, seed=12))


def toy_lesson(cache: Path, soft: Soft | None = None, seed: int = 0, data: TaskData = TOY) -> Lesson:
    return Lesson(data, soft, seed, cache)


def sure_teacher(data: TaskData = TOY) -> Soft:
    """A teacher that knows the labels, with some doubt that differs from text to text."""
    rng = np.random.default_rng(20)
    logits = [
        (4 * np.eye(len(texts.labels))[texts.targets] + rng.normal(size=(len(texts), len(texts.labels)))).astype(
            np.float32
        )
        for texts in (data.train, data.validation)
    ]
    return Soft("toy", logits[0], logits[1], 1000)


def poisoned_teacher() -> Soft:
    """One of its numbers is none."""
    soft = sure_teacher()
    soft.train[7, 0] = np.nan
    return soft


def accuracy_on_test(learned: Learned) -> float:
    logits = learned.logits(TOY.test)
    assert logits.shape == (len(TOY.test), len(TOY.labels))
    return float((logits.argmax(axis=1) == TOY.test.targets).mean())
