"""What the compiled engine and the batched torch circuit gain over MindQuantum, measured in one run.

    python benchmarks/student.py [--json docs/bench-student.json]

Inference: microseconds a text on the `released` circuit, 11 qubits, random ansatz, 64 texts, of MindQuantum's best
per-sample loop and of the compiled engine, whose largest error against MindQuantum stands beside it. Training: forward
and backward, a sample. Every library runs on one thread. Repeats are interleaved (ABCABC...), and a ratio is the median
of the ratios within a repeat, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.blocks import split_feature_map
from models.circuit import Circuit, student_circuit
from models.engines.compiled import CompiledEngine, MultilinearTensor, compile_circuit
from models.engines.mindquantum import MindQuantumEngine, to_mindquantum
from models.observables import z_signs
from training.circuit_torch import CircuitExpvals

PRESET, N_QUBITS, N_CLASSES, BATCH = "released", 11, 2, 64
INFERENCE_TARGETS = {2: 50.0, 11: 200.0}  # n_layers -> times faster a text
TRAINING_LAYERS, TRAINING_TARGET = 2, 20.0
DTYPES: tuple[type[np.floating], ...] = (np.float64, np.float32)
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MINDQUANTUM = "MindQuantum, best loop"

Function = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        n_layers: p of the circuit.
        what: What was timed.
        microseconds: Median a text (inference) or a sample (training).
        ratio: Median of how many times faster than MindQuantum; None for MindQuantum itself.
        error: Largest absolute difference from MindQuantum; None for MindQuantum itself.
        target: The ratio asked for, where one is.
    """

    n_layers: int
    what: str
    microseconds: float
    ratio: float | None = None
    error: float | None = None
    target: float | None = None

    @property
    def verdict(self) -> str:
        if self.target is None or self.ratio is None:
            return ""
        return f">= {self.target:g}x: {'met' if self.ratio >= self.target else 'NOT MET'}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--repeats", type=int, default=31, help="interleaved repeats (default: %(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    machine = describe_machine()
    inference = [row for p in INFERENCE_TARGETS for row in measure_inference(p, options.repeats)]
    training = measure_training(TRAINING_LAYERS, options.repeats)
    sys.stdout.write(report(machine, inference, training))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "circuit": {"preset": PRESET, "n_qubits": N_QUBITS, "n_classes": N_CLASSES},
            "method": {
                "batch": BATCH,
                "repeats": options.repeats,
                "order": "interleaved; ratio = median over repeats of MindQuantum's time / this time",
            },
            "machine": machine,
            "inference": [row_to_json(row) for row in inference],
            "training": [row_to_json(row) for row in training],
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        progress(f"wrote {options.json}")
    return 0


def measure_inference(n_layers: int, repeats: int) -> list[Row]:
    """Time every way to 64 texts' <Z> or logits, and check each against MindQuantum."""
    rng = np.random.default_rng(n_layers)
    circuit = student_circuit(PRESET, N_QUBITS, n_layers)
    circuit = circuit.bind(ansatz=rng.uniform(-np.pi, np.pi, circuit.n_parameters).tolist())
    angles = rng.normal(scale=1.5, size=(BATCH, N_QUBITS))
    weights, bias = rng.normal(size=(N_CLASSES, N_QUBITS)), rng.normal(size=N_CLASSES)
    # Softmax does not see what all classes share: the same classifier, its rows summing to zero.
    centred, centred_bias = weights - weights.mean(axis=0), bias - bias.mean()
    progress(f"inference, p = {n_layers}: compiling")
    tensor = compile_circuit(circuit)
    reference = mindquantum_loop(circuit, angles)
    expvals = reference()
    functions: dict[str, Function] = {MINDQUANTUM: reference}
    functions["MindQuantum, engine of this package"] = partial(MindQuantumEngine(circuit).expvals, angles)
    expected = dict.fromkeys(functions, expvals)
    for dtype in DTYPES:
        for what, function, head in (
            # One engine for each head: an engine keeps the last head that it folded.
            ("logits, centred head", logits_of(tensor, dtype, angles, centred, centred_bias), (centred, centred_bias)),
            ("logits, any head", logits_of(tensor, dtype, angles, weights, bias), (weights, bias)),
            (f"all {N_QUBITS} expvals", partial(CompiledEngine(tensor, dtype).expvals, angles), None),
        ):
            name = f"compiled {dtype.__name__}, {what}"
            functions[name] = function
            expected[name] = expvals if head is None else expvals @ head[0].T + head[1]
    progress(f"inference, p = {n_layers}: measuring")
    seconds = interleaved(functions, repeats)
    target = INFERENCE_TARGETS[n_layers]
    return [
        summarise(
            n_layers,
            name,
            seconds,
            per_call=BATCH,
            error=None if name == MINDQUANTUM else largest_error(function(), expected[name]),
            target=target if "logits" in name else None,
        )
        for name, function in functions.items()
    ]


def logits_of(
    tensor: MultilinearTensor, dtype: type[np.floating], angles: np.ndarray, weights: np.ndarray, bias: np.ndarray
) -> Function:
    return partial(CompiledEngine(tensor, dtype).linear, angles, weights, bias)


def mindquantum_loop(circuit: Circuit, angles: np.ndarray) -> Function:
    """The fastest per-sample loop found: rotations fused, ansatz bound once, all <Z> from one `get_qs`.

    Neither the C++ objects called directly, nor `set_qs` of the product state behind the feature map was faster.
    """
    from mindquantum.simulator import Simulator

    fused = to_mindquantum(circuit.fused())
    simulator = Simulator("mqvector", circuit.n_qubits)
    names = [f"input{i}" for i in range(circuit.n_qubits)]
    # MindQuantum's qubit 0 is the least significant bit of the state's index.
    signs = np.ascontiguousarray(z_signs(circuit.n_qubits)[::-1].T)

    def loop() -> np.ndarray:
        result = np.empty(angles.shape)
        for i, row in enumerate(angles.tolist()):
            simulator.reset()
            simulator.apply_circuit(fused, dict(zip(names, row, strict=True)))
            state = simulator.get_qs()
            result[i] = (state.real**2 + state.imag**2) @ signs
        return result

    return loop


def measure_training(n_layers: int, repeats: int) -> list[Row]:
    """Time the gradient of a loss over <Z> in torch, a batch, and in MindQuantum, a sample."""
    progress(f"training, p = {n_layers}: measuring")
    rng = np.random.default_rng(n_layers)
    circuit = student_circuit(PRESET, N_QUBITS, n_layers)
    angles = rng.normal(scale=1.5, size=(BATCH, N_QUBITS))
    ansatz = rng.uniform(-np.pi, np.pi, circuit.n_parameters)
    upstream = rng.normal(size=N_QUBITS)  # d loss / d <Z>
    torch_batch = torch_gradient(circuit, angles, ansatz, upstream)
    one_sample = mindquantum_gradient(circuit, ansatz, [{q: 1.0} for q in range(N_QUBITS)])
    combined = mindquantum_gradient(circuit, ansatz, [dict(enumerate(upstream.tolist()))])
    functions: dict[str, Function] = {
        f"MindQuantum, gradient of {N_QUBITS} <Z>": lambda: one_sample(angles[0])[1],
        "MindQuantum, gradient of one weighted sum of <Z>": lambda: combined(angles[0])[1],
        f"torch float32, forward and backward, batch {BATCH}": torch_batch,
    }
    baseline, shortcut, ours = functions
    seconds = interleaved(functions, repeats)
    expected = sum(np.einsum("o,op->p", upstream, one_sample(row)[1]) for row in angles)
    relative = largest_error(torch_batch(), expected) / float(np.abs(expected).max())
    batches = {**seconds, ours: [s / BATCH for s in seconds[ours]]}
    return [
        summarise(n_layers, baseline, batches, per_call=1),
        summarise(n_layers, shortcut, batches, per_call=1),
        summarise(n_layers, ours, batches, per_call=1, error=relative, target=TRAINING_TARGET),
    ]


def torch_gradient(circuit: Circuit, angles: np.ndarray, ansatz: np.ndarray, upstream: np.ndarray) -> Function:
    """Gradient of sum(upstream * <Z>) over the batch with respect to the ansatz, and to the angles beside it."""
    module = CircuitExpvals(circuit)
    z = torch.tensor(angles, dtype=torch.float32, requires_grad=True)
    parameters = torch.tensor(ansatz, dtype=torch.float32, requires_grad=True)
    weights = torch.tensor(upstream, dtype=torch.float32)

    def gradient() -> np.ndarray:
        z.grad = parameters.grad = None
        (module(z, parameters) @ weights).sum().backward()
        assert parameters.grad is not None
        return parameters.grad.numpy()

    return gradient


def mindquantum_gradient(
    circuit: Circuit, ansatz: np.ndarray, observables: Sequence[Mapping[int, float]]
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`get_expectation_with_grad` of sums of coefficient * Z_q: angles to (values, d values / d ansatz)."""
    from mindquantum.core.operators import Hamiltonian, QubitOperator
    from mindquantum.simulator import Simulator

    head, rest = split_feature_map(circuit)
    whole = to_mindquantum(head).as_encoder() + to_mindquantum(rest).as_ansatz()
    hamiltonians = []
    for observable in observables:
        operator = QubitOperator()
        for qubit, coefficient in observable.items():
            operator += QubitOperator(f"Z{qubit}", coefficient)
        hamiltonians.append(Hamiltonian(operator))
    gradient = Simulator("mqvector", circuit.n_qubits).get_expectation_with_grad(hamiltonians, whole, parallel_worker=1)

    def evaluate(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, _, by_ansatz = gradient(angles[None], ansatz)
        return values[0].real, by_ansatz[0].real

    return evaluate


def interleaved(functions: Mapping[str, Function], repeats: int) -> dict[str, list[float]]:
    """Seconds a call of every function in every repeat, one function after the other in each.

    Short calls are repeated within a repeat until they take 5 ms together.
    """
    calls = {}
    for name, function in functions.items():
        function()
        calls[name] = max(1, round(5e-3 / seconds_of(function, 1)))
    result: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            result[name].append(seconds_of(function, calls[name]))
    return result


def seconds_of(function: Function, calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - begin) / calls


def summarise(
    n_layers: int,
    what: str,
    seconds: Mapping[str, Sequence[float]],
    per_call: int,
    error: float | None = None,
    target: float | None = None,
) -> Row:
    """The row of one function; the first function measured is the baseline of the ratios."""
    baseline = next(iter(seconds))
    ratios = np.divide(seconds[baseline], seconds[what])
    ratio = None if what == baseline else float(np.median(ratios))
    return Row(n_layers, what, float(np.median(seconds[what])) / per_call * 1e6, ratio, error, target)


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


def report(machine: Mapping[str, Any], inference: Sequence[Row], training: Sequence[Row]) -> str:
    """The tables as text."""
    where = f"{machine['cpu']}, {machine['cores']} cores, one thread, load {machine['load_average_1min']:.1f} at start"
    lines = [
        where,
        "",
        f"Inference, {PRESET}, {N_QUBITS} qubits, batch {BATCH}",
        *table(inference, "us a text", "error"),
    ]
    title = f"Training, {PRESET}, {N_QUBITS} qubits, gradient with respect to {N_QUBITS} angles and the ansatz"
    lines += ["", title, *table(training, "us a sample", "rel. error")]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row], unit: str, error: str) -> list[str]:
    lines = [f"{'p':>3}  {'':<50} {unit:>12} {'faster':>9} {error:>11}  target"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.1f}x"
        gap = "" if row.error is None else f"{row.error:.1e}"
        line = f"{row.n_layers:>3}  {row.what:<50} {row.microseconds:>12.2f} {ratio:>9} {gap:>11}  {row.verdict}"
        lines.append(line.rstrip())
    return lines


def row_to_json(row: Row) -> dict[str, Any]:
    met = None if row.target is None or row.ratio is None else row.ratio >= row.target
    return {**asdict(row), "target_met": met}


def describe_machine() -> dict[str, Any]:
    """Processor, cores, thread settings and library versions."""
    libraries = ("numpy", "mindquantum", "torch")
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_average_1min": os.getloadavg()[0],
        "threads": {name: os.environ.get(name) for name in THREADS} | {"torch": torch.get_num_threads()},
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
    }


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in THREADS.items()):
        # The libraries read these when they load, which has happened by now.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **THREADS})
    sys.exit(main())
