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
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"expected two systems on the same texts, found shapes {first.shape} and {second.shape}")
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
    """Bootstrap of `first` minus `second` in mean accuracy: texts are drawn again, and each system's seeds.

    Both systems have the same texts in every draw; their seeds are drawn apart. A system of one seed has it in every
    draw: how its other seeds would differ is then not in the interval.

    Args:
        first: Whether a system is right, shape (n_seeds, n_texts), bool.
        second: Likewise for the other system, on the same texts; it may have another number of seeds.
        seed: Of the draws.
        n_draws: Resampled sets of texts and seeds.
        level: Share of them within the interval.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not first.size or not second.size:
        raise ValueError(f"expected two systems on the same texts, found shapes {first.shape} and {second.shape}")
    rng = np.random.default_rng(seed)
    n = first.shape[1]
    # Texts are told apart by which seeds get them right alone, so a draw of all is one of how often each pattern is.
    patterns, counts = np.unique(np.concatenate([first, second]), axis=1, return_counts=True)
    accuracies = rng.multinomial(n, counts / n, size=n_draws) @ patterns.T.astype(float) / n
    ours, theirs = np.split(accuracies, [len(first)], axis=1)
    means = _over_seeds(ours, rng) - _over_seeds(theirs, rng)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(first.mean() - second.mean()), float(low), float(high))


def _over_seeds(accuracies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over seeds that are drawn again in every row, shape (n_draws, n_seeds) -> (n_draws,)."""
    n_draws, n = accuracies.shape
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_draws) / n
    means: np.ndarray = (accuracies * weights).sum(axis=1)
    return means
