"""Gates as they are drawn."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from models.circuit import Circuit, Gate, Symbol, student_circuit
from service.drawing import to_svg

SVG = "{http://www.w3.org/2000/svg}"


def draw(*gates: Gate, n_qubits: int = 3) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(Circuit(n_qubits, gates), "a <test> & more"))


def classes(root: ElementTree.Element, tag: str) -> list[str]:
    return [element.get("class", "") for element in root.iter(SVG + tag)]


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_title_and_description_are_text_for_those_who_do_not_see() -> None:
    root = draw(Gate("cz", (0, 1)))
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "title desc"
    assert title is not None
    assert title.text == "Circuit of a <test> & more"
    assert description is not None
    assert "3 qubits, 1 gates (cz) in 1 columns" in (description.text or "")


def test_rotation_is_a_box_with_its_angle() -> None:
    root = draw(Gate("rx", (0,), Symbol("input", 0)), Gate("ry", (1,), Symbol("ansatz", 7)), Gate("rz", (2,), -1.5))
    assert words(root)[3:9] == ["RX", "z0", "RY", "θ7", "RZ", "-1.500"]
    assert {"box input", "box ansatz", "box number"} <= set(classes(root, "rect"))


def test_cx_is_a_dot_and_a_target_on_their_wires() -> None:
    root = draw(Gate("cx", (2, 0)))
    dot, target = (e for e in root.iter(f"{SVG}circle"))
    wires = [line.get("y1") for line in root.iter(f"{SVG}line") if line.get("class") == "wire"]
    assert (dot.get("class"), target.get("class")) == ("dot", "target")
    assert (dot.get("cy"), target.get("cy")) == (wires[2], wires[0])


def test_cz_is_two_dots_and_rzz_two_dots_with_a_box_between() -> None:
    assert classes(draw(Gate("cz", (0, 1))), "circle") == ["dot", "dot"]
    root = draw(Gate("rzz", (0, 1), 0.25))
    assert classes(root, "circle") == ["dot", "dot"]
    assert words(root)[3:5] == ["ZZ", "0.250"]


def test_gate_that_spans_a_wire_keeps_that_wire_free() -> None:
    root = draw(Gate("cx", (0, 2)), Gate("ry", (1,), 0.5))
    dot, box = root.find(f"{SVG}circle"), root.findall(f"{SVG}rect")[1]
    assert dot is not None
    assert float(box.get("x", 0)) > float(dot.get("cx", 0))


@pytest.mark.parametrize("preset", ["paper", "released", "chain"])
def test_every_gate_of_every_preset_is_drawn(preset: str) -> None:
    circuit = student_circuit(preset, 11, 2)
    root = ElementTree.fromstring(to_svg(circuit, preset))
    two = [gate for gate in circuit.gates if len(gate.qubits) == 2]
    rotations = [gate for gate in circuit.gates if gate.angle is not None]
    assert len([c for c in classes(root, "line") if c == "link"]) == len(two)
    assert len([c for c in classes(root, "rect") if c.startswith("box")]) == len(rotations) + 11
    width = float(root.get("width", 0))
    assert all(0 <= float(e.get("x", 0)) <= width for e in root.iter(f"{SVG}rect"))
