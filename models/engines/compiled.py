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
_ZERO_TOLERANCE = 1e-15  # of the largest coefficient: all 3**12 of them together stay below 1e-9


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

    def __call__(self, angles: np.ndarray) -> np.ndarray:
        """Evaluate for angles of shape (batch, n_left + n_right); returns (batch, n_outputs), float64."""
        return Evaluator(self, np.float64)(angles)

    def combine(self, weights: np.ndarray, bias: np.ndarray) -> MultilinearTensor:
        """The tensor of `weights @ outputs + bias`; weights (n_new, n_outputs), bias (n_new,)."""
        left = np.tensordot(weights.astype(self.left.dtype), self.left, axes=1)
        matrix = left.reshape(-1, left.shape[2])
        full = matrix if self.right is None else matrix @ self.right
        # The constant term: all k_j = 0.
        full = full.reshape(len(weights), 3**self.n_left, 3**self.n_right)
        full[:, 0, 0] += bias
        return _compress(full, self.n_left, self.n_right)


class Evaluator:
    """A tensor laid out for batches: the batch is the last axis, and rows and columns of zeros are left out.

    Zeros are common: a qubit whose sine no output reads (the last one of `released`) is a third of all columns, and in
    shallow circuits distant qubits never meet.
    """

    def __init__(self, tensor: MultilinearTensor, dtype: type[np.floating]) -> None:
        self._dtype = dtype
        self._n_left = tensor.n_left
        self._n_outputs = len(tensor.left)
        left, right = tensor.left, tensor.right
        rows, self._left_sines, self._left_places = _kept(np.asarray(left.any(axis=(0, 2))), tensor.n_left)
        columns, self._right_sines, self._right_places = _kept(
            np.asarray(left.any(axis=(0, 1)) if right is None else right.any(axis=0)), tensor.n_right
        )
        if right is None:
            left = left[:, :, columns]
        self._right = None if right is None else np.ascontiguousarray(right[:, columns], dtype=dtype)
        self._rank = left.shape[2]
        matrix = left[:, rows].transpose(0, 2, 1).reshape(-1, len(rows))
        self._matrix = np.ascontiguousarray(matrix, dtype=dtype)

    def __call__(self, angles: np.ndarray) -> np.ndarray:
        """Angles (batch, n_qubits) to outputs (batch, n_outputs) in the evaluator's dtype."""
        cos, sin = np.cos(angles.T).astype(self._dtype), np.sin(angles.T).astype(self._dtype)
        left = _products(cos[: self._n_left], sin[: self._n_left], self._left_sines)
        right = _products(cos[self._n_left :], sin[self._n_left :], self._right_sines)
        if self._left_places is not None:
            left = left[self._left_places]
        if self._right_places is not None:
            right = right[self._right_places]
        if self._right is not None:
            right = self._right @ right
        # One product for all outputs: (n_outputs * rank, rows) x (rows, batch).
        inner = (self._matrix @ left).reshape(self._n_outputs, self._rank, len(angles))
        return np.asarray(np.einsum("okb,kb->bo", inner, right))


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
        self._n_qubits = tensor.n_left + tensor.n_right
        self._expvals = Evaluator(tensor, dtype)
        self._head: _Head | None = None

    def expvals(self, angles: np.ndarray) -> np.ndarray:
        """<Z_q> of every qubit; angles (batch, n_qubits) in radians, returns the same shape."""
        return self._expvals(as_angles(angles, self._n_qubits))

    def linear(self, angles: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """weights @ <Z> + bias with the head folded into the tensor; folded once for each head."""
        angles = as_angles(angles, self._n_qubits)
        head = self._head
        if head is None or head.weights is not weights or head.bias is not bias:
            head = self._head = _Head.fold(self._exact, weights, bias, self._dtype)
        return np.asarray(head.evaluator(angles) @ head.mix)


@dataclass(frozen=True)
class _Head:
    """A head folded into the tensor: its outputs are `mix` of as many independent ones as its rank.

    A head whose rows sum to zero over the classes, as softmax allows, has one output less to evaluate.
    """

    weights: np.ndarray
    bias: np.ndarray
    evaluator: Evaluator
    mix: np.ndarray

    @classmethod
    def fold(cls, tensor: MultilinearTensor, weights: np.ndarray, bias: np.ndarray, dtype: type[np.floating]) -> _Head:
        u, s, vt = np.linalg.svd(np.column_stack([weights, bias]), full_matrices=False)
        rank = max(1, int((s > _RANK_TOLERANCE * s[0]).sum()))
        combined = tensor.combine(vt[:rank, :-1], vt[:rank, -1])
        return cls(weights, bias, Evaluator(combined, dtype), (u[:, :rank] * s[:rank]).T.astype(dtype))


def compile_circuit(circuit: Circuit) -> MultilinearTensor:
    """Compile a student circuit whose ansatz is bound.

    Takes seconds for 11 qubits: the unitary of the ansatz, then one real matrix product a qubit.

    Raises:
        EngineError: If the circuit has more than `MAX_QUBITS` qubits or no R_X feature map in front.
        UnboundParameterError: If an ansatz angle is still symbolic.
    """
    n = circuit.n_qubits
    if n > MAX_QUBITS:
        raise EngineError(f"{n} qubits, expected at most {MAX_QUBITS}")
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
        return np.asarray(matrix[permutation(block.gates, n)])
    if block.kind == "diagonal":
        angles = [1.0 if gate.angle is None else circuit.angle(gate) for gate in block.gates]
        phases = np.sum([a * diagonal_phases(g, n) for a, g in zip(angles, block.gates, strict=True)], axis=0)
        return np.asarray(np.exp(1j * phases)[:, None] * matrix)
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
    """Keep a tensor (n_outputs, 3**n_left, 3**n_right) as two factors where that makes evaluation cheaper.

    Rows and columns that hold nothing but rounding become exact zeros, which `Evaluator` leaves out.
    """
    n_outputs = len(full)
    size = np.abs(full).max(axis=0)
    something = size > _ZERO_TOLERANCE * size.max()
    rows, columns = np.flatnonzero(something.any(axis=1)), np.flatnonzero(something.any(axis=0))
    kept = full[:, rows][:, :, columns]
    u, s, vt = np.linalg.svd(kept.reshape(-1, len(columns)), full_matrices=False)
    rank = max(1, int((s > _RANK_TOLERANCE * s[:1]).sum()))
    if rank * (n_outputs * len(rows) + len(columns)) >= kept.size:
        left = np.zeros_like(full)
        left[:, rows[:, None], columns] = kept
        return MultilinearTensor(left, None, n_left, n_right)
    left = np.zeros((n_outputs, 3**n_left, rank))
    left[:, rows] = (u[:, :rank] * s[:rank]).reshape(n_outputs, len(rows), rank)
    right = np.zeros((rank, 3**n_right))
    right[:, columns] = vt[:rank]
    return MultilinearTensor(left, right, n_left, n_right)


def _products(cos: np.ndarray, sin: np.ndarray, sines: np.ndarray) -> np.ndarray:
    """Kronecker product of the (1, cos, sin) of every qubit, the first one slowest, the batch last.

    cos and sin have shape (n, batch); a qubit for which `sines` is False brings (1, cos) only.
    """
    n, batch = cos.shape
    result = np.empty((int(np.prod(np.where(sines, 3, 2))), batch), dtype=cos.dtype)
    result[:1] = 1
    done = 1
    for q in reversed(range(n)):
        np.multiply(result[:done], cos[q], out=result[done : 2 * done])
        if sines[q]:
            np.multiply(result[:done], sin[q], out=result[2 * done : 3 * done])
        done *= 3 if sines[q] else 2
    return result


def _kept(nonzero: np.ndarray, n_qubits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """How to leave zeros out of the 3**n_qubits products of some qubits.

    Returns:
        Indices of the non-zeros; whether each qubit's sine is read at all, shape (n_qubits,); and where the non-zeros
        are among the products without the unread sines, None for all of them.
    """
    digits = np.indices((3,) * n_qubits).reshape(n_qubits, 3**n_qubits)
    sines = np.array([nonzero[row == 2].any() for row in digits], dtype=bool)
    built = (sines[:, None] | (digits < 2)).all(axis=0)
    places = np.flatnonzero(nonzero[built])
    return np.flatnonzero(nonzero), sines, None if len(places) == built.sum() else places
