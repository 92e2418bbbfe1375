"""Tokenised texts in batches of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.steps import shuffled_batches, split_rows


@dataclass(frozen=True)
class Batch:
    """Texts of like length.

    Attributes:
        rows: Their indices among the texts, shape (batch,).
        input_ids: Token ids, padded on the right, shape (batch, n_tokens).
        attention_mask: 1 at a text's own tokens, 0 at padding, same shape.
        targets: Class indices, shape (batch,).
    """

    rows: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts: the ids of each, class indices of shape (n,), and the id that pads."""

    ids: Sequence[Sequence[int]]
    targets: np.ndarray
    pad_id: int

    def batch(self, rows: np.ndarray) -> Batch:
        """The texts at these indices, padded to the longest of them."""
        length = max(len(self.ids[row]) for row in rows)
        input_ids = torch.full((len(rows), length), self.pad_id)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for i, row in enumerate(rows):
            own = len(self.ids[row])
            input_ids[i, :own] = torch.tensor(self.ids[row])
            mask[i, :own] = 1
        return Batch(torch.tensor(rows), input_ids, mask, torch.tensor(self.targets[rows]))

    def shuffled(self, batch_size: int, seed: Sequence[int]) -> list[np.ndarray]:
        """Rows of one epoch's batches: texts of like length together, in an order that the seed decides."""
        return shuffled_batches([len(ids) for ids in self.ids], batch_size, seed)

    def by_length(self, batch_size: int) -> Iterator[np.ndarray]:
        """Rows of batches that hold every text once, shortest first."""
        yield from split_rows(np.argsort([len(ids) for ids in self.ids], kind="stable"), batch_size)
