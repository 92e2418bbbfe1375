"""Counts of a circuit on a noisy chip: one quantum trajectory a shot, evolved by MindQuantum's `mqvector` simulator.

The noise, per physical qubit and coupler of the device's calibration (what is None makes no error):

- Relaxation and dephasing for every time between two gates, the gates' own included, gates as soon as possible and all
  qubits measured at the end. For time t and T2 <= T1 that is exactly a random choice of doing nothing, Z and a reset to
  |0>, with P(reset) = 1 - exp(-t/T1) and P(Z) = (exp(-t/T1) - exp(-t/T2)) / 2; T2 above T1 is taken as T1.
- Depolarising by each rx, ry and cz, as strong as the stated average gate fidelity leaves to be explained: a fidelity
  is measured with the relaxation during the gate in it, so that part is not counted twice. An rz has no error.
- Readout that flips each qubit's bit with P(1|0) and P(0|1).

Such faults do not depend on the state, so they are drawn for all shots first. Shots share the evolution up to the first
fault in which they differ; this is exact and saves half of the work in the deepest circuits and most in shallow ones.

Within a run of single-qubit gates the faults come behind it; those of a cz's own time come in front of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.baihua import CZ_US, SINGLE_QUBIT_GATE_US
from models.circuit import Circuit, Gate
from models.device import Device, Qubit
from models.engines.mindquantum import to_mindquantum
from models.errors import CircuitError, DeviceError, EngineError
from models.native import NATIVE_GATES, rotation_matrix, zyz

MAX_QUBITS = 12

_RESET = "R"
# In an order in which, up to a phase, the product of those at a and b is the one at a ^ b.
_PAULIS = ("I", "X", "Z", "Y")


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
    plan = _plan(circuit, device, chain)
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


@dataclass(frozen=True)
class _Site:
    """Where a fault may strike.

    Attributes:
        qubits: One, or the two of a cz.
        faults: What may happen: a Pauli on each qubit, such as ("X",) or ("I", "Z"), or a reset, ("R",).
        probabilities: Of each, summing to less than 1, shape (len(faults),).
    """

    qubits: tuple[int, ...]
    faults: tuple[tuple[str, ...], ...]
    probabilities: np.ndarray


@dataclass(frozen=True)
class _Late:
    """What happens to a qubit between its last cz and the measurement, where only flips of its bit matter."""

    flip: float
    reset: float


@dataclass(frozen=True)
class _Plan:
    """A circuit as slots of gates, with a site of faults behind each slot but the last."""

    n_qubits: int
    slots: list[list[Gate]]
    sites: list[_Site]
    at_measurement: list[_Late]


def _plan(circuit: Circuit, device: Device, chain: Sequence[int]) -> _Plan:
    """Schedule the circuit and gather its faults: one site a qubit before each cz, and one for the cz itself."""
    n = circuit.n_qubits
    qubits = [device.qubits[physical] for physical in chain]
    clock, since = [0.0] * n, [0.0] * n  # end of the last gate; until when relaxation is accounted for; microseconds
    pauli = [np.array([1.0, 0, 0, 0]) for _ in range(n)]  # of the rotations since the last cz
    by_rotation = [_depolarising(qubit.gate_fidelity, [qubit], SINGLE_QUBIT_GATE_US) for qubit in qubits]
    slots: list[list[Gate]] = [[]]
    sites: list[_Site] = []

    def add(site: _Site) -> None:
        if site.probabilities.sum() > 0:
            sites.append(site)
            slots.append([])

    for gate in circuit.gates:
        if gate.name != "cz":
            (q,) = gate.qubits
            slots[-1].append(gate)
            if gate.name != "rz":
                clock[q] += SINGLE_QUBIT_GATE_US
                pauli[q] = _product(pauli[q], np.array([1 - by_rotation[q], *[by_rotation[q] / 3] * 3]))
            continue
        end = max(clock[q] for q in gate.qubits) + CZ_US
        for q in gate.qubits:
            add(_waiting_site(q, qubits[q], end - since[q], pauli[q]))
            clock[q] = since[q] = end
            pauli[q] = np.array([1.0, 0, 0, 0])
        slots[-1].append(gate)
        a, b = gate.qubits
        fidelity = device.couplers[_pair(chain[a], chain[b])]
        add(_cz_site((a, b), _depolarising(fidelity, [qubits[a], qubits[b]], CZ_US)))
    end = max(clock)
    late = []
    for q in range(n):
        reset, _ = _relaxation(qubits[q], end - since[q])
        late.append(_Late(float(pauli[q][1] + pauli[q][3]), reset))
    return _Plan(n, slots, sites, late)


def _waiting_site(q: int, qubit: Qubit, time_us: float, pauli: np.ndarray) -> _Site:
    """Faults of one qubit since its last cz: those of its rotations, then relaxation for the time."""
    reset, dephased = _relaxation(qubit, time_us)
    kept = 1 - reset
    phase = dephased / kept if kept else 0.0
    after = kept * _product(pauli, np.array([1 - phase, 0, phase, 0]))
    return _Site((q,), (*((p,) for p in _PAULIS[1:]), (_RESET,)), np.array([*after[1:], reset]))


def _cz_site(pair: tuple[int, int], error: float) -> _Site:
    faults = tuple((a, b) for a in _PAULIS for b in _PAULIS if (a, b) != ("I", "I"))
    return _Site(pair, faults, np.full(len(faults), error / len(faults)))


def _relaxation(qubit: Qubit, time_us: float) -> tuple[float, float]:
    """P(reset) and P(Z) of waiting."""
    kept = 1.0 if qubit.t1_us is None else math.exp(-time_us / qubit.t1_us)
    coherent = kept if qubit.t2_us is None else min(kept, math.exp(-time_us / qubit.t2_us))
    return 1 - kept, (kept - coherent) / 2


def _depolarising(fidelity: float | None, qubits: Sequence[Qubit], time_us: float) -> float:
    """Probability of a Pauli other than I with which a gate on these qubits has the stated average fidelity.

    With d = 2^n and entanglement fidelity F_e = ((d + 1) F - 1) / d: relaxation during the gate has the product of
    (1 + 2 exp(-t/T2) + exp(-t/T1)) / 4 over the qubits, and depolarising by lambda makes F_e' = (1 - lambda) F_e +
    lambda / d^2 of it. Zero where relaxation alone explains the stated fidelity or more.
    """
    if fidelity is None:
        return 0.0
    d = 2 ** len(qubits)
    wanted = ((d + 1) * fidelity - 1) / d
    relaxed = math.prod(1 - 3 * reset / 4 - dephased for reset, dephased in (_relaxation(q, time_us) for q in qubits))
    strength = min(1.0, max(0.0, (relaxed - wanted) / (relaxed - 1 / d**2)))
    return float(strength * (1 - 1 / d**2))


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Probabilities of the product of two independent Paulis; in the order of `_PAULIS`, shape (4,)."""
    result = np.zeros(4)
    for a in range(4):
        for b in range(4):
            result[a ^ b] += first[a] * second[b]
    return result


class _Trajectories:
    """The shots of a plan, as a tree: a branch is a sequence of faults that some shots have in common."""

    def __init__(self, plan: _Plan, shots: int, rng: np.random.Generator) -> None:
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
        if name != (_RESET,):
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

    def __init__(self, plan: _Plan) -> None:
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


def _pair(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)


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
        if gate.name == "cz" and _pair(*(chain[q] for q in gate.qubits)) not in device.couplers:
            physical = tuple(chain[q] for q in gate.qubits)
            raise DeviceError(f"cz on {gate.qubits} falls on the physical qubits {physical}, which are not coupled")
