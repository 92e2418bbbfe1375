"""The state-vector reference, by MindQuantum's `mqvector` simulator, one text after the other."""

from __future__ import annotations

import numpy as np

from models.blocks import split_feature_map
from models.circuit import Circuit, Gate, Symbol, as_angles
from models.errors import EngineError
from models.observables import z_signs


class MindQuantumEngine:
    """Evaluates a circuit whose ansatz is bound; parameters are bound once, <Z> come from one state a text.

    Raises:
        EngineError: If mindquantum is not installed or the circuit has no R_X feature map in front.
        UnboundParameterError: If an ansatz angle is still symbolic.
    """

    name = "mindquantum"

    def __init__(self, circuit: Circuit) -> None:
        try:
            from mindquantum.simulator import Simulator
        except ImportError as exc:
            raise EngineError(
                "the engine mindquantum needs the package mindquantum==0.12.0, which is not installed"
            ) from exc
        _, ansatz = split_feature_map(circuit)
        ansatz.require_bound()
        self._n_qubits = circuit.n_qubits
        self._circuit = to_mindquantum(circuit.fused())
        self._names = [f"input{i}" for i in range(circuit.n_inputs)]
        self._simulator = Simulator("mqvector", circuit.n_qubits)
        # MindQuantum's qubit 0 is the least significant bit of the state's index.
        self._signs = np.ascontiguousarray(z_signs(circuit.n_qubits)[::-1].T)

    def expvals(self, angles: np.ndarray) -> np.ndarray:
        """<Z_q> of every qubit; angles (batch, n_qubits) in radians, returns the same shape."""
        angles = as_angles(angles, self._n_qubits)
        result = np.empty_like(angles)
        for i, row in enumerate(angles):
            state = self._state(row)
            result[i] = (state.real**2 + state.imag**2) @ self._signs
        return result

    def linear(self, angles: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """weights @ <Z> + bias."""
        return np.asarray(self.expvals(angles) @ weights.T + bias)

    def states(self, angles: np.ndarray) -> np.ndarray:
        """Final amplitudes, shape (batch, 2**n_qubits), qubit 0 the leftmost bit."""
        angles = as_angles(angles, self._n_qubits)
        result = np.empty((len(angles), 2**self._n_qubits), dtype=np.complex128)
        for i, row in enumerate(angles):
            result[i] = self._state(row).reshape((2,) * self._n_qubits).transpose().reshape(-1)
        return result

    def _state(self, angles: np.ndarray) -> np.ndarray:
        """Final amplitudes of one text in MindQuantum's order, shape (2**n_qubits,)."""
        self._simulator.reset()
        self._simulator.apply_circuit(self._circuit, dict(zip(self._names, angles.tolist(), strict=True)))
        return np.asarray(self._simulator.get_qs())


def to_mindquantum(circuit: Circuit):  # type: ignore[no-untyped-def]  # mindquantum has no types
    """The circuit as a MindQuantum circuit; input i becomes the parameter `input<i>`, ansatz i `ansatz<i>`."""
    import mindquantum.core.gates as mq
    from mindquantum.core.circuit import Circuit as MindQuantumCircuit

    rotations = {"rx": mq.RX, "ry": mq.RY, "rz": mq.RZ, "rzz": mq.Rzz}

    def append(result: MindQuantumCircuit, gate: Gate) -> None:
        if gate.name == "cx":
            result += mq.X.on(gate.qubits[1], gate.qubits[0])
        elif gate.name == "cz":
            result += mq.Z.on(gate.qubits[1], gate.qubits[0])
        elif isinstance(gate.angle, Symbol):
            result += rotations[gate.name](f"{gate.angle.kind}{gate.angle.index}").on(list(gate.qubits))
        else:
            result += rotations[gate.name](gate.angle).on(list(gate.qubits))

    result = MindQuantumCircuit()
    for gate in circuit.gates:
        append(result, gate)
    return result
