"""How the emulated chip runs one circuit: placed, in native gates, under the noise of its calibration.

Runs in the child process; MindQuantum is loaded when the first counts are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.circuit import Circuit
from models.device import Device, best_chain
from models.engines.noisy import exact_counts, sample_counts
from models.errors import StudentError
from models.native import placed, routed, to_native
from models.qasm import MeasuredCircuit, from_qasm2, to_physical_qasm2
from service.emulator.sampling import Measurement, Sample, SamplingError, Work


@dataclass(frozen=True)
class Compiled:
    """A circuit as it runs.

    Attributes:
        circuit: In native gates.
        chain: Physical qubit of each of its qubits.
        ends: Its qubit that holds each qubit of the submitted circuit at the end.
    """

    circuit: Circuit
    chain: tuple[int, ...]
    ends: tuple[int, ...]


def run_circuit(work: Work) -> Sample:
    """Compile a circuit if it is logical, and draw its counts.

    Raises:
        SamplingError: If it does not fit the device.
    """
    try:
        submitted = from_qasm2(work.qasm)
        compiled = compile_circuit(submitted, work)
        seed = int(np.random.SeedSequence(work.seed).generate_state(1)[0])
        if work.exact:
            counts = exact_counts(compiled.circuit, work.shots, seed)
        else:
            counts = sample_counts(compiled.circuit, work.shots, work.device, compiled.chain, seed)
    except StudentError as exc:
        raise SamplingError(str(exc)) from exc
    places = [compiled.ends[qubit] for _, qubit in sorted(submitted.measured.items())]
    by_bits: dict[str, int] = {}
    for bits, n in counts.items():
        key = "".join(bits[place] for place in places)
        by_bits[key] = by_bits.get(key, 0) + n
    measurements = tuple(
        Measurement(cbit, compiled.chain[compiled.ends[qubit]], submitted.register[qubit])
        for cbit, qubit in sorted(submitted.measured.items())
    )
    width = max(work.device.qubits) + 1
    return Sample(by_bits, measurements, to_physical_qasm2(compiled.circuit, compiled.chain, width, places))


def compile_circuit(submitted: MeasuredCircuit, work: Work) -> Compiled:
    """Place a circuit on the chip: where it says, where it is told, or on the best chain.

    Raises:
        DeviceError: If the device has no chain that is long enough.
    """
    circuit = submitted.circuit
    identity = tuple(range(circuit.n_qubits))
    if work.physical:
        return Compiled(circuit, submitted.register, identity)
    native = to_native(circuit)
    if work.target_qubits and _fits(native, work.target_qubits, work.device):
        return Compiled(native, work.target_qubits, identity)
    path = work.target_qubits or best_chain(work.device, circuit.n_qubits)
    chain = placed(native, path)
    if chain is not None:
        return Compiled(native, chain, identity)
    on_path, ends = routed(circuit)
    return Compiled(to_native(on_path), tuple(path), ends)


def _fits(circuit: Circuit, chain: Sequence[int], device: Device) -> bool:
    pairs = [sorted(chain[qubit] for qubit in gate.qubits) for gate in circuit.gates if len(gate.qubits) == 2]
    return all((a, b) in device.couplers for a, b in pairs)
