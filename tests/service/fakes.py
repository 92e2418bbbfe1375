"""An embedder and a student whose work a test can hold up, watch and break."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np

from models.embedder import Tokens
from service.registry import LoadedBundle


class FakeEmbedder:
    """A text's tokens are its words; its embedding is (number of words, length of the text).

    Attributes:
        begun: The texts' numbers of words, for each forward pass as it begins.
        may_run: One permit for each forward pass; `free_run()` gives endless ones.
    """

    name = "fake"

    def __init__(self) -> None:
        self.begun: queue.Queue[list[int]] = queue.Queue()
        self.may_run = threading.Semaphore(0)
        self._free = False

    def free_run(self) -> None:
        self._free = True
        self.may_run.release()

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        if "untokenisable" in texts:
            raise ValueError("untokenisable")
        # The last id carries the text's length through to the embedding.
        return [Tokens((*(0 for _ in text.split()[1:]), len(text)), len(text) > 1000) for text in texts]

    def pooled(self, tokens: Sequence[Tokens]) -> np.ndarray:
        self.begun.put([len(t.ids) for t in tokens])
        self.may_run.acquire()
        if self._free:
            self.may_run.release()
        if any(t.ids[-1] == len("poison") for t in tokens):
            raise RuntimeError("broken forward pass")
        return np.array([[len(t.ids), t.ids[-1]] for t in tokens], dtype=float)

    def select(self, pooled: np.ndarray, features: Sequence[str]) -> np.ndarray:
        return pooled


class FakeStudent:
    """Angles are the embedding, logits are `scale` times it."""

    def __init__(self, scale: float = 1.0, error: Exception | None = None) -> None:
        self.engine = SimpleNamespace(name="fake")
        self._scale = scale
        self._error = error

    def angles(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings

    def logits(self, angles: np.ndarray) -> np.ndarray:
        if self._error is not None:
            raise self._error
        return self._scale * angles


def fake_bundle(task: str, embedder: FakeEmbedder, student: FakeStudent | None = None) -> LoadedBundle:
    """A bundle with two labels."""
    bundle = SimpleNamespace(
        id=f"{task}@00000000",
        task=task,
        labels=["a", "b"],
        features=["fake"],
        embedder=embedder,
        student=student or FakeStudent(),
    )
    return cast(LoadedBundle, bundle)
