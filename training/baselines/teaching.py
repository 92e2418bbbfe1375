"""What a frozen teacher shows a student: its states of a batch, or once what it says of every text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from transformers import PreTrainedModel

from training.baselines.batches import Batch, Tokens
from training.baselines.loop import LoopConfig
from training.baselines.transformer import Classifier, States, states
from training.errors import TeacherError
from training.precision import autocast
from training.study.system import Lesson

TeacherSource: TypeAlias = PreTrainedModel | Callable[[Lesson], PreTrainedModel]
"""A BERT classifier, fine-tuned on a task, or what finds one for a lesson."""


def find_teacher(
    name: str, source: TeacherSource, lesson: Lesson, student: Classifier, layers: Sequence[int]
) -> PreTrainedModel:
    """The model that teaches this student of a lesson, its classes, width and layers checked.

    Raises:
        TeacherError: If it cannot teach this student.
    """
    teacher: PreTrainedModel = source if isinstance(source, PreTrainedModel) else source(lesson)
    wanted = student.model.config
    for what, found, expected in (
        ("classes", teacher.config.num_labels, wanted.num_labels),
        ("hidden size", teacher.config.hidden_size, wanted.hidden_size),
        ("vocabulary", teacher.config.vocab_size, wanted.vocab_size),
    ):
        if found != expected:
            raise TeacherError(f"{name}: the teacher's {what}: {found}, expected the student's {expected}")
    if max(layers) > teacher.config.num_hidden_layers:
        raise TeacherError(
            f"{name}: layers {list(layers)} of the teacher are to be copied, found {teacher.config.num_hidden_layers}"
        )
    return teacher


def teacher_states(model: PreTrainedModel, batch: Batch) -> States:
    """What a frozen teacher makes of a batch: without dropout, and nothing to differentiate."""
    model.eval()
    with torch.no_grad():
        return states(model, batch)


@dataclass(frozen=True)
class Said:
    """What a teacher says of all texts, in their order.

    Attributes:
        logits: Shape (n, n_classes).
        cls: [CLS] states of the layers asked for, shape (n, n_layers, hidden_size).
    """

    logits: torch.Tensor
    cls: torch.Tensor


def said(model: PreTrainedModel, texts: Tokens, config: LoopConfig, layers: Sequence[int] = ()) -> Said:
    """Ask a frozen teacher once, where every epoch would hear the same.

    Args:
        model: The teacher.
        texts: What it is asked.
        config: Batch size and precision.
        layers: Whose [CLS] states to keep, counted from 1.
    """
    order, logits, cls = [], [], []
    for rows in texts.by_length(config.batch_size):
        with autocast(config.precision):
            made = teacher_states(model, texts.batch(rows))
        order.append(torch.tensor(rows))
        logits.append(made.logits)
        kept = [made.hidden[layer][:, 0] for layer in layers]
        cls.append(torch.stack(kept, dim=1) if kept else made.logits.new_empty(len(rows), 0, 0))
    back = torch.cat(order).argsort()
    return Said(torch.cat(logits)[back], torch.cat(cls)[back])
