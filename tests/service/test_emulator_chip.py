"""How the emulated chip places and runs circuits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from emulating import QUICK, TOKEN, ended, listening, qasm
from needs import needs_mindquantum
from quafu import Client

from models.baihua import RECORDED_CHAIN, published
from models.qasm import from_qasm2
from service.emulator.app import create_emulator
from service.emulator.chip import compile_circuit, run_circuit
from service.emulator.sampling import SamplingError, Work

NAME = "Baihua"
DEVICE = published()
FLIP = f"rx({math.pi:.12f})"
N_QUBITS = 5
# A star: no order of its qubits on a chain makes every pair neighbours.
STAR = [f"{FLIP} q[0];", "cx q[0],q[1];", "cx q[0],q[2];", "cx q[0],q[4];"]
STAR_BITS = "11101"


def work(statements: Sequence[str], n_qubits: int = N_QUBITS, **changes: object) -> Work:
    """A circuit of some statements, all qubits measured; without noise."""
    lines = ["OPENQASM 2.0;", 'include "qelib1.inc";', f"qreg q[{n_qubits}];", f"creg c[{n_qubits}];", *statements]
    lines += [f"measure q[{qubit}] -> c[{qubit}];" for qubit in range(n_qubits)]
    blank = Work("\n".join(lines), False, (), 1024, (0, 1, 0), True, DEVICE)
    return replace(blank, **changes)  # type: ignore[arg-type]


def coupled(chain: Sequence[int], pairs: Sequence[Sequence[int]]) -> bool:
    return all(tuple(sorted(chain[qubit] for qubit in pair)) in DEVICE.couplers for pair in pairs)


@pytest.mark.parametrize(
    "statements",
    [
        ["cx q[0],q[1];", "cx q[1],q[2];", "cx q[2],q[3];"],
        ["cx q[4],q[0];", "cx q[0],q[2];", "cx q[1],q[3];", "cx q[3],q[4];"],
        STAR,
    ],
    ids=["line", "line in another order", "star"],
)
def test_logical_circuit_is_placed_on_coupled_qubits_in_native_gates(statements: list[str]) -> None:
    # The last layer keeps gates before the measurement from being dropped as diagonal.
    asked = work([*statements, *(f"ry(0.3) q[{qubit}];" for qubit in range(N_QUBITS))])
    compiled = compile_circuit(from_qasm2(asked.qasm), asked)
    pairs = [gate.qubits for gate in compiled.circuit.gates if len(gate.qubits) == 2]
    assert {gate.name for gate in compiled.circuit.gates} <= {"rx", "ry", "rz", "cz"}
    assert len(pairs) >= len(statements) - 1
    assert coupled(compiled.chain, pairs)


def test_target_qubits_are_used_as_they_are_where_the_gates_fit() -> None:
    # Qubits 0 and 1 of the circuit are no neighbours, and neither are these two of the chip.
    chain = (RECORDED_CHAIN[0], RECORDED_CHAIN[2], RECORDED_CHAIN[1])
    asked = work(["cx q[0],q[2];", "cx q[2],q[1];"], 3, target_qubits=chain)
    assert compile_circuit(from_qasm2(asked.qasm), asked).chain == chain


def test_target_qubits_that_are_a_chain_are_routed_along() -> None:
    asked = work(STAR, target_qubits=RECORDED_CHAIN[:N_QUBITS])
    compiled = compile_circuit(from_qasm2(asked.qasm), asked)
    assert compiled.chain == RECORDED_CHAIN[:N_QUBITS]
    assert coupled(compiled.chain, [gate.qubits for gate in compiled.circuit.gates if len(gate.qubits) == 2])


def test_circuit_that_does_not_fit_the_device_cannot_be_sampled() -> None:
    small = replace(DEVICE, couplers={})
    with pytest.raises(SamplingError, match="chain"):
        run_circuit(work(STAR, device=small))


@needs_mindquantum
def test_counts_are_by_classical_bit_wherever_the_qubits_end() -> None:
    sample = run_circuit(work(STAR))
    assert sample.counts == {STAR_BITS: 1024}
    assert [measurement.cbit for measurement in sample.measurements] == list(range(N_QUBITS))
    assert len({measurement.physical_qubit for measurement in sample.measurements}) == N_QUBITS


@needs_mindquantum
def test_what_was_executed_runs_as_a_physical_circuit_with_the_same_counts() -> None:
    sample = run_circuit(work(STAR))
    again = run_circuit(work([], qasm=sample.executed, physical=True))
    assert again.counts == sample.counts
    assert [m.physical_qubit for m in again.measurements] == [m.physical_qubit for m in sample.measurements]


@needs_mindquantum
def test_part_of_the_qubits_may_be_measured_in_any_order() -> None:
    text = work([f"{FLIP} q[3];"]).qasm.partition("measure")[0].replace("creg c[5]", "creg c[2]")
    sample = run_circuit(work([], qasm=text + "measure q[3] -> c[0];\nmeasure q[0] -> c[1];"))
    assert sample.counts == {"10": 1024}
    assert [measurement.virtual_qubit for measurement in sample.measurements] == [3, 0]


@needs_mindquantum
def test_seed_makes_the_counts() -> None:
    statements = [f"ry(1.0) q[{qubit}];" for qubit in range(N_QUBITS)]
    first, again, other = (run_circuit(work(statements, seed=(seed, 1, 0), exact=False)).counts for seed in (0, 0, 1))
    assert first == again != other
    assert sum(first.values()) == 1024


@needs_mindquantum
@pytest.mark.parametrize("exact", [True, False])
def test_asymmetric_circuit_comes_back_in_the_declared_bit_order(exact: bool) -> None:
    with listening(create_emulator(replace(QUICK, exact=exact))) as url:
        job = Client(api_key=TOKEN, base_url=url).submit(qasm([0, 1], n_qubits=4), NAME)
        assert ended(job) == "Finished"
        result = job.result()
    likely = max(result.counts, key=lambda bits: result.counts[bits])
    assert likely == "0011"
    assert result.reorder("c0_leftmost")["1100"] == result.counts["0011"]
    assert (len(result.counts) == 1) == exact
    assert sum(result.counts.values()) == 1024
