"""Expectation values of Z from a state or from measured counts, their shot noise, and readout correction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.errors import EmptyCountsError, ReadoutError, ShapeError

Counts = Mapping[str, int]

# Below it, dividing by the slope makes the shot noise ten times larger and more.
_LEAST_SLOPE = 0.1


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


def covariance_from_counts(counts: Counts, n_qubits: int) -> np.ndarray:
    """Covariance of the estimates that `expvals_from_counts` gives, shape (n_qubits, n_qubits).

    Qubits of one shot are measured together: Cov(<Z_i>, <Z_j>) = (<Z_i Z_j> - <Z_i><Z_j>) / shots.

    Raises:
        EmptyCountsError: If no shots were recorded.
        ShapeError: If a bitstring does not have `n_qubits` bits.
    """
    means = expvals_from_counts(counts, n_qubits)
    values = 1.0 - 2.0 * np.array([[bit == "1" for bit in bits] for bits in counts], dtype=float)
    weights = np.fromiter(counts.values(), dtype=float, count=len(counts))
    shots = weights.sum()
    return np.asarray(((values.T * weights) @ values / shots - np.outer(means, means)) / shots)


def readout_slope(p10: np.ndarray, p01: np.ndarray) -> np.ndarray:
    """What readout errors leave of <Z>: 1 - p01 - p10; 1 for a perfect readout, 0 for one that says nothing."""
    return np.asarray(1.0 - p01 - p10)


def correct_readout(expvals: np.ndarray, p10: np.ndarray, p01: np.ndarray) -> np.ndarray:
    """Undo the mean effect of independent readout errors on <Z>.

    Reading 1 for a prepared 0 with probability p10 and 0 for a prepared 1 with p01 turns z into
    (1 - p01 - p10) z + (p01 - p10), which is solved for z and cut to [-1, 1].

    Args:
        expvals: As measured, shape (..., n_qubits).
        p10: P(read 1 | prepared 0), shape (n_qubits,).
        p01: P(read 0 | prepared 1), shape (n_qubits,).

    Raises:
        ReadoutError: If a qubit's reading depends on its state too little to be corrected (slope below 0.1).
    """
    slope = readout_slope(p10, p01)
    if not (slope >= _LEAST_SLOPE).all():
        raise ReadoutError(
            f"readout errors leave {slope.min():.3f} of <Z> on qubit {slope.argmin()}, expected at least {_LEAST_SLOPE}"
        )
    return np.asarray(np.clip((expvals - (p01 - p10)) / slope, -1.0, 1.0))
