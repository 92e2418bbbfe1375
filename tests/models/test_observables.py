from __future__ import annotations

import numpy as np
import pytest
from statevector import expvals, final_state
from strategies import random_preset

from models.circuit import Circuit, Gate
from models.errors import EmptyCountsError, ShapeError
from models.observables import expectation_z, expvals_from_counts, expvals_from_state, z_signs


def test_leftmost_bit_is_qubit_0() -> None:
    np.testing.assert_array_equal(expvals_from_counts({"100": 7}, 3), [-1, 1, 1])
    np.testing.assert_array_equal(z_signs(2), [[1, 1, -1, -1], [1, -1, 1, -1]])
    flipped = final_state(Circuit(3, (Gate("rx", (0,), np.pi),)))
    np.testing.assert_allclose(expvals_from_state(flipped), [-1, 1, 1], rtol=0, atol=1e-15)


def test_expectation_is_zeros_minus_ones_over_shots() -> None:
    counts = {"00": 50, "01": 30, "11": 20}
    assert expectation_z(counts, 0) == pytest.approx((80 - 20) / 100)
    np.testing.assert_allclose(expvals_from_counts(counts, 2), [0.6, 0.0], rtol=0, atol=1e-15)


def test_bitstring_that_never_came_changes_nothing() -> None:
    np.testing.assert_array_equal(expvals_from_counts({"01": 3, "10": 0}, 2), expvals_from_counts({"01": 3}, 2))


def test_expvals_of_a_batch_of_states_are_those_of_each() -> None:
    circuit = random_preset("paper", 4, 1, seed=2)
    bound = [circuit.bind(inputs=row) for row in ([0.1, 0.2, 0.3, 0.4], [1.0, -1.0, 2.0, -2.0])]
    found = expvals_from_state(np.array([final_state(c) for c in bound]))
    np.testing.assert_allclose(found, [expvals(c) for c in bound], rtol=0, atol=1e-14)


def test_sampled_counts_agree_with_the_state_within_5_sigma() -> None:
    circuit = random_preset("released", 5, 2, seed=4).bind(inputs=[0.3, -1.2, 2.0, 0.7, -0.4])
    shots = 10_240
    probabilities = np.abs(final_state(circuit)) ** 2
    drawn = np.random.default_rng(7).multinomial(shots, probabilities / probabilities.sum())
    counts = {f"{state:05b}": int(count) for state, count in enumerate(drawn) if count}
    exact = expvals(circuit)
    sigma = np.sqrt((1 - exact**2) / shots)
    error = np.abs(expvals_from_counts(counts, 5) - exact)
    assert (error <= 5 * sigma).all()
    assert error.max() > 0


@pytest.mark.parametrize("counts", [{}, {"00": 0, "11": 0}])
def test_counts_without_a_shot_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(EmptyCountsError, match="no shots, expected at least 1"):
        expvals_from_counts(counts, 2)
    with pytest.raises(EmptyCountsError):
        expectation_z(counts, 0)


@pytest.mark.parametrize("bits", ["0", "000", "0x", "0 0", "02", ""])
def test_wrong_bitstring_is_refused_and_named(bits: str) -> None:
    with pytest.raises(ShapeError, match=f"bitstring '{bits}', expected 2 bits of 0 and 1"):
        expvals_from_counts({"00": 1, bits: 1}, 2)


def test_state_whose_length_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ShapeError, match="6 amplitudes"):
        expvals_from_state(np.ones(6) / np.sqrt(6))
