"""A circuit as an SVG drawing: one wire a qubit, gates in columns, no dependency.

A gate stands in the first column in which all wires between its qubits are free, so that nothing is drawn over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from models.circuit import Circuit, Gate, Symbol

_ROW = 44
_COLUMN = 58
_LEFT = 46
_TOP = 28
_BOX = (46, 32)
_DOT = 4.5
_TARGET = 10

# The drawing brings its own background, light or dark as the reader prefers, and so is readable on any page.
_STYLE = """
  .bg { fill: #ffffff; } .wire, .link { stroke: #57606a; stroke-width: 1.5; fill: none; }
  text { font: 11px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328; text-anchor: middle; }
  .angle { font-size: 9px; } .q { text-anchor: end; font-size: 12px; }
  .input { fill: #ddf4ff; } .ansatz { fill: #fbefff; } .number, .measure { fill: #f6f8fa; }
  .box { stroke: #57606a; stroke-width: 1; } .dot { fill: #57606a; }
  .target { fill: #ffffff; stroke: #57606a; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    .bg, .target { fill: #0d1117; } .wire, .link, .box, .target { stroke: #9198a1; } .dot { fill: #9198a1; }
    text { fill: #f0f6fc; } .input { fill: #0c2d6b; } .ansatz { fill: #3c1e70; } .number, .measure { fill: #21262d; }
  }
"""


@dataclass(frozen=True)
class _Placed:
    gate: Gate
    column: int


def to_svg(circuit: Circuit, title: str) -> str:
    """Draw a circuit; angles are symbols (z of the text, θ of the ansatz) or radians.

    Args:
        circuit: Bound or not.
        title: What it is the circuit of.
    """
    placed = _place(circuit)
    n_columns = 1 + max((p.column for p in placed), default=-1)
    width = _LEFT + (n_columns + 1) * _COLUMN + 12
    height = 2 * _TOP + (circuit.n_qubits - 1) * _ROW
    kinds = ", ".join(sorted({gate.name for gate in circuit.gates}))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-labelledby="title desc">',
        f'<title id="title">Circuit of {escape(title)}</title>',
        f'<desc id="desc">{circuit.n_qubits} qubits, {len(circuit.gates)} gates ({kinds}) in {n_columns} columns; '
        "every qubit is measured at the end.</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="bg" width="{width}" height="{height}" rx="6"/>',
    ]
    for qubit in range(circuit.n_qubits):
        y = _y(qubit)
        lines.append(f'<text class="q" x="{_LEFT - 10}" y="{y + 4}">q{qubit}</text>')
        lines.append(f'<line class="wire" x1="{_LEFT - 4}" y1="{y}" x2="{width - 16}" y2="{y}"/>')
    for p in placed:
        lines += _draw(p)
    for qubit in range(circuit.n_qubits):
        lines += _box(_x(n_columns), _y(qubit), "M", None, "measure")
    return "\n".join([*lines, "</svg>"]) + "\n"


def _place(circuit: Circuit) -> list[_Placed]:
    free = [0] * circuit.n_qubits
    placed = []
    for gate in circuit.gates:
        wires = range(min(gate.qubits), max(gate.qubits) + 1)
        column = max(free[wire] for wire in wires)
        for wire in wires:
            free[wire] = column + 1
        placed.append(_Placed(gate, column))
    return placed


def _draw(placed: _Placed) -> Iterable[str]:
    gate, x = placed.gate, _x(placed.column)
    ys = [_y(qubit) for qubit in gate.qubits]
    if len(ys) == 1:
        return _box(x, ys[0], gate.name.upper(), _angle(gate), _kind(gate))
    link = f'<line class="link" x1="{x}" y1="{ys[0]}" x2="{x}" y2="{ys[1]}"/>'
    if gate.name == "cx":
        return [link, _dot(x, ys[0]), *_target(x, ys[1])]
    dots = [_dot(x, y) for y in ys]
    if gate.name == "cz":
        return [link, *dots]
    return [link, *dots, *_box(x, sum(ys) / 2, "ZZ", _angle(gate), _kind(gate), height=24)]


def _box(x: float, y: float, name: str, angle: str | None, kind: str, height: float = _BOX[1]) -> list[str]:
    left, top = x - _BOX[0] / 2, y - height / 2
    lines = [f'<rect class="box {kind}" x="{left:g}" y="{top:g}" width="{_BOX[0]}" height="{height:g}" rx="3"/>']
    if angle is None:
        return [*lines, f'<text x="{x:g}" y="{y + 4:g}">{name}</text>']
    return [
        *lines,
        f'<text x="{x:g}" y="{y - 1:g}">{name}</text>',
        f'<text class="angle" x="{x:g}" y="{y + 9:g}">{angle}</text>',
    ]


def _dot(x: float, y: float) -> str:
    return f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="{_DOT}"/>'


def _target(x: float, y: float) -> list[str]:
    return [
        f'<circle class="target" cx="{x:g}" cy="{y:g}" r="{_TARGET}"/>',
        f'<path class="link" d="M{x - _TARGET:g} {y:g}H{x + _TARGET:g}M{x:g} {y - _TARGET:g}V{y + _TARGET:g}"/>',
    ]


def _angle(gate: Gate) -> str:
    if isinstance(gate.angle, Symbol):
        return f"{'z' if gate.angle.kind == 'input' else 'θ'}{gate.angle.index}"
    return f"{gate.angle:.3f}"


def _kind(gate: Gate) -> str:
    return gate.angle.kind if isinstance(gate.angle, Symbol) else "number"


def _x(column: int) -> float:
    return _LEFT + (column + 0.5) * _COLUMN


def _y(qubit: int) -> float:
    return _TOP + qubit * _ROW
