from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from needs import needs_mindquantum
from statevector import apply, final_state, zero_state
from strategies import bound_circuits, random_preset, random_student, seeded

from models.circuit import PRESETS, Circuit, Gate, student_circuit
from models.engines.mindquantum import MindQuantumEngine
from models.errors import UnboundParameterError
from models.qasm import to_qasm2, to_qasm3

INPUTS = [0.3, -1.2, 1e-7, 3.0, -0.4]


def run_qasm2(text: str) -> np.ndarray:
    """Interpret OpenQASM 2 text; returns the amplitudes before the measurements, first qubit leftmost."""
    statements = [statement.strip() for statement in text.split(";") if statement.strip()]
    assert statements[:2] == ["OPENQASM 2.0", 'include "qelib1.inc"']
    (size,) = re.findall(r"qreg q\[(\d+)\]", text)
    state = zero_state(int(size))
    for statement in statements[4:]:
        if statement.startswith("measure"):
            continue
        name, angle, operands = re.fullmatch(r"([a-z]+)(?:\(([-\d.]+)\))? (q\[.*\])", statement).groups()
        qubits = [int(q) for q in re.findall(r"\d+", operands)]
        state = apply(state, name, qubits, None if angle is None else float(angle))
    return state.reshape(-1)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """|<a|b>|, which a global phase leaves alone."""
    return float(abs(np.vdot(a, b)))


@needs_mindquantum
@pytest.mark.parametrize("preset", PRESETS)
def test_exported_preset_prepares_mindquantums_state(preset: str) -> None:
    circuit = random_preset(preset, 5, 2, seed=3)
    expected = MindQuantumEngine(circuit).states(np.array([INPUTS]))[0]
    found = run_qasm2(to_qasm2(circuit.bind(inputs=INPUTS)))
    phase = np.vdot(expected, found)
    assert abs(phase) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found, phase * expected, rtol=0, atol=1e-9)


@needs_mindquantum
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exported_random_circuit_prepares_mindquantums_state(seed: int) -> None:
    circuit = random_student(5, 40, seed)
    expected = MindQuantumEngine(circuit).states(np.array([INPUTS]))[0]
    assert overlap(run_qasm2(to_qasm2(circuit.bind(inputs=INPUTS))), expected) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("preset", PRESETS)
def test_exported_preset_prepares_the_state_of_its_definition(preset: str) -> None:
    circuit = random_preset(preset, 5, 2, seed=3).bind(inputs=INPUTS)
    assert overlap(run_qasm2(to_qasm2(circuit)), final_state(circuit)) == pytest.approx(1, abs=1e-9)


def test_presets_use_only_gates_of_qelib1() -> None:
    for preset in PRESETS:
        text = to_qasm2(random_preset(preset, 4, 1, seed=0).bind(inputs=[0.1] * 4))
        names = set(re.findall(r"^([a-z]+)\S* q", text, flags=re.MULTILINE)) - {"measure", "qreg"}
        assert names <= {"rx", "ry", "rz", "cx", "cz"}


def test_angles_have_twelve_decimals_and_never_an_exponent() -> None:
    gates = [Gate("rx", (0,), 1e-7), Gate("ry", (0,), -2.5e-9), Gate("rz", (0,), 1e17), Gate("rzz", (0, 1), 0.1)]
    for text in (to_qasm2(Circuit(2, tuple(gates))), to_qasm3(Circuit(2, tuple(gates)))):
        found = re.findall(r"\((.*?)\)", text)
        assert found == ["0.000000100000", "-0.000000002500", "100000000000000000.000000000000", "0.100000000000"]


@seeded
@given(bound_circuits())
def test_every_exported_angle_is_plain_decimal(circuit: Circuit) -> None:
    for text in (to_qasm2(circuit), to_qasm3(circuit)):
        for angle in re.findall(r"\((.*?)\)", text):
            assert re.fullmatch(r"-?\d+\.\d{12}", angle)


def test_successive_rotations_are_exported_as_one() -> None:
    text = to_qasm2(Circuit(1, tuple(Gate("ry", (0,), 0.25) for _ in range(3))))
    assert re.findall(r"ry\(.*", text) == ["ry(0.750000000000) q[0];"]


def test_qasm2_declares_registers_and_measures_every_qubit_in_ascending_order() -> None:
    lines = to_qasm2(Circuit(3, (Gate("cx", (2, 0)),))).splitlines()
    assert lines == [
        "OPENQASM 2.0;",
        'include "qelib1.inc";',
        "qreg q[3];",
        "creg c[3];",
        "cx q[2],q[0];",
        "measure q[0] -> c[0];",
        "measure q[1] -> c[1];",
        "measure q[2] -> c[2];",
    ]


def test_qasm3_declares_bits_and_assigns_measurements_in_ascending_order() -> None:
    lines = to_qasm3(Circuit(2, (Gate("rx", (1,), 0.5), Gate("cz", (0, 1))))).splitlines()
    assert lines == [
        "OPENQASM 3.0;",
        'include "stdgates.inc";',
        "qubit[2] q;",
        "bit[2] c;",
        "rx(0.500000000000) q[1];",
        "cz q[0],q[1];",
        "c[0] = measure q[0];",
        "c[1] = measure q[1];",
    ]


@pytest.mark.parametrize("export", [to_qasm2, to_qasm3])
@pytest.mark.parametrize("bound", [{}, {"inputs": [0.1, 0.2]}, {"ansatz": [0.5] * 6}])
def test_an_unbound_angle_is_never_exported(export, bound: dict[str, list[float]]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnboundParameterError, match=r"bind\(\) it first"):
        export(student_circuit("chain", 2, 1).bind(**bound))
