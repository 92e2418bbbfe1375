from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statevector import expvals, final_state
from strategies import random_preset, seeded

from models.circuit import Circuit, Gate
from models.errors import EmptyCountsError, ReadoutError, ShapeError
from models.observables import (
    correct_readout,
    covariance_from_counts,
    expectation_z,
    expvals_from_counts,
    expvals_from_state,
    readout_slope,
    z_signs,
)

# P(read 1 | prepared 0), P(read 0 | prepared 1) and <Z> of one qubit, its readout good enough to be corrected.
readouts = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(-1.0, 1.0)).filter(
    lambda each: 1.0 - each[0] - each[1] > 0.11
)


def counts_of(states: np.ndarray, n_qubits: int) -> dict[str, int]:
    """Counts of basis states; states of shape (shots,), as numbers."""
    values, counts = np.unique(states, return_counts=True)
    return {f"{value:0{n_qubits}b}": int(count) for value, count in zip(values, counts, strict=True)}


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


def test_covariance_is_that_of_estimates_from_counts_drawn_again_and_again() -> None:
    # Qubits 0 and 1 correlated, 0 and 2 anticorrelated, 3 nearly independent of them.
    n_qubits, shots, repeats = 4, 500, 4000
    rng = np.random.default_rng(11)
    first = rng.random(shots) < 0.3
    noise = rng.random((n_qubits, shots)) < np.array([[0.0], [0.1], [0.2], [0.5]])
    bits = np.array([first, first, ~first, np.zeros(shots, dtype=bool)]) ^ noise
    counts = counts_of(2 ** np.arange(n_qubits - 1, -1, -1) @ bits, n_qubits)
    probabilities = np.zeros(2**n_qubits)
    for state, count in counts.items():
        probabilities[int(state, 2)] = count / shots
    again = rng.multinomial(shots, probabilities, size=repeats) @ z_signs(n_qubits).T / shots
    covariance = covariance_from_counts(counts, n_qubits)
    variances = covariance.diagonal()
    # Of an empirical covariance of normal variables: Var = (s_ii s_jj + s_ij^2) / repeats.
    sigma = np.sqrt((np.outer(variances, variances) + covariance**2) / repeats)
    assert (np.abs(np.cov(again.T) - covariance) < 5 * sigma).all()
    correlations = covariance / np.sqrt(np.outer(variances, variances))
    assert correlations[0, 1] > 0.6
    assert correlations[0, 2] < -0.4
    assert abs(correlations[0, 3]) < 0.2


def test_variance_is_the_square_of_the_standard_error_and_falls_with_the_shots() -> None:
    counts = {"00": 50, "01": 30, "11": 20}
    covariance = covariance_from_counts(counts, 2)
    means = expvals_from_counts(counts, 2)
    np.testing.assert_allclose(covariance.diagonal(), (1 - means**2) / 100, rtol=0, atol=1e-15)
    # <Z_0 Z_1> = (50 + 20 - 30) / 100.
    assert covariance[0, 1] == covariance[1, 0] == pytest.approx((0.4 - 0.6 * 0.0) / 100)
    tenfold = covariance_from_counts({bits: 10 * n for bits, n in counts.items()}, 2)
    np.testing.assert_allclose(tenfold, covariance / 10, rtol=1e-12, atol=0)


def test_qubits_that_are_always_equal_have_one_variance_and_certain_ones_none() -> None:
    found = covariance_from_counts({"110": 30, "000": 70}, 3)
    variance = (1 - 0.4**2) / 100
    np.testing.assert_allclose(found, [[variance, variance, 0], [variance, variance, 0], [0, 0, 0]], rtol=0, atol=1e-15)


def test_covariance_of_counts_that_are_none_is_refused() -> None:
    with pytest.raises(EmptyCountsError):
        covariance_from_counts({}, 2)
    with pytest.raises(ShapeError, match="bitstring '000', expected 2 bits"):
        covariance_from_counts({"00": 1, "000": 1}, 2)


@seeded
@given(st.lists(readouts, min_size=1, max_size=5))
def test_readout_correction_undoes_readout_errors_in_the_mean(qubits: list[tuple[float, float, float]]) -> None:
    p10, p01, exact = np.array(qubits).T
    # Of the confusion matrix itself, not of the formula under test.
    zeros, ones = (1 + exact) / 2, (1 - exact) / 2
    read = (zeros * (1 - p10) + ones * p01) - (zeros * p10 + ones * (1 - p01))
    np.testing.assert_allclose(correct_readout(read, p10, p01), exact, rtol=0, atol=1e-13)


def test_readout_correction_of_sampled_bits_is_exact_within_5_sigma() -> None:
    rng = np.random.default_rng(3)
    shots, n_qubits = 100_000, 5
    p10, p01 = rng.uniform(0.0, 0.2, n_qubits), rng.uniform(0.0, 0.3, n_qubits)
    exact = np.array([0.9, -0.7, 0.3, 0.0, -0.1])
    prepared = rng.random((shots, n_qubits)) < (1 - exact) / 2
    read = prepared ^ (rng.random((shots, n_qubits)) < np.where(prepared, p01, p10))
    raw = expvals_from_counts(counts_of(read @ 2 ** np.arange(n_qubits - 1, -1, -1), n_qubits), n_qubits)
    sigma = np.sqrt((1 - raw**2) / shots)
    assert (np.abs(raw - exact) > 5 * sigma).any()
    corrected = correct_readout(raw, p10, p01)
    assert (np.abs(corrected - exact) < 5 * sigma / readout_slope(p10, p01)).all()


def test_perfect_readout_is_left_as_it_is() -> None:
    raw, perfect = np.array([[0.25, -1.0], [1.0, 0.0]]), np.zeros(2)
    np.testing.assert_array_equal(correct_readout(raw, perfect, perfect), raw)
    np.testing.assert_array_equal(readout_slope(perfect, perfect), [1.0, 1.0])


def test_corrected_values_are_cut_to_what_an_expectation_value_can_be() -> None:
    p10, p01 = np.array([0.1, 0.1]), np.array([0.2, 0.2])
    np.testing.assert_array_equal(correct_readout(np.array([1.0, -1.0]), p10, p01), [1.0, -1.0])


@pytest.mark.parametrize(
    ("p10", "p01"), [(0.5, 0.5), (0.45, 0.46), (0.0, 0.91), (0.95, 0.0), (0.9, 0.9), (np.nan, 0.0)]
)
def test_readout_that_says_next_to_nothing_is_refused_and_its_qubit_named(p10: float, p01: float) -> None:
    with pytest.raises(ReadoutError, match=r"of <Z> on qubit 1, expected at least 0\.1"):
        correct_readout(np.zeros(3), np.array([0.0, p10, 0.0]), np.array([0.0, p01, 0.0]))


def test_readout_that_is_just_good_enough_is_corrected() -> None:
    # slope 0.11, offset 0.44 - 0.45
    found = correct_readout(np.array([0.045]), np.array([0.45]), np.array([0.44]))
    np.testing.assert_allclose(found, [0.5], rtol=0, atol=1e-12)
