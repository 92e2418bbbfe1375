from __future__ import annotations

import math

import numpy as np
import pytest
from needs import needs_mindquantum
from statevector import expvals, gate_matrix, zero_state
from strategies import random_preset

from models.baihua import CZ_US, RECORDED_CHAIN, SINGLE_QUBIT_GATE_US, published
from models.circuit import PRESETS, Circuit, Gate, student_circuit
from models.device import Device, Qubit
from models.engines.noisy import exact_counts, sample_counts
from models.errors import CircuitError, DeviceError, EngineError, UnboundParameterError
from models.native import to_native
from models.observables import expectation_z, expvals_from_counts

pytestmark = needs_mindquantum

SHOTS = 20_000
FLIP = Gate("rx", (0,), math.pi)


def line(qubits: list[Qubit], cz_fidelity: float | None = None) -> Device:
    """Qubits 0, 1, ... coupled one after the other."""
    return Device("line", "1", dict(enumerate(qubits)), {(n, n + 1): cz_fidelity for n in range(len(qubits) - 1)})


def assert_within_5_sigma(found: float, expected: float, shots: int = SHOTS) -> None:
    """For a mean of +-1; a value of exactly +-1 may still be off by one shot."""
    sigma = math.sqrt(max(1 - expected**2, 1 / shots) / shots)
    assert abs(found - expected) <= 5 * sigma, f"found {found}, expected {expected} +- {sigma}"


def parity(counts: dict[str, int]) -> float:
    """<Z Z ... Z>."""
    return sum(n * (-1) ** bits.count("1") for bits, n in counts.items()) / sum(counts.values())


def native(preset: str, n_qubits: int, n_layers: int) -> Circuit:
    inputs = np.linspace(-2, 3, n_qubits).tolist()
    return to_native(random_preset(preset, n_qubits, n_layers, seed=5).bind(inputs=inputs))


@pytest.mark.parametrize("preset", PRESETS)
def test_exact_counts_agree_with_the_exact_expvals(preset: str) -> None:
    circuit = random_preset(preset, 5, 2, seed=5).bind(inputs=[-2.0, 0.3, 1.2, 2.9, -0.7])
    counts = exact_counts(circuit, SHOTS, seed=1)
    for found, expected in zip(expvals_from_counts(counts, 5), expvals(circuit), strict=True):
        assert_within_5_sigma(found, expected)


def test_device_without_figures_makes_no_error() -> None:
    circuit = native("paper", 5, 2)
    counts = sample_counts(circuit, SHOTS, line([Qubit()] * 5), range(5), seed=1)
    for found, expected in zip(expvals_from_counts(counts, 5), expvals(circuit), strict=True):
        assert_within_5_sigma(found, expected)


def test_leftmost_bit_is_qubit_0_of_the_circuit_wherever_the_chain_puts_it() -> None:
    circuit = Circuit(3, (FLIP, Gate("cz", (0, 1))))
    assert sample_counts(circuit, 10, line([Qubit()] * 3), (2, 1, 0), seed=0) == {"100": 10}
    assert exact_counts(circuit, 10, seed=0) == {"100": 10}


@pytest.mark.parametrize("n_waits", [0, 3, 8])
def test_excited_qubit_relaxes_as_exp_minus_t_over_t1(n_waits: int) -> None:
    # Qubits 1 and 2 keep the measurement waiting; their cz hold qubit 0 no gate.
    gates = [FLIP, *[Gate("cz", (1, 2)) for _ in range(n_waits)]]
    device = line([Qubit(t1_us=4.0, t2_us=3.0), Qubit(), Qubit()])
    counts = sample_counts(Circuit(3, tuple(gates)), SHOTS, device, range(3), seed=2)
    time_us = max(SINGLE_QUBIT_GATE_US, n_waits * CZ_US)
    assert_within_5_sigma(expectation_z(counts, 0), 1 - 2 * math.exp(-time_us / 4.0))


@pytest.mark.parametrize("t1_us", [None, 5.0])
def test_superposition_dephases_as_exp_minus_t_over_t2(t1_us: float | None) -> None:
    # Turned to the equator, held there by cz with a qubit in |0>, and turned back.
    n_waits = 6
    gates = [Gate("ry", (0,), math.pi / 2), *[Gate("cz", (0, 1))] * n_waits, Gate("ry", (0,), -math.pi / 2)]
    device = line([Qubit(t1_us=t1_us, t2_us=3.0), Qubit()])
    counts = sample_counts(Circuit(2, tuple(gates)), SHOTS, device, range(2), seed=3)
    waited = SINGLE_QUBIT_GATE_US + n_waits * CZ_US
    before_measurement = 1.0 if t1_us is None else math.exp(-SINGLE_QUBIT_GATE_US / t1_us)
    # After the turn back P(1) = (1 - exp(-t/T2)) / 2 relaxes for one more gate.
    expected = 1 - before_measurement * (1 - math.exp(-waited / 3.0))
    assert_within_5_sigma(expectation_z(counts, 0), expected)


def test_relaxation_inside_a_circuit_leads_to_the_ground_state() -> None:
    # A cz after the wait closes the run, so the reset falls inside the circuit and not on its measured bit.
    gates = [FLIP, *[Gate("cz", (1, 2))] * 10, Gate("cz", (0, 1)), Gate("ry", (0,), 0.0)]
    device = line([Qubit(t1_us=2.0, t2_us=2.0), Qubit(), Qubit()])
    counts = sample_counts(Circuit(3, tuple(gates)), SHOTS, device, range(3), seed=4)
    time_us = 11 * CZ_US + SINGLE_QUBIT_GATE_US
    assert_within_5_sigma(expectation_z(counts, 0), 1 - 2 * math.exp(-time_us / 2.0))


def test_counts_agree_with_a_density_matrix() -> None:
    qubits = [Qubit(4.0, 2.0, 0.98, 0.97, 0.9), Qubit(2.5, 2.5, 0.97, 0.95, 0.92), Qubit(6.0, 3.0, 0.95, 0.99, 0.85)]
    device = Device("line", "1", dict(enumerate(qubits)), {(0, 1): 0.85, (1, 2): 0.8})
    circuit = native("paper", 3, 1)
    shots = 60_000
    counts = sample_counts(circuit, shots, device, range(3), seed=5)
    for index, probability in enumerate(noisy_probabilities(circuit, device)):
        sigma = math.sqrt(probability * (1 - probability) / shots)
        assert abs(counts.get(f"{index:03b}", 0) / shots - probability) <= 5 * sigma


def noisy_probabilities(circuit: Circuit, device: Device) -> np.ndarray:
    """Of every bitstring, by a density matrix and Kraus operators; circuit qubit i is physical qubit i."""
    n = circuit.n_qubits
    rho = np.outer(zero_state(n), zero_state(n)).astype(complex)
    clock, since = [0.0] * n, [0.0] * n

    def apply_kraus(kraus: list[np.ndarray], targets: tuple[int, ...]) -> None:
        nonlocal rho
        rho = sum(k @ rho @ k.conj().T for k in (embedded(k, targets, n) for k in kraus))

    for gate in circuit.gates:
        cz = gate.name == "cz"
        duration = CZ_US if cz else 0.0 if gate.name == "rz" else SINGLE_QUBIT_GATE_US
        end = max(clock[q] for q in gate.qubits) + duration
        clock = [end if q in gate.qubits else clock[q] for q in range(n)]
        if cz:
            for q in gate.qubits:
                apply_kraus(relaxation(device.qubits[q], end - since[q]), (q,))
                since[q] = end
        apply_kraus([gate_matrix(gate.name, gate.angle)], gate.qubits)
        fidelity = device.couplers[tuple(sorted(gate.qubits))] if cz else device.qubits[gate.qubits[0]].gate_fidelity
        if duration:
            apply_kraus(depolarising(fidelity, [device.qubits[q] for q in gate.qubits], duration), gate.qubits)
    for q in range(n):
        apply_kraus(relaxation(device.qubits[q], max(clock) - since[q]), (q,))
    probabilities = rho.diagonal().real.reshape((2,) * n)
    for q in range(n):
        zero, one = device.qubits[q].readout_0, device.qubits[q].readout_1
        confusion = np.array([[zero, 1 - one], [1 - zero, one]])
        probabilities = np.moveaxis(np.tensordot(confusion, probabilities, axes=(1, q)), 0, q)
    return probabilities.reshape(-1)


def embedded(matrix: np.ndarray, targets: tuple[int, ...], n: int) -> np.ndarray:
    """A matrix on some qubits as one on all, shape (2**n, 2**n)."""
    k = len(targets)
    identity = np.eye(2**n, dtype=complex).reshape((2,) * n + (-1,))
    moved = np.tensordot(matrix.reshape((2,) * (2 * k)), identity, axes=(range(k, 2 * k), targets))
    return np.moveaxis(moved, range(k), targets).reshape(2**n, -1)


def relaxation(qubit: Qubit, time_us: float) -> list[np.ndarray]:
    """Amplitude damping by 1 - exp(-t/T1), then as much phase damping as leaves exp(-t/T2) of the coherence."""
    damped = 1 - math.exp(-time_us / qubit.t1_us)
    dephased = 1 - math.exp(-2 * time_us / qubit.t2_us) / (1 - damped)
    amplitude = [np.diag([1, math.sqrt(1 - damped)]), np.array([[0, math.sqrt(damped)], [0, 0]])]
    phase = [np.diag([1, math.sqrt(1 - dephased)]), np.diag([0, math.sqrt(dephased)])]
    return [a @ b for a in amplitude for b in phase]


def depolarising(fidelity: float, qubits: list[Qubit], duration: float) -> list[np.ndarray]:
    """As much as brings the relaxation of a gate's time to the stated average fidelity, F = (d F_e + 1) / (d + 1)."""
    d = 2 ** len(qubits)
    kraus = [np.eye(1)]
    for qubit in qubits:
        kraus = [np.kron(a, b) for a in kraus for b in relaxation(qubit, duration)]
    relaxed = sum(abs(np.trace(k)) ** 2 for k in kraus) / d**2
    strength = (relaxed - ((d + 1) * fidelity - 1) / d) / (relaxed - 1 / d**2)
    assert strength > 0
    paulis = [np.eye(2), *(1j * gate_matrix(name, math.pi) for name in ("rx", "ry", "rz"))]
    products = paulis if d == 2 else [np.kron(a, b) for a in paulis for b in paulis]
    return [math.sqrt(1 - strength) * np.eye(d), *(math.sqrt(strength) / d * pauli for pauli in products)]


def test_readout_flips_each_qubit_with_its_own_probabilities() -> None:
    device = line([Qubit(readout_0=0.97, readout_1=0.9), Qubit(readout_0=0.95, readout_1=0.85)])
    zero = sample_counts(Circuit(2, ()), SHOTS, device, (0, 1), seed=6)
    one = sample_counts(Circuit(2, (FLIP, Gate("ry", (1,), math.pi))), SHOTS, device, (0, 1), seed=7)
    for qubit, (readout_0, readout_1) in enumerate([(0.97, 0.9), (0.95, 0.85)]):
        assert_within_5_sigma(expectation_z(zero, qubit), 2 * readout_0 - 1)
        assert_within_5_sigma(expectation_z(one, qubit), 1 - 2 * readout_1)


@pytest.mark.parametrize("t_us", [None, 40.0])
def test_cz_errors_have_the_stated_average_fidelity(t_us: float | None) -> None:
    # Both qubits on the equator, so that <XX> decays by what a cz multiplies it with, k times, and by nothing else
    # but the waiting of the turns. With F_e = (5 F - 1) / 4 the 15 Paulis have probability (1 - F_e) 16/15 * 15/16 in
    # all, and 8 of the 15 flip <XX>. Relaxation with T1 = T2 = t on both has F_e = ((1 + 3 exp(-t)) / 4)^2.
    fidelity, k, h = 0.97, 10, math.pi / 2
    turn = [Gate("ry", (0,), h), Gate("ry", (1,), h)]
    back = [Gate("ry", (0,), -h), Gate("ry", (1,), -h)]
    gates = [*turn, *[Gate("cz", (0, 1))] * k, *back]
    device = line([Qubit(t1_us=t_us, t2_us=t_us)] * 2, fidelity)
    counts = sample_counts(Circuit(2, tuple(gates)), SHOTS, device, (0, 1), seed=8)
    kept = 1.0 if t_us is None else math.exp(-CZ_US / t_us)
    relaxed = ((1 + 3 * kept) / 4) ** 2
    strength = (relaxed - (5 * fidelity - 1) / 4) / (relaxed - 1 / 16)
    waited = 1.0 if t_us is None else math.exp(-SINGLE_QUBIT_GATE_US / t_us)
    xx = ((1 - strength) * kept**2) ** k * waited**2
    # Behind the last turn <Z> relaxes towards 1: z -> 1 - (1 - z) e, on two qubits with <Z> = (kept...)^k each.
    x = ((1 - strength) * kept) ** k * waited
    expected = xx * waited**2 + 2 * x * waited * (1 - waited) + (1 - waited) ** 2
    assert_within_5_sigma(parity(counts), expected)


def test_rotations_have_the_stated_average_fidelity_and_rz_has_no_error() -> None:
    # Depolarising by lambda = 2 (1 - F) multiplies <Z> by 1 - lambda for each of k flips.
    fidelity, k = 0.99, 12
    gates = [gate for _ in range(k) for gate in (FLIP, Gate("rz", (0,), 0.3))]
    counts = sample_counts(Circuit(1, tuple(gates)), SHOTS, line([Qubit(gate_fidelity=fidelity)]), (0,), seed=9)
    assert_within_5_sigma(expectation_z(counts, 0), (1 - 2 * (1 - fidelity)) ** k)


def test_errors_of_rotations_between_cz_are_those_of_rotations_at_the_end() -> None:
    fidelity, k = 0.98, 4
    gates = (*[FLIP] * k, Gate("cz", (0, 1)), *[FLIP] * k)
    counts = sample_counts(Circuit(2, gates), SHOTS, line([Qubit(gate_fidelity=fidelity), Qubit()]), (0, 1), seed=10)
    assert_within_5_sigma(expectation_z(counts, 0), (1 - 2 * (1 - fidelity)) ** (2 * k))


def test_fidelity_that_relaxation_alone_explains_adds_no_error() -> None:
    gates = (FLIP, *[Gate("cz", (0, 1))] * 8)
    qubits = [Qubit(t1_us=2.0, t2_us=2.0), Qubit(t1_us=2.0, t2_us=2.0)]
    stated = sample_counts(Circuit(2, gates), 4000, line(qubits, 0.95), (0, 1), seed=11)
    unstated = sample_counts(Circuit(2, gates), 4000, line(qubits), (0, 1), seed=11)
    assert stated == unstated


def test_same_seed_gives_the_same_counts_and_another_seed_others() -> None:
    circuit, device = native("chain", 11, 1), published()
    counts = [sample_counts(circuit, 500, device, RECORDED_CHAIN, seed) for seed in (1, 1, 2)]
    assert counts[0] == counts[1] != counts[2]
    assert sum(counts[0].values()) == 500
    assert exact_counts(circuit, 500, 1) == exact_counts(circuit, 500, 1) != exact_counts(circuit, 500, 2)


def test_noise_of_baihua_draws_deep_circuits_towards_zero() -> None:
    device = published()
    for preset, n_layers in (("paper", 2), ("chain", 1)):
        circuit = native(preset, 11, n_layers)
        found = expvals_from_counts(sample_counts(circuit, 2000, device, RECORDED_CHAIN, seed=3), 11)
        exact = expvals(circuit)
        assert 0 < np.dot(found, exact) / np.dot(exact, exact) < 1


def test_circuit_that_does_not_fit_is_refused() -> None:
    device = line([Qubit()] * 3)
    with pytest.raises(CircuitError, match=r"rzz on \(0, 1\), expected one of \['cz', 'rx', 'ry', 'rz'\]"):
        sample_counts(Circuit(2, (Gate("rzz", (0, 1), 0.5),)), 1, device, (0, 1), seed=0)
    with pytest.raises(
        DeviceError, match=r"cz on \(0, 1\) falls on the physical qubits \(0, 2\), which are not coupled"
    ):
        sample_counts(Circuit(2, (Gate("cz", (0, 1)),)), 1, device, (0, 2), seed=0)
    for chain in ((0,), (0, 0), (0, 1, 2)):
        with pytest.raises(DeviceError, match="expected 2 different qubits"):
            sample_counts(Circuit(2, ()), 1, device, chain, seed=0)
    with pytest.raises(DeviceError, match=r"the chain has the qubits \[7\], which line does not have"):
        sample_counts(Circuit(2, ()), 1, device, (0, 7), seed=0)
    with pytest.raises(UnboundParameterError):
        sample_counts(student_circuit("chain", 2, 1), 1, device, (0, 1), seed=0)
    with pytest.raises(EngineError, match="40 qubits, expected at most 12"):
        exact_counts(Circuit(40, ()), 1, seed=0)


@pytest.mark.parametrize("shots", [0, -5])
def test_counts_of_no_shot_are_refused(shots: int) -> None:
    with pytest.raises(CircuitError, match=f"{shots} shots, expected at least 1"):
        exact_counts(Circuit(1, ()), shots, seed=0)
    with pytest.raises(CircuitError, match=f"{shots} shots, expected at least 1"):
        sample_counts(Circuit(1, ()), shots, line([Qubit()]), (0,), seed=0)
