"""Adapt one encoder to all tasks and write it as a Hugging Face folder, which `qdtrain export-embedder` takes."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.folders import replace_folder, require_replaceable
from training.data import load_task
from training.encoders.config import AdaptConfig
from training.encoders.generated import GENERATED, generated_task
from training.encoders.learn import Subject, learn
from training.encoders.sources import find_encoder
from training.errors import ConfigError
from training.evaluate import measure
from training.export import ADAPTED
from training.packages import file_sha256
from training.study.workshop import AskTeacher

_LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Adaptation:
    """What is adapted, from what, to where.

    Attributes:
        config: How.
        teachers: By name.
        data: Folder of the tasks' folders.
        cache: Folder of teachers, encoders and checkpoints.
        out: Folder that is written; replaced only when the encoder is complete.
        command: What ran this, for the record.
    """

    config: AdaptConfig
    teachers: dict[str, AskTeacher]
    data: Path
    cache: Path
    out: Path
    command: str

    def run(self, progress: bool = True) -> dict[str, Any]:
        """Train, write `out`, and return its `adapted.json`: validation accuracies, trained parameters, origin.

        Raises:
            FolderError: If `out` holds anything but an adapted encoder.
            ConfigError: If a teacher's name is unknown.
            DataError: If a task's texts cannot be read.
            EncoderError: If the encoder cannot be found.
            DivergedError: If the loss is no number; the last finished epoch stays in the cache.
        """
        require_replaceable(self.out.resolve(), ADAPTED)
        config = self.config
        teachers = {task: config.teacher_of(task) for task in config.repeats}
        for name in teachers.values():
            if name not in self.teachers:
                raise ConfigError(f"teacher {name!r}: expected one of {sorted(self.teachers)}")
        folder = find_encoder(config.encoder.source, self.cache)  # before the teachers, which may take hours
        tasks = {task: load_task(self.data / task) for task in config.repeats}
        subjects = {
            task: Subject(data, self.teachers[teachers[task]](task, data, self.cache), config.repeats[task])
            for task, data in tasks.items()
        }
        if (generated := config.generated) is not None:
            data = generated_task(tasks[generated.tweets], tasks[generated.hiding], generated.n_written, generated.seed)
            subjects[GENERATED] = Subject(data, None, generated.repeats)
        reader, history = learn(
            folder,
            config.encoder,
            subjects,
            config.guidance,
            config.temperature,
            self.cache / "encoders",
            "adapted",
            progress,
        )
        validation = {}
        for task, subject in subjects.items():
            texts = subject.data.validation
            validation[task] = measure(reader.answer(task, texts).argmax(axis=1), texts.targets, texts.labels)
        found = {
            "source": {"encoder": config.encoder.source, "weights_sha256": file_sha256(folder / "model.safetensors")},
            "trained_parameters": reader.n_trainable,
            "parameters": reader.n_parameters,
            "validation": validation,
            "epochs": history.epochs,
            "best_epoch": history.best_epoch,
            "data_sha256": {task: data.sha256 for task, data in tasks.items()},
            "configuration": config.model_dump(mode="json"),
            "command": self.command,
            "library_versions": {name: version(name) for name in _LIBRARIES},
        }
        return self._write(reader.model.encoder, folder, found)

    def _write(self, encoder: Any, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
        out = self.out.resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            encoder.save_pretrained(partial)
            shutil.copyfile(folder / "tokenizer.json", partial / "tokenizer.json")
            found = {**found, "weights_sha256": file_sha256(partial / "model.safetensors")}
            (partial / ADAPTED).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            replace_folder(out, partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return found
