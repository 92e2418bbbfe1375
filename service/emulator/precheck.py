"""What the platform looks at before it accepts a circuit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from models.device import Device
from models.errors import StudentError
from models.native import NATIVE_GATES
from models.qasm import MeasuredCircuit, from_qasm2
from service.emulator.refusals import RefusedError

_MEASURED_BIT = re.compile(r"\bmeasure\b[^;]*->\s*\w+\s*\[\s*(\d+)\s*\]")


def check_circuit(qasm: str, device: Device, physical: bool, target_qubits: Sequence[int], max_qubits: int) -> None:
    """Refuse a circuit that the device cannot run.

    Args:
        physical: Whether its qubits are the chip's and its gates must be native.
        target_qubits: The chip's qubits that a compiler is told to use; may be empty.
        max_qubits: Most qubits that it may touch.

    Raises:
        RefusedError: With a code that begins with `precheck.`.
    """
    try:
        submitted = from_qasm2(qasm)
    except StudentError as exc:
        raise RefusedError("precheck.circuitInvalid", str(exc)) from exc
    _check_measurements(submitted, qasm)
    n_qubits = submitted.circuit.n_qubits
    if n_qubits > max_qubits:
        raise RefusedError(
            "precheck.simTooLarge",
            f"the circuit touches {n_qubits} qubits, expected at most {max_qubits}",
            n_qubits=n_qubits,
            limit_qubits=max_qubits,
            qubit_count="active",
        )
    if physical:
        _check_physical(submitted, device)
    elif target_qubits:
        _check_targets(n_qubits, target_qubits, device)


def _check_measurements(submitted: MeasuredCircuit, qasm: str) -> None:
    unmeasured = sorted(set(range(submitted.n_clbits)) - set(submitted.measured))
    if unmeasured:
        raise RefusedError(
            "precheck.measurement",
            f"the classical bits {unmeasured} are not measured",
            reason="unmeasured_clbit",
            cbits=unmeasured,
        )
    bits = [int(bit) for bit in _MEASURED_BIT.findall(qasm)]
    if bits != sorted(bits):
        raise RefusedError(
            "precheck.measurement",
            f"the classical bits are measured in the order {bits}, expected ascending",
            reason="measurement_order",
        )


def _check_physical(submitted: MeasuredCircuit, device: Device) -> None:
    for qubit in submitted.register:
        if qubit not in device.qubits:
            raise RefusedError("precheck.unknownQubit", f"{device.name} has no qubit {qubit}", qubit=qubit)
    for gate in submitted.circuit.gates:
        if gate.name not in NATIVE_GATES:
            raise RefusedError(
                "precheck.nonNativeGate",
                f"{gate.name} is not native, expected one of {sorted(NATIVE_GATES)}",
                gate=gate.name,
            )
        qubits = sorted(submitted.register[qubit] for qubit in gate.qubits)
        if len(qubits) == 2 and (qubits[0], qubits[1]) not in device.couplers:
            raise RefusedError(
                "precheck.uncoupledQubits", f"{gate.name} acts on {qubits}, which are not coupled", qubits=qubits
            )


def _check_targets(n_qubits: int, target_qubits: Sequence[int], device: Device) -> None:
    """Whether the gates fit the couplers between them is for the compiler to find out."""
    if len(set(target_qubits)) != len(target_qubits) or len(target_qubits) != n_qubits:
        raise RefusedError(
            "precheck.targetQubits", f"target_qubits is {list(target_qubits)}, expected {n_qubits} different qubits"
        )
    unknown = sorted(set(target_qubits) - set(device.qubits))
    if unknown:
        raise RefusedError("precheck.targetQubits", f"target_qubits holds {unknown}, not qubits of {device.name}")
