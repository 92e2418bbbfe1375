from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from statevector import expvals, final_state, unitary
from strategies import bound_circuits, circuits, random_preset, seeded

from models.circuit import PRESETS, Circuit, Gate, Symbol, feature_map, student_circuit, trainable_parameters
from models.errors import BundleSchemaError, CircuitError, UnboundParameterError


@pytest.mark.parametrize(
    ("name", "qubits", "angle", "message"),
    [
        ("swap", (0, 1), None, "unknown gate 'swap'"),
        ("rx", (0, 1), 0.5, "expected 1 different qubits"),
        ("cx", (0,), None, "expected 2 different qubits"),
        ("cx", (1, 1), None, "expected 2 different qubits"),
        ("ry", (0,), None, "expected one"),
        ("cz", (0, 1), 0.5, "expected none"),
        ("rz", (0,), math.nan, "expected a finite number"),
        ("rzz", (0, 1), math.inf, "expected a finite number"),
    ],
)
def test_impossible_gate_is_refused(name: str, qubits: tuple[int, ...], angle: float | None, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        Gate(name, qubits, angle)


@pytest.mark.parametrize("angle", [2, np.int64(2), np.float64(2), np.float32(2), np.array(2.0)])
def test_angle_of_any_number_type_is_a_float(angle: float) -> None:
    gate = Gate("rx", (0,), angle)
    assert type(gate.angle) is float
    assert gate == Gate("rx", (0,), 2.0)
    circuit = Circuit(1, (gate, Gate("rx", (0,), 0.5)))
    assert circuit.fused().gates == (Gate("rx", (0,), 2.5),)
    assert Circuit.from_json(json.loads(json.dumps(circuit.to_json()))) == circuit
    np.testing.assert_allclose(expvals(circuit), [math.cos(2.5)], rtol=0, atol=1e-15)


@pytest.mark.parametrize("angle", ["north", np.zeros(2), 1j])
def test_angle_that_is_no_number_is_refused(angle: object) -> None:
    with pytest.raises(CircuitError, match="expected a number or symbol"):
        Gate("rx", (0,), angle)  # type: ignore[arg-type]


@pytest.mark.parametrize("angle", [np.nan, np.float32(np.inf), np.float64(-np.inf)])
def test_angle_that_is_not_finite_is_refused_whatever_its_type(angle: float) -> None:
    with pytest.raises(CircuitError, match="expected a finite number"):
        Gate("rx", (0,), angle)


@pytest.mark.parametrize("qubits", [(2,), (-1,)])
def test_gate_outside_the_circuit_is_refused(qubits: tuple[int, ...]) -> None:
    with pytest.raises(CircuitError, match=r"expected qubits in \[0, 2\)"):
        Circuit(2, (Gate("rx", qubits, 0.1),))


def test_circuit_without_qubits_is_refused() -> None:
    with pytest.raises(CircuitError, match="0 qubits, expected at least 1"):
        Circuit(0, ())


def test_rx_pi_flips_the_expectation_to_minus_one() -> None:
    np.testing.assert_allclose(expvals(Circuit(2, (Gate("rx", (1,), math.pi),))), [1, -1], rtol=0, atol=1e-15)


def test_bind_replaces_each_kind_of_symbol_by_its_own_vector() -> None:
    gates = (Gate("rx", (0,), Symbol("input", 0)), Gate("ry", (0,), Symbol("ansatz", 1)), Gate("rz", (0,), 0.25))
    circuit = Circuit(1, gates)
    half = circuit.bind(inputs=[0.5])
    assert [gate.angle for gate in half.gates] == [0.5, Symbol("ansatz", 1), 0.25]
    assert not half.is_bound
    assert [gate.angle for gate in half.bind(ansatz=[7.0, -1.5]).gates] == [0.5, -1.5, 0.25]
    assert half.bind(ansatz=[7.0, -1.5]).is_bound
    assert circuit.gates == gates


@pytest.mark.parametrize("vector", [{"inputs": [0.1]}, {"inputs": [0.1] * 3}, {"ansatz": [0.1]}])
def test_bind_refuses_a_vector_of_another_length(vector: dict[str, list[float]]) -> None:
    with pytest.raises(CircuitError, match=r"\d (input|ansatz) angles given, the circuit takes \d"):
        student_circuit("chain", 2, 1).bind(**vector)


def test_bind_refuses_an_angle_that_is_not_finite() -> None:
    with pytest.raises(CircuitError, match="finite"):
        student_circuit("chain", 2, 1).bind(inputs=[0.1, math.nan])


def test_an_unbound_angle_has_no_number() -> None:
    circuit = student_circuit("chain", 2, 1)
    with pytest.raises(UnboundParameterError, match=r"rx on \(1,\) has the unbound angle input\[1\]"):
        circuit.angle(circuit.gates[1])


@seeded
@given(bound_circuits())
def test_fusing_keeps_the_unitary_and_never_adds_a_gate(circuit: Circuit) -> None:
    fused = circuit.fused()
    assert len(fused.gates) <= len(circuit.gates)
    assert fused.fused() == fused
    np.testing.assert_allclose(
        unitary(circuit.n_qubits, fused.gates), unitary(circuit.n_qubits, circuit.gates), rtol=0, atol=1e-12
    )


def test_three_successive_rotations_are_one_by_the_sum() -> None:
    gates = [Gate("ry", (0,), angle) for angle in (0.25, 0.5, 1.0)]
    elsewhere = Gate("rx", (1,), 0.75)
    assert Circuit(2, (gates[0], elsewhere, *gates[1:])).fused().gates == (Gate("ry", (0,), 1.75), elsewhere)


@pytest.mark.parametrize("between", [Gate("cz", (0, 1)), Gate("rz", (0,), 0.1), Gate("rzz", (0, 1), 0.1)])
def test_rotations_with_a_gate_between_them_stay_apart(between: Gate) -> None:
    circuit = Circuit(2, (Gate("ry", (0,), 0.25), between, Gate("ry", (0,), 0.5)))
    assert circuit.fused() == circuit


def test_symbols_are_not_fused() -> None:
    circuit = student_circuit("paper", 3, 2)
    assert circuit.fused() == circuit


@pytest.mark.parametrize("preset", PRESETS)
def test_fused_preset_prepares_the_same_state(preset: str) -> None:
    circuit = random_preset(preset, 5, 2, seed=1).bind(inputs=[0.3, -1.2, 2.0, 0.7, -0.4])
    np.testing.assert_allclose(final_state(circuit.fused()), final_state(circuit), rtol=0, atol=1e-13)


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("n", [2, 3, 5, 11])
def test_presets_count_their_parameters(n: int, n_layers: int) -> None:
    per_layer = {
        "paper": 3 * n + (n - 1) + 3 * n,
        "released": 3 * (n - 1) + (n - 2) + 3 * n,
        "chain": 2 * n + n,
    }
    assert set(per_layer) == set(PRESETS)
    for preset, expected in per_layer.items():
        circuit = student_circuit(preset, n, n_layers)
        assert (circuit.n_inputs, circuit.n_parameters) == (n, n_layers * expected)


def test_released_student_has_the_papers_9275_parameters() -> None:
    # Table 3: m = 768, n = 11, p = 11, 2 classes.
    reducer = 768 * 11 + 11
    ansatz = 11 * (10 * 3 + 9 + 11 * 3)
    head = 11 * 2 + 2
    assert (reducer, ansatz, head) == (8459, 792, 24)
    counts = trainable_parameters(768, student_circuit("released", 11, 11), n_classes=2)
    assert counts == {"reducer": 8459, "ansatz": 792, "head": 24, "total": 8459 + 792 + 24}
    assert counts["total"] == 9275


def test_released_layer_is_the_authors_gate_by_gate() -> None:
    expected: list[tuple[str, tuple[int, ...]]] = []
    for j in range(10):
        expected += [("ry", (j,))] * 3
        if j <= 8:
            expected.append(("rzz", (j + 1, j + 2)))
    for j in range(11):
        expected += [("rz", (j,))] * 3
    expected.append(("cx", (10, 0)))
    for k in range(1, 9):
        expected += [("cx", (k, k + 1)), ("cx", (k, k - 1))]
    circuit = student_circuit("released", 11, 2)
    found = [(gate.name, gate.qubits) for gate in circuit.gates]
    assert found == [("rx", (q,)) for q in range(11)] + expected + expected
    assert len([name for name, _ in expected if name in ("ry", "rz", "rzz")]) == 72


def test_paper_layer_applies_ry_then_rzz_then_rz_then_cnot() -> None:
    circuit = student_circuit("paper", 3, 1)
    assert [(gate.name, gate.qubits) for gate in circuit.gates[3:]] == [
        *[("ry", (q,)) for q in range(3) for _ in range(3)],
        ("rzz", (0, 1)),
        ("rzz", (1, 2)),
        *[("rz", (q,)) for q in range(3) for _ in range(3)],
        ("cx", (0, 1)),
        ("cx", (1, 2)),
    ]


def test_chain_layer_couples_only_neighbours() -> None:
    for gate in student_circuit("chain", 11, 2).gates:
        assert len(gate.qubits) == 1 or abs(gate.qubits[0] - gate.qubits[1]) == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_every_ansatz_parameter_drives_exactly_one_gate_in_order(preset: str) -> None:
    circuit = student_circuit(preset, 5, 3)
    symbols = [gate.angle for gate in circuit.gates if isinstance(gate.angle, Symbol)]
    assert symbols[:5] == [Symbol("input", q) for q in range(5)]
    assert symbols[5:] == [Symbol("ansatz", i) for i in range(circuit.n_parameters)]
    assert circuit.gates[:5] == feature_map(5)


@pytest.mark.parametrize(("preset", "n_qubits", "n_layers"), [("qft", 4, 1), ("paper", 1, 1), ("paper", 4, 0)])
def test_unknown_preset_or_too_small_number_is_refused(preset: str, n_qubits: int, n_layers: int) -> None:
    with pytest.raises(CircuitError, match="expected"):
        student_circuit(preset, n_qubits, n_layers)


@seeded
@given(circuits())
def test_json_round_trip_is_exact(circuit: Circuit) -> None:
    assert Circuit.from_json(json.loads(json.dumps(circuit.to_json()))) == circuit


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_circuit_of_another_schema_is_refused(version: object) -> None:
    value = {**student_circuit("chain", 2, 1).to_json(), "schema_version": version}
    with pytest.raises(BundleSchemaError, match=r"schema_version is .*, expected 1"):
        Circuit.from_json(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_parameters": 5},
        {"n_inputs": 3},
        {"n_qubits": "two"},
        {"gates": None},
        {"gates": ["rx"]},
        {"gates": [{"gate": "rx"}]},
        {"gates": [{"gate": "rx", "qubits": [0], "angle": {"secret": 0}}]},
        {"gates": [{"gate": "rx", "qubits": [0], "angle": {"ansatz": -1}}]},
        {"gates": [{"gate": "rx", "qubits": [0], "angle": "north"}]},
    ],
)
def test_circuit_json_of_another_form_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BundleSchemaError):
        Circuit.from_json({**student_circuit("chain", 2, 1).to_json(), **changes})


@pytest.mark.parametrize("value", [None, [], "circuit", 1])
def test_json_that_is_no_circuit_is_refused(value: object) -> None:
    with pytest.raises(BundleSchemaError):
        Circuit.from_json(value)


def test_json_with_an_impossible_gate_is_refused() -> None:
    value = {"schema_version": 1, "n_qubits": 2, "n_inputs": 0, "n_parameters": 0}
    with pytest.raises(CircuitError, match=r"expected qubits in \[0, 2\)"):
        Circuit.from_json({**value, "gates": [{"gate": "cx", "qubits": [0, 2]}]})
