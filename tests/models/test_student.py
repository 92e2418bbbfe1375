from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from samples import random_weights
from statevector import expvals

from models.circuit import Symbol, student_circuit
from models.engines.compiled import CompiledEngine, compile_circuit
from models.errors import ShapeError
from models.student import Student, softmax

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
