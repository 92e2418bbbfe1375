"""How a student's cost grows with its qubits: parameters, training, state vector, compiled table.

Everything is measured in one run on one thread, the ways of a row interleaved (ABAB...). Times are CPU time, the least
of some repeats: what else the machine does adds to a time and takes nothing from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from models.circuit import Circuit, student_circuit, trainable_parameters
from models.engines.compiled import MAX_QUBITS, CompiledEngine, MultilinearTensor, compile_circuit
from models.engines.mindquantum import MindQuantumEngine
from training.circuit_torch import CircuitExpvals
from training.errors import StudyError
from training.figures import save
from training.study.tables import Table

QUBITS = tuple(range(2, 15))
PRESETS = ("chain", "paper")
N_LAYERS, N_CLASSES, EMBEDDING_SIZE, BATCH = 2, 2, 768, 64
TRAINING, STATE_VECTOR, COMPILED = "training_us", "state_vector_us", "compiled_us"
# A state vector of 14 qubits takes milliseconds a text; of more texts it would only be the same again.
_STATE_VECTOR_TEXTS = 8
_NAMES = {
    TRAINING: f"training, a text of a step of {BATCH}",
    STATE_VECTOR: "state vector, a text",
    COMPILED: f"compiled, a text of a batch of {BATCH}",
}


def measure_cost(
    qubits: Sequence[int] = QUBITS,
    presets: Sequence[str] = PRESETS,
    repeats: int = 9,
    said: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure every preset with every number of qubits, two layers, random angles.

    Args:
        qubits: Numbers of qubits.
        presets: Ansatz presets.
        repeats: Interleaved repeats, the fastest of which counts.
        said: Told what is being measured.

    Returns:
        JSON: `circuit` and `method`, which say what was measured, and `rows`, one for each preset and number of qubits:
        `parameters` by part; `training_us`, microseconds a text of the forward and backward pass of a step through the
        circuit in torch, float32, and `training_step_ms` of the whole step; `state_vector_us`, all <Z> of a text by
        MindQuantum, None where it is not installed; `compile_seconds`, `compiled_bytes` of the table of all <Z>,
        `compiled_us` of the logits of a text, float64, and `faster`, how many times faster than the state vector
        that is: None beyond the compiled engine's qubits.
    """
    torch.set_num_threads(1)
    rows = []
    for preset in presets:
        for n_qubits in qubits:
            said(f"{preset}, {n_qubits} qubits")
            rows.append(_measure(preset, n_qubits, repeats))
    return {
        "circuit": {"n_layers": N_LAYERS, "n_classes": N_CLASSES, "embedding_size": EMBEDDING_SIZE},
        "method": {
            "batch": BATCH,
            "state_vector_texts": _STATE_VECTOR_TEXTS,
            "repeats": repeats,
            "time": "CPU time, one thread, the least of the interleaved repeats; faster = state vector's / compiled",
            "compiled_up_to_qubits": MAX_QUBITS,
        },
        "rows": rows,
    }


def _measure(preset: str, n_qubits: int, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(n_qubits)
    circuit = student_circuit(preset, n_qubits, N_LAYERS)
    ansatz = rng.uniform(-np.pi, np.pi, circuit.n_parameters)
    angles = rng.normal(scale=1.5, size=(BATCH, n_qubits))
    ways: dict[str, tuple[Callable[[], object], int]] = {TRAINING: (_training_step(circuit, angles, ansatz), BATCH)}
    bound = circuit.bind(ansatz=ansatz.tolist())
    if find_spec("mindquantum") is not None:
        some = angles[:_STATE_VECTOR_TEXTS]
        ways[STATE_VECTOR] = (partial(MindQuantumEngine(bound).expvals, some), len(some))
    compiled: dict[str, Any] = {"compile_seconds": None, "compiled_bytes": None}
    if n_qubits <= MAX_QUBITS:
        begin = time.process_time()
        tensor = compile_circuit(bound)
        compiled = {"compile_seconds": time.process_time() - begin, "compiled_bytes": table_bytes(tensor)}
        weights = rng.normal(size=(N_CLASSES, n_qubits))
        # Softmax does not see what all classes share: the shipped students' heads sum to zero.
        weights -= weights.mean(axis=0)
        ways[COMPILED] = (partial(CompiledEngine(tensor).linear, angles, weights, np.zeros(N_CLASSES)), BATCH)
    seconds = interleaved({name: function for name, (function, _) in ways.items()}, repeats)
    texts = {name: min(seconds[name]) / n for name, (_, n) in ways.items()}
    both = STATE_VECTOR in texts and COMPILED in texts
    return {
        "preset": preset,
        "n_qubits": n_qubits,
        "parameters": trainable_parameters(EMBEDDING_SIZE, circuit, N_CLASSES),
        "training_step_ms": 1e3 * min(seconds[TRAINING]),
        **{name: 1e6 * texts[name] if name in texts else None for name in _NAMES},
        **compiled,
        "faster": texts[STATE_VECTOR] / texts[COMPILED] if both else None,
    }


def _training_step(circuit: Circuit, angles: np.ndarray, ansatz: np.ndarray) -> Callable[[], object]:
    """Gradient of the sum of all <Z> of a batch with respect to the ansatz and to the angles."""
    module = CircuitExpvals(circuit)
    z = torch.tensor(angles, dtype=torch.float32, requires_grad=True)
    parameters = torch.tensor(ansatz, dtype=torch.float32, requires_grad=True)

    def step() -> None:
        z.grad = parameters.grad = None
        module(z, parameters).sum().backward()

    return step


def table_bytes(tensor: MultilinearTensor) -> int:
    """Memory of a compiled circuit's factors."""
    return tensor.left.nbytes + (0 if tensor.right is None else tensor.right.nbytes)


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds a call of every function in every repeat, one after the other, after a call that does not count.

    Short calls are repeated within a repeat until they take 2 ms together.
    """
    calls = {}
    for name, function in functions.items():
        function()
        calls[name] = max(1, round(2e-3 / max(_seconds(function, 1), 1e-7)))
    result: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            result[name].append(_seconds(function, calls[name]))
    return result


def _seconds(function: Callable[[], object], calls: int) -> float:
    begin = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - begin) / calls


def read_cost(path: Path) -> dict[str, Any]:
    """The figures that `measure_cost` gave.

    Raises:
        StudyError: If the file has none; names it.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = found["rows"]
        lacking = {name for row in rows for name in (*_NAMES, "preset", "n_qubits", "parameters") if name not in row}
        if lacking or not {"circuit", "method"} <= found.keys():
            raise KeyError(*sorted(lacking))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StudyError(f"{path}: expected what `make bench-cost` writes, found {exc!r}") from exc
    return found


def cost_table(figures: dict[str, Any], preset: str) -> Table:
    """One preset's rows; times relative to its own smallest circuit stand behind them."""
    header = ["qubits", "circuit's parameters", "all parameters", "training, ms a step", "state vector, µs a text"]
    table = Table([*header, "compiled, µs a text", "compiled faster", "table, bytes", "compiling, s"])
    rows = [row for row in figures["rows"] if row["preset"] == preset]
    for row in rows:
        beyond = row["n_qubits"] > figures["method"]["compiled_up_to_qubits"]
        absent = "beyond the engine" if beyond else "not measured"
        table.rows.append(
            [
                str(row["n_qubits"]),
                str(row["parameters"]["ansatz"]),
                f"{row['parameters']['total']:,}",
                _time(row, rows[0], "training_step_ms", "not measured"),
                _time(row, rows[0], STATE_VECTOR, "not measured"),
                _time(row, rows[0], COMPILED, absent),
                absent if row["faster"] is None else f"{row['faster']:.3g}×",
                absent if row["compiled_bytes"] is None else f"{row['compiled_bytes']:,}",
                absent if row["compile_seconds"] is None else f"{row['compile_seconds']:.3g}",
            ]
        )
    circuit, method = figures["circuit"], figures["method"]
    table.notes = [
        f"`{preset}`, {circuit['n_layers']} layers, embeddings of length {circuit['embedding_size']}, "
        f"{circuit['n_classes']} classes; CPU time on one thread, the least of {method['repeats']} interleaved "
        f"repeats, steps and batches of {method['batch']} texts. In brackets: how many times the first row's. Encoder "
        "and reducer are left out of all times, the head of all but the compiled engine's, which has it folded in; the "
        "table is that of all <Z>."
    ]
    return table


def _time(row: dict[str, Any], first: dict[str, Any], name: str, absent: str) -> str:
    if row[name] is None:
        return absent
    value = f"{row[name]:.3g}" if row[name] < 1000 else f"{row[name]:,.0f}"
    return f"{value} ({row[name] / first[name]:.3g}×)"


def cost_plot(figures: dict[str, Any], path: Path) -> bool:
    """Times a text, table size and parameters against qubits, PNG; sizes and times on logarithmic axes.

    Returns:
        Whether there was anything to draw; without, no file is left.
    """
    rows = figures["rows"]
    if not rows:
        path.unlink(missing_ok=True)
        return False
    figure = Figure(figsize=(12.6, 3.6), layout="constrained")
    times, sizes, counts = figure.subplots(1, 3)
    for preset, style in zip(dict.fromkeys(row["preset"] for row in rows), cycle(("-", "--", ":")), strict=False):
        ours = [row for row in rows if row["preset"] == preset]
        for (name, label), colour in zip(_NAMES.items(), ("C0", "C1", "C2"), strict=True):
            points = [(row["n_qubits"], row[name]) for row in ours if row[name] is not None]
            if points:
                label = f"{label} ({preset})"
                times.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=3, label=label)
        kept = [(row["n_qubits"], row["compiled_bytes"]) for row in ours if row["compiled_bytes"] is not None]
        if kept:
            sizes.plot(*zip(*kept, strict=True), style, color="C2", marker="o", markersize=3, label=preset)
        numbers = [(row["n_qubits"], row["parameters"]["ansatz"]) for row in ours]
        counts.plot(*zip(*numbers, strict=True), style, color="C3", marker="o", markersize=3, label=preset)
    for axis, title in (
        (times, "CPU time, µs a text"),
        (sizes, "compiled table, bytes"),
        (counts, "circuit's parameters"),
    ):
        axis.set_xlabel("qubits", fontsize=8)
        axis.set_ylabel(title, fontsize=8)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6)
    times.set_yscale("log")
    sizes.set_yscale("log")
    return save(figure, path)
