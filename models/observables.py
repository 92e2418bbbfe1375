"""Expectation values of Z from a state or from measured counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.errors import EmptyCountsError, ShapeError

Counts = Mapping[str, int]


def z_signs(n_qubits: int) -> np.ndarray:
    """Eigenvalues of every Z_q on every basis state, shape (n_qubits, 2**n_qubits), qubit 0 the leftmost bit."""
    states = np.arange(2**n_qubits)
    shifts = np.arange(n_qubits - 1, -1, -1)[:, None]
    return 1.0 - 2.0 * ((states[None, :] >> shifts) & 1)


def expvals_from_state(state: np.ndarray) -> np.ndarray:
    """<Z_q> of every qubit.

    Args:
        state: Amplitudes, shape (..., 2**n_qubits), normalised.

    Returns:
        Shape (..., n_qubits), values in [-1, 1].
    """
    n_qubits = int(np.log2(state.shape[-1]))
    if state.shape[-1] != 2**n_qubits:
        raise ShapeError(f"a state has {state.shape[-1]} amplitudes, expected a power of two")
    probabilities = state.real**2 + state.imag**2
    return np.asarray(probabilities @ z_signs(n_qubits).T)


def expectation_z(counts: Counts, qubit: int) -> float:
    """Estimate <Z_q> from measured counts.

    <Z_q> = (n0 - n1) / shots.

    Args:
        counts: Bitstring (qubit 0 leftmost) to number of shots.
        qubit: Index in [0, n_qubits).

    Returns:
        Value in [-1, 1]; standard error sqrt((1 - <Z>^2) / shots).

    Raises:
        EmptyCountsError: If no shots were recorded.
    """
    shots = sum(counts.values())
    if shots <= 0:
        raise EmptyCountsError("counts hold no shots, expected at least 1")
    ones = sum(n for bits, n in counts.items() if bits[qubit] == "1")
    return 1.0 - 2.0 * ones / shots


def expvals_from_counts(counts: Counts, n_qubits: int) -> np.ndarray:
    """<Z_q> of every qubit from measured counts, shape (n_qubits,).

    Raises:
        EmptyCountsError: If no shots were recorded.
        ShapeError: If a bitstring does not have `n_qubits` bits.
    """
    wrong = next((bits for bits in counts if len(bits) != n_qubits or set(bits) - {"0", "1"}), None)
    if wrong is not None:
        raise ShapeError(f"counts hold the bitstring {wrong!r}, expected {n_qubits} bits of 0 and 1")
    return np.array([expectation_z(counts, qubit) for qubit in range(n_qubits)])
