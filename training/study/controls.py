"""Controls that the paper lacks, on the student's own features: if the student does not beat them, the tables say so.

Logistic regression, a multilayer perceptron of the student's size, the student without its teacher, and the polynomial
that the compiled engine evaluates, trained without any circuit behind it. All but the first learn in the student's own
loop (`training.distil.fit`): same loss, teacher, start, optimiser, noise on features and choice of the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from training.config import RunConfig
from training.distil import Fitted, ReducedModule, fit
from training.errors import ConfigError
from training.evaluate import fit_control
from training.pipeline import MAX_PARAMETERS
from training.study.student import (
    Features,
    LearnedOnFeatures,
    StudentSystem,
    examples,
    run_config,
    run_facts,
    student_parameters,
    validation_accuracies,
    without_teacher,
)
from training.study.system import Lesson, Outcome

_CORE_SPREAD = 0.3  # of the tensor train's cos and sin slices at the start, around the identity in its constant slices


@dataclass(frozen=True)
class LogisticRegressionControl:
    """`training.evaluate.fit_control`: labels alone, the penalty chosen on validation texts. Draws nothing."""

    config: RunConfig
    name: str = "logistic regression"

    def learn(self, lesson: Lesson) -> Outcome:
        """Fit; there are no epochs and no loss that could diverge."""
        features = Features.of(self.config.student, lesson)
        train, validation = examples(without_teacher(lesson), features)
        begin = time.process_time()
        control = fit_control((train.embeddings, train.targets), (validation.embeddings, validation.targets))
        seconds = time.process_time() - begin  # of the fits alone, as the others' epochs are without the embedding

        def classify(embeddings: np.ndarray) -> np.ndarray:
            decision = np.asarray(control.model.decision_function((embeddings - control.mean) / control.scale))
            # With two classes scikit-learn keeps one direction: the logit of the second class over the first.
            return np.stack([np.zeros_like(decision), decision], axis=1) if decision.ndim == 1 else decision

        n_trainable = control.model.coef_.size + control.model.intercept_.size
        return Outcome(
            LearnedOnFeatures(features, classify),
            n_trainable,
            n_trainable + features.n_parameters,
            facts={"penalty": float(control.model.C), "seconds_per_epoch": seconds, **features.facts},
        )


@dataclass(frozen=True)
class UntaughtStudent:
    """The student on labels alone: what distillation adds is the difference to it."""

    config: RunConfig
    name: str = "student without a teacher"

    def learn(self, lesson: Lesson) -> Outcome:
        """Cross-entropy only; a linear start is fitted to the labels.

        Raises:
            DivergedError: As the student.
        """
        return StudentSystem(self.config).learn(without_teacher(lesson))


@dataclass(frozen=True)
class MlpControl:
    """embedding -> Linear -> tanh -> Linear, as near as a hidden size comes to the student's parameters."""

    config: RunConfig
    name: str = "MLP"

    def learn(self, lesson: Lesson) -> Outcome:
        """Learn as the student does.

        Raises:
            ConfigError: If not even one hidden unit fits.
            DivergedError: If the loss is no number; the last finished epoch stays in `lesson.cache / "runs"`.
        """
        features = Features.of(self.config.student, lesson)
        m, n_classes = features.embedding_size, len(lesson.data.labels)
        wanted = student_parameters(self.config, m, n_classes)
        hidden = nearest_size(lambda h: mlp_parameters(m, h, n_classes), wanted, self.name)
        return _learn(self.config, lesson, features, partial(_build_mlp, hidden), f"MLP-{hidden}")


@dataclass(frozen=True)
class SurrogateControl:
    """The compiled engine's polynomial, trained directly: reducer, then a tensor train in place of the circuit.

    The compiled student is sum_k T[c, k_1, ..., k_n] v_1[k_1] ... v_n[k_n] with v_j = (1, cos z_j, sin z_j). Here T is
    a tensor train, the head its last core, and every number in it is free: with rank r, n qubits and K classes

        (m n + n) + (3 r + (n - 2) 3 r^2) + (3 r K + K)

    parameters. The rank is the largest that stays within Table 3's 9,275, whatever the student's count: for n = 11 and
    m = 768 rank 5, 8,459 + 690 + 32 = 9,181 (K = 2) or 9,213 (K = 4); for m = 384, K = 2 rank 13, 8,917. A trained
    circuit's train has ranks of tens, which it reaches with fewer numbers; this control's coefficients are freer.
    """

    config: RunConfig
    name: str = "surrogate trained directly"

    def learn(self, lesson: Lesson) -> Outcome:
        """Learn as the student does.

        Raises:
            ConfigError: If not even rank 1 fits.
            DivergedError: If the loss is no number; the last finished epoch stays in `lesson.cache / "runs"`.
        """
        features = Features.of(self.config.student, lesson)
        m, n, n_classes = features.embedding_size, self.config.student.n_qubits, len(lesson.data.labels)
        # The largest there is room for: this control is to be as strong as a student may be large.
        rank = nearest_size(lambda r: surrogate_parameters(m, n, r, n_classes), MAX_PARAMETERS, self.name)
        return _learn(self.config, lesson, features, partial(SurrogateModule, n, rank), f"surrogate-{rank}")


class MlpModule(ReducedModule):
    """The reducer's values behind a tanh."""

    def middle(self, reduced: torch.Tensor) -> torch.Tensor:
        return torch.tanh(reduced)


class SurrogateModule(ReducedModule):
    """A tensor train over (1, cos z_j, sin z_j); its last core, which tells the classes apart, is the head."""

    def __init__(self, n_qubits: int, rank: int, embedding_size: int, n_classes: int) -> None:
        super().__init__(embedding_size, n_qubits, 3 * rank, n_classes)
        self.first = torch.nn.Parameter(_CORE_SPREAD * torch.randn(3, rank))
        cores = _CORE_SPREAD / rank**0.5 * torch.randn(n_qubits - 2, rank, 3, rank)
        # Near the identity in the constants, so that at the start every qubit is heard, and linearly before all.
        cores[:, :, 0] = torch.eye(rank)
        self.cores = torch.nn.Parameter(cores)

    def middle(self, reduced: torch.Tensor) -> torch.Tensor:
        """(batch, n_qubits), radians -> products with the last qubit's vector, (batch, 3 rank)."""
        vectors = torch.stack([torch.ones_like(reduced), torch.cos(reduced), torch.sin(reduced)], dim=2)
        left = vectors[:, 0] @ self.first
        for qubit, core in enumerate(self.cores, start=1):
            left = torch.einsum("br,bk,rks->bs", left, vectors[:, qubit], core)
        return (left[:, :, None] * vectors[:, -1, None, :]).flatten(start_dim=1)


def mlp_parameters(embedding_size: int, hidden: int, n_classes: int) -> int:
    """Of two linear layers with biases."""
    return hidden * (embedding_size + 1) + n_classes * (hidden + 1)


def surrogate_parameters(embedding_size: int, n_qubits: int, rank: int, n_classes: int) -> int:
    """Of `SurrogateModule`: reducer, cores before the last, head."""
    cores = 3 * rank + (n_qubits - 2) * 3 * rank**2
    return n_qubits * (embedding_size + 1) + cores + n_classes * (3 * rank + 1)


def nearest_size(count: Callable[[int], int], wanted: int, name: str) -> int:
    """The size >= 1 whose parameter count is nearest to `wanted` and at most `MAX_PARAMETERS`; `count` grows.

    Raises:
        ConfigError: If size 1 is too large.
    """
    if count(1) > MAX_PARAMETERS:
        raise ConfigError(f"{name}: {count(1)} parameters at size 1, expected at most {MAX_PARAMETERS} (Table 3)")
    size = 1
    while count(size + 1) <= MAX_PARAMETERS and abs(count(size + 1) - wanted) <= abs(count(size) - wanted):
        size += 1
    return size


def _build_mlp(hidden: int, embedding_size: int, n_classes: int) -> MlpModule:
    return MlpModule(embedding_size, hidden, hidden, n_classes)


def _learn(
    config: RunConfig,
    lesson: Lesson,
    features: Features,
    build: Callable[[int, int], ReducedModule],
    kind: str,
) -> Outcome:
    train, validation = examples(lesson, features)
    runs = lesson.cache / "runs"
    fitted = fit(build, run_config(config, lesson), train, validation, runs, progress=False, kind=kind)
    n_trainable = sum(p.numel() for p in fitted.module.parameters())
    return Outcome(
        LearnedOnFeatures(features, partial(_logits, fitted)),
        n_trainable,
        n_trainable + features.n_parameters,
        validation_accuracies(fitted.history),
        {"kind": kind, **features.facts, **run_facts(fitted.history, fitted.best_epoch, fitted.seconds)},
    )


@torch.inference_mode()
def _logits(fitted: Fitted[ReducedModule], embeddings: np.ndarray) -> np.ndarray:
    logits: torch.Tensor = fitted.module(torch.tensor((embeddings - fitted.mean) / fitted.scale))
    return logits.numpy()
