"""The student's circuit as a batched, differentiable PyTorch function.

The gates come from `models.circuit` and are regrouped by `models.blocks`: rotations side by side become one small
matrix per group of qubits, diagonal gates one vector of phases, CNOTs one permutation. The state of a batch is a pair
of real arrays, so that R_Y, which is real, costs two real products.
"""

from __future__ import annotations

import numpy as np
import torch

from models.blocks import Block, blocks, diagonal_phases, permutation, split_feature_map
from models.circuit import Circuit, Gate, Symbol
from models.errors import EngineError
from models.observables import z_signs

_GROUP_QUBITS = 4  # a 16 x 16 matrix per group: larger ones cost more in the product than they save in passes


class CircuitExpvals(torch.nn.Module):
    """Angles (batch, n_qubits) and ansatz parameters (n_parameters,), radians -> <Z> (batch, n_qubits).

    Raises:
        EngineError: If the circuit has no R_X feature map in front, or an R_X behind it.
    """

    def __init__(self, circuit: Circuit, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        _, ansatz = split_feature_map(circuit)
        self.n_qubits = circuit.n_qubits
        self.n_parameters = ansatz.n_parameters
        self.steps = torch.nn.ModuleList(_step(b, self.n_qubits, dtype) for b in blocks(ansatz.gates))
        self.signs: torch.Tensor
        self.register_buffer("signs", torch.tensor(z_signs(self.n_qubits).T, dtype=dtype))
        # (-i)^(ones in the basis state): the phases of the product state behind R_X, as (real, imaginary).
        phases = (-1j) ** ((self.n_qubits - z_signs(self.n_qubits).sum(axis=0)) / 2).astype(int)
        self.phases: torch.Tensor
        self.register_buffer("phases", torch.tensor(np.stack([phases.real, phases.imag]), dtype=dtype))

    def forward(self, angles: torch.Tensor, ansatz: torch.Tensor) -> torch.Tensor:
        half = angles / 2
        pairs = torch.stack([torch.cos(half), torch.sin(half)], dim=-1)
        product = pairs[:, 0]
        for qubit in range(1, self.n_qubits):
            product = (product[:, :, None] * pairs[:, qubit, None, :]).reshape(len(angles), -1)
        real, imaginary = product * self.phases[0], product * self.phases[1]
        for step in self.steps:
            real, imaginary = step(real, imaginary, ansatz)
        return (real * real + imaginary * imaginary) @ self.signs


class _Angles(torch.nn.Module):
    """Gate angles as a linear map of the ansatz parameters: fixed + parameters[index], shape (n_gates,)."""

    def __init__(self, gates: list[Gate], dtype: torch.dtype) -> None:
        super().__init__()
        fixed = [1.0 if g.angle is None else g.angle if isinstance(g.angle, float) else 0.0 for g in gates]
        symbols = [(i, g.angle.index) for i, g in enumerate(gates) if isinstance(g.angle, Symbol)]
        self.fixed: torch.Tensor
        self.where: torch.Tensor
        self.index: torch.Tensor
        self.register_buffer("fixed", torch.tensor(fixed, dtype=dtype))
        self.register_buffer("where", torch.tensor([i for i, _ in symbols], dtype=torch.long))
        self.register_buffer("index", torch.tensor([k for _, k in symbols], dtype=torch.long))

    def forward(self, ansatz: torch.Tensor) -> torch.Tensor:
        return self.fixed.index_add(0, self.where, ansatz[self.index].to(self.fixed.dtype))


class _Rotations(torch.nn.Module):
    """R_Y on any qubits: one real matrix for each group of neighbouring qubits."""

    def __init__(self, gates: list[Gate], n_qubits: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.angles = _Angles(gates, dtype)
        qubits = sorted({gate.qubits[0] for gate in gates})
        column = {qubit: i for i, qubit in enumerate(qubits)}
        sums = torch.zeros(len(qubits), len(gates), dtype=dtype)
        for row, gate in enumerate(gates):
            sums[column[gate.qubits[0]], row] = 1.0
        self.sums: torch.Tensor
        self.register_buffer("sums", sums)
        self.groups: list[list[int | None]] = []  # for each group, the row of `sums` of every qubit in it
        self.shapes: list[tuple[int, int]] = []  # states before and inside the group
        for first in range(0, n_qubits, _GROUP_QUBITS):
            group = [column.get(q) for q in range(first, min(first + _GROUP_QUBITS, n_qubits))]
            if any(member is not None for member in group):
                self.groups.append(group)
                self.shapes.append((2**first, 2 ** len(group)))

    def forward(
        self, real: torch.Tensor, imaginary: torch.Tensor, ansatz: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        half = self.sums @ self.angles(ansatz) / 2
        cos, sin = torch.cos(half), torch.sin(half)
        matrices = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        identity = torch.eye(2, dtype=real.dtype)
        state = torch.stack([real, imaginary])
        shape = state.shape
        for group, (before, inside) in zip(self.groups, self.shapes, strict=True):
            matrix = torch.ones(1, 1, dtype=real.dtype)
            for member in group:
                matrix = torch.kron(matrix, identity if member is None else matrices[member])
            state = matrix @ state.reshape(shape[0] * shape[1] * before, inside, -1)
        state = state.reshape(shape)
        return state[0], state[1]


class _Diagonal(torch.nn.Module):
    """R_Z, R_ZZ and CZ: multiply by exp(i phases)."""

    def __init__(self, gates: list[Gate], n_qubits: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.angles = _Angles(gates, dtype)
        self.phases: torch.Tensor
        self.register_buffer(
            "phases", torch.tensor(np.array([diagonal_phases(g, n_qubits) for g in gates]), dtype=dtype)
        )

    def forward(
        self, real: torch.Tensor, imaginary: torch.Tensor, ansatz: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        phases = self.angles(ansatz) @ self.phases
        cos, sin = torch.cos(phases), torch.sin(phases)
        return real * cos - imaginary * sin, real * sin + imaginary * cos


class _Permutation(torch.nn.Module):
    """CNOTs: reorder the basis states."""

    def __init__(self, gates: list[Gate], n_qubits: int) -> None:
        super().__init__()
        self.source: torch.Tensor
        self.register_buffer("source", torch.tensor(permutation(gates, n_qubits)))

    def forward(
        self, real: torch.Tensor, imaginary: torch.Tensor, ansatz: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return real[:, self.source], imaginary[:, self.source]


def _step(block: Block, n_qubits: int, dtype: torch.dtype) -> torch.nn.Module:
    if block.kind == "permutation":
        return _Permutation(block.gates, n_qubits)
    if block.kind == "diagonal":
        return _Diagonal(block.gates, n_qubits, dtype)
    other = next((gate for gate in block.gates if gate.name != "ry"), None)
    if other is not None:
        raise EngineError(
            f"{other.name} on {other.qubits} behind the feature map; the ansatz takes ry, rz, rzz, cx, cz"
        )
    return _Rotations(block.gates, n_qubits, dtype)
