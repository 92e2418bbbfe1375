from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from training.study.statistics import bootstrap_difference, mcnemar, spread


def right(n: int, *rows: int) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[list(rows)] = True
    return found


def test_spread_is_the_sample_deviation() -> None:
    found = spread([0.7, 0.8, 0.9])
    assert found.mean == pytest.approx(0.8)
    assert found.std == pytest.approx(0.1)
    assert found.n == 3


def test_one_run_has_no_deviation() -> None:
    assert spread([0.7]).std is None


def test_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_mcnemar_is_the_exact_binomial_test() -> None:
    # 1 against 9 of 10 differing texts: 2 * (1 + 10) / 2^10.
    found = mcnemar(right(30, 0), right(30, *range(1, 10)))
    assert (found.only_first, found.only_second) == (1, 9)
    assert found.p == pytest.approx(22 / 1024)


@pytest.mark.parametrize(
    ("first", "second"),
    [(right(8, 0, 1), right(8, 0, 1)), (right(8, 0), right(8, 1)), (right(3), right(3))],
    ids=["same", "as many", "none right"],
)
def test_mcnemar_sees_nothing_where_neither_is_ahead(first: np.ndarray, second: np.ndarray) -> None:
    assert mcnemar(first, second).p == 1


def test_mcnemar_is_symmetric_and_ignores_texts_that_both_get_right() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(200) < 0.8, rng.random(200) < 0.7
    both = np.ones(500, dtype=bool)
    assert mcnemar(first, second).p == mcnemar(second, first).p
    assert mcnemar(np.append(first, both), np.append(second, both)).p == mcnemar(first, second).p


def test_mcnemar_takes_many_texts() -> None:
    assert mcnemar(np.ones(5000, dtype=bool), np.zeros(5000, dtype=bool)).p == 0


def test_systems_on_other_texts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(4,\)"):
        mcnemar(right(3), right(4))
    with pytest.raises(ValueError, match=r"shapes \(3,\)"):
        bootstrap_difference(right(3), right(3), seed=0)
    with pytest.raises(ValueError, match=r"shapes \(1, 3\) and \(1, 4\)"):
        bootstrap_difference(right(3)[None], right(4)[None], seed=0)


def test_bootstrap_interval_is_the_normal_one_for_many_texts() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(2000) < 0.8, rng.random(2000) < 0.75
    differences = first.astype(float) - second
    found = bootstrap_difference(first[None], second[None], seed=2)
    half = 1.96 * differences.std() / sqrt(2000)
    assert found.mean == pytest.approx(differences.mean())
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)


def test_bootstrap_is_paired() -> None:
    # The same texts wrong: drawn apart, the difference would vary by about 0.1.
    first = np.arange(50) % 2 == 0
    found = bootstrap_difference(first[None], first[None], seed=0)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.certain


def test_bootstrap_follows_its_seed() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random((2, 300)) < 0.8, rng.random((3, 300)) < 0.7
    assert bootstrap_difference(first, second, seed=0) == bootstrap_difference(first, second, seed=0)
    assert bootstrap_difference(first, second, seed=0) != bootstrap_difference(first, second, seed=1)


@pytest.mark.parametrize(("n", "certain"), [(40, True), (1, False)])
def test_difference_is_certain_once_the_interval_leaves_zero_out(n: int, certain: bool) -> None:
    first, second = right(100, *range(n))[None], right(100)[None]
    assert bootstrap_difference(first, second, seed=0).certain is certain
    assert bootstrap_difference(second, first, seed=0).certain is certain


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    other = rng.random((5, 400)) < 0.7
    alike = np.tile(rng.random(400) < 0.75, (5, 1))
    apart = np.stack([rng.random(400) < share for share in (0.55, 0.65, 0.75, 0.85, 0.95)])
    calm, wide = (bootstrap_difference(first, other, seed=0) for first in (alike, apart))
    assert wide.high - wide.low > 1.5 * (calm.high - calm.low)
