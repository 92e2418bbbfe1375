from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from statevector import apply, final_state, zero_state
from strategies import bound_circuits, random_preset, seeded

from models.circuit import PRESETS, Circuit, Gate
from models.errors import QasmError
from models.qasm import from_qasm2, to_qasm2

HEADER = 'OPENQASM 2.0;\ninclude "qelib1.inc";\n'
H = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
X = np.array([[0, 1], [1, 0]])


def read(body: str, n_qubits: int = 2):  # type: ignore[no-untyped-def]
    return from_qasm2(f"{HEADER}qreg q[{n_qubits}];\ncreg c[{n_qubits}];\n{body}\nmeasure q -> c;\n")


@pytest.mark.parametrize("preset", PRESETS)
def test_reading_what_was_written_prepares_the_same_state(preset: str) -> None:
    circuit = random_preset(preset, 5, 2, seed=3).bind(inputs=[0.3, -1.2, 1e-7, 3.0, -0.4])
    found = from_qasm2(to_qasm2(circuit))
    overlap = abs(np.vdot(final_state(found.circuit), final_state(circuit)))
    assert overlap == pytest.approx(1, abs=1e-9)
    assert (found.register, found.measured, found.n_clbits) == (tuple(range(5)), {i: i for i in range(5)}, 5)


@seeded
@given(bound_circuits())
def test_writing_what_was_read_gives_the_same_text(circuit: Circuit) -> None:
    text = to_qasm2(circuit)
    assert to_qasm2(from_qasm2(text).circuit) == to_qasm2(from_qasm2(to_qasm2(from_qasm2(text).circuit)).circuit)
    overlap = abs(np.vdot(final_state(from_qasm2(text).circuit), final_state(circuit)))
    assert overlap == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("name", "matrix"), [("h", H), ("x", X)])
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
def test_h_and_x_are_read_up_to_a_global_phase(name: str, matrix: np.ndarray, angle: float) -> None:
    found = final_state(read(f"rx({angle}) q[0];\nrz(0.4) q[0];\n{name} q[0];", 1).circuit)
    before = apply(apply(zero_state(1), "rx", [0], angle), "rz", [0], 0.4)
    assert abs(np.vdot(found, matrix @ before)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25),
        ("-1e-07", -1e-7),
        ("+.5", 0.5),
        ("3", 3.0),
        ("pi", math.pi),
        ("-pi/2", -math.pi / 2),
        ("3*pi/4", 3 * math.pi / 4),
        ("0.5 * pi", math.pi / 2),
    ],
)
def test_angle_is_a_number_or_a_fraction_of_pi(text: str, value: float) -> None:
    assert read(f"ry({text}) q[1];").circuit.gates[0].angle == pytest.approx(value, abs=1e-15)


def test_qubits_of_a_wide_register_keep_their_numbers() -> None:
    text = f"{HEADER}qreg q[156];\ncreg c[3];\nrx(0.5) q[142];\ncz q[142],q[129];\n"
    text += "measure q[142] -> c[0];\nmeasure q[7] -> c[2];\nmeasure q[129] -> c[1];"
    found = from_qasm2(text)
    assert found.register == (7, 129, 142)
    assert found.circuit == Circuit(3, (Gate("rx", (2,), 0.5), Gate("cz", (2, 1))))
    assert list(found.measured.items()) == [(0, 2), (1, 1), (2, 0)]
    assert found.n_clbits == 3


def test_comments_barriers_and_line_breaks_change_nothing() -> None:
    found = read("rx(0.5) q[0]; // a comment; ry(1) q[0];\nbarrier q[0],q[1];\nrzz(-pi/2)\n  q[0],q[1];")
    assert found.circuit.gates == (Gate("rx", (0,), 0.5), Gate("rzz", (0, 1), -math.pi / 2))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("u3(1,2,3) q[0];", r"line 5: unknown gate 'u3'"),
        ("\n\nrx(0.5) q[2];", r"line 7: 'q\[2\]' is beyond the qreg of size 2"),
        ("rx(theta) q[0];", r"line 5: the angle 'theta', expected a number or a fraction of pi"),
        ("rx(pi/0) q[0];", "line 5: the angle 'pi/0' divides by zero"),
        ("rx(1e999) q[0];", "line 5: rx .* expected a finite number"),
        ("rx q[0];", "line 5: rx has the angle None, expected one"),
        ("h(0.5) q[0];", "line 5: .*expected h of one qubit and no angle"),
        ("cz q[0],q[0];", "line 5: cz acts on .*expected 2 different qubits"),
        ("cz q[0];", "line 5: cz acts on .*expected 2 different qubits"),
        ("rx(0.5) r[0];", r"line 5: 'r\[0\]', expected one element of the qreg"),
        ("qreg r[3];", "line 5: a second qreg, expected one"),
        ("if (c==1) x q[0];", "line 5: unknown gate 'if'"),
        ("measure q[0] -> c[0];\nx q[0];", "line 6: x acts on qubit 0 after its measurement"),
        ("measure q[0] -> c[1];\nmeasure q[0] -> c[0];", "line 6: qubit 0 into bit 0: each is measured at most once"),
        ("rx(0.5)(0.5) q[0];", "line 5: .*is not a statement that is read here"),
        ("measure q[0];", r"line 5: 'measure q\[0\]', expected measure q\[0\] -> c\[0\]"),
    ],
)
def test_anything_else_is_refused_with_its_line(body: str, message: str) -> None:
    with pytest.raises(QasmError, match=message):
        read(body)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "measures nothing"),
        ("OPENQASM 3.0;", "line 1: .*expected OPENQASM 2.0"),
        (f"{HEADER}qreg q[1];\ncreg c[1];\nx q[0];", "measures nothing"),
        (f"{HEADER}qreg q[1];\ncreg c[1];\nmeasure q[0] -> c[0]", "line 5: .*lacks its semicolon"),
        (f"{HEADER}qreg q[2];\ncreg c[1];\nmeasure q -> c;", "line 5: .*of 2 qubits into 1 bits"),
        (f"{HEADER}qreg q[0];", "line 3: qreg q has the size 0, expected 1 to"),
        (f"{HEADER}measure q[0] -> c[0];", r"line 3: 'q\[0\]', expected one element of the qreg, declared above"),
    ],
)
def test_text_that_is_not_whole_is_refused(text: str, message: str) -> None:
    with pytest.raises(QasmError, match=message):
        from_qasm2(text)
