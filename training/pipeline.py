"""The recipe: texts, teacher, embeddings, student, control, bundle."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import Bundle, write_bundle
from models.circuit import Circuit, student_circuit, trainable_parameters
from models.embedder import Embedder, find_embedder
from models.engines.compiled import CompiledEngine, compile_circuit
from models.student import Student
from training.config import RunConfig, load_config
from training.data import TaskData, Texts, load_task
from training.distil import Distilled, Examples, distil
from training.errors import ConfigError
from training.evaluate import fit_control, measure
from training.features import embed_texts
from training.teacher import Teacher, teach

MAX_PARAMETERS = 9_275  # Table 3
_LIBRARIES = ("numpy", "onnxruntime", "peft", "scikit-learn", "tokenizers", "torch", "transformers")
# Written for this project: a bundle holds no text of the data that it learned from.
GOLDEN_TEXTS = (
    "What a lovely morning, the coffee is perfect and the sun is out.",
    "my train is late again and i am so tired of this",
    "The central bank left its key interest rate unchanged at four percent.",
    "Researchers mapped the sea floor with a swarm of small robots.",
    "The home side won the final on penalties after extra time.",
    "Ministers from twelve countries met to discuss the border dispute.",
    "i will be there at nine but do n't wait for me",
    "ok",
)


@dataclass(frozen=True)
class Pipeline:
    """One run: texts, embedder and circuit loaded, the teacher fine-tuned (or found in the cache)."""

    config: RunConfig
    data: TaskData
    embedder: Embedder
    circuit: Circuit
    teacher: Teacher
    cache: Path

    @classmethod
    def open(cls, config_path: Path, data: Path, cache: Path, teacher: str | None = None) -> Pipeline:
        """Load configuration and texts, and teach; `teacher` is a folder that replaces the configured model.

        Raises:
            ConfigError: If the student would have more trainable parameters than the paper's (Table 3); before
                any training, which takes hours.
        """
        config = load_config(config_path)
        if teacher is not None:
            config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"model": teacher})})
        texts = load_task(data, config.seed)
        embedder = Embedder(find_embedder(config.student.embedder))
        circuit = _student_circuit(config, embedder, texts.labels)
        return cls(config, texts, embedder, circuit, teach(texts.train, config.teacher, cache / "teachers"), cache)

    def teacher_metrics(self) -> dict[str, dict[str, Any]]:
        """The teacher on the texts it learned from and on the validation texts."""
        return {split: self._measure_teacher(getattr(self.data, split)) for split in ("train", "validation")}

    def distil(self, out: Path, command: str, final: bool) -> Bundle:
        """Distil, measure student, teacher and control, and write the bundle.

        Args:
            out: The bundle's folder.
            command: The command that runs this, for the manifest.
            final: Also measure on the test texts.
        """
        train, validation = (self._examples(part) for part in (self.data.train, self.data.validation))
        distilled = distil(self.config, self.circuit, train, validation, self.cache / "runs")
        splits = ("validation", "test") if final else ("validation",)
        facts = {
            "task": self.config.task,
            "labels": list(self.data.labels),
            "embedder": {
                "name": self.embedder.name,
                "sha256": self.embedder.sha256,
                "features": list(self.config.student.features),
            },
            "preset": self.config.student.preset,
            "n_qubits": self.config.student.n_qubits,
            "n_layers": self.config.student.n_layers,
            "metrics": self._metrics(distilled, train, validation, splits),
            "teacher": {
                "model": self.teacher.base.name,
                "model_sha256": self.teacher.base.sha256,
                "key": self.teacher.key,
            },
            "training": {"best_epoch": distilled.best_epoch, "history": distilled.history},
            "data_sha256": self.data.sha256,
            "seed": self.config.seed,
            "configuration": self.config.model_dump(mode="json"),
            "command": command,
            "library_versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        }
        return write_bundle(out, facts, self.circuit, distilled.weights, self.embedder, GOLDEN_TEXTS)

    def _metrics(
        self, distilled: Distilled, train: Examples, validation: Examples, splits: tuple[str, ...]
    ) -> dict[str, dict[str, Any]]:
        control = fit_control((train.embeddings, train.targets), (validation.embeddings, validation.targets))
        weights = distilled.weights
        tensor = compile_circuit(self.circuit.bind(ansatz=weights.ansatz.tolist()))
        student = Student(self.circuit, weights, CompiledEngine(tensor))
        metrics: dict[str, dict[str, Any]] = {}
        for split in splits:
            texts: Texts = getattr(self.data, split)
            embeddings = self._embed(texts)
            predicted = {
                "student": student.logits(student.angles(embeddings)).argmax(axis=1),
                "logistic_regression": control.predict(embeddings),
                "teacher": self.teacher.logits(texts).argmax(axis=1),
            }
            metrics[split] = {name: measure(p, texts.targets, texts.labels) for name, p in predicted.items()}
        return metrics

    def _examples(self, texts: Texts) -> Examples:
        return Examples(self._embed(texts), self.teacher.logits(texts), texts.targets)

    def _embed(self, texts: Texts) -> np.ndarray:
        return embed_texts(self.embedder, texts, self.config.student.features, self.cache / "embeddings")

    def _measure_teacher(self, texts: Texts) -> dict[str, Any]:
        return measure(self.teacher.logits(texts).argmax(axis=1), texts.targets, texts.labels)


def _student_circuit(config: RunConfig, embedder: Embedder, labels: tuple[str, ...]) -> Circuit:
    """The configured circuit, once its student is known to be no larger than the paper's."""
    shape = config.student
    circuit = student_circuit(shape.preset, shape.n_qubits, shape.n_layers)
    counts = trainable_parameters(embedder.embedding_size(shape.features), circuit, len(labels))
    if counts["total"] > MAX_PARAMETERS:
        raise ConfigError(
            f"student: {counts['total']} trainable parameters, expected at most {MAX_PARAMETERS} (Table 3)"
        )
    return circuit
