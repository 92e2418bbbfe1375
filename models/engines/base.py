"""The protocol between a student and whatever evaluates its circuit."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Engine(Protocol):
    """Evaluates one circuit, ansatz bound, for batches of angles."""

    @property
    def name(self) -> str:
        """The engine's name in settings and metrics."""

    def expvals(self, angles: np.ndarray) -> np.ndarray:
        """<Z_q> of every qubit.

        Args:
            angles: Shape (batch, n_qubits), radians.

        Returns:
            Shape (batch, n_qubits), values in [-1, 1].
        """

    def linear(self, angles: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """weights @ <Z> + bias without the <Z> themselves, where an engine has a shorter way to it.

        Args:
            angles: Shape (batch, n_qubits), radians.
            weights: Shape (n_outputs, n_qubits).
            bias: Shape (n_outputs,).
        """
