from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from statevector import expvals, final_state, gate_matrix
from strategies import bound_circuits, random_preset, random_student, seeded

from models.circuit import PRESETS, Circuit, Gate, student_circuit
from models.errors import UnboundParameterError
from models.native import chain_order, routed, to_native, zyz


def probabilities(circuit: Circuit) -> np.ndarray:
    return np.abs(final_state(circuit)) ** 2


def bound(preset: str, n_qubits: int, n_layers: int) -> Circuit:
    return random_preset(preset, n_qubits, n_layers, seed=5).bind(inputs=np.linspace(-2, 3, n_qubits).tolist())


def n_cz(circuit: Circuit) -> int:
    return sum(gate.name == "cz" for gate in circuit.gates)


@seeded
@given(bound_circuits())
def test_native_circuit_has_the_same_distribution_of_counts(circuit: Circuit) -> None:
    native = to_native(circuit)
    assert {gate.name for gate in native.gates} <= {"rx", "ry", "rz", "cz"}
    np.testing.assert_allclose(probabilities(native), probabilities(circuit), rtol=0, atol=1e-9)


@pytest.mark.parametrize("preset", PRESETS)
def test_native_preset_has_the_expvals_of_its_definition(preset: str) -> None:
    circuit = bound(preset, 6, 2)
    np.testing.assert_allclose(expvals(to_native(circuit)), expvals(circuit), rtol=0, atol=1e-9)


@seeded
@given(bound_circuits())
def test_what_follows_a_turn_is_kept_up_to_the_measured_phases(circuit: Circuit) -> None:
    # A closing turn makes every phase count, so nothing that it needs may be dropped.
    turned = Circuit(circuit.n_qubits, (*circuit.gates, *(Gate("ry", (q,), 0.9) for q in range(circuit.n_qubits))))
    np.testing.assert_allclose(probabilities(to_native(turned)), probabilities(turned), rtol=0, atol=1e-9)


@seeded
@given(bound_circuits())
def test_at_most_one_pulse_stands_between_two_cz_of_a_qubit(circuit: Circuit) -> None:
    since = [0] * circuit.n_qubits
    for gate in to_native(circuit).gates:
        for qubit in gate.qubits:
            since[qubit] = 0 if gate.name == "cz" else since[qubit] + (gate.name != "rz")
            assert since[qubit] <= 1


def test_single_rotation_stays_as_it_is() -> None:
    gates = (Gate("rx", (0,), 0.4), Gate("ry", (1,), -2.0))
    assert to_native(Circuit(2, gates)).gates == gates


def test_cz_that_meet_cancel_through_diagonal_gates() -> None:
    turn = Gate("rx", (0,), 0.4), Gate("rx", (1,), 0.4)
    gates = (*turn, Gate("cz", (0, 1)), Gate("rz", (0,), 1.0), Gate("cz", (1, 0)), *turn)
    native = to_native(Circuit(2, gates))
    assert n_cz(native) == 0
    assert sum(gate.name != "rz" for gate in native.gates) == 2


def test_cz_around_a_turn_stay() -> None:
    gates = (
        Gate("rx", (0,), 0.4),
        Gate("cz", (0, 1)),
        Gate("rx", (1,), 0.3),
        Gate("cz", (0, 1)),
        Gate("rx", (0,), 1.0),
    )
    assert n_cz(to_native(Circuit(2, gates))) == 2


def test_diagonal_gates_before_the_measurement_are_dropped() -> None:
    gates = (
        Gate("ry", (0,), 0.4),
        Gate("ry", (1,), 0.3),
        Gate("rz", (0,), 1.0),
        Gate("cz", (0, 1)),
        Gate("rz", (1,), 2.0),
    )
    assert to_native(Circuit(2, gates)).gates == gates[:2]


def test_neighbouring_rzz_of_a_chain_run_side_by_side() -> None:
    gates = [Gate("ry", (q,), 0.4) for q in range(6)]
    gates += [Gate("rzz", (q, q + 1), 0.5) for q in range(5)] + [Gate("ry", (q,), 0.7) for q in range(6)]
    clock = [0] * 6
    for gate in to_native(Circuit(6, tuple(gates))).gates:
        if gate.name == "cz":
            a, b = gate.qubits
            clock[a] = clock[b] = max(clock[a], clock[b]) + 1
    assert max(clock) == 4  # two cz for the even bonds, then two for the odd ones; one after the other they are 10


def test_released_circuit_of_two_layers_takes_the_recorded_70_cz() -> None:
    assert n_cz(to_native(bound("released", 11, 2))) == 70


def test_unbound_circuit_is_refused() -> None:
    with pytest.raises(UnboundParameterError):
        to_native(student_circuit("chain", 3, 1))


@seeded
@given(bound_circuits(max_qubits=1))
def test_every_unitary_is_rz_ry_rz_up_to_a_phase(circuit: Circuit) -> None:
    matrix = np.eye(2, dtype=complex)
    for gate in circuit.gates:
        matrix = gate_matrix(gate.name, gate.angle) @ matrix
    first, middle, last = zyz(matrix)
    found = gate_matrix("rz", last) @ gate_matrix("ry", middle) @ gate_matrix("rz", first)
    assert abs(np.trace(found.conj().T @ matrix)) / 2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["x", "z", "y"])
def test_unitaries_without_a_diagonal_or_off_diagonal_have_angles(name: str) -> None:
    matrix = gate_matrix(f"r{name}", np.pi)
    first, middle, last = zyz(matrix)
    found = gate_matrix("rz", last) @ gate_matrix("ry", middle) @ gate_matrix("rz", first)
    assert abs(np.trace(found.conj().T @ matrix)) / 2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("preset", ["paper", "chain"])
def test_presets_of_nearest_neighbours_are_chains_in_order(preset: str) -> None:
    assert chain_order(bound(preset, 6, 2)) == tuple(range(6))


def test_chain_order_follows_the_paths() -> None:
    gates = (Gate("cz", (4, 0)), Gate("rzz", (0, 2), 0.5), Gate("cz", (1, 5)))
    assert chain_order(Circuit(6, gates)) == (1, 5, 2, 0, 4, 3)
    assert chain_order(Circuit(2, ())) == (0, 1)


@pytest.mark.parametrize("pairs", [[(0, 1), (1, 2), (2, 0)], [(0, 1), (0, 2), (0, 3)]])
def test_a_ring_and_a_star_are_no_chain(pairs: list[tuple[int, int]]) -> None:
    assert chain_order(Circuit(4, tuple(Gate("cz", pair) for pair in pairs))) is None


@pytest.mark.parametrize("circuit", [bound("released", 5, 2), *(random_student(5, 30, s) for s in (1, 2, 3))])
def test_routed_circuit_measures_every_qubit_where_it_says(circuit: Circuit) -> None:
    circuit = circuit.bind(inputs=[0.3, -1.2, 2.0, 0.7, -0.4]) if circuit.n_inputs else circuit
    found, ends = routed(circuit)
    assert all(abs(gate.qubits[0] - gate.qubits[-1]) <= 1 for gate in found.gates)
    positions = probabilities(found).reshape((2,) * 5)
    np.testing.assert_allclose(positions.transpose(ends).reshape(-1), probabilities(circuit), rtol=0, atol=1e-9)


def test_routing_a_chain_takes_no_swap() -> None:
    circuit = Circuit(3, (Gate("rx", (0,), 0.5), Gate("cz", (2, 0)), Gate("rx", (0,), 0.1), Gate("cz", (0, 1))))
    found, ends = routed(circuit)
    assert n_cz(found) == len([g for g in found.gates if len(g.qubits) == 2]) == 2
    assert ends == (1, 0, 2)
