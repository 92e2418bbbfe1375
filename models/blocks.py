"""A circuit regrouped into few large steps, so that an interpreter makes one pass over the state for many gates.

Three kinds of block exhaust the gate set: one-qubit rotations that act side by side, diagonal gates (a phase on every
basis state) and permutations of the basis states. A gate joins the earliest block of its kind that it can reach by
commuting backwards: past gates on other qubits, and, if diagonal, past diagonal gates. A `paper` layer becomes one
block of each kind, a `released` layer five blocks, a `chain` layer four.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from models.circuit import Circuit, Gate, feature_map
from models.errors import EngineError

Kind = Literal["rotation", "diagonal", "permutation"]
_KINDS: dict[str, Kind] = {
    "rx": "rotation",
    "ry": "rotation",
    "rz": "diagonal",
    "rzz": "diagonal",
    "cz": "diagonal",
    "cx": "permutation",
}


@dataclass
class Block:
    """Gates of one kind, in an order equal to the circuit's."""

    kind: Kind
    gates: list[Gate] = field(default_factory=list)

    @property
    def qubits(self) -> set[int]:
        return {qubit for gate in self.gates for qubit in gate.qubits}

    def takes(self, gate: Gate) -> bool:
        """Whether `gate`, coming right after the block, can be part of it."""
        if self.kind != _KINDS[gate.name]:
            return False
        # Rotations about one axis on one qubit add up; about two axes they would not be one rotation.
        return self.kind != "rotation" or all(g.name == gate.name for g in self.gates if g.qubits == gate.qubits)

    def commutes_with(self, gate: Gate) -> bool:
        both_diagonal = self.kind == _KINDS[gate.name] == "diagonal"
        return both_diagonal or self.qubits.isdisjoint(gate.qubits)


def blocks(gates: Iterable[Gate]) -> list[Block]:
    """Regroup gates; applying the blocks in order equals applying the gates in order."""
    result: list[Block] = []
    for gate in gates:
        home = None
        for block in reversed(result):
            if block.takes(gate):
                home = block
            if not block.commutes_with(gate):
                break
        if home is None:
            home = Block(_KINDS[gate.name])
            result.append(home)
        home.gates.append(gate)
    return result


def split_feature_map(circuit: Circuit) -> tuple[Circuit, Circuit]:
    """Split a student circuit into its feature map, R_X of input i on qubit i, and the ansatz behind it.

    Raises:
        EngineError: If the circuit does not start with exactly that feature map or uses an input again later.
    """
    n = circuit.n_qubits
    head, rest = circuit.gates[:n], circuit.gates[n:]
    ansatz = Circuit(n, rest)
    if head != feature_map(n) or ansatz.n_inputs:
        raise EngineError(
            f"the circuit does not start with R_X(input i) on qubit i for its {n} qubits and use inputs only there"
        )
    return Circuit(n, head), ansatz


def diagonal_phases(gate: Gate, n_qubits: int) -> np.ndarray:
    """Phase per radian of a diagonal gate on every basis state, shape (2**n_qubits,).

    R_Z(a) multiplies a basis state by exp(i a phase), phase = -z / 2; R_ZZ(a) likewise with -z z' / 2. `cz` has no
    angle; its phase is that of an angle of 1.
    """
    ones = [_bit(qubit, n_qubits) for qubit in gate.qubits]
    if gate.name == "cz":
        return np.asarray(np.pi * (ones[0] * ones[1]))
    parity = ones[0] if gate.name == "rz" else ones[0] ^ ones[1]
    return np.asarray(parity - 0.5)


def permutation(gates: Iterable[Gate], n_qubits: int) -> np.ndarray:
    """Index array with state_after = state_before[index] for `cx` gates applied in order, shape (2**n_qubits,)."""
    source = np.arange(2**n_qubits)
    for gate in gates:
        control, target = gate.qubits
        flip = _bit(control, n_qubits) << (n_qubits - 1 - target)
        source = source[np.arange(2**n_qubits) ^ flip]
    return source


def _bit(qubit: int, n_qubits: int) -> np.ndarray:
    return (np.arange(2**n_qubits) >> (n_qubits - 1 - qubit)) & 1
