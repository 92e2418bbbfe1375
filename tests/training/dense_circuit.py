"""Circuits as products of dense 2^n matrices, from the definition of each gate: the reference of the torch circuit."""

from __future__ import annotations

from functools import reduce

import numpy as np

from models.circuit import PRESETS, Circuit, Gate, Symbol, feature_map

_ONE, _X, _Z = np.eye(2), np.array([[0, 1], [1, 0]]), np.diag([1, -1])
_Y = np.array([[0, -1j], [1j, 0]])
_UP, _DOWN = np.diag([1, 0]), np.diag([0, 1])  # projectors on |0> and |1>


def expvals(circuit: Circuit) -> np.ndarray:
    """<Z_q> of every qubit of a bound circuit, qubit 0 the leftmost bit."""
    n = circuit.n_qubits
    state = np.zeros(2**n, dtype=complex)
    state[0] = 1
    for gate in circuit.gates:
        state = gate_matrix(gate, n) @ state
    return np.array([np.vdot(state, _on({q: _Z}, n) @ state).real for q in range(n)])


def batch_expvals(circuit: Circuit, angles: np.ndarray, ansatz: np.ndarray) -> np.ndarray:
    """<Z_q> for every row of angles, shape (batch, n_qubits)."""
    return np.array([expvals(circuit.bind(row.tolist(), ansatz.tolist())) for row in angles])


def gate_matrix(gate: Gate, n: int) -> np.ndarray:
    """exp(-i a P / 2) = cos(a / 2) - i sin(a / 2) P for rotations; |0><0| 1 + |1><1| P for controlled gates."""
    first, last = gate.qubits[0], gate.qubits[-1]
    if gate.name in ("cx", "cz"):
        return _on({first: _UP}, n) + _on({first: _DOWN, last: _X if gate.name == "cx" else _Z}, n)
    paulis = {"rx": {first: _X}, "ry": {first: _Y}, "rz": {first: _Z}, "rzz": {first: _Z, last: _Z}}
    assert isinstance(gate.angle, float)
    return np.cos(gate.angle / 2) * np.eye(2**n) - 1j * np.sin(gate.angle / 2) * _on(paulis[gate.name], n)


def mixed_circuit(n_qubits: int, n_gates: int, seed: int) -> Circuit:
    """Gates of every kind in random order, a third of the angles bound, some parameters used twice."""
    rng = np.random.default_rng(seed)
    gates, count = [], 0
    for name in rng.choice(["ry", "rz", "rzz", "cx", "cz"], size=n_gates):
        qubits = rng.permutation(n_qubits)[: 1 if name in ("ry", "rz") else 2]
        angle: float | Symbol | None = None
        if name not in ("cx", "cz"):
            kind = rng.integers(6)
            angle = float(rng.uniform(-4, 4)) if kind < 2 else Symbol("ansatz", int(rng.integers(count + 1)))
            count += isinstance(angle, Symbol) and angle.index == count
        gates.append(Gate(str(name), tuple(int(q) for q in qubits), angle))
    return Circuit(n_qubits, (*feature_map(n_qubits), *gates))


def every_preset() -> list[tuple[str, int, int]]:
    """(preset, n_qubits, n_layers) to compare on."""
    return [(preset, n, p) for preset in PRESETS for n, p in ((2, 1), (3, 4), (4, 2), (5, 3), (6, 1), (8, 2))]


def draw(circuit: Circuit, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles (batch, n_qubits) and ansatz parameters (n_parameters,), radians."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-7, 7, (batch, circuit.n_qubits)), rng.uniform(-np.pi, np.pi, circuit.n_parameters)


def _on(factors: dict[int, np.ndarray], n: int) -> np.ndarray:
    return reduce(np.kron, [factors.get(q, _ONE) for q in range(n)])
