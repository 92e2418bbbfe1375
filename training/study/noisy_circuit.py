"""A student's circuit on a noisy chip, compiled: its exact expectation values, before readout and without shot noise.

The faults of `models.noise` depend neither on the state nor on the text, so that what they leave of <Z_q> is as linear
in the input state as <Z_q> itself, and with the R_X feature map multilinear in (1, cos z_j, sin z_j): see
`models.engines.compiled`, whose tensor this computes with the noise in it. Each Z_q is taken backwards through the
circuit and its faults as a sum of Pauli strings (Heisenberg picture), of the qubits that have met it by then: 4^w
coefficients for w qubits, 8 of 11 at most in two layers of `chain`.

One circuit stands for those of all texts: with z' its angles, N(z') R_X(z - z')|0> is N(z)|0>. That the native circuit
moves R_Z past its faults is no matter, for every fault of `models.noise` commutes with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from models.circuit import Circuit, Gate, Symbol
from models.engines.compiled import MultilinearTensor
from models.native import rotation_matrix, routed, to_native
from models.noise import RESET, Late, Plan, Site, plan_faults
from training.hardware import Chip

_MATRICES = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
_PAULIS = {"I": 0, "X": 1, "Y": 2, "Z": 3}
# How a Pauli acts on Paulis, as signs: +1 where the two commute.
_SIGNS = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=float)
# Backwards, resetting to |0> turns I and Z into I, X and Y into nothing.
_RESET = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=float)
# A gate of angle 0 would be left out of the native circuit, and its faults with it: no text has such angles.
_ANGLES_SEED = 0


def compile_on_chip(circuit: Circuit, chip: Chip) -> MultilinearTensor:
    """Compile a student circuit, its ansatz bound and its inputs not, with a chip's gate errors and relaxation.

    Returns:
        <Z_q> of the circuit's qubits as its counts would have it before readout errors, in the mean over shots.

    Raises:
        DeviceError: If the chain does not have the circuit's couplers.
    """
    n = circuit.n_qubits
    inputs = np.random.default_rng(_ANGLES_SEED).uniform(0.5, 1.5, size=n)
    on_chain, ends = routed(circuit.fused())
    starts = {gate.qubits[0]: gate.angle.index for gate in on_chain.gates if isinstance(gate.angle, Symbol)}
    native = to_native(on_chain.bind(inputs=inputs.tolist()))
    plan = plan_faults(native, chip.device, chip.chain)
    tensor = np.empty((n, *(3,) * n))
    for qubit, end in enumerate(ends):
        tensor[qubit] = _of_text(_backwards(plan, end), starts, inputs)
    n_left = n // 2
    return MultilinearTensor(tensor.reshape(n, 3**n_left, 3 ** (n - n_left)), None, n_left, n - n_left)


class _Operator:
    """A sum of Pauli strings of some qubits: coefficients of shape (4,) * len(qubits), identity elsewhere."""

    def __init__(self, qubit: int, coefficients: np.ndarray) -> None:
        self.qubits = [qubit]
        self.coefficients = coefficients

    def apply(self, qubits: Sequence[int], matrix: np.ndarray) -> None:
        """Map the Paulis of one or two qubits, the first one slowest; the identity of both is left as it is."""
        if not set(qubits) & set(self.qubits):
            return
        for qubit in qubits:
            if qubit not in self.qubits:
                self.qubits.append(qubit)
                self.coefficients = np.stack([self.coefficients, *[np.zeros_like(self.coefficients)] * 3], axis=-1)
        axes = [self.qubits.index(qubit) for qubit in qubits]
        moved = np.moveaxis(self.coefficients, axes, range(len(axes)))
        result = (matrix @ moved.reshape(len(matrix), -1)).reshape(moved.shape)
        self.coefficients = np.moveaxis(result, range(len(axes)), axes)


def _backwards(plan: Plan, qubit: int) -> _Operator:
    """What is measured as Z of a qubit, at the start of the circuit."""
    late: Late = plan.at_measurement[qubit]
    operator = _Operator(qubit, np.array([late.reset, 0, 0, (1 - late.reset) * (1 - 2 * late.flip)]))
    for slot, site in zip(reversed(plan.slots), [None, *reversed(plan.sites)], strict=True):
        if site is not None:
            operator.apply(site.qubits, _fault_matrix(site))
        for gate in reversed(slot):
            operator.apply(gate.qubits, _gate_matrix(gate))
    return operator


def _fault_matrix(site: Site) -> np.ndarray:
    """The mean over a site's faults, shape (4, 4) or (16, 16)."""
    size = 4 ** len(site.qubits)
    result: np.ndarray = np.eye(size) * (1 - site.probabilities.sum())
    for fault, probability in zip(site.faults, site.probabilities, strict=True):
        if fault == (RESET,):
            result += probability * _RESET
            continue
        signs = _SIGNS[_PAULIS[fault[0]]]
        for name in fault[1:]:
            signs = np.kron(signs, _SIGNS[_PAULIS[name]])
        result += probability * np.diag(signs)
    return result


def _gate_matrix(gate: Gate) -> np.ndarray:
    """P -> U^+ P U in Paulis, shape (4, 4) or (16, 16); entry (i, j) is tr(P_i U^+ P_j U) / 2^n."""
    if gate.name == "cz":
        unitary = np.diag([1, 1, 1, -1]).astype(complex)
        paulis = np.array([np.kron(a, b) for a in _MATRICES for b in _MATRICES])
    else:
        unitary, paulis = rotation_matrix(gate), _MATRICES
    turned = unitary.conj().T @ paulis @ unitary
    return np.asarray(np.einsum("iab,jba->ij", paulis, turned).real / len(unitary))


def _of_text(operator: _Operator, starts: Mapping[int, int], inputs: np.ndarray) -> np.ndarray:
    """Coefficients in (1, cos z_j, sin z_j) of every input j, shape (3,) * n.

    R_X(z - z')|0> has the Bloch vector (0, -sin(z - z'), cos(z - z')).
    """
    result = operator.coefficients
    for axis, position in enumerate(operator.qubits):
        cos, sin = math.cos(inputs[starts[position]]), math.sin(inputs[starts[position]])
        by_text = np.array([[1, 0, 0, 0], [0, 0, sin, cos], [0, 0, -cos, sin]])
        result = np.moveaxis(np.tensordot(by_text, result, axes=(1, axis)), 0, axis)
    placed = np.zeros((3,) * len(inputs))
    met = [starts[position] for position in operator.qubits]
    # The axes that are met, in ascending order; the others hold their constant alone.
    index = tuple(slice(None) if j in met else 0 for j in range(len(inputs)))
    placed[index] = result.transpose(np.argsort(met))
    return placed
