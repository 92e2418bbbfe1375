"""A circuit in the gates of the chip: rx, ry, rz and cz, and where its qubits sit on a chain.

A qubit's single-qubit gates between two cz become at most RZ RY: every unitary is RZ RY RZ up to a phase, and the last
RZ, diagonal like cz, moves on past it. So do cz themselves meet and cancel, and what reaches the measurement is
dropped, for it changes no Z count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from models.blocks import blocks
from models.circuit import Circuit, Gate
from models.errors import CircuitError

NATIVE_GATES = frozenset({"rx", "ry", "rz", "cz"})

_ZERO_ANGLE = 1e-12
_HALF_PI = math.pi / 2


def to_native(circuit: Circuit) -> Circuit:
    """The circuit in rx, ry, rz and cz, with the same distribution of Z counts.

    cx is RY(pi/2) CZ RY(-pi/2) on its target, as an operator product; rzz is cx, rz, cx. Gates that commute because
    they are diagonal are ordered so that those on separate pairs of qubits can run side by side.

    Raises:
        UnboundParameterError: If an angle is still symbolic.
    """
    circuit.require_bound()
    gates = [part for gate in _reordered(circuit) for part in _translated(circuit, gate)]
    merged = _without_idle_diagonals(_merged(circuit.n_qubits, gates))
    # Each round takes gates away or is the last: cz that cancelled leave rotations to merge, and these more cz.
    while _pulses(merged) < _pulses(gates):
        gates, merged = merged, _without_idle_diagonals(_merged(circuit.n_qubits, merged))
    return Circuit(circuit.n_qubits, tuple(merged))


def chain_order(circuit: Circuit) -> tuple[int, ...] | None:
    """The circuit's qubits in an order in which every two-qubit gate acts on neighbours; None if there is none.

    Qubits that no two-qubit gate joins come at their own place by number; a path starts at its end of lower number.
    """
    neighbours = _neighbours(circuit)
    if any(len(near) > 2 for near in neighbours):
        return None
    order: list[int] = []
    for start in range(circuit.n_qubits):
        if start in order or len(neighbours[start]) == 2:
            continue
        previous, qubit = -1, start
        while True:
            order.append(qubit)
            onwards = neighbours[qubit] - {previous}
            if not onwards:
                break
            previous, qubit = qubit, onwards.pop()
    # A ring has no end to start from.
    return tuple(order) if len(order) == circuit.n_qubits else None


def placed(circuit: Circuit, path: Sequence[int]) -> tuple[int, ...] | None:
    """Where each qubit of a circuit sits that is laid along a path of coupled qubits.

    Returns:
        None where the circuit fits no chain (see `chain_order`), or none so short.
    """
    order = chain_order(circuit)
    if order is None or len(order) > len(path):
        return None
    position = {qubit: place for place, qubit in enumerate(order)}
    return tuple(path[position[qubit]] for qubit in range(circuit.n_qubits))


def routed(circuit: Circuit) -> tuple[Circuit, tuple[int, ...]]:
    """The circuit on the positions of a chain, swaps inserted where a gate's qubits are not neighbours.

    A swap is three cx. The first placement is `chain_order`, which needs none; else the one of fewest swaps of: the
    qubits by number, by breadth-first search (Cuthill and McKee), and as a chain that one pair of qubits does not fit.

    Returns:
        The circuit, whose qubit i is the chain's position i, and the position where each qubit of the given circuit
        ends and is measured.
    """
    order = chain_order(circuit)
    placements = _placements(circuit) if order is None else [order]
    routes = [_route(circuit, placement, mover) for placement in placements for mover in (min, max)]
    return min(routes, key=lambda route: len(route[0].gates))


def zyz(matrix: np.ndarray) -> tuple[float, float, float]:
    """Angles (a, b, c) with matrix = phase * RZ(c) RY(b) RZ(a), b in [0, pi]; matrix (2, 2), unitary."""
    b = 2 * math.atan2(abs(matrix[1, 0]), abs(matrix[0, 0]))
    phases = np.angle(matrix)
    if abs(matrix[1, 0]) < _ZERO_ANGLE:
        return 0.0, b, float(phases[1, 1] - phases[0, 0])
    if abs(matrix[0, 0]) < _ZERO_ANGLE:
        return 0.0, b, float(phases[1, 0] - phases[0, 1] + math.pi)
    return float(phases[1, 1] - phases[1, 0]), b, float(phases[1, 0] - phases[0, 0])


def rotation_matrix(gate: Gate) -> np.ndarray:
    """R_P(angle) = exp(-i angle P / 2) of a bound rx, ry or rz, shape (2, 2)."""
    if not isinstance(gate.angle, float):
        raise CircuitError(f"{gate.name} has the angle {gate.angle!r}, expected a number")
    cos, sin = math.cos(gate.angle / 2), math.sin(gate.angle / 2)
    if gate.name == "rx":
        return np.array([[cos, -1j * sin], [-1j * sin, cos]])
    if gate.name == "ry":
        return np.array([[cos, -sin], [sin, cos]], dtype=complex)
    return np.diag([cos - 1j * sin, cos + 1j * sin])


def _reordered(circuit: Circuit) -> Iterable[Gate]:
    """The gates block by block; a block's rzz and cz pair by pair, in few steps of pairs that share no qubit."""
    for block in blocks(circuit.gates):
        if block.kind != "diagonal":
            yield from block.gates
            continue
        yield from (gate for gate in block.gates if len(gate.qubits) == 1)
        step_of: dict[tuple[int, ...], int] = {}
        for pair in sorted({tuple(sorted(gate.qubits)) for gate in block.gates if len(gate.qubits) == 2}):
            taken = {step for other, step in step_of.items() if set(other) & set(pair)}
            step_of[pair] = next(step for step in range(len(taken) + 1) if step not in taken)
        pairs = [gate for gate in block.gates if len(gate.qubits) == 2]
        yield from sorted(pairs, key=lambda gate: (step_of[tuple(sorted(gate.qubits))], tuple(sorted(gate.qubits))))


def _translated(circuit: Circuit, gate: Gate) -> list[Gate]:
    if gate.name in NATIVE_GATES:
        return [gate]
    a, b = gate.qubits
    before, cz, after = Gate("ry", (b,), -_HALF_PI), Gate("cz", (a, b)), Gate("ry", (b,), _HALF_PI)
    if gate.name == "cx":
        return [before, cz, after]
    return [before, cz, after, Gate("rz", (b,), circuit.angle(gate)), before, cz, after]


def _merged(n_qubits: int, gates: Iterable[Gate]) -> list[Gate]:
    """The gates with single-qubit gates merged, their last RZ moved on past cz, and cz that meet removed."""
    runs: list[list[Gate]] = [[] for _ in range(n_qubits)]
    result: list[Gate | None] = []
    open_cz: dict[frozenset[int], int] = {}  # pair -> place of its last cz, if only diagonal gates came since

    def emit(qubit: int) -> None:
        before, kept = _merged_run(qubit, runs[qubit])
        runs[qubit] = kept
        result.extend(before)
        if any(gate.name != "rz" for gate in before):
            for pair in [pair for pair in open_cz if qubit in pair]:
                del open_cz[pair]

    for gate in gates:
        if gate.name != "cz":
            runs[gate.qubits[0]].append(gate)
            continue
        for qubit in gate.qubits:
            emit(qubit)
        pair = frozenset(gate.qubits)
        if pair in open_cz:
            result[open_cz.pop(pair)] = None
        else:
            open_cz[pair] = len(result)
            result.append(gate)
    for qubit in range(n_qubits):
        emit(qubit)
        result.extend(runs[qubit])
    return [gate for gate in result if gate is not None]


def _merged_run(qubit: int, run: Sequence[Gate]) -> tuple[list[Gate], list[Gate]]:
    """A run of one qubit's gates as what must come before the next cz, and the rz that may come after it."""
    fused = Circuit(qubit + 1, tuple(run)).fused().gates
    turning = [gate for gate in fused if not _is_zero(gate)]
    pulses = [i for i, gate in enumerate(turning) if gate.name != "rz"]
    if len(pulses) <= 1:
        end = pulses[0] + 1 if pulses else 0
        return turning[:end], turning[end:]
    matrix = np.eye(2, dtype=complex)
    for gate in turning:
        matrix = rotation_matrix(gate) @ matrix
    first, middle, last = zyz(matrix)
    if abs(math.sin(middle / 2)) < _ZERO_ANGLE:
        first, middle, last = 0.0, 0.0, first + last
    angles = (("rz", first), ("ry", middle), ("rz", last))
    a, b, c = (Gate(name, (qubit,), _principal(angle)) for name, angle in angles)
    return [gate for gate in (a, b) if not _is_zero(gate)], [gate for gate in (c,) if not _is_zero(gate)]


def _without_idle_diagonals(gates: Sequence[Gate]) -> list[Gate]:
    """The gates without the diagonal ones that nothing separates from the measurement."""
    turned: set[int] = set()  # qubits with a later gate that is not diagonal
    kept: list[Gate] = []
    for gate in reversed(gates):
        diagonal = gate.name in ("rz", "cz")
        if diagonal and turned.isdisjoint(gate.qubits):
            continue
        if not diagonal:
            turned.update(gate.qubits)
        kept.append(gate)
    return kept[::-1]


def _is_zero(gate: Gate) -> bool:
    """Whether a rotation does nothing; one by 2 pi only changes the global phase."""
    return isinstance(gate.angle, float) and abs(math.sin(gate.angle / 2)) < _ZERO_ANGLE


def _principal(angle: float) -> float:
    """The angle in [-pi, pi]."""
    return math.remainder(angle, 2 * math.pi)


def _pulses(gates: Sequence[Gate]) -> int:
    """How many gates take time; rz is a change of the frame."""
    return sum(gate.name != "rz" for gate in gates)


def _neighbours(circuit: Circuit) -> list[set[int]]:
    """The qubits that share a gate with each qubit."""
    result: list[set[int]] = [set() for _ in range(circuit.n_qubits)]
    for gate in circuit.gates:
        if len(gate.qubits) == 2:
            a, b = gate.qubits
            result[a].add(b)
            result[b].add(a)
    return result


def _breadth_first(circuit: Circuit) -> tuple[int, ...]:
    neighbours = _neighbours(circuit)
    order: list[int] = []
    for start in sorted(range(circuit.n_qubits), key=lambda qubit: (len(neighbours[qubit]), qubit)):
        queue = [start]
        for qubit in queue:
            if qubit not in order:
                order.append(qubit)
                queue += sorted(neighbours[qubit] - set(order))
    return tuple(order)


def _placements(circuit: Circuit) -> list[tuple[int, ...]]:
    pairs = sorted({tuple(sorted(gate.qubits)) for gate in circuit.gates if len(gate.qubits) == 2})
    without = [
        chain_order(Circuit(circuit.n_qubits, tuple(g for g in circuit.gates if tuple(sorted(g.qubits)) != pair)))
        for pair in pairs
    ]
    return [tuple(range(circuit.n_qubits)), _breadth_first(circuit), *(order for order in without if order)]


def _route(
    circuit: Circuit, placement: Sequence[int], mover: Callable[[Iterable[int]], int]
) -> tuple[Circuit, tuple[int, ...]]:
    """The circuit with its qubits first at the places where `placement` lists them.

    Of two qubits that must meet, the one at the position that `mover` picks (min or max) is swapped towards the other.
    """
    at = list(placement)  # position -> qubit
    gates: list[Gate] = []
    for gate in circuit.gates:
        positions = [at.index(qubit) for qubit in gate.qubits]
        while len(positions) == 2 and abs(positions[0] - positions[1]) > 1:
            here = mover(positions)
            there = here + 1 if here == min(positions) else here - 1
            gates += [Gate("cx", pair) for pair in ((here, there), (there, here), (here, there))]
            at[here], at[there] = at[there], at[here]
            positions = [at.index(qubit) for qubit in gate.qubits]
        gates.append(Gate(gate.name, tuple(positions), gate.angle))
    return Circuit(circuit.n_qubits, tuple(gates)), tuple(at.index(qubit) for qubit in range(circuit.n_qubits))
