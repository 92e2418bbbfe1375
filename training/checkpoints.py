"""What a run leaves on disk so that it can go on: written whole or not at all, and refused by name when spoiled."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from training.errors import CheckpointError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a run's state; whoever is stopped while writing leaves the file of before.

    Args:
        path: The file; its folder is made where it is missing.
        state: Tensors, numbers, strings, lists and dictionaries.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


@contextmanager
def read_checkpoint(path: Path) -> Iterator[dict[str, Any]]:
    """A run's state, tensors in main memory; what is made of it within the block counts as reading it.

    Raises:
        CheckpointError: If the file holds no state, or one that does not fit what it is loaded into; names the file.
    """
    try:
        yield torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"{path}: expected the checkpoint of a run, found another file or a broken one ({type(exc).__name__}: "
            f"{str(exc).splitlines()[0] if str(exc) else 'no more is said'}); delete it, and the run starts anew"
        ) from exc
