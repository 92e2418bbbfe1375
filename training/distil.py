"""Distil a teacher into a student: embed, start from a linear map, train with eq. 14, keep the best epoch.

Features are standardised while training; the means and scales are folded into the reducer at the end, so the student
that is saved is exactly the paper's: z = w E + b (eq. 4). The paper's released code rescales z to [0, 10] for each
text; here z is used as it is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.circuit import Circuit
from models.student import StudentWeights
from training.circuit_torch import CircuitExpvals
from training.config import OptimiserConfig, RunConfig
from training.errors import DivergedError
from training.hardware import Channel
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
    """A trained student and how it got there: one entry of `history` an epoch, epoch 0 being the start."""

    weights: StudentWeights
    history: list[dict[str, float]]
    best_epoch: int


class StudentModule(torch.nn.Module):
    """The trainable student on standardised embeddings: reducer, circuit, head."""

    def __init__(self, circuit: Circuit, embedding_size: int, n_classes: int) -> None:
        super().__init__()
        n = circuit.n_qubits
        self.reducer = torch.nn.Linear(embedding_size, n)
        self.circuit = CircuitExpvals(circuit)
        self.ansatz = torch.nn.Parameter(torch.empty(circuit.n_parameters))
        self.head = torch.nn.Linear(n, n_classes)
        # Wide: near the identity the circuit is even in every angle and has no gradient at z = 0.
        torch.nn.init.uniform_(self.ansatz, -torch.pi, torch.pi)

    def expvals(self, standardised: torch.Tensor) -> torch.Tensor:
        expvals: torch.Tensor = self.circuit(self.reducer(standardised), self.ansatz)
        return expvals

    def forward(self, standardised: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.expvals(standardised))
        return logits


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

    A run that was stopped goes on from its last finished epoch; a finished run is read from the cache.

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
        DivergedError: If the loss is no longer a number; the last finished epoch stays in the cache.
    """
    torch.manual_seed(config.seed)
    mean, scale = train.embeddings.mean(axis=0), train.embeddings.std(axis=0) + 1e-6
    x, x_validation = (torch.tensor((part.embeddings - mean) / scale) for part in (train, validation))
    teacher, targets = torch.tensor(train.teacher_logits), torch.tensor(train.targets)
    model = StudentModule(circuit, x.shape[1], train.teacher_logits.shape[1])
    if config.optimiser.start == "linear":
        start_linear(model, x, teacher, config.optimiser, channel)
    optimiser = _optimiser(model, config.optimiser)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.optimiser.averaging))  # type: ignore[no-untyped-call]
    key = _run_key(config, train, validation, channel)
    run = _Run(cache / f"{config.task}-{key}.pt", model, averaged, optimiser)
    run.resume()

    def validate() -> dict[str, float]:
        found = {}
        kept = cast(StudentModule, averaged.module)
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

    if not run.history:
        run.finish_epoch(validate())
    epochs = config.optimiser.epochs
    bar = tqdm(total=epochs, initial=run.epoch, desc=f"distil {config.task}", unit="epoch", disable=not progress)
    while run.epoch < epochs:
        _set_learning_rates(optimiser, run.epoch, epochs)
        loss = _train_epoch(model, averaged, optimiser, x, teacher, targets, config, run, channel)
        run.finish_epoch({"train_loss": loss, **validate()})
        bar.set_postfix({k: f"{v:.4f}" for k, v in run.history[-1].items()}, refresh=False)
        bar.update()
    bar.close()
    model.load_state_dict(run.best)
    return Distilled(_weights(model, mean, scale), run.history, run.best_epoch)


def start_linear(
    model: StudentModule,
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
    n = model.circuit.n_qubits
    mix = torch.randn(n, wanted.shape[1])
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
        self, path: Path, model: StudentModule, averaged: AveragedModel, optimiser: torch.optim.Optimizer
    ) -> None:
        self.path = path
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
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
        state = torch.load(self.path, weights_only=True)
        self.history, self.best_epoch, self.best = state["history"], state["best_epoch"], state["best"]
        self._model.load_state_dict(state["model"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])

    def finish_epoch(self, entry: dict[str, float]) -> None:
        self.history.append(entry)
        self.best_epoch = self._find_best_epoch()
        if self.best_epoch == self.epoch:
            kept = self._averaged.module.state_dict()
            self.best = {name: value.detach().clone() for name, value in kept.items()}
        state = {
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best": self.best,
            "model": self._model.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "rng": torch.get_rng_state(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)


def _train_epoch(
    model: StudentModule,
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
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the student's loss is {loss.item()} in epoch {run.epoch + 1}, step {step} of {len(batches)}; "
                f"lower the learning rates in [optimiser]; the last finished epoch is in {run.path}"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        averaged.update_parameters(model)
        total += loss.item() * len(rows)
    return total / len(x)


def _views(expvals: torch.Tensor, channel: Channel | None) -> list[torch.Tensor]:
    """What the head is to read: exact expvals and, where there is a channel, a draw of what the chip gives."""
    return [expvals] if channel is None else [expvals, channel(expvals)]


def _optimiser(model: StudentModule, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Adam (with decoupled weight decay on the reducer's weights), a learning rate for each part."""
    groups: list[dict[str, Any]] = [
        {"params": [model.reducer.weight], "lr": config.reducer_learning_rate, "weight_decay": config.weight_decay},
        {"params": [model.reducer.bias], "lr": config.ansatz_learning_rate},
        {"params": [model.ansatz], "lr": config.ansatz_learning_rate},
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


def _run_key(config: RunConfig, train: Examples, validation: Examples, channel: Channel | None) -> str:
    parts = [config.model_dump(exclude_none=True), train.sha256, validation.sha256]
    if channel is not None:
        parts.append(channel.to_json())
    identity = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
