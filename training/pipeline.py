"""The recipe: texts, teacher, embeddings, student, control, bundle."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
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
from training.hardware import Chip, draw_rows, measure_channel, predict_on_chip
from training.teacher import Teacher, teach

MAX_PARAMETERS = 9_275  # Table 3
CHANNEL_TEXTS = 32  # training texts on which a chip's channel is measured
HARDWARE_TEXTS = 200  # texts of a split on which a student is measured on a chip
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
            ConfigError: If the student would have more trainable parameters than the paper's (Table 3), or a chip is
                to be emulated without MindQuantum; before any training, which takes hours.
        """
        config = load_config(config_path)
        if config.hardware is not None and find_spec("mindquantum") is None:
            raise ConfigError(
                "hardware: emulating a chip needs the package mindquantum==0.12.0, which has wheels for Python 3.11 "
                "and no newer one; without the table [hardware] the student learns noise-free"
            )
        if teacher is not None:
            config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"model": teacher})})
        texts = load_task(data)
        embedder = Embedder(find_embedder(config.student.embedder, cache))
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
        runs, hardware = self.cache / "runs", self.config.hardware
        distilled = distil(self.config, self.circuit, train, validation, runs)
        chip, learning = None, {}
        if hardware is not None:
            # Noise-free first: what a chip makes of <Z> depends on the circuit's angles.
            chip = Chip.baihua(self.circuit.n_qubits, hardware.shots)
            rows = draw_rows(len(train.embeddings), CHANNEL_TEXTS, self.config.seed)
            channel = measure_channel(self._student(distilled), chip, train.embeddings[rows], self.config.seed)
            distilled = distil(self.config, self.circuit, train, validation, runs, channel=channel)
            learning["channel"] = channel.to_json()
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
            "metrics": self._metrics(distilled, train, validation, splits, chip),
            "teacher": {
                "model": self.teacher.base.name,
                "model_sha256": self.teacher.base.sha256,
                "key": self.teacher.key,
            },
            "training": {
                "run": distilled.run,
                "best_epoch": distilled.best_epoch,
                "history": distilled.history,
                **learning,
            },
            "data_sha256": self.data.sha256,
            "seed": self.config.seed,
            "configuration": self.config.model_dump(mode="json"),
            "command": command,
            "library_versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        }
        return write_bundle(out, facts, self.circuit, distilled.weights, self.embedder, GOLDEN_TEXTS)

    def _metrics(
        self,
        distilled: Distilled,
        train: Examples,
        validation: Examples,
        splits: tuple[str, ...],
        chip: Chip | None,
    ) -> dict[str, dict[str, Any]]:
        control = fit_control((train.embeddings, train.targets), (validation.embeddings, validation.targets))
        student = self._student(distilled)
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
            if chip is not None:
                rows = draw_rows(len(texts), HARDWARE_TEXTS, self.config.seed)
                metrics[split] |= {
                    f"hardware_{name}": measure(p, texts.targets[rows], texts.labels)
                    for name, p in predict_on_chip(student, chip, embeddings[rows], self.config.seed).items()
                }
        return metrics

    def _student(self, distilled: Distilled) -> Student:
        tensor = compile_circuit(self.circuit.bind(ansatz=distilled.weights.ansatz.tolist()))
        return Student(self.circuit, distilled.weights, CompiledEngine(tensor))

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
