"""What independent runs and paired predictions allow to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

_DRAWS = 10_000
_LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of n independent runs; None for one run, which has none."""

    mean: float
    std: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        return {"mean": self.mean, "std": self.std, "n": self.n}


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over seeds.

    Raises:
        ValueError: If there are none.
    """
    if not values:
        raise ValueError("expected at least one value, found none")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


@dataclass(frozen=True)
class McNemar:
    """Texts that only one of two systems gets right, and the exact two-sided p-value that both are equally good."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test: of the texts that one system alone gets right, each is as likely to get its half.

    Args:
        first: Whether a system is right on each text, shape (n_texts,), bool.
        second: Likewise for the other system, on the same texts.
    """
    _require_pairs(first, second)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1))
    # Integers until the division: 2^n is beyond a float from n = 1024 on.
    return McNemar(b, c, min(1.0, 2 * tail / 2 ** (b + c)))


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies and the interval that a share of the resampled ones lies in."""

    mean: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, seed: int, n_draws: int = _DRAWS, level: float = _LEVEL
) -> Difference:
    """Paired bootstrap of `first` minus `second` in accuracy: texts are drawn again, both systems on the same ones.

    Args:
        first: How often a system is right on each text, shape (n_texts,): a share of its seeds, or true and false.
        second: Likewise for the other system, on the same texts.
        seed: Of the draws.
        n_draws: Resampled sets of texts.
        level: Share of them within the interval.
    """
    _require_pairs(first, second)
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    # A text's difference takes few values, so a draw of all texts is one of how often each value comes up.
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    means = np.random.default_rng(seed).multinomial(n, counts / n, size=n_draws) @ values / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(differences.mean()), float(low), float(high))


def _require_pairs(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"expected two systems on the same texts, found shapes {first.shape} and {second.shape}")
