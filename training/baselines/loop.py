"""The training loop of every baseline: batches by length, AdamW with warm-up and cosine, the best epoch kept.

A baseline brings its model, what makes logits of a batch and what makes a loss of it; the rest is here, once.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from training.baselines.batches import Batch, Tokens
from training.checkpoints import read_checkpoint, save_checkpoint
from training.errors import DivergedError
from training.locks import alone
from training.precision import Precision, autocast, products
from training.steps import rate_share
from training.study.system import Lesson


@dataclass(frozen=True)
class LoopConfig:
    """How a baseline is trained.

    Attributes:
        learning_rate: Peak of the schedule.
        weight_decay: Decoupled, of AdamW, on all parameters.
        warmup_share: Of the steps, in which the learning rate rises to its peak; it then falls as a cosine to 0.
        max_tokens: Longer texts are truncated to this many tokens.
        precision: `bf16` multiplies matrices in bfloat16 while training, in models and teachers alike; weights, losses,
            optimiser and all predictions stay in float32. A result depends on it, so it is never chosen by the machine.
        averaging: Decay, a step, of the running mean of the weights, which is then what is validated and kept; 0 for
            the weights themselves.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    max_tokens: int = 64
    precision: Precision = "fp32"
    averaging: float = 0.0


Keep = Literal["best", "last"]
Forward = Callable[[Batch], torch.Tensor]
"""Logits of a batch, shape (batch, n_classes)."""
Loss = Callable[[Batch], torch.Tensor]
"""What a batch is to minimise, shape ()."""


@dataclass(frozen=True)
class History:
    """What happened in each epoch: `train_loss`, `validation_accuracy`, `validation_loss`, `seconds` of training.

    The seconds are the process's CPU time, all threads added: what else the machine does leaves them as they are.
    """

    epochs: list[dict[str, float]]

    @property
    def accuracies(self) -> list[float]:
        """On the validation texts, after each epoch."""
        return [entry["validation_accuracy"] for entry in self.epochs]

    @property
    def best_epoch(self) -> int:
        """Counted from 1: the best validation accuracy; of equals, the lowest cross-entropy."""
        entries = self.epochs
        return 1 + max(
            range(len(entries)), key=lambda i: (entries[i]["validation_accuracy"], -entries[i]["validation_loss"])
        )

    @property
    def seconds_per_epoch(self) -> float:
        """Mean CPU time of training, validation left out."""
        return sum(entry["seconds"] for entry in self.epochs) / len(self.epochs)


def train(
    model: torch.nn.Module,
    forward: Forward,
    loss: Loss,
    texts: Tokens,
    validation: Tokens,
    config: LoopConfig,
    seed: int,
    checkpoint: Path,
    name: str,
    keep: Keep = "best",
    progress: bool = True,
) -> History:
    """Train all parameters of `model` that ask for a gradient and leave it, in eval mode, as it was at its best epoch.

    A run that was stopped goes on from its last finished epoch; a finished one is read from `checkpoint`. Of several
    processes that want the same run, one trains and the others wait for it.

    Args:
        model: Trained in place.
        forward: Logits of a batch, from `model`.
        loss: Loss of a batch, from `model`; called under autocast where `config` has bfloat16, so what it computes of a
            model's output it computes of `output.float()`.
        texts: What is learned from.
        validation: What chooses the epoch.
        config: Epochs, batches and optimiser.
        seed: Of the batches' order and of dropout.
        checkpoint: One file, which belongs to this run alone; see `checkpoint_path`.
        name: Of the baseline, for the bar and for errors.
        keep: `best` keeps the epoch with the best validation accuracy, `last` the last one, where the loss does not
            train what makes the logits.
        progress: Show a progress bar.

    Raises:
        DivergedError: If a loss or its gradient is no number; the last finished epoch stays in `checkpoint`.
        CheckpointError: If `checkpoint` cannot be read.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Fused: one pass over weights and moments, where the word vectors alone are 12 million.
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    average = _Average(parameters, config.averaging)
    run = _Run(checkpoint, model, optimiser, average, config.epochs, keep)
    n_batches = -(-len(texts.ids) // config.batch_size)
    with alone(checkpoint.with_suffix(".lock")):
        torch.manual_seed(seed)
        run.resume()
        with tqdm(
            total=config.epochs * n_batches,
            initial=run.finished * n_batches,
            desc=name,
            unit="batch",
            disable=not progress,
            mininterval=1,
        ) as bar:
            while run.finished < config.epochs:
                entry = _train_epoch(model, loss, texts, config, seed, run, optimiser, average, name, bar)
                with average.in_place():
                    entry |= _validate(model, forward, validation, config.batch_size)
                    learned = {key: value.detach().clone() for key, value in model.state_dict().items()}
                # What an epoch's last step spoils, only its validation shows.
                if not np.isfinite(entry["validation_loss"]):
                    raise DivergedError(
                        f"{name}: the validation loss is {entry['validation_loss']} after epoch {run.finished + 1} of "
                        f"{config.epochs}; lower the learning rate (now {config.learning_rate}); {run.last_good}"
                    )
                run.finish_epoch(entry, learned)
                bar.set_postfix({k: f"{v:.4f}" for k, v in entry.items()}, refresh=False)
    model.load_state_dict(run.kept)
    model.eval()
    return run.history


@torch.inference_mode()
def predict(model: torch.nn.Module, forward: Forward, texts: Tokens, batch_size: int) -> np.ndarray:
    """Logits of shape (n, n_classes), float32, in the texts' order; leaves the model in eval mode."""
    model.eval()
    order = list(texts.by_length(batch_size))
    logits = torch.cat([forward(texts.batch(rows)) for rows in order]).float().numpy()
    found = np.empty_like(logits)
    found[np.concatenate(order)] = logits
    return found


def checkpoint_path(name: str, lesson: Lesson, config: LoopConfig, **identity: Any) -> Path:
    """Where a run is kept in the lesson's cache: named by what it learns, how, and whatever else makes it what it is.

    Args:
        name: Of the baseline.
        lesson: Its data, teacher's logits and seed count; its test texts do not.
        config: Counts.
        identity: JSON: settings of the method, hashes of the models that it starts from.
    """
    soft = None if lesson.soft is None else hashlib.sha256(np.ascontiguousarray(lesson.soft.train).tobytes())
    parts = {
        "name": name,
        "train": lesson.data.train.sha256,
        "validation": lesson.data.validation.sha256,
        "labels": lesson.data.labels,
        "soft": None if soft is None else soft.hexdigest(),
        "seed": lesson.seed,
        "config": asdict(config),
        **identity,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return lesson.cache / f"{slug}-{key}.pt"


def weights_sha256(model: torch.nn.Module) -> str:
    """Hash of all weights and their names."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Average:
    """The running mean of weights; without a decay it is nothing, and the weights stand for themselves."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.values = [parameter.detach().clone() for parameter in parameters] if decay else []
        self._parameters = parameters
        self._decay = decay
        self._n_steps = 0

    def update(self) -> None:
        if self.values:
            self._n_steps += 1
            # Young means follow their weights closely: otherwise a short run would never leave its start.
            share = 1 - min(self._decay, self._n_steps / (self._n_steps + 10))
            torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self._parameters], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the mean stand in the place of the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, state: dict[str, Any]) -> None:
        self.values, self._n_steps = state["values"], state["n_steps"]

    def to_state(self) -> dict[str, Any]:
        return {"values": self.values, "n_steps": self._n_steps}

    def _swap(self) -> None:
        for parameter, value in zip(self._parameters, self.values, strict=False):
            parameter.data, value.data = value.data, parameter.data


class _Run:
    """A run's state on disk: written after every epoch, read when the same run is started again."""

    def __init__(
        self,
        path: Path,
        model: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        average: _Average,
        n_epochs: int,
        keep: Keep,
    ) -> None:
        self.history = History([])
        self.kept: dict[str, torch.Tensor] = {}
        self._path = path
        self._model = model
        self._optimiser = optimiser
        self._average = average
        self._n_epochs = n_epochs
        self._keep = keep

    @property
    def finished(self) -> int:
        return len(self.history.epochs)

    @property
    def last_good(self) -> str:
        return f"the last finished epoch is in {self._path}" if self.finished else "no epoch was finished"

    def resume(self) -> None:
        if not self._path.exists():
            return
        with read_checkpoint(self._path) as state:
            self.history, self.kept = History(state["epochs"]), state["kept"]
            if "model" in state:
                self._model.load_state_dict(state["model"])
                self._optimiser.load_state_dict(state["optimiser"])
                self._average.load(state["average"])
                torch.set_rng_state(state["rng"])

    def finish_epoch(self, entry: dict[str, float], learned: dict[str, torch.Tensor]) -> None:
        self.history.epochs.append(entry)
        if self._keep == "last" or self.history.best_epoch == self.finished:
            self.kept = learned
        state: dict[str, Any] = {"epochs": self.history.epochs, "kept": self.kept}
        # A finished run is only read from: the optimiser would make its file four times as large.
        if self.finished < self._n_epochs:
            state |= {
                "model": self._model.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "average": self._average.to_state(),
                "rng": torch.get_rng_state(),
            }
        save_checkpoint(self._path, state)


def _train_epoch(
    model: torch.nn.Module,
    loss: Loss,
    texts: Tokens,
    config: LoopConfig,
    seed: int,
    run: _Run,
    optimiser: torch.optim.Optimizer,
    average: _Average,
    name: str,
    bar: Any,
) -> dict[str, float]:
    epoch, begun, losses = run.finished, time.process_time(), 0.0
    batches = texts.shuffled(config.batch_size, (seed, epoch))
    total = config.epochs * len(batches)
    model.train()
    for step, rows in enumerate(batches):
        rate = config.learning_rate * rate_share(epoch * len(batches) + step, total, config.warmup_share)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with autocast(config.precision):
            value = loss(texts.batch(rows))
        optimiser.zero_grad(set_to_none=True)
        with products(config.precision):
            value.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
        # A gradient that is no number would spoil the weights that this epoch ends with.
        for what, found in (("loss", value.detach()), ("gradient of the loss", norm)):
            if not torch.isfinite(found):
                raise DivergedError(
                    f"{name}: the {what} is {found.item()} in epoch {epoch + 1} of {config.epochs}, step {step + 1} of "
                    f"{len(batches)}; lower the learning rate (now {config.learning_rate}); {run.last_good}"
                )
        optimiser.step()
        average.update()
        losses += value.item() * len(rows)
        bar.update()
    return {"train_loss": losses / len(texts.ids), "seconds": time.process_time() - begun}


def _validate(model: torch.nn.Module, forward: Forward, validation: Tokens, batch_size: int) -> dict[str, float]:
    logits = predict(model, forward, validation, batch_size)
    targets = torch.tensor(validation.targets)
    return {
        "validation_accuracy": float((logits.argmax(axis=1) == validation.targets).mean()),
        "validation_loss": torch.nn.functional.cross_entropy(torch.tensor(logits), targets).item(),
    }
