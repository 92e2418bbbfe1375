"""Counts of a circuit on a noisy chip: one quantum trajectory a shot, evolved by MindQuantum's `mqvector` simulator.

The faults are those of `models.noise`, and readout that flips each qubit's bit with P(1|0) and P(0|1). They do not
depend on the state, so they are drawn for all shots first. Shots share the evolution up to the first fault in which
they differ; this is exact and saves half of the work in the deepest circuits and most in shallow ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.circuit import Circuit, Gate
from models.device import Device
from models.engines.mindquantum import to_mindquantum
from models.errors import CircuitError, DeviceError, EngineError
from models.native import NATIVE_GATES, rotation_matrix, zyz
from models.noise import RESET, Plan, pair, plan_faults

MAX_QUBITS = 12


def sample_counts(circuit: Circuit, shots: int, device: Device, chain: Sequence[int], seed: int) -> dict[str, int]:
    """Counts of a bound circuit of rx, ry, rz and cz (see `to_native`) on a noisy device.

    Args:
        circuit: Its two-qubit gates act on pairs that are coupled where `chain` puts them.
        shots: At least 1; each is a trajectory of its own.
        device: Its calibration.
        chain: Physical qubit of each qubit of the circuit.
        seed: Counts are the same for the same seed.

    Returns:
        Bitstring (qubit 0 of the circuit leftmost) to number of shots.

    Raises:
        UnboundParameterError: If an angle is still symbolic.
        CircuitError: If a gate is not native or shots is less than 1.
        DeviceError: If the chain does not fit the circuit or the device.
        EngineError: If mindquantum is not installed or the circuit has more than `MAX_QUBITS` qubits.
    """
    _require_fit(circuit, shots, device, chain)
    rng = np.random.default_rng(seed)
    plan = plan_faults(circuit, device, chain)
    bits = _bits(_Trajectories(plan, shots, rng).sample(), circuit.n_qubits)
    for q, physical in enumerate(chain):
        late, qubit = plan.at_measurement[q], device.qubits[physical]
        bits[:, q] = _flipped(bits[:, q], late.flip, late.flip, rng)
        bits[:, q] = _flipped(bits[:, q], 0.0, late.reset, rng)
        bits[:, q] = _flipped(bits[:, q], _missed(qubit.readout_0), _missed(qubit.readout_1), rng)
    return _counts(bits)


def exact_counts(circuit: Circuit, shots: int, seed: int) -> dict[str, int]:
    """Counts of any bound circuit without noise, sampled from its final state.

    Returns:
        Bitstring (qubit 0 leftmost) to number of shots.

    Raises:
        UnboundParameterError: If an angle is still symbolic.
        CircuitError: If shots is less than 1.
        EngineError: If mindquantum is not installed or the circuit has more than `MAX_QUBITS` qubits.
    """
    circuit.require_bound()
    _require_shots(shots)
    simulator = _simulator(circuit.n_qubits)
    simulator.apply_circuit(to_mindquantum(circuit.fused()))
    rng = np.random.default_rng(seed)
    return _counts(_bits(_measure(simulator.get_qs(), shots, rng), circuit.n_qubits))


class _Trajectories:
    """The shots of a plan, as a tree: a branch is a sequence of faults that some shots have in common."""

    def __init__(self, plan: Plan, shots: int, rng: np.random.Generator) -> None:
        self._plan = plan
        self._shots = shots
        self._rng = rng
        self._pieces = _Pieces(plan)
        self._paulis: dict[tuple[int, int], Any] = {}  # (site, fault) -> MindQuantum circuit

    def sample(self) -> np.ndarray:
        """The basis state that each shot measures, before readout, in MindQuantum's order; shape (shots,)."""
        faults = self._draw_faults()
        measured = np.empty(self._shots, dtype=np.int64)
        # Each branch: its simulator, the slots applied to it, how many faults it holds, and its shots.
        branches: list[tuple[Any, int, int, list[int]]] = [
            (_simulator(self._plan.n_qubits), 0, 0, list(range(self._shots)))
        ]
        while branches:
            simulator, done, depth, shots = branches.pop()
            following: dict[tuple[int, int], list[int]] = {}
            ended = []
            for shot in shots:
                if len(faults[shot]) == depth:
                    ended.append(shot)
                else:
                    following.setdefault(faults[shot][depth], []).append(shot)
            for (site, fault), struck in sorted(following.items()):
                self._evolve(simulator, done, site + 1)
                done = site + 1
                whole = len(struck) == len(shots)
                branches += [
                    (after, done, depth + 1, some)
                    for after, some in self._strike(simulator if whole else simulator.copy(), site, fault, struck)
                ]
            if ended:
                self._evolve(simulator, done, len(self._plan.slots))
                measured[ended] = _measure(simulator.get_qs(), len(ended), self._rng)
        return measured

    def _draw_faults(self) -> list[list[tuple[int, int]]]:
        """The faults of each shot, as (site, index of the fault there), ascending."""
        faults: list[list[tuple[int, int]]] = [[] for _ in range(self._shots)]
        for number, site in enumerate(self._plan.sites):
            bounds = np.cumsum(site.probabilities)
            drawn = self._rng.random(self._shots)
            struck = np.flatnonzero(drawn < bounds[-1])
            which = np.searchsorted(bounds, drawn[struck], side="right")
            for shot, fault in zip(struck.tolist(), which.tolist(), strict=True):
                faults[shot].append((number, fault))
        return faults

    def _evolve(self, simulator: Any, start: int, stop: int) -> None:
        for piece in self._pieces.between(start, stop):
            simulator.apply_circuit(piece)

    def _strike(self, simulator: Any, site: int, fault: int, shots: list[int]) -> list[tuple[Any, list[int]]]:
        """Simulators behind a fault, the given one among them, and the shots of each: a reset divides them."""
        qubits, name = self._plan.sites[site].qubits, self._plan.sites[site].faults[fault]
        if name != (RESET,):
            if (site, fault) not in self._paulis:
                self._paulis[site, fault] = _pauli_circuit(qubits, name)
            simulator.apply_circuit(self._paulis[site, fault])
            return [(simulator, shots)]
        # Measured here and not by the simulator: its copies would all draw the same outcome.
        (q,) = qubits
        state = simulator.get_qs().reshape(-1, 2, 2**q)
        parts = [state[:, bit] for bit in (0, 1)]
        weights = [np.vdot(part, part).real for part in parts]
        ones = self._rng.random(len(shots)) * sum(weights) < weights[1]
        result: list[tuple[Any, list[int]]] = []
        for part, chosen in zip(parts, (~ones, ones), strict=True):
            if chosen.any():
                after = np.zeros_like(state)
                after[:, 0] = part
                here = simulator.copy() if result else simulator
                here.set_qs(after.reshape(-1))  # which normalises it
                result.append((here, [shot for shot, is_here in zip(shots, chosen, strict=True) if is_here]))
        return result


class _Pieces:
    """The slots as MindQuantum circuits, in runs of 2^k slots that start at a multiple of 2^k, made when needed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._made: dict[tuple[int, int], Any] = {}

    def between(self, start: int, stop: int) -> list[Any]:
        """Circuits of slots start, ..., stop - 1, few of them."""
        result: list[tuple[Any, list[int]]] = []
        while start < stop:
            longest = 1 << ((stop - start).bit_length() - 1)
            length = min(start & -start, longest) if start else longest
            result.append(self._piece(start, start + length))
            start += length
        return [piece for piece in result if piece is not None]

    def _piece(self, start: int, stop: int) -> Any:
        if (start, stop) not in self._made:
            gates = [gate for slot in self._plan.slots[start:stop] for gate in slot]
            self._made[start, stop] = _fused(self._plan.n_qubits, gates) if gates else None
        return self._made[start, stop]


def _fused(n_qubits: int, gates: Sequence[Gate]) -> Any:
    """A MindQuantum circuit with one U3 for each run of single-qubit gates on a qubit."""
    import mindquantum.core.gates as mq
    from mindquantum.core.circuit import Circuit as MindQuantumCircuit

    runs: dict[int, np.ndarray] = {}
    result = MindQuantumCircuit()

    def close(q: int) -> None:
        if q in runs:
            first, middle, last = zyz(runs.pop(q))
            result.append(mq.U3(middle, last, first).on(q))

    for gate in gates:
        if gate.name == "cz":
            for q in gate.qubits:
                close(q)
            result.append(mq.Z.on(gate.qubits[1], gate.qubits[0]))
        else:
            (q,) = gate.qubits
            runs[q] = rotation_matrix(gate) @ runs.get(q, np.eye(2))
    for q in range(n_qubits):
        close(q)
    return result


def _pauli_circuit(qubits: Sequence[int], paulis: Sequence[str]) -> Any:
    import mindquantum.core.gates as mq
    from mindquantum.core.circuit import Circuit as MindQuantumCircuit

    gates = {"X": mq.X, "Y": mq.Y, "Z": mq.Z}
    return MindQuantumCircuit([gates[p].on(q) for q, p in zip(qubits, paulis, strict=True) if p != "I"])


def _measure(state: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of basis states drawn from a state, shape (shots,)."""
    cumulative = np.cumsum(state.real**2 + state.imag**2)
    return np.asarray(np.searchsorted(cumulative, rng.random(shots) * cumulative[-1], side="right"))


def _bits(indices: np.ndarray, n_qubits: int) -> np.ndarray:
    """Bits of basis states in MindQuantum's order, whose qubit 0 is least significant; shape (shots, n_qubits)."""
    return (indices[:, None] >> np.arange(n_qubits)) & 1


def _flipped(bits: np.ndarray, zero_to_one: float, one_to_zero: float, rng: np.random.Generator) -> np.ndarray:
    """One qubit's bits, shape (shots,), flipped with these probabilities."""
    return bits ^ (rng.random(len(bits)) < np.where(bits == 1, one_to_zero, zero_to_one))


def _counts(bits: np.ndarray) -> dict[str, int]:
    rows, counts = np.unique(bits, axis=0, return_counts=True)
    return {"".join(map(str, row)): int(count) for row, count in zip(rows.tolist(), counts, strict=True)}


def _missed(right: float | None) -> float:
    return 0.0 if right is None else 1 - right


def _simulator(n_qubits: int) -> Any:
    if n_qubits > MAX_QUBITS:
        raise EngineError(f"{n_qubits} qubits, expected at most {MAX_QUBITS}")
    try:
        from mindquantum.simulator import Simulator
    except ImportError as exc:
        raise EngineError("noisy counts need the package mindquantum==0.12.0, which is not installed") from exc
    return Simulator("mqvector", n_qubits)


def _require_shots(shots: int) -> None:
    if shots < 1:
        raise CircuitError(f"{shots} shots, expected at least 1")


def _require_fit(circuit: Circuit, shots: int, device: Device, chain: Sequence[int]) -> None:
    circuit.require_bound()
    _require_shots(shots)
    if len(chain) != circuit.n_qubits or len(set(chain)) != len(chain):
        raise DeviceError(f"the chain is {tuple(chain)}, expected {circuit.n_qubits} different qubits")
    unknown = [physical for physical in chain if physical not in device.qubits]
    if unknown:
        raise DeviceError(f"the chain has the qubits {unknown}, which {device.name} does not have")
    for gate in circuit.gates:
        if gate.name not in NATIVE_GATES:
            raise CircuitError(
                f"{gate.name} on {gate.qubits}, expected one of {sorted(NATIVE_GATES)}: to_native() first"
            )
        if gate.name == "cz" and pair(*(chain[q] for q in gate.qubits)) not in device.couplers:
            physical = tuple(chain[q] for q in gate.qubits)
            raise DeviceError(f"cz on {gate.qubits} falls on the physical qubits {physical}, which are not coupled")
