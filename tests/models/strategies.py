"""Random circuits: for Hypothesis, and from an explicit seed."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from models.circuit import GATES, Circuit, Gate, Symbol, feature_map, student_circuit

# The same examples on every machine and in every run.
seeded = settings(derandomize=True, database=None, deadline=None, max_examples=60)

angles = st.floats(-7.0, 7.0, allow_subnormal=False)


@st.composite
def gates(draw: st.DrawFn, n_qubits: int, angle: st.SearchStrategy = angles) -> Gate:
    """Any gate on any of the qubits."""
    name = draw(st.sampled_from(sorted(g for g, (width, _) in GATES.items() if width <= n_qubits)))
    width, takes_angle = GATES[name]
    qubits = draw(st.permutations(range(n_qubits)))[:width]
    return Gate(name, tuple(qubits), draw(angle) if takes_angle else None)


@st.composite
def bound_circuits(draw: st.DrawFn, max_qubits: int = 4, max_gates: int = 24) -> Circuit:
    n_qubits = draw(st.integers(1, max_qubits))
    return Circuit(n_qubits, tuple(draw(st.lists(gates(n_qubits), max_size=max_gates))))


@st.composite
def circuits(draw: st.DrawFn, max_qubits: int = 4) -> Circuit:
    """Circuits whose angles are any finite numbers and symbols of both kinds."""
    symbols = st.builds(Symbol, st.sampled_from(["input", "ansatz"]), st.integers(0, 30))
    anything = st.one_of(st.floats(allow_nan=False, allow_infinity=False), symbols)
    n_qubits = draw(st.integers(1, max_qubits))
    return Circuit(n_qubits, tuple(draw(st.lists(gates(n_qubits, anything), max_size=16))))


def random_student(n_qubits: int, n_gates: int, seed: int) -> Circuit:
    """The feature map, then gates of all kinds in any order on any qubits, angles bound."""
    rng = np.random.default_rng(seed)
    names = sorted(name for name, (width, _) in GATES.items() if width <= n_qubits)
    chosen = []
    for name in rng.choice(names, n_gates):
        width, takes_angle = GATES[str(name)]
        qubits = tuple(int(q) for q in rng.permutation(n_qubits)[:width])
        chosen.append(Gate(str(name), qubits, float(rng.uniform(-np.pi, np.pi)) if takes_angle else None))
    return Circuit(n_qubits, feature_map(n_qubits) + tuple(chosen))


def random_preset(preset: str, n_qubits: int, n_layers: int, seed: int) -> Circuit:
    """A preset's circuit with its ansatz bound to random angles."""
    circuit = student_circuit(preset, n_qubits, n_layers)
    return circuit.bind(ansatz=np.random.default_rng(seed).uniform(-np.pi, np.pi, circuit.n_parameters).tolist())
