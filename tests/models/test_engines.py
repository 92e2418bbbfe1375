from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from needs import needs_mindquantum
from statevector import student_expvals
from strategies import random_preset, random_student

from models.bundle import SHIPPED, load_bundle
from models.circuit import PRESETS, Circuit, Gate, feature_map, student_circuit
from models.engines import Engine
from models.engines.compiled import MAX_QUBITS, CompiledEngine, MultilinearTensor, compile_circuit
from models.engines.mindquantum import MindQuantumEngine
from models.errors import EngineError, ShapeError, StudentError, UnboundParameterError

DOUBLE, SINGLE = 1e-9, 1e-5
SHIPPED_BUNDLES = sorted(path.parent for path in SHIPPED.glob("*/manifest.json"))


def draw_angles(batch: int, n_qubits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-2 * np.pi, 2 * np.pi, (batch, n_qubits))


def draw_head(n_classes: int, n_qubits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_classes, n_qubits)), rng.normal(size=n_classes)


def build_compiled(circuit: Circuit) -> Engine:
    return CompiledEngine(compile_circuit(circuit))


def assert_engines_agree(circuit: Circuit, batch: int = 4) -> None:
    angles = draw_angles(batch, circuit.n_qubits)
    weights, bias = draw_head(3, circuit.n_qubits)
    reference = MindQuantumEngine(circuit)
    tensor = compile_circuit(circuit)
    for dtype, tolerance in ((np.float64, DOUBLE), (np.float32, SINGLE)):
        compiled = CompiledEngine(tensor, dtype)
        np.testing.assert_allclose(compiled.expvals(angles), reference.expvals(angles), rtol=0, atol=tolerance)
        expected = reference.linear(angles, weights, bias)
        # Rounding of <Z> is scaled by the head.
        scale = np.abs(weights).sum(axis=1).max()
        np.testing.assert_allclose(compiled.linear(angles, weights, bias), expected, rtol=0, atol=tolerance * scale)


@pytest.fixture(
    params=[
        pytest.param(build_compiled, id="compiled"),
        pytest.param(MindQuantumEngine, id="mindquantum", marks=needs_mindquantum),
    ]
)
def build(request: pytest.FixtureRequest) -> Callable[[Circuit], Engine]:
    builder: Callable[[Circuit], Engine] = request.param
    return builder


@needs_mindquantum
@pytest.mark.parametrize("n_qubits", range(2, 9))
def test_engines_agree_on_gates_in_random_order(n_qubits: int) -> None:
    assert_engines_agree(random_student(n_qubits, 12 * n_qubits, seed=n_qubits))


@needs_mindquantum
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(2, 1), (3, 4), (5, 2), (8, 2)])
def test_engines_agree_on_presets(preset: str, n_qubits: int, n_layers: int) -> None:
    assert_engines_agree(random_preset(preset, n_qubits, n_layers, seed=n_layers))


@needs_mindquantum
@pytest.mark.parametrize(
    "circuit",
    [
        random_student(9, 60, seed=9),
        random_preset("paper", 10, 1, seed=10),
        random_preset("released", 11, 2, seed=11),
        random_student(11, 150, seed=12),
    ],
    ids=["random-9", "paper-10x1", "released-11x2", "random-11"],
)
def test_engines_agree_on_many_qubits(circuit: Circuit) -> None:
    assert_engines_agree(circuit)


@needs_mindquantum
@pytest.mark.parametrize("folder", SHIPPED_BUNDLES, ids=lambda path: path.name)
def test_engines_agree_on_every_shipped_bundle(folder) -> None:  # type: ignore[no-untyped-def]
    bundle = load_bundle(folder)
    reference = bundle.student("mindquantum")
    angles = np.concatenate([bundle.golden.angles, draw_angles(8, bundle.circuit.n_qubits)])
    scale = np.abs(bundle.weights.head_weight).sum(axis=1).max()
    for dtype, tolerance in ((np.float64, DOUBLE), (np.float32, SINGLE)):
        compiled = bundle.student("compiled", dtype)
        np.testing.assert_allclose(compiled.expvals(angles), reference.expvals(angles), rtol=0, atol=tolerance)
        np.testing.assert_allclose(compiled.logits(angles), reference.logits(angles), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("n_qubits", [1, 2, 4])
def test_every_engine_agrees_with_a_plain_state_vector(
    build: Callable[[Circuit], Engine], n_qubits: int, seed: int
) -> None:
    circuit = random_student(n_qubits, 30, seed)
    angles = draw_angles(3, n_qubits, seed)
    np.testing.assert_allclose(build(circuit).expvals(angles), student_expvals(circuit, angles), rtol=0, atol=1e-12)


@needs_mindquantum
def test_mindquantum_states_have_qubit_0_leftmost() -> None:
    circuit = Circuit(3, (*feature_map(3), Gate("cx", (0, 2))))
    state = MindQuantumEngine(circuit).states(np.array([[np.pi, 0.0, 0.0]]))[0]
    np.testing.assert_allclose(np.abs(state), np.eye(8)[0b101], rtol=0, atol=1e-15)


def test_rx_alone_gives_the_cosine_of_the_angle(build: Callable[[Circuit], Engine]) -> None:
    angles = draw_angles(6, 3)
    np.testing.assert_allclose(build(Circuit(3, feature_map(3))).expvals(angles), np.cos(angles), rtol=0, atol=1e-14)


def test_rx_pi_flips_expectation_to_minus_one(build: Callable[[Circuit], Engine]) -> None:
    engine = build(Circuit(2, feature_map(2)))
    np.testing.assert_allclose(
        engine.expvals(np.array([[0.0, np.pi], [np.pi, 0.0]])), [[1, -1], [-1, 1]], rtol=0, atol=1e-15
    )


def test_ry_behind_the_feature_map_rotates_z_into_cos_cos(build: Callable[[Circuit], Engine]) -> None:
    # <Z> behind R_Y(b) R_X(z) |0> is cos(b) cos(z): R_X leaves no X component for R_Y to bring up.
    angles = draw_angles(5, 1)
    engine = build(Circuit(1, (*feature_map(1), Gate("ry", (0,), 0.8))))
    np.testing.assert_allclose(engine.expvals(angles), np.cos(0.8) * np.cos(angles), rtol=0, atol=1e-14)


def test_rz_then_ry_brings_up_the_sine(build: Callable[[Circuit], Engine]) -> None:
    # Bloch vector (0, -sin z, cos z); R_Z(pi/2) turns -sin z on y into +sin z on x, R_Y(b) turns x and z.
    angles = draw_angles(5, 1)
    engine = build(Circuit(1, (*feature_map(1), Gate("rz", (0,), np.pi / 2), Gate("ry", (0,), 0.8))))
    expected = np.cos(0.8) * np.cos(angles) - np.sin(0.8) * np.sin(angles)
    np.testing.assert_allclose(engine.expvals(angles), expected, rtol=0, atol=1e-14)


def test_cnot_multiplies_expectations_into_the_target(build: Callable[[Circuit], Engine]) -> None:
    angles = draw_angles(5, 2)
    found = build(Circuit(2, (*feature_map(2), Gate("cx", (0, 1))))).expvals(angles)
    np.testing.assert_allclose(found[:, 0], np.cos(angles[:, 0]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(found[:, 1], np.cos(angles).prod(axis=1), rtol=0, atol=1e-14)


def test_expectations_have_period_two_pi_in_every_angle(build: Callable[[Circuit], Engine]) -> None:
    engine = build(random_student(4, 40, seed=3))
    angles = draw_angles(4, 4)
    np.testing.assert_allclose(
        engine.expvals(angles + 2 * np.pi * np.eye(4)), engine.expvals(angles), rtol=0, atol=1e-12
    )


def test_expectations_stay_in_minus_one_to_one(build: Callable[[Circuit], Engine]) -> None:
    assert np.abs(build(random_preset("paper", 5, 3, seed=5)).expvals(draw_angles(50, 5))).max() <= 1 + 1e-12


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_linear_is_the_head_on_the_expectations(build: Callable[[Circuit], Engine], n_classes: int) -> None:
    engine = build(random_student(4, 40, seed=6))
    weights, bias = draw_head(n_classes, 4)
    angles = draw_angles(7, 4)
    expected = engine.expvals(angles) @ weights.T + bias
    np.testing.assert_allclose(engine.linear(angles, weights, bias), expected, rtol=0, atol=1e-12)


def test_linear_takes_heads_of_lower_rank(build: Callable[[Circuit], Engine]) -> None:
    engine = build(random_student(4, 40, seed=6))
    angles = draw_angles(7, 4)
    row, bias = draw_head(1, 4)
    for weights, offsets in (
        (np.concatenate([row, -row]), np.concatenate([bias, -bias])),
        (np.concatenate([row, row]), np.array([1.0, 2.0])),
        (np.zeros((2, 4)), np.array([1.0, 2.0])),
        (np.zeros((2, 4)), np.zeros(2)),
    ):
        expected = engine.expvals(angles) @ weights.T + offsets
        np.testing.assert_allclose(engine.linear(angles, weights, offsets), expected, rtol=0, atol=1e-12)


def test_linear_follows_the_head_that_it_is_given(build: Callable[[Circuit], Engine]) -> None:
    engine = build(random_student(3, 30, seed=7))
    angles = draw_angles(3, 3)
    for seed in (1, 2, 1):
        weights, bias = draw_head(2, 3, seed)
        expected = engine.expvals(angles) @ weights.T + bias
        np.testing.assert_allclose(engine.linear(angles, weights, bias), expected, rtol=0, atol=1e-12)


def test_a_row_of_a_batch_does_not_depend_on_the_others(build: Callable[[Circuit], Engine]) -> None:
    engine = build(random_student(4, 40, seed=8))
    angles = draw_angles(9, 4)
    alone = np.concatenate([engine.expvals(row[None]) for row in angles])
    np.testing.assert_allclose(engine.expvals(angles), alone, rtol=0, atol=1e-14)


def test_an_empty_batch_gives_no_rows(build: Callable[[Circuit], Engine]) -> None:
    engine = build(random_student(3, 10, seed=1))
    weights, bias = draw_head(2, 3)
    assert engine.expvals(np.empty((0, 3))).shape == (0, 3)
    assert engine.linear(np.empty((0, 3)), weights, bias).shape == (0, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_angles_of_another_type_are_evaluated_in_float64(build: Callable[[Circuit], Engine], dtype: type) -> None:
    circuit = random_student(3, 30, seed=9)
    angles = np.array([[1, -2, 3], [0, 1, 5]]).astype(dtype)
    expected = student_expvals(circuit, angles.astype(np.float64))
    np.testing.assert_allclose(build(circuit).expvals(angles), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (2, 4), (1, 2, 3)])
def test_angles_of_the_wrong_shape_are_refused(build: Callable[[Circuit], Engine], shape: tuple[int, ...]) -> None:
    engine = build(random_student(3, 10, seed=1))
    with pytest.raises(ShapeError, match=r"angles have shape .*, expected \(batch, 3\)"):
        engine.expvals(np.zeros(shape))
    with pytest.raises(ShapeError, match=r"angles have shape .*, expected \(batch, 3\)"):
        engine.linear(np.zeros(shape), *draw_head(2, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_angles_that_are_not_finite_are_refused(build: Callable[[Circuit], Engine], value: float) -> None:
    engine = build(random_student(3, 10, seed=1))
    with pytest.raises(ShapeError, match="not finite"):
        engine.expvals(np.array([[0.0, value, 0.0]]))


def test_circuit_without_feature_map_is_refused(build: Callable[[Circuit], Engine]) -> None:
    with pytest.raises(EngineError, match="does not start with R_X"):
        build(Circuit(2, (Gate("ry", (0,), 0.1), Gate("ry", (1,), 0.1))))


def test_unbound_ansatz_is_refused(build: Callable[[Circuit], Engine]) -> None:
    with pytest.raises(UnboundParameterError, match=r"ansatz\[0\]"):
        build(student_circuit("chain", 3, 1))


def test_missing_mindquantum_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # What an import finds of a package that is not installed.
    for name in ("mindquantum", "mindquantum.simulator"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=r"needs the package mindquantum==0\.12\.0, which is not installed"):
        MindQuantumEngine(random_preset("chain", 3, 1, seed=0))


def test_too_many_qubits_are_refused() -> None:
    with pytest.raises(EngineError, match=f"expected at most {MAX_QUBITS}"):
        compile_circuit(random_preset("chain", MAX_QUBITS + 1, 1, seed=0))


def test_factored_tensor_equals_its_full_form() -> None:
    factored = compile_circuit(random_preset("chain", 6, 1, seed=1))
    assert factored.right is not None
    full = MultilinearTensor(factored.left @ factored.right, None, factored.n_left, factored.n_right)
    assert factored.left.size + factored.right.size < full.left.size
    angles = draw_angles(5, 6)
    np.testing.assert_allclose(factored(angles), full(angles), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 9, 9), None), ((2, 3, 2), (3, 9)), ((2, 9, 2), (2, 9)), ((2, 3, 2), (2, 3))],
)
def test_tensor_factors_that_do_not_fit_are_refused(left: tuple[int, ...], right: tuple[int, ...] | None) -> None:
    with pytest.raises(StudentError, match="factor has shape"):
        MultilinearTensor(np.zeros(left), None if right is None else np.zeros(right), n_left=1, n_right=2)
