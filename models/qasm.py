"""Circuit -> OpenQASM 2 and 3, every angle bound, every qubit measured into its own classical bit.

Angles are written as `%.12f`: exponents such as 1e-07 break several vendors' parsers.
"""

from __future__ import annotations

from models.circuit import Circuit, Gate

_QASM2_HEADER = ("OPENQASM 2.0;", 'include "qelib1.inc";')
_QASM3_HEADER = ("OPENQASM 3.0;", 'include "stdgates.inc";')


def to_qasm2(circuit: Circuit) -> str:
    """OpenQASM 2.0 of a bound circuit, successive rotations fused.

    `rzz` is in the qelib1.inc of some tools only, so it is written as cx, rz, cx, which is equal to it.

    Raises:
        UnboundParameterError: If an angle is still symbolic.
    """
    lines = [*_QASM2_HEADER, f"qreg q[{circuit.n_qubits}];", f"creg c[{circuit.n_qubits}];"]
    lines += _gates(circuit)
    lines += [f"measure q[{qubit}] -> c[{qubit}];" for qubit in range(circuit.n_qubits)]
    return "\n".join(lines) + "\n"


def to_qasm3(circuit: Circuit) -> str:
    """OpenQASM 3.0 of a bound circuit, successive rotations fused; `rzz` as cx, rz, cx (stdgates.inc has none).

    Raises:
        UnboundParameterError: If an angle is still symbolic.
    """
    lines = [*_QASM3_HEADER, f"qubit[{circuit.n_qubits}] q;", f"bit[{circuit.n_qubits}] c;"]
    lines += _gates(circuit)
    lines += [f"c[{qubit}] = measure q[{qubit}];" for qubit in range(circuit.n_qubits)]
    return "\n".join(lines) + "\n"


def _gates(circuit: Circuit) -> list[str]:
    return [line for gate in circuit.fused().gates for line in _gate(circuit, gate)]


def _gate(circuit: Circuit, gate: Gate) -> list[str]:
    operands = [f"q[{qubit}]" for qubit in gate.qubits]
    if gate.angle is None:
        return [f"{gate.name} {','.join(operands)};"]
    angle = f"{circuit.angle(gate):.12f}"
    if gate.name == "rzz":
        cx = f"cx {operands[0]},{operands[1]};"
        return [cx, f"rz({angle}) {operands[1]};", cx]
    return [f"{gate.name}({angle}) {operands[0]};"]
