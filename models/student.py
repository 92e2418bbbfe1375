"""The student: embedding -> angles -> expvals -> logits -> probs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.circuit import Circuit, trainable_parameters
from models.engines import Engine
from models.errors import ShapeError


@dataclass(frozen=True)
class StudentWeights:
    """Everything that was trained.

    Attributes:
        reducer_weight: w of eq. 4, shape (n_qubits, embedding_size).
        reducer_bias: b of eq. 4, shape (n_qubits,), radians.
        ansatz: Rotation angles, shape (n_parameters,), radians.
        head_weight: Shape (n_classes, n_qubits).
        head_bias: Shape (n_classes,).
    """

    reducer_weight: np.ndarray
    reducer_bias: np.ndarray
    ansatz: np.ndarray
    head_weight: np.ndarray
    head_bias: np.ndarray

    def __post_init__(self) -> None:
        n_qubits, n_classes = self.reducer_weight.shape[0], self.head_weight.shape[0]
        for name, expected in (
            ("reducer_bias", (n_qubits,)),
            ("head_weight", (n_classes, n_qubits)),
            ("head_bias", (n_classes,)),
        ):
            found = getattr(self, name).shape
            if found != expected:
                raise ShapeError(f"{name} has shape {found}, expected {expected}")
        for name, value in vars(self).items():
            if not np.isfinite(value).all():
                raise ShapeError(f"{name} holds a value that is not finite")

    @property
    def embedding_size(self) -> int:
        return int(self.reducer_weight.shape[1])

    @property
    def n_classes(self) -> int:
        return int(self.head_weight.shape[0])


class Student:
    """A trained student on one engine.

    Args:
        circuit: The unbound student circuit (feature map and ansatz).
        weights: The trained weights; their shapes must fit the circuit.
        engine: Evaluates the circuit with the ansatz bound.
    """

    def __init__(self, circuit: Circuit, weights: StudentWeights, engine: Engine) -> None:
        if weights.ansatz.shape != (circuit.n_parameters,):
            raise ShapeError(f"ansatz has shape {weights.ansatz.shape}, expected {(circuit.n_parameters,)}")
        if len(weights.reducer_bias) != circuit.n_inputs:
            raise ShapeError(
                f"the reducer makes {len(weights.reducer_bias)} angles, the circuit takes {circuit.n_inputs}"
            )
        self.circuit = circuit
        self.weights = weights
        self.engine = engine

    @property
    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters by part, and their total."""
        return trainable_parameters(self.weights.embedding_size, self.circuit, self.weights.n_classes)

    def angles(self, embeddings: np.ndarray) -> np.ndarray:
        """z = w E + b (eq. 4); embeddings (batch, embedding_size), returns (batch, n_qubits), radians."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weights.embedding_size:
            raise ShapeError(
                f"embeddings have shape {embeddings.shape}, expected (batch, {self.weights.embedding_size})"
            )
        return np.asarray(embeddings @ self.weights.reducer_weight.T + self.weights.reducer_bias)

    def expvals(self, angles: np.ndarray) -> np.ndarray:
        """<Z_q> of every qubit, shape (batch, n_qubits)."""
        return self.engine.expvals(angles)

    def logits(self, angles: np.ndarray) -> np.ndarray:
        """Class logits, shape (batch, n_classes)."""
        return self.engine.linear(angles, self.weights.head_weight, self.weights.head_bias)

    def logits_from_expvals(self, expvals: np.ndarray) -> np.ndarray:
        """The head alone, for expvals that a device measured; (batch, n_qubits) to (batch, n_classes)."""
        return np.asarray(expvals @ self.weights.head_weight.T + self.weights.head_bias)

    def bound_circuit(self, angles: np.ndarray) -> Circuit:
        """One text's circuit with every angle a number; angles of shape (n_qubits,)."""
        return self.circuit.bind(inputs=angles.tolist(), ansatz=self.weights.ansatz.tolist()).fused()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def flip_probability(logits: np.ndarray, covariance: np.ndarray) -> float:
    """The chance that a rerun would give another label, from shot noise alone.

    A rerun's logits differ from these by the noise of both runs, so that a lead d of the best class over another has
    the variance 2 s^2 with s^2 its own; the other class wins with probability Phi(-d / (s sqrt 2)). Exact for two
    classes; for more, the sum over the others is an upper bound, which is tight where it is small.

    Args:
        logits: As measured, shape (n_classes,).
        covariance: Of the logits, shape (n_classes, n_classes).

    Returns:
        In [0, 1].
    """
    best = int(logits.argmax())
    total = 0.0
    for other in range(len(logits)):
        if other == best:
            continue
        variance = covariance[best, best] + covariance[other, other] - 2.0 * covariance[best, other]
        lead = float(logits[best] - logits[other])
        if variance > 0.0:
            total += 0.5 * math.erfc(lead / math.sqrt(4.0 * variance))
        elif lead == 0.0:
            total += 0.5
    return min(1.0, total)
