from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from needs import needs_mindquantum
from study_fakes import cell
from toy_lessons import TOY, accuracy_on_test, sure_teacher, toy_lesson

from models.baihua import CZ_US, SINGLE_QUBIT_GATE_US, published
from models.circuit import Circuit, Gate, Symbol, student_circuit
from models.device import Device, Qubit
from models.engines.compiled import CompiledEngine, compile_circuit
from models.student import Student, StudentWeights
from training.config import RunConfig
from training.distil import Distilled, Examples
from training.errors import ConfigError
from training.hardware import Chip, measure_channel
from training.study.cells import Cell, Options
from training.study.grid import Entry, Plan
from training.study.noise import (
    SYSTEMS,
    Noise,
    NoisyStudent,
    channel_for_training,
    draw_raw,
    noisy_student,
    readout_errors,
    relaxation_limit,
)
from training.study.noisy_circuit import compile_on_chip
from training.study.results import Result, Split
from training.study.student import Features, StudentSystem
from training.study.tables import noise_table

PRESETS = ("chain", "paper", "released")


def line(qubits: list[Qubit], fidelities: list[float | None], shots: int = 1) -> Chip:
    """A chip that is one chain."""
    links = {(i, i + 1): fidelity for i, fidelity in enumerate(fidelities)}
    return Chip(Device("Line", "made-up", dict(enumerate(qubits)), links), tuple(range(len(qubits))), shots)


def noisy_line(n: int, shots: int) -> Chip:
    """Errors far above Baihua's, other ones on every qubit."""
    qubits = [Qubit(5.0 + i, 3.0 + i / 2, 0.98 - 0.01 * i, 0.97 - 0.01 * i, 0.9 - 0.02 * i) for i in range(n)]
    return line(qubits, [0.93 + 0.01 * i for i in range(n - 1)], shots)


def bound(preset: str, n_qubits: int, n_layers: int = 2) -> Circuit:
    circuit = student_circuit(preset, n_qubits, n_layers)
    return circuit.bind(ansatz=np.random.default_rng(1).uniform(-3, 3, circuit.n_parameters).tolist())


def angles(n_texts: int, n_qubits: int) -> np.ndarray:
    return np.random.default_rng(2).normal(scale=1.5, size=(n_texts, n_qubits))


def student_of(circuit: Circuit) -> Student:
    """A student whose angles are its embeddings."""
    n = circuit.n_qubits
    ansatz = np.random.default_rng(3).uniform(-3, 3, circuit.n_parameters)
    weights = StudentWeights(np.eye(n), np.zeros(n), ansatz, np.ones((2, n)), np.zeros(2))
    return Student(circuit, weights, CompiledEngine(compile_circuit(circuit.bind(ansatz=ansatz.tolist()))))


def deviation_of(differences: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt((differences**2).mean()))


@pytest.mark.parametrize("preset", PRESETS)
def test_chip_without_errors_gives_the_compiled_circuit(preset: str) -> None:
    circuit, z = bound(preset, 4), angles(6, 4)
    found = compile_on_chip(circuit, line([Qubit()] * 4, [None] * 3))
    np.testing.assert_allclose(found(z), compile_circuit(circuit)(z), atol=1e-12)


@needs_mindquantum
@pytest.mark.parametrize(("preset", "n_layers"), [("chain", 2), ("paper", 1), ("released", 1)])  # the last one swaps
def test_values_are_those_of_trajectories_within_sampling_error(preset: str, n_layers: int) -> None:
    circuit, z = bound(preset, 4, n_layers), angles(2, 4)
    chip = noisy_line(4, shots=4000)
    found = compile_on_chip(circuit, chip)(z)
    p10, p01 = readout_errors(circuit, chip)
    expected = (1 - p01 - p10) * found + p01 - p10
    measured = chip.measure([circuit.bind(inputs=row.tolist()).fused() for row in z], seed=0)
    deviation = np.sqrt((1 - expected**2) / chip.shots)
    assert (np.abs(measured.raw - expected) < 5 * deviation).all()
    np.testing.assert_allclose(measured.p10, np.broadcast_to(p10, z.shape))
    np.testing.assert_allclose(measured.p01, np.broadcast_to(p01, z.shape))
    # The noise is there: without it the values are many deviations away.
    assert np.abs(found - compile_circuit(circuit)(z)).max() > 15 * deviation.max()


@needs_mindquantum
def test_channel_of_trajectories_explains_more_than_half_of_what_noise_does() -> None:
    circuit, z = student_circuit("chain", 3, 2), angles(32, 3)
    student = student_of(circuit)
    chip = Chip.baihua(3, shots=4096)
    channel = measure_channel(student, chip, z, seed=0)
    exact = compile_on_chip(circuit.bind(ansatz=student.weights.ansatz.tolist()), chip)(z)
    by_channel = channel.scale * student.expvals(z) + channel.offset
    assert deviation_of(by_channel - exact) < 0.5 * deviation_of(student.expvals(z) - exact)


@pytest.mark.parametrize("z", [0.0, 0.7, 2.5])
def test_gate_error_shrinks_a_value_by_its_depolarising(z: float) -> None:
    # One pulse of average fidelity F flips the bit with 1 - F.
    circuit = Circuit(1, (Gate("rx", (0,), Symbol("input", 0)),))
    found = compile_on_chip(circuit, line([Qubit(gate_fidelity=0.9)], []))
    assert found(np.array([[z]])).item() == pytest.approx((2 * 0.9 - 1) * math.cos(z))


def test_relaxation_pulls_a_value_towards_zero_state() -> None:
    circuit = Circuit(1, (Gate("rx", (0,), Symbol("input", 0)),))
    kept = math.exp(-SINGLE_QUBIT_GATE_US / 0.5)
    found = compile_on_chip(circuit, line([Qubit(t1_us=0.5)], []))
    assert found(np.array([[2.0]])).item() == pytest.approx(kept * math.cos(2.0) + 1 - kept)


def test_counts_have_the_mean_and_variance_of_flipped_bits() -> None:
    z, p10, p01, shots = 0.4, np.array([0.03]), np.array([0.2]), 50
    drawn = draw_raw(np.full((40_000, 1), z), p10, p01, shots, np.random.default_rng(0))
    mean = (1 - p01 - p10).item() * z + (p01 - p10).item()
    variance = (1 - mean**2) / shots
    assert abs(drawn.mean() - mean) < 5 * math.sqrt(variance / len(drawn))
    assert drawn.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / len(drawn)))
    assert not (np.rint(drawn * shots).astype(int) % 2).any()  # n0 - n1 is even where the shots are


def test_cz_has_no_error_of_its_own_above_what_relaxation_leaves() -> None:
    qubits = [Qubit(t1_us=40.0, t2_us=25.0), Qubit(t1_us=70.0, t2_us=200.0)]
    limit = relaxation_limit(*qubits)
    assert 0.98 < limit < 0.995
    circuit, z = bound("chain", 2), angles(3, 2)
    values = {f: compile_on_chip(circuit, line(qubits, [f]))(z) for f in (None, 1.0, limit + 1e-9, limit - 0.01)}
    np.testing.assert_array_equal(values[None], values[1.0])
    np.testing.assert_allclose(values[None], values[limit + 1e-9], atol=1e-7)
    assert np.abs(values[None] - values[limit - 0.01]).max() > 1e-3


def test_limit_of_relaxation_counts_t2_above_t1_as_t1() -> None:
    # P(reset) = r is a channel of the Kraus operators sqrt(1 - r) I, and |0><0| and |0><1|, each times sqrt(r).
    reset = 1 - math.exp(-CZ_US / 3.0)
    kraus = [math.sqrt(1 - reset) * np.eye(2), *(math.sqrt(reset) * np.outer([1, 0], row) for row in np.eye(2))]
    entanglement = sum(abs(np.trace(k) / 2) ** 2 for k in kraus)
    assert relaxation_limit(Qubit(t1_us=3.0, t2_us=6.0), Qubit()) == pytest.approx((4 * entanglement + 1) / 5)


def test_swept_figures_replace_the_published_ones_and_no_other() -> None:
    base = Chip.baihua(4, shots=77)
    fidelity = Noise(cz_fidelity=0.95).chip(4, 77)
    assert set(fidelity.device.couplers.values()) == {0.95}
    assert (fidelity.device.qubits, fidelity.chain, fidelity.shots) == (published().qubits, base.chain, 77)
    readout = Noise(readout_error=0.1).chip(4, 77)
    assert {(q.readout_0, q.readout_1) for q in readout.device.qubits.values()} == {(0.9, 0.9)}
    assert readout.device.couplers == published().couplers
    assert readout.device.qubits[5].t1_us == published().qubits[5].t1_us
    shots = Noise(shots=64).chip(4, 77)
    assert (shots.device, shots.shots) == (published(), 64)


def test_options_are_told_apart_by_their_prefix() -> None:
    noise, left = Noise.split({"noise.shots": 64, "student.n_qubits": 4})
    assert (noise, left) == (Noise(shots=64), Options({"student.n_qubits": 4}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise.fidelity": 0.9}, r"option noise\.fidelity: expected one of \['noise\.cz_fidelity'"),
        ({"noise.cz_fidelity": 1.2}, r"noise\.cz_fidelity is 1\.2"),
        ({"noise.readout_error": 0.5}, r"noise\.readout_error is 0\.5"),
        ({"noise.shots": 0}, r"noise\.shots is 0"),
        ({"noise.shots": 64.5}, r"noise\.shots is 64\.5"),
        ({"noise.shots": "many"}, "expected a number, found 'many'"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Noise.split(options)


def configured() -> RunConfig:
    return RunConfig.model_validate(
        {
            "task": "toy",
            "student": {"preset": "chain", "n_qubits": 3, "n_layers": 1, "features": ["mean:4"]},
            "optimiser": {"epochs": 3, "batch_size": 20, "ridge": 10.0},
        }
    )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of the toy texts."""
    cache = tmp_path_factory.mktemp("embedded")
    features = Features.of(configured().student, toy_lesson(cache))
    for texts in (TOY.train, TOY.validation, TOY.test):
        features(texts)
    return cache / "embeddings"


@pytest.fixture
def cache(embedded: Path, tmp_path: Path) -> Path:
    """A cache that holds embeddings and no run."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "embeddings").symlink_to(embedded)
    return tmp_path / "cache"


def runs(cache: Path) -> set[str]:
    return {path.name for path in (cache / "runs").glob("*.pt")}


def test_points_of_a_sweep_are_one_student_that_is_distilled_once(cache: Path) -> None:
    lesson = toy_lesson(cache, sure_teacher())
    StudentSystem(configured()).learn(lesson)
    noise_free = runs(cache)
    first = noisy_student("QD-LLM on Baihua", configured(), Noise(shots=10)).learn(lesson)
    assert runs(cache) == noise_free
    trained = [noisy_student("QD-LLM trained for Baihua", configured(), Noise(shots=n)) for n in (10, 1000)]
    trained[0].learn(lesson)
    assert len(runs(cache)) == len(noise_free) + 1
    before = runs(cache)
    trained[1].learn(lesson)
    assert runs(cache) == before
    assert first.facts["noise"]["shots"] == 10
    assert "channel" not in first.facts["noise"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_reading_answers_all_texts(cache: Path, name: str) -> None:
    outcome = noisy_student(name, configured(), Noise()).learn(toy_lesson(cache, sure_teacher()))
    assert accuracy_on_test(outcome.learned) > 0.9
    assert ("channel" in outcome.facts["noise"]) == SYSTEMS[name][0]
    assert outcome.facts["noise"]["shots"] == 10_240
    assert outcome.facts["inference_us"] is None
    assert outcome.n_trainable == outcome.facts["parameters"]["total"]


def test_simulator_answers_as_the_student_itself(cache: Path) -> None:
    lesson = toy_lesson(cache, sure_teacher())
    found = NoisyStudent(configured(), "test", in_the_loop=False, reading="simulator").learn(lesson)
    expected = StudentSystem(configured()).learn(lesson).learned.logits(TOY.test)
    np.testing.assert_allclose(found.learned.logits(TOY.test), expected, atol=1e-9)


def test_counts_are_those_of_texts_and_seed(cache: Path) -> None:
    system = noisy_student("QD-LLM on Baihua", configured(), Noise(shots=64))
    learned = system.learn(toy_lesson(cache, sure_teacher())).learned
    first = learned.logits(TOY.test)
    np.testing.assert_array_equal(first, learned.logits(TOY.test))
    assert (replace(learned, seed=1).logits(TOY.test) != first).any()  # type: ignore[type-var]


def test_correction_takes_away_the_bias_of_the_readout(cache: Path) -> None:
    lesson, noise = toy_lesson(cache, sure_teacher()), Noise(shots=10**7)
    ways: dict[str, np.ndarray] = {}
    for reading in ("raw", "corrected"):
        system = NoisyStudent(configured(), "test", False, reading, noise)  # type: ignore[arg-type]
        ways[reading] = system.learn(lesson).learned.logits(TOY.test)
    perfect = Noise(shots=10**7, readout_error=0.0)
    expected = NoisyStudent(configured(), "test", False, "raw", perfect).learn(lesson).learned.logits(TOY.test)
    errors = {reading: np.abs(logits - expected).max() for reading, logits in ways.items()}
    assert errors["corrected"] < 0.05 * errors["raw"]


@needs_mindquantum
def test_channel_for_training_is_the_one_that_trajectories_would_give() -> None:
    circuit, z = student_circuit("chain", 3, 1), angles(24, 3)
    student, chip = student_of(circuit), noisy_line(3, shots=4096)
    examples = Examples(z, np.zeros((24, 2)), np.zeros(24, dtype=int))
    channel = channel_for_training(Distilled(student.weights, [], 0), circuit, chip, examples, seed=0)
    measured = measure_channel(student, chip, z, seed=0)
    assert channel.scale.max() < 0.95
    np.testing.assert_allclose(channel.scale, measured.scale, atol=0.03)
    np.testing.assert_allclose(channel.offset, measured.offset, atol=0.03)
    np.testing.assert_allclose(channel.p10, measured.p10, atol=1e-6)
    assert channel.shots == 4096


class Found:
    """Results by seed and fidelity; one of them is missing."""

    def get(self, cell: Cell, split: Split) -> Result | None:
        fidelity = cell.options["noise.cz_fidelity"]
        if fidelity == 0.9:
            return None
        noise = {"cz_fidelity": fidelity, "cz_relaxation_limit": 0.9913}
        metrics = {split: {"accuracy": fidelity - 0.1}}
        return Result(cell, {"metrics": metrics, "facts": {"noise": noise}}, lambda split: np.array([]))

    def failure(self, cell: Cell) -> str | None:
        return None


def test_sweep_is_a_table_with_systems_told_apart() -> None:
    entries = tuple(
        Entry(cell(system, **{"noise.cz_fidelity": value}), value)
        for system in ("QD-LLM on Baihua", "QD-LLM trained for Baihua")
        for value in (0.9, 0.98)
    )
    table = noise_table(Plan(("weather",), (), (), {"fidelity": entries}), "fidelity", "CZ fidelity", Found(), "test")
    assert [row[:2] for row in table.rows] == [[str(e.row), e.cell.system] for e in entries]
    assert table.rows[1][-1] == "0.8800 (1 run)"
    assert table.rows[0][-1].startswith("not run")
    assert table.notes == []


def test_table_says_which_fidelities_relaxation_does_not_allow() -> None:
    entry = Entry(cell("QD-LLM on Baihua", **{"noise.cz_fidelity": 0.999}), 0.999)
    table = noise_table(Plan(("weather",), (), (), {"fidelity": (entry,)}), "fidelity", "CZ", Found(), "test")
    assert "leaves an average fidelity of 0.9913" in table.notes[0]
