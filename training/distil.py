"""Distil a teacher into a student: embed, start from a linear map, train with eq. 14, keep the best epoch.

Features are standardised while training; the means and scales are folded into the reducer at the end, so the student
that is saved is exactly the paper's: z = w E + b (eq. 4). The paper's released code rescales z to [0, 10] for each
text; here z is used as it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.circuit import Circuit
from models.student import StudentWeights
from training.checkpoints import read_checkpoint, save_checkpoint
from training.circuit_torch import CircuitExpvals
from training.config import OptimiserConfig, RunConfig
from training.errors import DivergedError
from training.hardware import Channel
from training.locks import alone
from training.losses import distillation_loss

_VALIDATION_DRAWS = 16  # of a channel's shot noise for each text, so that chance does not choose the epoch


@dataclass(frozen=True)
class Examples:
    """What the student learns from: embeddings (n, m), teacher logits (n, n_classes), class indices (n,)."""

    embeddings: np.ndarray
    teacher_logits: np.ndarray
    targets: np.ndarray

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for array in (self.embeddings, self.teacher_logits, self.targets):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Distilled:
    """A trained student and how it got there: one entry of `history` an epoch, epoch 0 being the start.

    `seconds` is the CPU time that training took in all epochs, validation left out and threads added; None where a run
    of an older version is in the cache. `run` names the run: its checkpoint in the cache is `<run>.pt`.
    """

    weights: StudentWeights
    history: list[dict[str, float]]
    best_epoch: int
    seconds: float | None = None
    run: str = ""


class ReducedModule(torch.nn.Module):
    """Standardised embeddings -> reducer -> what a subclass makes of the reduced values -> linear head.

    The student and what it is compared with differ in `middle` alone, so one loop trains them all.
    """

    def __init__(self, embedding_size: int, n_reduced: int, n_outputs: int, n_classes: int) -> None:
        super().__init__()
        self.reducer = torch.nn.Linear(embedding_size, n_reduced)
        self.head = torch.nn.Linear(n_outputs, n_classes)

    def middle(self, reduced: torch.Tensor) -> torch.Tensor:
        """Reduced values (batch, n_reduced) -> the head's inputs (batch, n_outputs)."""
        raise NotImplementedError

    def expvals(self, standardised: torch.Tensor) -> torch.Tensor:
        """The head's inputs; the student's are expectation values."""
        return self.middle(self.reducer(standardised))

    def forward(self, standardised: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.expvals(standardised))
        return logits


class StudentModule(ReducedModule):
    """The trainable student on standardised embeddings: reducer, circuit, head."""

    def __init__(self, circuit: Circuit, embedding_size: int, n_classes: int) -> None:
        super().__init__(embedding_size, circuit.n_qubits, circuit.n_qubits, n_classes)
        self.circuit = CircuitExpvals(circuit)
        self.ansatz = torch.nn.Parameter(torch.empty(circuit.n_parameters))
        # Wide: near the identity the circuit is even in every angle and has no gradient at z = 0.
        torch.nn.init.uniform_(self.ansatz, -torch.pi, torch.pi)

    def middle(self, reduced: torch.Tensor) -> torch.Tensor:
        expvals: torch.Tensor = self.circuit(reduced, self.ansatz)
        return expvals


Module = TypeVar("Module", bound=ReducedModule)


@dataclass(frozen=True)
class Fitted(Generic[Module]):
    """A module at its best epoch, the standardisation (embedding_size,) it reads, and how it got there."""

    module: Module
    mean: np.ndarray
    scale: np.ndarray
    history: list[dict[str, float]]
    best_epoch: int
    seconds: float | None
    run: str


def distil(
    config: RunConfig,
    circuit: Circuit,
    train: Examples,
    validation: Examples,
    cache: Path,
    progress: bool = True,
    channel: Channel | None = None,
) -> Distilled:
    """Train a student; the epoch with the best validation accuracy is kept.

    A run that was stopped goes on from its last finished epoch; a finished run is read from the cache. Of several
    processes that want the same run, one trains and the others wait for it.

    Args:
        config: The run.
        circuit: The unbound student circuit.
        train: What the student learns from.
        validation: What chooses the epoch.
        cache: Folder of all runs.
        progress: Show a progress bar.
        channel: What a chip makes of the expectation values. Half of the loss is then that of exact values and half
            that of the channel's, drawn anew at every step, so that one head serves the simulator and the chip.
            The epoch is chosen by the mean of both accuracies.

    Raises:
        DivergedError: If the loss or its gradient is no longer a number; the last finished epoch stays in the cache.
        CheckpointError: If the run's checkpoint cannot be read.
    """
    fitted = fit(partial(StudentModule, circuit), config, train, validation, cache, progress, channel)
    weights = _weights(fitted.module, fitted.mean, fitted.scale)
    return Distilled(weights, fitted.history, fitted.best_epoch, fitted.seconds, fitted.run)


def fit(
    build: Callable[[int, int], Module],
    config: RunConfig,
    train: Examples,
    validation: Examples,
    cache: Path,
    progress: bool = True,
    channel: Channel | None = None,
    kind: str = "student",
) -> Fitted[Module]:
    """What `distil` does, for the student and for what it is compared with.

    Args:
        build: Makes the module from the length of an embedding and the number of classes.
        kind: What is trained, for messages; in the cache it tells the runs of other modules from the student's.

    Raises:
        DivergedError: If the loss or its gradient is no longer a number; the last finished epoch stays in the cache.
        CheckpointError: If the run's checkpoint cannot be read.
    """
    torch.manual_seed(config.seed)
    mean, scale = train.embeddings.mean(axis=0), train.embeddings.std(axis=0) + 1e-6
    x, x_validation = (torch.tensor((part.embeddings - mean) / scale) for part in (train, validation))
    teacher, targets = torch.tensor(train.teacher_logits), torch.tensor(train.targets)
    model = build(x.shape[1], train.teacher_logits.shape[1])
    name = f"{config.task}-{_run_key(config, train, validation, channel, kind)}"
    path = cache / f"{name}.pt"

    def validate(kept: ReducedModule) -> dict[str, float]:
        found = {}
        with torch.inference_mode():
            expvals = kept.expvals(x_validation)
            drawn = {} if channel is None else {"_on_chip": channel(expvals.repeat(_VALIDATION_DRAWS, 1))}
            for name, values in {"": expvals, **drawn}.items():
                logits = kept.head(values)
                repeats = len(values) // len(expvals)
                soft = torch.tensor(validation.teacher_logits).repeat(repeats, 1)
                hard = torch.tensor(validation.targets).repeat(repeats)
                found[f"validation_loss{name}"] = distillation_loss(logits, soft, hard, config.loss).item()
                found[f"validation_accuracy{name}"] = float((logits.argmax(dim=1) == hard).double().mean())
        return found

    epochs = config.optimiser.epochs
    with alone(path.with_suffix(".lock")):
        # A run that goes on, or is read, has left its start behind; of all texts a start takes as long as an epoch.
        if config.optimiser.start == "linear" and not path.exists():
            start_linear(model, x, teacher, config.optimiser, channel)
        optimiser = _optimiser(model, config.optimiser)
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.optimiser.averaging))  # type: ignore[no-untyped-call]
        kept = cast(ReducedModule, averaged.module)
        run = _Run(path, kind, model, averaged, optimiser)
        run.resume()
        if not run.history:
            run.finish_epoch(validate(kept))
        bar = tqdm(total=epochs, initial=run.epoch, desc=f"{kind} {config.task}", unit="epoch", disable=not progress)
        while run.epoch < epochs:
            begin = time.process_time()
            _set_learning_rates(optimiser, run.epoch, epochs)
            loss = _train_epoch(model, averaged, optimiser, x, teacher, targets, config, run, channel)
            seconds = time.process_time() - begin
            validated = validate(kept)
            # What an epoch's last step spoils, only its validation shows.
            for metric, value in validated.items():
                run.require_number(metric.replace("_", " "), value, f"after epoch {run.epoch + 1} of {epochs}")
            run.finish_epoch({"train_loss": loss, **validated}, seconds)
            bar.set_postfix({k: f"{v:.4f}" for k, v in run.history[-1].items()}, refresh=False)
            bar.update()
        bar.close()
    model.load_state_dict(run.best)
    return Fitted(model, mean, scale, run.history, run.best_epoch, run.seconds, name)


def start_linear(
    model: ReducedModule,
    x: torch.Tensor,
    teacher: torch.Tensor,
    config: OptimiserConfig,
    channel: Channel | None = None,
) -> None:
    """Start from a linear map fitted to the teacher's logits.

    Each row of the reducer is a random mix of the classes' ridge directions, scaled to angles with a standard deviation
    of `angle_scale`; the head is then the ridge fit of the same logits to the expectation values, those of the chip
    among them. A reducer that starts at random memorises a few thousand texts before it finds this direction.
    """
    wanted = teacher - teacher.mean(dim=1, keepdim=True)
    directions = _ridge(x, wanted - wanted.mean(dim=0), config.ridge)
    mix = torch.randn(model.reducer.out_features, wanted.shape[1])
    with torch.no_grad():
        rows = mix @ directions.T
        rows *= config.angle_scale / (x @ rows.T).std(dim=0)[:, None]
        model.reducer.weight.copy_(rows)
        model.reducer.bias.zero_()
        views = _views(model.expvals(x), channel)
        expvals, wanted = torch.cat(views), wanted.repeat(len(views), 1)
        centred = expvals - expvals.mean(dim=0)
        head = _ridge(centred, wanted - wanted.mean(dim=0), 1e-3 * len(expvals) * float(centred.var()))
        model.head.weight.copy_(head.T)
        model.head.bias.copy_(wanted.mean(dim=0) - expvals.mean(dim=0) @ head)


class _Run:
    """A run's state on disk: written after every epoch, read when the same run is started again."""

    def __init__(
        self, path: Path, kind: str, model: ReducedModule, averaged: AveragedModel, optimiser: torch.optim.Optimizer
    ) -> None:
        self.path = path
        self.kind = kind
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self.seconds: float | None = 0.0
        self.best: dict[str, torch.Tensor] = {}
        self._model = model
        self._averaged = averaged
        self._optimiser = optimiser

    @property
    def epoch(self) -> int:
        """Finished epochs; the start is not one."""
        return len(self.history) - 1

    def _find_best_epoch(self) -> int:
        """The epoch with the best validation accuracy, exact and on the chip; of equals, the one with the lowest loss.

        Not the lowest loss alone: a teacher that is sure of what it got wrong makes the loss grow while labels improve.
        """

        def total(entry: dict[str, float], metric: str) -> float:
            return sum(value for name, value in entry.items() if name.startswith(metric))

        return max(
            range(len(self.history)),
            key=lambda i: (total(self.history[i], "validation_accuracy"), -total(self.history[i], "validation_loss")),
        )

    def resume(self) -> None:
        if not self.path.exists():
            return
        with read_checkpoint(self.path) as state:
            self.history, self.best_epoch, self.best = state["history"], state["best_epoch"], state["best"]
            self.seconds = state.get("seconds")  # runs of older versions did not count them
            self._model.load_state_dict(state["model"])
            self._averaged.load_state_dict(state["averaged"])
            self._optimiser.load_state_dict(state["optimiser"])
            torch.set_rng_state(state["rng"])

    def require_number(self, what: str, value: float, where: str) -> None:
        """Stop a run that has diverged.

        Raises:
            DivergedError: If the value is none.
        """
        if not np.isfinite(value):
            raise DivergedError(
                f"the {self.kind}'s {what} is {value} {where}; "
                f"lower the learning rates in [optimiser]; the last finished epoch is in {self.path}"
            )

    def finish_epoch(self, entry: dict[str, float], seconds: float = 0.0) -> None:
        if self.seconds is not None:
            self.seconds += seconds
        self.history.append(entry)
        self.best_epoch = self._find_best_epoch()
        if self.best_epoch == self.epoch:
            kept = self._averaged.module.state_dict()
            self.best = {name: value.detach().clone() for name, value in kept.items()}
        state = {
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best": self.best,
            "seconds": self.seconds,
            "model": self._model.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "rng": torch.get_rng_state(),
        }
        save_checkpoint(self.path, state)


def _train_epoch(
    model: ReducedModule,
    averaged: AveragedModel,
    optimiser: torch.optim.Optimizer,
    x: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    config: RunConfig,
    run: _Run,
    channel: Channel | None,
) -> float:
    total = 0.0
    batches = torch.randperm(len(x)).split(config.optimiser.batch_size)  # type: ignore[no-untyped-call]
    for step, rows in enumerate(batches, start=1):
        batch = x[rows]
        if config.optimiser.feature_noise:
            batch = batch + config.optimiser.feature_noise * torch.randn_like(batch)
        views = _views(model.expvals(batch), channel)
        losses = [distillation_loss(model.head(view), teacher[rows], targets[rows], config.loss) for view in views]
        loss = torch.stack(losses).mean()
        where = f"in epoch {run.epoch + 1}, step {step} of {len(batches)}"
        run.require_number("loss", loss.item(), where)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        run.require_number("gradient of the loss", norm.item(), where)
        optimiser.step()
        averaged.update_parameters(model)
        total += loss.item() * len(rows)
    return total / len(x)


def _views(expvals: torch.Tensor, channel: Channel | None) -> list[torch.Tensor]:
    """What the head is to read: exact expvals and, where there is a channel, a draw of what the chip gives."""
    return [expvals] if channel is None else [expvals, channel(expvals)]


def _optimiser(model: ReducedModule, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Adam (with decoupled weight decay on the reducer's weights), a learning rate for each part."""
    outer = {*model.reducer.parameters(), *model.head.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [model.reducer.weight], "lr": config.reducer_learning_rate, "weight_decay": config.weight_decay},
        {"params": [model.reducer.bias], "lr": config.ansatz_learning_rate},
        {"params": [p for p in model.parameters() if p not in outer], "lr": config.ansatz_learning_rate},
        {"params": list(model.head.parameters()), "lr": config.head_learning_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


def _set_learning_rates(optimiser: torch.optim.Optimizer, epoch: int, epochs: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * 0.5 * (1 + float(np.cos(np.pi * epoch / epochs)))


def _ridge(x: torch.Tensor, y: torch.Tensor, penalty: float) -> torch.Tensor:
    """Minimise |x w - y|^2 + penalty |w|^2; returns (n_features, n_outputs)."""
    x, y = x.double(), y.double()
    solution = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return torch.as_tensor(solution, dtype=torch.float32)


def _weights(model: StudentModule, mean: np.ndarray, scale: np.ndarray) -> StudentWeights:
    state = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    weight = state["reducer.weight"] / scale.astype(np.float64)
    return StudentWeights(
        reducer_weight=weight,
        reducer_bias=state["reducer.bias"] - weight @ mean.astype(np.float64),
        ansatz=state["ansatz"],
        # Softmax ignores what is common to all logits; without it the compiled engine has one output less to evaluate.
        head_weight=state["head.weight"] - state["head.weight"].mean(axis=0),
        head_bias=state["head.bias"] - state["head.bias"].mean(),
    )


def _run_key(config: RunConfig, train: Examples, validation: Examples, channel: Channel | None, kind: str) -> str:
    parts = [config.model_dump(exclude_none=True), train.sha256, validation.sha256]
    if channel is not None:
        parts.append(channel.to_json())
    if kind != "student":  # whose keys are older than the others
        parts.append({"kind": kind})
    identity = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
