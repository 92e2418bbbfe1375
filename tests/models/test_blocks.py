from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from statevector import gate_matrix, unitary
from strategies import bound_circuits, random_student, seeded

from models.blocks import blocks, diagonal_phases, permutation, split_feature_map
from models.circuit import PRESETS, Circuit, Gate, Symbol, feature_map, student_circuit
from models.errors import EngineError


def assert_regrouping_is_exact(circuit: Circuit) -> None:
    regrouped = [gate for block in blocks(circuit.gates) for gate in block.gates]
    assert sorted(map(repr, regrouped)) == sorted(map(repr, circuit.gates))
    expected = unitary(circuit.n_qubits, circuit.gates)
    np.testing.assert_allclose(unitary(circuit.n_qubits, regrouped), expected, rtol=0, atol=1e-12)


@seeded
@given(bound_circuits())
def test_blocks_in_order_equal_gates_in_order(circuit: Circuit) -> None:
    assert_regrouping_is_exact(circuit)


@pytest.mark.parametrize("seed", range(10))
def test_blocks_of_long_random_circuits_equal_their_gates(seed: int) -> None:
    circuit = random_student(4, 80, seed)
    assert_regrouping_is_exact(Circuit(4, circuit.bind(inputs=[0.3, -1.2, 2.0, 0.7]).gates))


def test_blocks_hold_one_kind_and_rotations_of_one_axis_a_qubit() -> None:
    kinds = {
        "rx": "rotation",
        "ry": "rotation",
        "rz": "diagonal",
        "rzz": "diagonal",
        "cz": "diagonal",
        "cx": "permutation",
    }
    for block in blocks(random_student(4, 200, seed=5).gates):
        assert {kinds[gate.name] for gate in block.gates} == {block.kind}
        if block.kind == "rotation":
            axes = {(gate.qubits, gate.name) for gate in block.gates}
            assert len(axes) == len({qubits for qubits, _ in axes})


def test_rx_between_two_ry_keeps_them_apart() -> None:
    gates = [Gate("ry", (0,), 0.1), Gate("rx", (0,), 0.2), Gate("ry", (0,), 0.3)]
    assert [block.gates for block in blocks(gates)] == [[gate] for gate in gates]


def test_rz_moves_past_diagonal_gates_and_other_qubits_but_not_past_a_cnot_on_its_qubit() -> None:
    rz, cz, ry, cx = Gate("rz", (0,), 0.1), Gate("cz", (0, 1)), Gate("ry", (2,), 0.2), Gate("cx", (0, 1))
    assert [block.gates for block in blocks([rz, cz, ry, rz])] == [[rz, cz, rz], [ry]]
    assert [block.gates for block in blocks([rz, cx, rz])] == [[rz], [cx], [rz]]


@pytest.mark.parametrize("n_layers", [1, 2, 11])
@pytest.mark.parametrize(
    ("preset", "layer"),
    [
        ("paper", ["rotation", "diagonal", "permutation"]),
        # R_ZZ (j+1, j+2) comes before R_Y on j+1, and only R_Y on qubit 0 before all of them.
        ("released", ["rotation", "diagonal", "rotation", "diagonal", "permutation"]),
        ("chain", ["diagonal", "rotation", "diagonal", "rotation"]),
    ],
)
def test_a_layer_of_a_preset_is_a_handful_of_blocks(preset: str, layer: list[str], n_layers: int) -> None:
    _, ansatz = split_feature_map(student_circuit(preset, 11, n_layers))
    assert [block.kind for block in blocks(ansatz.gates)] == layer * n_layers


@pytest.mark.parametrize("gate", [Gate("rz", (1,), 0.7), Gate("rzz", (2, 0), 0.7), Gate("cz", (0, 2))])
def test_diagonal_phases_times_the_angle_are_the_gates_phases(gate: Gate) -> None:
    angle = 1.0 if gate.angle is None else gate.angle
    expected = np.diag(unitary(3, [gate]))
    np.testing.assert_allclose(np.exp(1j * angle * diagonal_phases(gate, 3)), expected, rtol=0, atol=1e-15)


def test_permutation_reorders_amplitudes_as_cnots_in_order_do() -> None:
    gates = [Gate("cx", (0, 1)), Gate("cx", (2, 0)), Gate("cx", (1, 2))]
    state = np.random.default_rng(0).normal(size=8)
    np.testing.assert_array_equal(state[permutation(gates, 3)], (unitary(3, gates) @ state).real)


def test_reference_simulator_has_the_textbook_matrices() -> None:
    c, s = np.cos(0.35), np.sin(0.35)
    np.testing.assert_allclose(gate_matrix("rx", 0.7), [[c, -1j * s], [-1j * s, c]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(gate_matrix("ry", 0.7), [[c, -s], [s, c]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(gate_matrix("rz", 0.7), np.diag(np.exp([-0.35j, 0.35j])), rtol=0, atol=1e-15)
    np.testing.assert_allclose(
        gate_matrix("rzz", 0.7), np.diag(np.exp([-0.35j, 0.35j, 0.35j, -0.35j])), rtol=0, atol=1e-15
    )


def test_split_gives_the_feature_map_and_the_rest() -> None:
    for preset in PRESETS:
        circuit = student_circuit(preset, 3, 1)
        head, ansatz = split_feature_map(circuit)
        assert head.gates == feature_map(3)
        assert head.gates + ansatz.gates == circuit.gates


@pytest.mark.parametrize(
    "gates",
    [
        (),
        feature_map(1),
        (Gate("rx", (1,), Symbol("input", 1)), Gate("rx", (0,), Symbol("input", 0))),
        (Gate("ry", (0,), Symbol("input", 0)), Gate("ry", (1,), Symbol("input", 1))),
        (*feature_map(2), Gate("ry", (0,), Symbol("input", 0))),
    ],
)
def test_circuit_without_the_feature_map_in_front_is_refused(gates: tuple[Gate, ...]) -> None:
    with pytest.raises(EngineError, match="does not start with R_X"):
        split_feature_map(Circuit(2, gates))
