"""What a loop over texts does at each step: which texts it reads, and at which learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_POOL_BATCHES = 50  # shuffled texts that are sorted by length together


def shuffled_batches(lengths: Sequence[int], batch_size: int, seed: Sequence[int]) -> list[np.ndarray]:
    """Rows of one epoch's batches: texts of like length together, so that little of a batch is padding.

    Args:
        lengths: Of the texts, in tokens.
        batch_size: Of all batches but the last of each pool.
        seed: Decides the order.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    pool = _POOL_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for begin in range(0, len(order), pool):
        chunk = order[begin : begin + pool]
        chunk = chunk[np.argsort([lengths[i] for i in chunk], kind="stable")]
        batches += split_rows(chunk, batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def split_rows(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The rows in their order, `batch_size` at a time."""
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def rate_share(step: int, total: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step, counted from 0: it rises in a line, then falls as a cosine to 0.

    Args:
        total: Steps of the whole run.
        warmup_share: Of all steps, in which the rate rises.
    """
    warmup = max(1, round(warmup_share * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, total - warmup))))
