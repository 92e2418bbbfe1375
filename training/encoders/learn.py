"""Train an encoder on the texts of one task or of several, with the shared loop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.baselines.batches import Batch, Tokens
from training.baselines.loop import History, train
from training.data import TaskData
from training.encoders.config import EncoderConfig
from training.encoders.pooled import Reader, open_encoder
from training.losses import soft_loss
from training.packages import file_sha256
from training.study.system import Soft

_OTHER_TASKS = -1e4  # logit of a class of another task


@dataclass(frozen=True)
class Subject:
    """One task of those that an encoder learns together.

    Attributes:
        data: Its texts; those for testing are not looked at.
        soft: What a teacher says of the train texts; None where labels alone teach.
        repeats: How often an epoch shows each of its texts.
    """

    data: TaskData
    soft: Soft | None = None
    repeats: int = 1


@dataclass(frozen=True)
class JointTask:
    """The texts of all tasks in one row of classes: a task's first class follows the last one of the task before.

    Attributes:
        texts: Of all tasks, repeats among them; targets count along that row.
        validation: Likewise, without repeats.
        soft: Teachers' logits in the order of `texts`, shape (n_texts, n_classes of all tasks).
        blocks: Each task's first class and the one after its last.
    """

    texts: Tokens
    validation: Tokens
    soft: torch.Tensor
    blocks: Mapping[str, tuple[int, int]]


def learn(
    folder: Path,
    config: EncoderConfig,
    subjects: Mapping[str, Subject],
    guidance: float,
    temperature: float,
    cache: Path,
    name: str,
    progress: bool = True,
) -> tuple[Reader, History]:
    """Train an encoder, or read it from the cache where it is done.

    The loss of a text is guidance CE + (1 - guidance) T^2 KL(f || q), f and q at the temperature T; CE alone where no
    teacher speaks. Epochs are chosen by the accuracy over the validation texts of all tasks together.

    Args:
        folder: Hugging Face folder that it starts from.
        config: What is trained and how.
        subjects: By task.
        guidance: Weight of the labels where there is a teacher.
        temperature: T.
        cache: Folder of the run's checkpoint.
        name: For the checkpoint's file, the bar and errors.
        progress: Show a progress bar.

    Raises:
        EncoderError: If the folder holds no encoder that fits.
        DivergedError: If the loss is no number; the last finished epoch stays in the cache.
        CheckpointError: If the run's checkpoint cannot be read.
    """
    reader = open_encoder(folder, config, {task: len(subject.data.labels) for task, subject in subjects.items()})
    joint = _join(reader, subjects)
    model = reader.model

    def forward(batch: Batch) -> torch.Tensor:
        pooled = model.pooled(batch)
        logits = pooled.new_full((len(batch.rows), joint.soft.shape[1]), _OTHER_TASKS)
        for task, (first, end) in joint.blocks.items():
            rows = _members(batch, first, end)
            logits[rows, first:end] = model.logits(task, pooled[rows])
        return logits

    def loss(batch: Batch) -> torch.Tensor:
        pooled = model.pooled(batch)
        total = pooled.new_zeros(())
        for task, (first, end) in joint.blocks.items():
            rows = _members(batch, first, end)
            if len(rows) == 0:
                continue
            logits = model.logits(task, pooled[rows])
            targets = batch.targets[rows] - first
            mean = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
            if subjects[task].soft is not None:
                taught = joint.soft[batch.rows[rows], first:end]
                mean = guidance * mean + (1 - guidance) * soft_loss(logits, taught, temperature)
            total = total + len(rows) * mean
        return total / len(batch.rows)

    checkpoint = cache / f"{name}-{_key(folder, config, subjects, guidance, temperature)}.pt"
    history = train(
        model, forward, loss, joint.texts, joint.validation, config.loop, config.seed, checkpoint, name,
        progress=progress,
    )  # fmt: skip
    return reader, history


def _members(batch: Batch, first: int, end: int) -> torch.Tensor:
    return torch.nonzero((batch.targets >= first) & (batch.targets < end))[:, 0]


def _join(reader: Reader, subjects: Mapping[str, Subject]) -> JointTask:
    n_classes = sum(len(subject.data.labels) for subject in subjects.values())
    ids: list[list[int]] = []
    validation_ids: list[list[int]] = []
    targets, validation_targets, soft, blocks, first = [], [], [], {}, 0
    for task, subject in subjects.items():
        train_texts, validation = reader.tokens(subject.data.train), reader.tokens(subject.data.validation)
        end = first + len(subject.data.labels)
        said = np.zeros((len(train_texts.ids), n_classes), dtype=np.float32)
        if subject.soft is not None:
            said[:, first:end] = subject.soft.train
        for _ in range(subject.repeats):
            ids += [list(text) for text in train_texts.ids]
            targets.append(train_texts.targets + first)
            soft.append(said)
        validation_ids += [list(text) for text in validation.ids]
        validation_targets.append(validation.targets + first)
        blocks[task] = (first, end)
        first = end
    return JointTask(
        Tokens(ids, np.concatenate(targets), train_texts.pad_id),
        Tokens(validation_ids, np.concatenate(validation_targets), train_texts.pad_id),
        torch.tensor(np.concatenate(soft)),
        blocks,
    )


def _key(
    folder: Path, config: EncoderConfig, subjects: Mapping[str, Subject], guidance: float, temperature: float
) -> str:
    parts: dict[str, Any] = {
        "encoder": file_sha256(folder / "model.safetensors"),
        "tokenizer": file_sha256(folder / "tokenizer.json"),
        # Without what is not stated: a new field leaves finished runs finished.
        "config": {name: value for name, value in config.model_dump().items() if value is not None},
        "guidance": guidance,
        "temperature": temperature,
        "subjects": {
            task: {
                "train": subject.data.train.sha256,
                "validation": subject.data.validation.sha256,
                "labels": subject.data.labels,
                "soft": None if subject.soft is None else hashlib.sha256(_bytes(subject.soft.train)).hexdigest(),
                "repeats": subject.repeats,
            }
            for task, subject in subjects.items()
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _bytes(logits: np.ndarray) -> bytes:
    return np.ascontiguousarray(logits, dtype=np.float32).tobytes()
