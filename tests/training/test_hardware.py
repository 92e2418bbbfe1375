from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import needs_mindquantum

from models.baihua import published
from models.circuit import Circuit, Gate, student_circuit
from models.device import Device, Qubit
from models.engines.compiled import CompiledEngine, compile_circuit
from models.errors import DeviceError
from models.observables import Counts
from models.student import Student, StudentWeights
from training.errors import ConfigError
from training.hardware import Channel, Chip, Measured, draw_rows, fit_channel, measure_channel, predict_on_chip
from training.pipeline import Pipeline

P10, P01 = np.array([0.03, 0.01]), np.array([0.10, 0.2])


def draw_channel(expvals: list[float], shots: int, n: int = 20_000) -> np.ndarray:
    """Draws of a channel for the same expvals, shape (n, 2)."""
    torch.manual_seed(0)
    channel = Channel(np.array([0.9, 0.8]), np.array([0.02, -0.1]), P10, P01, shots)
    return channel(torch.tensor([expvals] * n, dtype=torch.float64)).numpy()


def test_channel_shrinks_and_shifts_the_mean() -> None:
    drawn = draw_channel([0.5, -0.4], shots=100)
    np.testing.assert_allclose(
        drawn.mean(axis=0), [0.9 * 0.5 + 0.02, 0.8 * -0.4 - 0.1], atol=5 * 0.15 / np.sqrt(20_000)
    )


def test_shot_noise_is_binomial_before_readout_correction() -> None:
    shots = 100
    drawn = draw_channel([0.5, -0.4], shots)
    # The same by counting: bits of each mean, flipped by the readout, corrected in closed form.
    rng = np.random.default_rng(1)
    ones = (1 - np.array([0.9 * 0.5 + 0.02, 0.8 * -0.4 - 0.1])) / 2
    read = rng.binomial(shots, ones * (1 - P01) + (1 - ones) * P10, size=(20_000, 2))
    counted = ((1 - 2 * read / shots) - (P01 - P10)) / (1 - P01 - P10)
    np.testing.assert_allclose(drawn.mean(axis=0), counted.mean(axis=0), atol=7 * 0.15 / np.sqrt(20_000))
    # A variance from n draws has a relative error of sqrt(2 / n) = 1 %.
    np.testing.assert_allclose(drawn.var(axis=0), counted.var(axis=0), rtol=0.07)


def test_value_beyond_one_has_no_shot_noise() -> None:
    channel = Channel(np.ones(1), np.array([0.1]), np.zeros(1), np.zeros(1), shots=10)
    assert channel(torch.tensor([[0.95]])).item() == pytest.approx(1.05)


def test_gradient_of_the_channel_is_its_scale() -> None:
    expvals = torch.tensor([[0.3, -0.9]], requires_grad=True)
    channel = Channel(np.array([0.9, 0.8]), np.zeros(2), P10, P01, shots=100)
    channel(expvals).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(expvals.grad, torch.tensor([[0.9, 0.8]]))


def test_scale_and_offset_are_recovered_from_readings() -> None:
    exact = np.random.default_rng(0).uniform(-0.8, 0.8, size=(500, 2))
    mean = np.array([0.9, 0.7]) * exact + np.array([0.03, -0.05])
    noise = np.random.default_rng(1).normal(scale=0.01, size=exact.shape)
    raw = (1 - P01 - P10) * (mean + noise) + P01 - P10
    channel = fit_channel(exact, Measured(raw, *(np.broadcast_to(p, raw.shape) for p in (P10, P01)), shots=10_240))
    np.testing.assert_allclose(channel.scale, [0.9, 0.7], atol=5e-3)
    np.testing.assert_allclose(channel.offset, [0.03, -0.05], atol=2.5e-3)
    np.testing.assert_allclose(channel.p10, P10)
    np.testing.assert_allclose(channel.p01, P01)
    assert channel.shots == 10_240


LINE = Device(
    "Line",
    "made-up",
    {
        7: Qubit(readout_0=1.0, readout_1=1.0),
        3: Qubit(readout_0=0.9, readout_1=0.8),
        5: Qubit(None, None, None, 0.7, 0.6),
    },
    {(3, 7): None, (3, 5): None},
)


def record(seen: list[tuple[Circuit, Sequence[int], int]], bits: str) -> Chip:
    """A chip on 7-3-5 that reads the same bits whatever it runs."""

    def sample(circuit: Circuit, shots: int, device: Device, chain: Sequence[int], seed: int) -> Counts:
        assert device is LINE
        seen.append((circuit, chain, seed))
        return {bits: shots}

    return Chip(LINE, (7, 3, 5), 50, sample)


def test_readings_and_readout_errors_follow_a_qubit_to_where_it_is_measured() -> None:
    # Along the chain qubit 0 is in the middle: 1-0-2 sits on 7-3-5.
    circuit = Circuit(3, (Gate("cz", (0, 1)), Gate("cz", (0, 2)), Gate("rx", (0,), 1.0), Gate("rx", (1,), 0.5)))
    seen: list[tuple[Circuit, Sequence[int], int]] = []
    measured = record(seen, "100").measure([circuit, circuit], seed=4)
    np.testing.assert_array_equal(measured.raw, [[1, -1, 1]] * 2)
    np.testing.assert_allclose(measured.p10, [[0.1, 0.0, 0.3]] * 2)
    np.testing.assert_allclose(measured.p01, [[0.2, 0.0, 0.4]] * 2)
    assert [(chain, seed) for _, chain, seed in seen] == [((7, 3, 5), 4), ((7, 3, 5), 5)]
    assert {gate.name for run, _, _ in seen for gate in run.gates} <= {"rx", "ry", "rz", "cz"}


def test_qubit_without_a_measured_readout_is_refused() -> None:
    device = Device("Line", "made-up", {3: Qubit()}, {})
    chip = Chip(device, (3,), 50, lambda *_: {"0": 50})
    with pytest.raises(DeviceError, match=r"no measured readout of qubit 3, expected P\(0\|0\) and P\(1\|1\)"):
        chip.measure([Circuit(1, (Gate("rx", (0,), 0.2),))], seed=0)


def make_student(n_qubits: int) -> Student:
    rng = np.random.default_rng(0)
    circuit = student_circuit("chain", n_qubits, 1)
    ansatz = rng.uniform(-np.pi, np.pi, circuit.n_parameters)
    head = rng.normal(size=(2, n_qubits))
    weights = StudentWeights(rng.normal(size=(n_qubits, 5)), rng.normal(size=n_qubits), ansatz, head, np.zeros(2))
    return Student(circuit, weights, CompiledEngine(compile_circuit(circuit.bind(ansatz=ansatz.tolist()))))


def test_predictions_are_those_of_exact_raw_and_corrected_values() -> None:
    student = make_student(3)
    embeddings = np.random.default_rng(2).normal(size=(4, 5))
    predicted = predict_on_chip(student, record([], "010"), embeddings, seed=0)
    assert list(predicted) == ["exact", "raw", "corrected"]
    np.testing.assert_array_equal(predicted["exact"], student.logits(student.angles(embeddings)).argmax(axis=1))
    np.testing.assert_array_equal(predicted["raw"], [student.weights.head_weight @ [1, -1, 1] @ [-1, 1] > 0] * 4)


@needs_mindquantum
def test_channel_of_a_chip_without_errors_is_the_identity() -> None:
    perfect = Qubit(readout_0=1.0, readout_1=1.0)
    chip = Chip(
        Device("Perfect", "made-up", dict.fromkeys(range(3), perfect), {(0, 1): None, (1, 2): None}), (0, 1, 2), 4096
    )
    channel = measure_channel(make_student(3), chip, np.random.default_rng(1).normal(size=(24, 5)), seed=0)
    np.testing.assert_allclose(channel.scale, 1, atol=0.05)
    np.testing.assert_allclose(channel.offset, 0, atol=0.02)


@needs_mindquantum
def test_channel_of_baihua_shrinks_every_expectation_value() -> None:
    chip = Chip.baihua(3, shots=4096)
    assert set(chip.chain) <= set(published().qubits)
    channel = measure_channel(make_student(3), chip, np.random.default_rng(1).normal(size=(24, 5)), seed=0)
    assert ((channel.scale > 0.8) & (channel.scale < 1.0)).all()
    slope = 1 - channel.p01 - channel.p10
    assert ((slope > 0.8) & (slope < 0.95)).all()


def test_rows_are_drawn_without_replacement_and_at_most_all_of_them() -> None:
    rows = draw_rows(50, 20, seed=3)
    assert len(set(rows.tolist())) == 20
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, draw_rows(50, 20, seed=3))
    assert rows.tolist() != draw_rows(50, 20, seed=4).tolist()
    assert draw_rows(5, 20, seed=0).tolist() == [0, 1, 2, 3, 4]


def test_chip_that_cannot_be_emulated_is_an_error_before_anything_is_taught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("training.pipeline.find_spec", lambda name: None)
    config = tmp_path / "run.toml"
    config.write_text('task = "emotion"\n[hardware]\n')
    with pytest.raises(ConfigError, match="mindquantum"):
        Pipeline.open(config, tmp_path / "no-data", tmp_path)
