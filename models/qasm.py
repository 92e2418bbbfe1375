"""Circuit -> OpenQASM 2 and 3, every angle bound, every qubit measured into its own classical bit; and back from 2.

Angles are written as `%.12f`: exponents such as 1e-07 break several vendors' parsers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.circuit import GATES, Circuit, Gate
from models.errors import CircuitError, QasmError

_QASM2_HEADER = ("OPENQASM 2.0;", 'include "qelib1.inc";')
_QASM3_HEADER = ("OPENQASM 3.0;", 'include "stdgates.inc";')


def to_qasm2(circuit: Circuit) -> str:
    """OpenQASM 2.0 of a bound circuit, successive rotations fused.

    `rzz` is in the qelib1.inc of some tools only, so it is written as cx, rz, cx, which is equal to it.

    Raises:
        UnboundParameterError: If an angle is still symbolic.
    """
    qubits = range(circuit.n_qubits)
    return to_physical_qasm2(circuit.fused(), qubits, circuit.n_qubits, qubits)


def to_physical_qasm2(circuit: Circuit, at: Sequence[int], width: int, measured: Sequence[int]) -> str:
    """OpenQASM 2.0 of a bound circuit, gate for gate, its qubits where they are on a chip.

    Args:
        at: Number of each of its qubits in the register.
        width: Size of the register.
        measured: Its qubit that each classical bit is read from.

    Raises:
        UnboundParameterError: If an angle is still symbolic.
    """
    lines = [*_QASM2_HEADER, f"qreg q[{width}];", f"creg c[{len(measured)}];"]
    lines += [line for gate in circuit.gates for line in _gate(circuit, gate, at)]
    lines += [f"measure q[{at[qubit]}] -> c[{bit}];" for bit, qubit in enumerate(measured)]
    return "\n".join(lines) + "\n"


def to_qasm3(circuit: Circuit) -> str:
    """OpenQASM 3.0 of a bound circuit, successive rotations fused; `rzz` as cx, rz, cx (stdgates.inc has none).

    Raises:
        UnboundParameterError: If an angle is still symbolic.
    """
    lines = [*_QASM3_HEADER, f"qubit[{circuit.n_qubits}] q;", f"bit[{circuit.n_qubits}] c;"]
    at = range(circuit.n_qubits)
    lines += [line for gate in circuit.fused().gates for line in _gate(circuit, gate, at)]
    lines += [f"c[{qubit}] = measure q[{qubit}];" for qubit in range(circuit.n_qubits)]
    return "\n".join(lines) + "\n"


def _gate(circuit: Circuit, gate: Gate, at: Sequence[int]) -> list[str]:
    operands = [f"q[{at[qubit]}]" for qubit in gate.qubits]
    if gate.angle is None:
        return [f"{gate.name} {','.join(operands)};"]
    angle = f"{circuit.angle(gate):z.12f}"  # z: a zero has no sign, so that equal circuits are equal texts
    if gate.name == "rzz":
        cx = f"cx {operands[0]},{operands[1]};"
        return [cx, f"rz({angle}) {operands[1]};", cx]
    return [f"{gate.name}({angle}) {operands[0]};"]


@dataclass(frozen=True)
class MeasuredCircuit:
    """What OpenQASM 2 text says, on the qubits that it uses.

    Attributes:
        circuit: Bound.
        register: Number in the quantum register of each qubit of the circuit, ascending.
        measured: Classical bit -> the circuit's qubit that is measured into it, by ascending bit.
        n_clbits: Size of the classical register.
    """

    circuit: Circuit
    register: tuple[int, ...]
    measured: Mapping[int, int]
    n_clbits: int


def from_qasm2(text: str) -> MeasuredCircuit:
    """Read a part of OpenQASM 2.0: one qreg, one creg, rx, ry, rz, rzz, cx, cz, h, x, measure.

    Angles are decimal numbers or fractions of pi such as `pi`, `-pi/2`, `3*pi/4`. h is read as RZ(pi) then RY(pi/2) and
    x as RX(pi), each equal to it up to a global phase. A barrier is passed over; measurements come last on their
    qubit. A qubit is used if a gate or a measurement names it.

    Raises:
        QasmError: If the text holds anything else or measures nothing; names the line.
    """
    reader = _Reader()
    for line, statement in _statements(text):
        try:
            reader.read(statement)
        except (QasmError, CircuitError) as exc:
            raise QasmError(f"line {line}: {exc}") from exc
    return reader.finish()


_MAX_REGISTER = 10_000
_GATE = re.compile(r"([a-z]\w*)\s*(?:\(([^()]*)\))?\s*([^()]+)")
_OPERAND = re.compile(r"([a-z]\w*)\s*\[\s*(\d{1,9})\s*\]")
_REGISTER = re.compile(r"(qreg|creg)\s+([a-z]\w*)\s*\[\s*(\d{1,9})\s*\]")
_MEASURE = re.compile(r"measure\s+([^-]+?)\s*->\s*(.+)")
_DECIMAL = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ANGLE = re.compile(rf"([-+]?)\s*(?:({_DECIMAL})|(?:({_DECIMAL})\s*\*\s*)?pi(?:\s*/\s*({_DECIMAL}))?)")


class _Reader:
    """What the statements read so far say; qubits are numbered as in the quantum register."""

    def __init__(self) -> None:
        self._registers: dict[str, tuple[str, int]] = {}  # qreg or creg -> name and size
        self._gates: list[Gate] = []
        self._measured: dict[int, int] = {}  # classical bit -> qubit

    def read(self, statement: str) -> None:
        word = re.split(r"\W", statement, maxsplit=1)[0]
        if word == "OPENQASM":
            if not re.fullmatch(r"OPENQASM\s+2\.0", statement):
                raise QasmError(f"{statement!r}, expected OPENQASM 2.0")
        elif word == "include":
            if not re.fullmatch(r'include\s+"qelib1\.inc"', statement):
                raise QasmError(f'{statement!r}, expected include "qelib1.inc"')
        elif word in ("qreg", "creg"):
            self._declare(statement)
        elif word == "measure":
            self._measure(statement)
        elif word != "barrier":
            self._gates += self._gate(statement)

    def finish(self) -> MeasuredCircuit:
        if not self._measured:
            raise QasmError("the text measures nothing, expected at least one measure")
        used = {qubit for gate in self._gates for qubit in gate.qubits} | set(self._measured.values())
        register = tuple(sorted(used))
        place = {qubit: i for i, qubit in enumerate(register)}
        gates = (Gate(gate.name, tuple(place[qubit] for qubit in gate.qubits), gate.angle) for gate in self._gates)
        measured = {bit: place[qubit] for bit, qubit in sorted(self._measured.items())}
        return MeasuredCircuit(Circuit(len(register), tuple(gates)), register, measured, self._registers["creg"][1])

    def _declare(self, statement: str) -> None:
        match = _REGISTER.fullmatch(statement)
        if match is None:
            raise QasmError(f"{statement!r}, expected a register such as qreg q[11]")
        kind, name, size = match.groups()
        if kind in self._registers:
            raise QasmError(f"a second {kind}, expected one")
        if not 1 <= int(size) <= _MAX_REGISTER:
            raise QasmError(f"{kind} {name} has the size {size}, expected 1 to {_MAX_REGISTER}")
        self._registers[kind] = (name, int(size))

    def _gate(self, statement: str) -> list[Gate]:
        match = _GATE.fullmatch(statement)
        if match is None:
            raise QasmError(f"{statement!r} is not a statement that is read here")
        name, angle, operands = match.groups()
        if name not in GATES and name not in ("h", "x"):
            raise QasmError(f"unknown gate {name!r}, expected one of {sorted({*GATES, 'h', 'x'})}")
        qubits = tuple(self._index("qreg", operand.strip()) for operand in operands.split(","))
        again = set(qubits) & set(self._measured.values())
        if again:
            raise QasmError(f"{name} acts on qubit {min(again)} after its measurement, expected measurements last")
        if name in ("h", "x"):
            if angle is not None or len(qubits) != 1:
                raise QasmError(f"{statement!r}, expected {name} of one qubit and no angle")
            turns = [("rx", math.pi)] if name == "x" else [("rz", math.pi), ("ry", math.pi / 2)]
            return [Gate(turn, qubits, by) for turn, by in turns]
        return [Gate(name, qubits, None if angle is None else _angle(angle.strip()))]

    def _measure(self, statement: str) -> None:
        match = _MEASURE.fullmatch(statement)
        if match is None:
            raise QasmError(f"{statement!r}, expected measure q[0] -> c[0]")
        source, target = match.groups()
        whole = {kind: name for kind, (name, _) in self._registers.items()}
        if source == whole.get("qreg") and target == whole.get("creg"):
            sizes = {kind: size for kind, (_, size) in self._registers.items()}
            if sizes["qreg"] != sizes["creg"]:
                raise QasmError(f"{statement!r} of {sizes['qreg']} qubits into {sizes['creg']} bits, expected as many")
            pairs = [(i, i) for i in range(sizes["qreg"])]
        else:
            pairs = [(self._index("qreg", source), self._index("creg", target))]
        for qubit, bit in pairs:
            if bit in self._measured or qubit in self._measured.values():
                raise QasmError(f"qubit {qubit} into bit {bit}: each is measured at most once")
            self._measured[bit] = qubit

    def _index(self, kind: str, operand: str) -> int:
        match = _OPERAND.fullmatch(operand)
        if match is None or kind not in self._registers or match.group(1) != self._registers[kind][0]:
            raise QasmError(f"{operand!r}, expected one element of the {kind}, declared above")
        size = self._registers[kind][1]
        if int(match.group(2)) >= size:
            raise QasmError(f"{operand!r} is beyond the {kind} of size {size}")
        return int(match.group(2))


def _statements(text: str) -> list[tuple[int, str]]:
    """Line number and text of every statement, comments left out."""
    result = []
    start, statement = 1, ""
    for number, line in enumerate(text.splitlines(), start=1):
        *ended, open_end = line.partition("//")[0].split(";")
        for part in ended:
            result.append((start if statement.strip() else number, f"{statement} {part}".strip()))
            statement = ""
        if not statement.strip():
            start = number
        statement = f"{statement} {open_end}"
    if statement.strip():
        raise QasmError(f"line {start}: {statement.strip()!r} lacks its semicolon")
    return [(line, part) for line, part in result if part]


def _angle(text: str) -> float:
    match = _ANGLE.fullmatch(text)
    if match is None:
        raise QasmError(f"the angle {text!r}, expected a number or a fraction of pi such as -pi/2")
    sign, number, factor, divisor = match.groups()
    if divisor is not None and float(divisor) == 0:
        raise QasmError(f"the angle {text!r} divides by zero")
    size = float(number) if number else math.pi * float(factor or 1) / float(divisor or 1)
    return -size if sign == "-" else size
