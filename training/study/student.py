"""The student as the study sees it: cached embeddings, eq. 14 where there is a teacher, cross-entropy where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from models.circuit import student_circuit, trainable_parameters
from models.embedder import Embedder, find_embedder
from models.engines.compiled import CompiledEngine, compile_circuit
from models.student import Student
from training.config import RunConfig, StudentConfig
from training.data import TaskData, Texts
from training.distil import Examples, distil
from training.features import embed_texts
from training.locks import alone
from training.study.cells import Track
from training.study.system import Lesson, Outcome

EMBEDDERS: dict[Track, str] = {
    "frozen": "minilm-l6",
    "adapted": "minilm-l6-adapted",
    "adapted-large": "mpnet-l6-adapted",
}
"""Whose features a track's systems read."""
ADAPTED: tuple[Track, ...] = ("adapted", "adapted-large")

# What quantisation adds to a graph: no parameters of the encoder.
_QUANTISATION = ("_scale", "_scales", "_zero_point", "_zero_points")


@dataclass(frozen=True)
class StudentSystem:
    """A student of one configuration, noise-free: `config.hardware` and `config.teacher` are not read here.

    The lesson's seed replaces the configuration's. `facts` holds the parameters by part, the seconds an epoch took, the
    best epoch and its losses, and how many of the encoder's parameters were trained before.
    """

    config: RunConfig
    name: str = "QD-LLM"

    def learn(self, lesson: Lesson) -> Outcome:
        """Distil; with `lesson.soft` None the student learns from labels alone.

        Raises:
            DivergedError: If the loss is no number; the last finished epoch stays in `lesson.cache / "runs"`.
        """
        features = Features.of(self.config.student, lesson)
        shape = self.config.student
        circuit = student_circuit(shape.preset, shape.n_qubits, shape.n_layers)
        train, validation = examples(lesson, features)
        config = run_config(self.config, lesson)
        distilled = distil(config, circuit, train, validation, lesson.cache / "runs", progress=False)
        engine = CompiledEngine(compile_circuit(circuit.bind(ansatz=distilled.weights.ansatz.tolist())))
        student = Student(circuit, distilled.weights, engine)
        counts = student.parameter_counts
        return Outcome(
            LearnedOnFeatures(features, lambda embeddings: student.logits(student.angles(embeddings))),
            counts["total"],
            counts["total"] + features.n_parameters,
            validation_accuracies(distilled.history),
            {
                "parameters": counts,
                **features.facts,
                **run_facts(distilled.history, distilled.best_epoch, distilled.seconds),
            },
        )


@dataclass(frozen=True)
class Features:
    """A student's features of any texts; the texts of a lesson are embedded once, whatever asks for them."""

    folder: Path
    embedder: Embedder
    features: tuple[str, ...]
    cache: Path
    kept: frozenset[str]

    @classmethod
    def of(cls, shape: StudentConfig, lesson: Lesson) -> Features:
        """The features of a configured student; those of a lesson's own texts are kept in its cache."""
        folder = find_embedder(shape.embedder, lesson.cache)
        # As many threads as the rest of the cell has: another cell may have the other CPUs.
        embedder = Embedder(folder, threads=torch.get_num_threads())
        return cls(
            folder, embedder, shape.features, lesson.cache / "embeddings", frozenset(lesson.data.sha256.values())
        )

    def __call__(self, texts: Texts) -> np.ndarray:
        """Embeddings of shape (n, embedding_size), float32."""
        if texts.sha256 not in self.kept:
            return self.embedder.embed(texts.texts, self.features)
        with alone(self.cache / f"{self.embedder.sha256[:12]}-{texts.sha256[:16]}.lock"):
            return embed_texts(self.embedder, texts, self.features, self.cache, progress=False)

    @property
    def embedding_size(self) -> int:
        return self.embedder.embedding_size(self.features)

    @property
    def n_parameters(self) -> int:
        """Of the whole frozen encoder: the exported graph computes every layer."""
        return encoder_parameters(self.folder)

    @property
    def facts(self) -> dict[str, int]:
        """`encoder_trained`, of an outcome on these features."""
        return {"encoder_trained": encoder_trained(self.embedder.info)}


@dataclass(frozen=True)
class LearnedOnFeatures:
    """What learned on a student's features; `classify` maps (n, embedding_size) to logits (n, n_classes)."""

    features: Features
    classify: Callable[[np.ndarray], np.ndarray]

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of shape (n_texts, n_classes)."""
        return self.classify(self.features(texts))


def encoder_trained(info: Mapping[str, Any]) -> int:
    """Parameters that were trained when an encoder was adapted to the tasks; 0 of one that never was.

    Args:
        info: Its embedder.json.
    """
    return int(info["source"].get("adapted", {}).get("trained_parameters", 0))


@cache
def encoder_parameters(folder: Path) -> int:
    """Parameters of an exported encoder, each counted once at whatever precision it is stored."""
    graph = onnx.load(folder / "model.onnx").graph
    sizes = [
        int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type != onnx.TensorProto.INT64 and not tensor.name.endswith(_QUANTISATION)
    ]
    return sum(size for size in sizes if size > 1)  # single numbers are constants of the graph, as integers are


def examples(lesson: Lesson, features: Features) -> tuple[Examples, Examples]:
    """Train and validation examples; without a teacher the labels, one-hot, take the place of its logits.

    The one-hot logits are what a linear start is fitted to. No loss reads them: see `run_config`.
    """
    data: TaskData = lesson.data
    parts = []
    for texts, soft in zip(
        (data.train, data.validation),
        (None, None) if lesson.soft is None else (lesson.soft.train, lesson.soft.validation),
        strict=True,
    ):
        logits = np.eye(len(data.labels))[texts.targets] if soft is None else soft
        parts.append(Examples(features(texts), logits.astype(np.float32), texts.targets))
    return parts[0], parts[1]


def run_config(config: RunConfig, lesson: Lesson) -> RunConfig:
    """The lesson's seed; the labels' cross-entropy alone where there is no teacher (`guidance` = 1 in eq. 14)."""
    loss = config.loss if lesson.soft is not None else config.loss.model_copy(update={"guidance": 1.0})
    return config.model_copy(update={"seed": lesson.seed, "loss": loss, "hardware": None})


def without_teacher(lesson: Lesson) -> Lesson:
    """The same lesson, labels alone."""
    return replace(lesson, soft=None)


def student_parameters(config: RunConfig, embedding_size: int, n_classes: int) -> int:
    """Trainable parameters of a configured student."""
    circuit = student_circuit(config.student.preset, config.student.n_qubits, config.student.n_layers)
    return trainable_parameters(embedding_size, circuit, n_classes)["total"]


def validation_accuracies(history: list[dict[str, float]]) -> list[float]:
    """Of every epoch; entry 0 of a history is the start, which is no epoch."""
    return [entry["validation_accuracy"] for entry in history[1:]]


def run_facts(history: list[dict[str, float]], best_epoch: int, seconds: float | None) -> dict[str, Any]:
    """What tables read of a run: best epoch (0 is the start), its entry, and Tkd, the seconds an epoch took.

    `seconds_per_epoch` is None where the run comes from a cache that did not count them.
    """
    epochs = len(history) - 1
    return {
        "best_epoch": best_epoch,
        "best": history[best_epoch],
        "seconds_per_epoch": None if seconds is None else seconds / epochs,
    }
