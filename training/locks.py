"""One process at a time: runs side by side share embeddings, teachers and checkpoints, which one of them makes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is within `alone` on the same file, then keep others waiting.

    The lock ends with the process, however that ends; the file, which is empty, stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
