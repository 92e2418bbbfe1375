"""The faults that a noisy chip puts into a circuit, and where: gates in time, relaxation, depolarising.

Per physical qubit and coupler of the device's calibration (what is None makes no error):

- Relaxation and dephasing for every time between two gates, the gates' own included, gates as soon as possible and all
  qubits measured at the end. For time t and T2 <= T1 that is exactly a random choice of doing nothing, Z and a reset to
  |0>, with P(reset) = 1 - exp(-t/T1) and P(Z) = (exp(-t/T1) - exp(-t/T2)) / 2; T2 above T1 is taken as T1.
- Depolarising by each rx, ry and cz, as strong as the stated average gate fidelity leaves to be explained: a fidelity
  is measured with the relaxation during the gate in it, so that part is not counted twice. An rz has no error.

Within a run of single-qubit gates the faults come behind it; those of a cz's own time come in front of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.baihua import CZ_US, SINGLE_QUBIT_GATE_US
from models.circuit import Circuit, Gate
from models.device import Device, Qubit

RESET = "R"
# In an order in which, up to a phase, the product of those at a and b is the one at a ^ b.
_PAULIS = ("I", "X", "Z", "Y")


@dataclass(frozen=True)
class Site:
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
class Late:
    """What happens to a qubit between its last cz and the measurement, where only flips of its bit matter."""

    flip: float
    reset: float


@dataclass(frozen=True)
class Plan:
    """A circuit as slots of gates, with a site of faults behind each slot but the last.

    Attributes:
        at_measurement: Of each qubit.
    """

    n_qubits: int
    slots: list[list[Gate]]
    sites: list[Site]
    at_measurement: list[Late]


def plan_faults(circuit: Circuit, device: Device, chain: Sequence[int]) -> Plan:
    """Schedule the circuit and gather its faults: one site a qubit before each cz, and one for the cz itself."""
    n = circuit.n_qubits
    qubits = [device.qubits[physical] for physical in chain]
    clock, since = [0.0] * n, [0.0] * n  # end of the last gate; until when relaxation is accounted for; microseconds
    pauli = [np.array([1.0, 0, 0, 0]) for _ in range(n)]  # of the rotations since the last cz
    by_rotation = [_depolarising(qubit.gate_fidelity, [qubit], SINGLE_QUBIT_GATE_US) for qubit in qubits]
    slots: list[list[Gate]] = [[]]
    sites: list[Site] = []

    def add(site: Site) -> None:
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
        fidelity = device.couplers[pair(chain[a], chain[b])]
        add(_cz_site((a, b), _depolarising(fidelity, [qubits[a], qubits[b]], CZ_US)))
    end = max(clock)
    late = []
    for q in range(n):
        reset, _ = _relaxation(qubits[q], end - since[q])
        late.append(Late(float(pauli[q][1] + pauli[q][3]), reset))
    return Plan(n, slots, sites, late)


def _waiting_site(q: int, qubit: Qubit, time_us: float, pauli: np.ndarray) -> Site:
    """Faults of one qubit since its last cz: those of its rotations, then relaxation for the time."""
    reset, dephased = _relaxation(qubit, time_us)
    kept = 1 - reset
    phase = dephased / kept if kept else 0.0
    after = kept * _product(pauli, np.array([1 - phase, 0, phase, 0]))
    return Site((q,), (*((p,) for p in _PAULIS[1:]), (RESET,)), np.array([*after[1:], reset]))


def _cz_site(pair: tuple[int, int], error: float) -> Site:
    faults = tuple((a, b) for a in _PAULIS for b in _PAULIS if (a, b) != ("I", "I"))
    return Site(pair, faults, np.full(len(faults), error / len(faults)))


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


def pair(a: int, b: int) -> tuple[int, int]:
    """The name of a coupler between two physical qubits."""
    return min(a, b), max(a, b)
