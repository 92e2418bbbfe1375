from __future__ import annotations

import numpy as np
import pytest
import torch
from dense_circuit import batch_expvals, draw, every_preset, mixed_circuit
from needs import needs_mindquantum

from models.circuit import PRESETS, Circuit, Gate, Symbol, feature_map, student_circuit
from models.engines.mindquantum import MindQuantumEngine
from models.errors import EngineError
from training.circuit_torch import CircuitExpvals


def torch_expvals(circuit: Circuit, angles: np.ndarray, ansatz: np.ndarray) -> np.ndarray:
    module = CircuitExpvals(circuit, dtype=torch.float64)
    return module(torch.tensor(angles), torch.tensor(ansatz)).numpy()


@pytest.mark.parametrize(("preset", "n_qubits", "n_layers"), every_preset())
def test_presets_equal_a_product_of_dense_matrices(preset: str, n_qubits: int, n_layers: int) -> None:
    circuit = student_circuit(preset, n_qubits, n_layers)
    angles, ansatz = draw(circuit, batch=3, seed=n_qubits)
    expected = batch_expvals(circuit, angles, ansatz)
    np.testing.assert_allclose(torch_expvals(circuit, angles, ansatz), expected, rtol=0, atol=1e-10)


@needs_mindquantum
@pytest.mark.parametrize(("preset", "n_qubits", "n_layers"), [*every_preset(), ("released", 11, 2), ("paper", 11, 1)])
def test_presets_equal_the_mindquantum_engine(preset: str, n_qubits: int, n_layers: int) -> None:
    circuit = student_circuit(preset, n_qubits, n_layers)
    angles, ansatz = draw(circuit, batch=4, seed=n_qubits)
    expected = MindQuantumEngine(circuit.bind(ansatz=ansatz.tolist())).expvals(angles)
    np.testing.assert_allclose(torch_expvals(circuit, angles, ansatz), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_qubits", [2, 3, 5, 6])
def test_gates_in_random_order_with_fixed_and_shared_angles_equal_dense_matrices(n_qubits: int, seed: int) -> None:
    circuit = mixed_circuit(n_qubits, 40, seed)
    angles, ansatz = draw(circuit, batch=2, seed=seed)
    expected = batch_expvals(circuit, angles, ansatz)
    np.testing.assert_allclose(torch_expvals(circuit, angles, ansatz), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("preset", PRESETS)
def test_bound_ansatz_takes_no_parameters_and_gives_the_same(preset: str) -> None:
    circuit = student_circuit(preset, 5, 2)
    angles, ansatz = draw(circuit, batch=3, seed=1)
    bound = circuit.bind(ansatz=ansatz.tolist())
    np.testing.assert_allclose(
        torch_expvals(bound, angles, np.empty(0)), torch_expvals(circuit, angles, ansatz), rtol=0, atol=1e-12
    )


def test_cz_alone_leaves_every_z_measurement_as_it_is() -> None:
    circuit = Circuit(3, (*feature_map(3), Gate("cz", (0, 1)), Gate("cz", (2, 1))))
    angles, ansatz = draw(circuit, batch=5, seed=2)
    np.testing.assert_allclose(torch_expvals(circuit, angles, ansatz), np.cos(angles), rtol=0, atol=1e-12)


def test_cz_between_rotations_turns_the_other_qubit_over() -> None:
    # R_Y(pi/2) on both sides of CZ is a CNOT but for signs: with the control at |1>, <Z> of the target changes sign.
    half = np.pi / 2
    gates = (Gate("ry", (1,), half), Gate("cz", (0, 1)), Gate("ry", (1,), half))
    circuit = Circuit(2, (*feature_map(2), *gates))
    found = torch_expvals(circuit, np.array([[0.0, 0.0], [np.pi, 0.0]]), np.empty(0))
    np.testing.assert_allclose(found, [[1, -1], [-1, 1]], rtol=0, atol=1e-12)


def test_feature_map_alone_gives_the_cosine() -> None:
    circuit = Circuit(4, feature_map(4))
    angles, ansatz = draw(circuit, batch=6, seed=3)
    np.testing.assert_allclose(torch_expvals(circuit, angles, ansatz), np.cos(angles), rtol=0, atol=1e-12)


def test_single_precision_stays_within_single_rounding() -> None:
    circuit = student_circuit("released", 8, 3)
    angles, ansatz = draw(circuit, batch=4, seed=4)
    found = CircuitExpvals(circuit)(torch.tensor(angles).float(), torch.tensor(ansatz).float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), torch_expvals(circuit, angles, ansatz), rtol=0, atol=1e-5)


def test_a_row_of_a_batch_does_not_depend_on_the_others() -> None:
    circuit = student_circuit("paper", 5, 2)
    angles, ansatz = draw(circuit, batch=7, seed=5)
    alone = np.concatenate([torch_expvals(circuit, row[None], ansatz) for row in angles])
    np.testing.assert_allclose(torch_expvals(circuit, angles, ansatz), alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "circuit",
    [student_circuit(preset, n, p) for preset in PRESETS for n, p in ((3, 2), (6, 1))] + [mixed_circuit(5, 40, 0)],
)
def test_gradients_equal_central_differences(circuit: Circuit) -> None:
    angles, ansatz = draw(circuit, batch=2, seed=6)
    weights = np.random.default_rng(7).normal(size=angles.shape)
    inputs = torch.tensor(angles, requires_grad=True), torch.tensor(ansatz, requires_grad=True)
    (CircuitExpvals(circuit, dtype=torch.float64)(*inputs) * torch.tensor(weights)).sum().backward()
    values = [angles, ansatz]
    for which, tensor in enumerate(inputs):
        expected = np.empty_like(values[which])
        for index in np.ndindex(expected.shape):
            shifted = []
            for sign in (1, -1):
                moved = [value.copy() for value in values]
                moved[which][index] += sign * 1e-5
                shifted.append((torch_expvals(circuit, *moved) * weights).sum())
            expected[index] = (shifted[0] - shifted[1]) / 2e-5
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradcheck_passes_on_three_qubits(preset: str) -> None:
    circuit = student_circuit(preset, 3, 1)
    inputs = [torch.tensor(value, requires_grad=True) for value in draw(circuit, batch=2, seed=8)]
    assert torch.autograd.gradcheck(CircuitExpvals(circuit, dtype=torch.float64), inputs)


def test_three_successive_rotations_get_one_gradient() -> None:
    # They are three parameters and one rotation by the sum (eq. 7, 10).
    circuit = student_circuit("paper", 3, 1)
    angles, ansatz = draw(circuit, batch=2, seed=9)
    parameters = torch.tensor(ansatz, requires_grad=True)
    CircuitExpvals(circuit, dtype=torch.float64)(torch.tensor(angles), parameters).square().sum().backward()
    triples = parameters.grad[:9].reshape(3, 3)
    torch.testing.assert_close(triples, triples[:, :1].expand(3, 3), rtol=0, atol=1e-13)
    assert triples.abs().max() > 1e-3


def test_rx_behind_the_feature_map_is_refused() -> None:
    circuit = Circuit(2, (*feature_map(2), Gate("ry", (0,), Symbol("ansatz", 0)), Gate("rx", (1,), 0.3)))
    with pytest.raises(EngineError, match=r"rx on \(1,\) behind the feature map"):
        CircuitExpvals(circuit)


@pytest.mark.parametrize(
    "gates",
    [
        (Gate("ry", (0,), 0.1), Gate("ry", (1,), 0.1)),
        feature_map(1),
        (*feature_map(2), Gate("rz", (0,), Symbol("input", 1))),
    ],
    ids=["no feature map", "one qubit without", "input used again"],
)
def test_circuit_without_exactly_one_feature_map_is_refused(gates: tuple[Gate, ...]) -> None:
    with pytest.raises(EngineError, match="does not start with R_X"):
        CircuitExpvals(Circuit(2, gates))
