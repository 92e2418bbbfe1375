"""Encoders fine-tuned on one task's labels: the classical teachers beside the language model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from training.data import TaskData, Texts
from training.encoders.config import EncoderConfig
from training.encoders.learn import Subject, learn
from training.encoders.sources import MPNET, find_encoder
from training.study.system import Soft

# Its lowest third keeps its weights: a fifth of the time less.
MPNET_TEACHER = EncoderConfig(source=MPNET, layers=(12,), frozen_layers=4, learning_rate=3e-5, epochs=2)


def encoder_teacher(
    name: str, config: EncoderConfig, task: str, data: TaskData, cache: Path, progress: bool = False
) -> Soft:
    """What an encoder says of a task once it was fine-tuned on its train texts; read from the cache where it was.

    Args:
        name: Of the teacher.
        config: Which encoder, and how it is trained.
        task: Name of the task.
        data: Its texts.
        cache: Folder of encoders, checkpoints and logits.
        progress: Show progress bars.

    Raises:
        PackagedFileError: If the encoder's package is not installed.
        EncoderError: If the encoder is no folder of one.
        DivergedError: If the loss is no number; the last finished epoch stays in the cache.
    """
    folder = find_encoder(config.source, cache)
    reader, _ = learn(folder, config, {task: Subject(data)}, 1.0, 1.0, cache / "encoders", f"{name}-{task}", progress)
    answer: Callable[[Texts], np.ndarray] = partial(reader.answer, task)
    return Soft(name, answer(data.train), answer(data.validation), reader.n_parameters, answer)
