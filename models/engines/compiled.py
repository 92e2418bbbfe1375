"""The exact classical evaluation of a fixed circuit, compiled once.

With the R_X feature map, qubit j enters as r_j = (cos(z_j/2), -i sin(z_j/2)), so each <Z_i> is a quadratic form in the
product of the r_j and therefore multilinear in the vectors v_j = (1, cos z_j, sin z_j):

    <Z_i>(z) = sum_k T[i, k_1, ..., k_n] v_1[k_1] ... v_n[k_n],   T of shape (n, 3, ..., 3).

`compile_circuit` computes T. Cut between the first n//2 qubits and the rest, T is a matrix; where its numerical rank
is low, as it is for shallow circuits, it is kept as two factors. Evaluation is then one or two matrix products for a
whole batch. This is a classical, exact evaluation of the same model: no sampling, no approximation beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.blocks import Block, blocks, diagonal_phases, permutation, split_feature_map
from models.circuit import Circuit, as_angles
from models.errors import EngineError, ShapeError
from models.observables import z_signs

MAX_QUBITS = 12  # the unitary alone takes 16 * 4**n bytes: 268 MB at 12, 4.3 GB at 14
_RANK_TOLERANCE = 1e-13  # of the largest singular value; far below the 1e-9 that engines agree to


@dataclass(frozen=True)
class MultilinearTensor:
    """Outputs that are multilinear in (1, cos z_j, sin z_j), as `left @ right` across one cut of the qubits.

    Attributes:
        left: Shape (n_outputs, 3**n_left, rank).
        right: Shape (rank, 3**n_right); None stands for the identity (full rank, rank = 3**n_right).
        n_left: Qubits before the cut.
        n_right: Qubits behind it.
    """

    left: np.ndarray
    right: np.ndarray | None
    n_left: int
    n_right: int

    def __post_init__(self) -> None:
        rank = 3**self.n_right if self.right is None else self.right.shape[0]
        expected = (self.left.shape[0], 3**self.n_left, rank)
        if self.left.shape != expected:
            raise ShapeError(f"the left factor has shape {self.left.shape}, expected {expected}")
        if self.right is not None and self.right.shape != (rank, 3**self.n_right):
            raise ShapeError(f"the right factor has shape {self.right.shape}, expected {(rank, 3**self.n_right)}")

    @property
    def n_coefficients(self) -> int:
        return self.left.size + (0 if self.right is None else self.right.size)

    def __call__(self, angles: np.ndarray) -> np.ndarray:
        """Evaluate for angles of shape (batch, n_left + n_right); returns (batch, n_outputs) in the tensor's dtype."""
        cos, sin = np.cos(angles).astype(self.left.dtype), np.sin(angles).astype(self.left.dtype)
        left = _products(cos[:, : self.n_left], sin[:, : self.n_left])
        right = _products(cos[:, self.n_left :], sin[:, self.n_left :])
        if self.right is not None:
            right = right @ self.right.T
        # One product for all outputs: (batch, 3**n_left) x (3**n_left, n_outputs * rank).
        n_outputs, _, rank = self.left.shape
        inner = left @ self._left_matrix
        return np.asarray(np.einsum("bok,bk->bo", inner.reshape(-1, n_outputs, rank), right))

    @property
    def _left_matrix(self) -> np.ndarray:
        return self.left.transpose(1, 0, 2).reshape(self.left.shape[1], -1)

    def combine(self, weights: np.ndarray, bias: np.ndarray) -> MultilinearTensor:
        """The tensor of `weights @ outputs + bias`; weights (n_new, n_outputs), bias (n_new,)."""
        left = np.tensordot(weights.astype(self.left.dtype), self.left, axes=1)
        matrix = left.reshape(-1, left.shape[2])
        full = matrix if self.right is None else matrix @ self.right
        # The constant term: all k_j = 0.
        full = full.reshape(len(weights), 3**self.n_left, 3**self.n_right)
        full[:, 0, 0] += bias
        return _compress(full, self.n_left, self.n_right)


class CompiledEngine:
    """Evaluates a compiled circuit in batches; the default engine.

    Args:
        tensor: What `compile_circuit` returned for the circuit.
        dtype: float64 agrees with the state vector to 1e-9, float32 to 1e-5 at twice the speed.
    """

    name = "compiled"

    def __init__(self, tensor: MultilinearTensor, dtype: type[np.floating] = np.float64) -> None:
        self._exact = tensor
        self._dtype = dtype
        self._expvals = _cast(tensor, dtype)
        self._linear: tuple[np.ndarray, np.ndarray, MultilinearTensor] | None = None

    def expvals(self, angles: np.ndarray) -> np.ndarray:
        """<Z_q> of every qubit; angles (batch, n_qubits) in radians, returns the same shape."""
        return self._expvals(as_angles(angles, self._expvals.n_left + self._expvals.n_right))

    def linear(self, angles: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """weights @ <Z> + bias with the head folded into the tensor; folded once for each head."""
        angles = as_angles(angles, self._expvals.n_left + self._expvals.n_right)
        if self._linear is None or self._linear[0] is not weights or self._linear[1] is not bias:
            self._linear = (weights, bias, _cast(self._exact.combine(weights, bias), self._dtype))
        return self._linear[2](angles)


def compile_circuit(circuit: Circuit) -> MultilinearTensor:
    """Compile a student circuit whose ansatz is bound.

    Takes seconds for 11 qubits: the unitary of the ansatz, then one real matrix product a qubit.

    Raises:
        EngineError: If the circuit has more than `MAX_QUBITS` qubits or no R_X feature map in front.
        UnboundParameterError: If an ansatz angle is still symbolic.
    """
    n = circuit.n_qubits
    if n > MAX_QUBITS:
        raise EngineError(f"{n} qubits, expected at most {MAX_QUBITS}; use the mindquantum engine for more")
    _, ansatz = split_feature_map(circuit)
    unitary = _unitary(ansatz)
    # Column b of U is multiplied by (-i)^(ones in b), which leaves the input state real: r_j = (cos, sin).
    ones = ((n - z_signs(n).sum(axis=0)) / 2).astype(int)
    unitary *= (-1j) ** ones
    rows = np.concatenate([unitary.real, unitary.imag])
    signs = np.tile(z_signs(n), 2)
    n_left = n // 2
    tensor = np.empty((n, 3**n_left, 3 ** (n - n_left)))
    for qubit in range(n):
        # Re(U^+ Z U) = 1 - 2 C^T C with C the rows where the qubit reads 1.
        read_one = rows[signs[qubit] < 0]
        quadratic = -2.0 * (read_one.T @ read_one)
        quadratic[np.diag_indices_from(quadratic)] += 1.0
        tensor[qubit] = _multilinear(quadratic, n).reshape(tensor.shape[1:])
    return _compress(tensor, n_left, n - n_left)


def _unitary(circuit: Circuit) -> np.ndarray:
    """The circuit's matrix, shape (2**n, 2**n), complex128."""
    n = circuit.n_qubits
    matrix = np.eye(2**n, dtype=np.complex128)
    for block in blocks(circuit.gates):
        matrix = _apply(block, circuit, matrix)
    return matrix


def _apply(block: Block, circuit: Circuit, matrix: np.ndarray) -> np.ndarray:
    n = circuit.n_qubits
    if block.kind == "permutation":
        return matrix[permutation(block.gates, n)]
    if block.kind == "diagonal":
        angles = [1.0 if gate.angle is None else circuit.angle(gate) for gate in block.gates]
        phases = np.sum([a * diagonal_phases(g, n) for a, g in zip(angles, block.gates, strict=True)], axis=0)
        return np.exp(1j * phases)[:, None] * matrix
    for gate in Circuit(n, tuple(block.gates)).fused().gates:
        half = circuit.angle(gate) / 2
        off = np.sin(half) * (-1j if gate.name == "rx" else 1)
        view = matrix.reshape(2 ** gate.qubits[0], 2, -1)
        zero, one = view[:, 0].copy(), view[:, 1].copy()
        view[:, 0] = np.cos(half) * zero - (off if gate.name == "ry" else -off) * one
        view[:, 1] = off * zero + np.cos(half) * one
    return matrix


def _multilinear(quadratic: np.ndarray, n: int) -> np.ndarray:
    """Coefficients in (1, cos, sin) of r^T Q r, with r the product of (cos(z_j/2), sin(z_j/2)); shape (3,) * n.

    cos^2 = (1 + cos z)/2, sin^2 = (1 - cos z)/2, 2 sin cos = sin z, applied to one qubit after the other.
    """
    work = quadratic
    done = 1
    for qubit in range(n):
        rest = 2 ** (n - 1 - qubit)
        q = work.reshape(done, 2, rest, 2, rest)
        same, other = q[:, 0, :, 0] + q[:, 1, :, 1], q[:, 0, :, 0] - q[:, 1, :, 1]
        cross = q[:, 0, :, 1] + q[:, 1, :, 0]
        work = np.stack([same, other, cross], axis=1) / 2
        done *= 3
    return work.reshape((3,) * n)


def _compress(full: np.ndarray, n_left: int, n_right: int) -> MultilinearTensor:
    """Keep a tensor (n_outputs, 3**n_left, 3**n_right) as two factors where that makes evaluation cheaper."""
    n_outputs, rows, columns = full.shape
    u, s, vt = np.linalg.svd(full.reshape(-1, columns), full_matrices=False)
    rank = max(1, int((s > _RANK_TOLERANCE * s[0]).sum()))
    if rank * (n_outputs * rows + columns) >= full.size:
        return MultilinearTensor(full, None, n_left, n_right)
    return MultilinearTensor((u[:, :rank] * s[:rank]).reshape(n_outputs, rows, rank), vt[:rank], n_left, n_right)


def _cast(tensor: MultilinearTensor, dtype: type[np.floating]) -> MultilinearTensor:
    right = None if tensor.right is None else tensor.right.astype(dtype)
    return MultilinearTensor(tensor.left.astype(dtype), right, tensor.n_left, tensor.n_right)


def _products(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Row-wise Kronecker product of the (1, cos, sin) of every qubit, shape (batch, 3**n)."""
    batch, n = cos.shape
    result = np.ones((batch, 1), dtype=cos.dtype)
    for qubit in range(n):
        step = np.empty((batch, result.shape[1], 3), dtype=cos.dtype)
        step[..., 0] = result
        np.multiply(result, cos[:, qubit, None], out=step[..., 1])
        np.multiply(result, sin[:, qubit, None], out=step[..., 2])
        result = step.reshape(batch, -1)
    return result
