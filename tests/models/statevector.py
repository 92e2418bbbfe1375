"""A plain state-vector simulator, gate by gate, that shares no code with `models`: the reference of these tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.circuit import Circuit, Gate

_PAULI = {
    "x": np.array([[0, 1], [1, 0]], dtype=complex),
    "y": np.array([[0, -1j], [1j, 0]]),
    "z": np.diag([1, -1]).astype(complex),
}
_GENERATORS = {"rx": _PAULI["x"], "ry": _PAULI["y"], "rz": _PAULI["z"], "rzz": np.kron(_PAULI["z"], _PAULI["z"])}
_FIXED = {
    "cx": np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=complex),
    "cz": np.diag([1, 1, 1, -1]).astype(complex),
}


def gate_matrix(name: str, angle: float | None) -> np.ndarray:
    """exp(-i angle P / 2) = cos(angle/2) - i sin(angle/2) P for a rotation, since P^2 = 1; else the fixed matrix."""
    if angle is None:
        return _FIXED[name]
    pauli = _GENERATORS[name]
    return np.cos(angle / 2) * np.eye(len(pauli)) - 1j * np.sin(angle / 2) * pauli


def apply(state: np.ndarray, name: str, qubits: Sequence[int], angle: float | None = None) -> np.ndarray:
    """The state, shape (2,) * n with qubit 0 the first axis (further axes are carried along), behind one gate."""
    k = len(qubits)
    matrix = gate_matrix(name, angle).reshape((2,) * (2 * k))
    moved = np.tensordot(matrix, state, axes=(range(k, 2 * k), qubits))
    return np.moveaxis(moved, range(k), qubits)


def zero_state(n_qubits: int) -> np.ndarray:
    state = np.zeros((2,) * n_qubits, dtype=complex)
    state[(0,) * n_qubits] = 1
    return state


def final_state(circuit: Circuit) -> np.ndarray:
    """Amplitudes of a bound circuit, shape (2**n_qubits,), qubit 0 the leftmost bit."""
    state = zero_state(circuit.n_qubits)
    for gate in circuit.gates:
        state = apply(state, gate.name, gate.qubits, gate.angle)
    return state.reshape(-1)


def unitary(n_qubits: int, gates: Sequence[Gate]) -> np.ndarray:
    """Matrix of bound gates applied in order, shape (2**n_qubits, 2**n_qubits)."""
    matrix = np.eye(2**n_qubits, dtype=complex).reshape((2,) * n_qubits + (-1,))
    for gate in gates:
        matrix = apply(matrix, gate.name, gate.qubits, gate.angle)
    return matrix.reshape(2**n_qubits, -1)


def expvals(circuit: Circuit) -> np.ndarray:
    """<Z_q> of every qubit of a bound circuit: P(q reads 0) - P(q reads 1)."""
    n = circuit.n_qubits
    probabilities = (np.abs(final_state(circuit)) ** 2).reshape((2,) * n)
    marginals = [probabilities.sum(axis=tuple(a for a in range(n) if a != q)) for q in range(n)]
    return np.array([zero - one for zero, one in marginals])


def student_expvals(circuit: Circuit, angles: np.ndarray) -> np.ndarray:
    """<Z_q> for a batch of angles (batch, n_qubits) of a circuit whose ansatz is bound."""
    return np.array([expvals(circuit.bind(inputs=row.tolist())) for row in angles])
