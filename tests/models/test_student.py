from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from samples import random_weights
from statevector import expvals

from models.circuit import Symbol, student_circuit
from models.engines.compiled import CompiledEngine, compile_circuit
from models.errors import ShapeError
from models.student import Student, flip_probability, softmax

M, N = 7, 4


@pytest.fixture(scope="module")
def student() -> Student:
    circuit = student_circuit("chain", N, 2)
    weights = random_weights(circuit, M, n_classes=3)
    engine = CompiledEngine(compile_circuit(circuit.bind(ansatz=weights.ansatz.tolist())))
    return Student(circuit, weights, engine)


def draw_embeddings(batch: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, M))


def test_angles_are_the_affine_map_of_the_embedding(student: Student) -> None:
    embeddings = draw_embeddings(5)
    expected = [
        [sum(w * e for w, e in zip(row, embedding, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        for weight, bias in [(student.weights.reducer_weight, student.weights.reducer_bias)]
        for embedding in embeddings
    ]
    np.testing.assert_allclose(student.angles(embeddings), expected, rtol=0, atol=1e-14)


def test_angles_of_float32_embeddings_are_computed_in_float64(student: Student) -> None:
    embeddings = draw_embeddings(5).astype(np.float32)
    found = student.angles(embeddings)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, student.angles(embeddings.astype(np.float64)), rtol=0, atol=1e-14)


def test_logits_are_the_head_on_the_expectation_values(student: Student) -> None:
    angles = student.angles(draw_embeddings(5))
    found = student.expvals(angles)
    np.testing.assert_allclose(student.logits(angles), student.logits_from_expvals(found), rtol=0, atol=1e-13)
    head = student.weights
    np.testing.assert_allclose(
        student.logits_from_expvals(found)[0], head.head_weight @ found[0] + head.head_bias, rtol=0, atol=1e-14
    )


def test_bound_circuit_is_what_the_engine_evaluates(student: Student) -> None:
    angles = student.angles(draw_embeddings(3))
    for row, expected in zip(angles, student.expvals(angles), strict=True):
        circuit = student.bound_circuit(row)
        assert circuit.is_bound
        np.testing.assert_allclose(expvals(circuit), expected, rtol=0, atol=1e-13)


def test_parameters_are_counted_by_part(student: Student) -> None:
    reducer, ansatz, head = M * N + N, 2 * 3 * N, 3 * N + 3
    expected = {"reducer": reducer, "ansatz": ansatz, "head": head, "total": reducer + ansatz + head}
    assert student.parameter_counts == expected
    assert sum(value.size for value in vars(student.weights).values()) == expected["total"]


def test_the_students_own_circuit_stays_unbound(student: Student) -> None:
    student.bound_circuit(np.zeros(N))
    assert isinstance(student.circuit.gates[0].angle, Symbol)


@pytest.mark.parametrize("shape", [(M,), (2, M + 1), (1, 2, M)])
def test_embeddings_of_another_length_are_refused(student: Student, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=rf"embeddings have shape .*, expected \(batch, {M}\)"):
        student.angles(np.zeros(shape))


@pytest.mark.parametrize(
    ("name", "shape"), [("reducer_bias", (N + 1,)), ("head_weight", (3, N - 1)), ("head_bias", (2,))]
)
def test_weights_that_do_not_fit_each_other_are_refused(student: Student, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=f"{name} has shape"):
        replace(student.weights, **{name: np.zeros(shape)})


@pytest.mark.parametrize("name", ["reducer_weight", "reducer_bias", "ansatz", "head_weight", "head_bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(student: Student, name: str, value: float) -> None:
    array = getattr(student.weights, name).copy()
    array.flat[-1] = value
    with pytest.raises(ShapeError, match=f"{name} holds a value that is not finite"):
        replace(student.weights, **{name: array})


def test_ansatz_of_another_length_is_refused(student: Student) -> None:
    weights = replace(student.weights, ansatz=np.zeros(5))
    with pytest.raises(ShapeError, match=rf"ansatz has shape \(5,\), expected \({2 * 3 * N},\)"):
        Student(student.circuit, weights, student.engine)


def test_reducer_for_another_number_of_qubits_is_refused(student: Student) -> None:
    circuit = student_circuit("chain", N + 1, 2)
    weights = replace(student.weights, ansatz=np.zeros(circuit.n_parameters))
    with pytest.raises(ShapeError, match=f"makes {N} angles, the circuit takes {N + 1}"):
        Student(circuit, weights, student.engine)


def test_softmax_is_the_ratio_of_exponentials_and_never_overflows() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 3.0]])), [[0.25, 0.75]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0], [-1e4, 0.0]])), [[0.5, 0.5], [0, 1]], rtol=0, atol=0)
    logits = np.random.default_rng(0).normal(size=(6, 3))
    np.testing.assert_allclose(softmax(logits + 5.0), softmax(logits), rtol=0, atol=1e-15)
    np.testing.assert_allclose(softmax(logits).sum(axis=-1), 1.0, rtol=0, atol=1e-15)


def rerun_flips(logits: np.ndarray, covariance: np.ndarray, draws: int, seed: int) -> tuple[float, float]:
    """How often a simulated rerun gives another label than `logits`, and the standard error of that.

    The true logits differ from the measured ones by the noise of one run, and those of the rerun from the true ones by
    the noise of another.
    """
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(covariance)
    true = logits + rng.normal(size=(draws, len(logits))) @ root.T
    rerun = true + rng.normal(size=(draws, len(logits))) @ root.T
    share = float((rerun.argmax(axis=1) != logits.argmax()).mean())
    return share, math.sqrt(share * (1 - share) / draws)


def random_covariance(n_classes: int, scale: float, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(n_classes, n_classes + 2)) * scale
    return root @ root.T


@pytest.mark.parametrize("lead", [0.0, 0.05, -0.2, 0.5, 1.0])
def test_flip_probability_of_two_classes_is_how_often_reruns_flip(lead: float) -> None:
    logits, covariance = np.array([lead, 0.0]), random_covariance(2, 0.1, seed=5)
    share, sigma = rerun_flips(logits, covariance, draws=200_000, seed=6)
    assert share > 0
    assert flip_probability(logits, covariance) == pytest.approx(share, abs=5 * sigma)


def test_flip_probability_of_four_classes_is_a_bound_that_is_tight_where_it_is_small() -> None:
    covariance = random_covariance(4, 0.1, seed=7)
    near, far = np.array([0.3, 0.2, 0.1, 0.25]), np.array([1.5, 0.2, 0.1, 0.25])
    share, sigma = rerun_flips(near, covariance, draws=200_000, seed=8)
    assert flip_probability(near, covariance) > share + 5 * sigma
    share, sigma = rerun_flips(far, covariance, draws=200_000, seed=9)
    assert 0 < share < 0.05
    assert flip_probability(far, covariance) >= share - 5 * sigma
    assert flip_probability(far, covariance) == pytest.approx(share, rel=0.25)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_tie_flips_in_half_of_the_reruns_with_noise_and_without(scale: float) -> None:
    assert flip_probability(np.array([0.7, 0.7]), scale * np.eye(2)) == 0.5


def test_label_of_a_run_without_noise_never_flips() -> None:
    assert flip_probability(np.array([0.1, 0.2, 0.3]), np.zeros((3, 3))) == 0.0


def test_noise_that_all_classes_share_flips_nothing() -> None:
    assert flip_probability(np.array([0.1, 0.2]), np.ones((2, 2))) == 0.0


def test_flip_probability_grows_as_shots_shrink_and_stays_below_a_half_for_two_classes() -> None:
    logits, one_shot = np.array([0.1, 0.0]), random_covariance(2, 1.0, seed=10)
    found = [flip_probability(logits, one_shot / shots) for shots in (10_240, 1024, 100, 10, 1)]
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert found[0] > 0
    assert found[-1] < 0.5


def test_flip_probability_does_not_depend_on_the_order_of_classes() -> None:
    logits, covariance = np.array([0.1, 0.2, 0.15, 0.0]), random_covariance(4, 0.05, seed=12)
    order = [2, 0, 3, 1]
    expected = flip_probability(logits, covariance)
    assert flip_probability(logits[order], covariance[np.ix_(order, order)]) == pytest.approx(expected, rel=1e-12)


def test_flip_probability_of_many_tied_classes_is_at_most_one() -> None:
    assert flip_probability(np.zeros(5), np.eye(5)) == 1.0
