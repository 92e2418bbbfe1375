"""Systems of a few lines, and a workshop that hands them out: what a harness needs is not that they learn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tiny_teachers import LABELS, toy_texts

from training.data import TaskData, Texts
from training.errors import DivergedError
from training.study.cells import Cell, Options, Track, data_digest
from training.study.run import Ran, run_cell
from training.study.system import Learned, Lesson, Outcome, System

DATA = TaskData(toy_texts(40, seed=0), toy_texts(20, seed=1), toy_texts(30, seed=2))
DIGEST = data_digest(DATA)


@dataclass(frozen=True)
class Guess:
    """Right on a share of any texts, the wrong ones being the first; logits that are not finite where asked."""

    share: float
    broken: float | None = None

    def logits(self, texts: Texts) -> np.ndarray:
        wrong = np.arange(len(texts)) < round((1 - self.share) * len(texts))
        logits = np.eye(len(LABELS))[np.where(wrong, 1 - texts.targets, texts.targets)]
        if self.broken is not None:
            logits[-1] = self.broken
        return logits


@dataclass(frozen=True)
class Narrow:
    """Logits of one class too few."""

    def logits(self, texts: Texts) -> np.ndarray:
        return np.zeros((len(texts), len(LABELS) - 1))


@dataclass(frozen=True)
class Fake:
    """Learns nothing; the option `share` says how good it is, `fails` what goes wrong."""

    name: str
    options: Options
    seed: int

    def learn(self, lesson: Lesson) -> Outcome:
        fails = self.options.get("fails")
        if fails == "diverges":
            raise DivergedError("the loss is nan in epoch 3")
        if fails == "dies":
            os._exit(1)
        if fails == "ctrl-c":
            raise KeyboardInterrupt
        learned: Learned = Guess(float(self.options.get("share", 0.8)) - 0.05 * (self.seed % 2))
        if fails == "nan":
            learned = Guess(0.8, broken=float("nan"))
        if fails == "narrow":
            learned = Narrow()
        epochs = [0.5] * int(self.options.get("epochs", 2))
        return Outcome(learned, int(self.options.get("n_trainable", 100)), 1000, epochs, self.options.get("facts", {}))


@dataclass(frozen=True)
class FakeWorkshop:
    """Fakes for every name, on the toy texts; `mended` overrides options, as mending a system would."""

    cache: Path
    mended: Mapping[str, Any] = field(default_factory=dict)

    def system(self, cell: Cell) -> System:
        with (self.cache / "made").open("a", encoding="utf-8") as file:
            file.write(f"{cell.id}\n")
        return Fake(cell.system, Options({**cell.options, **self.mended}), cell.seed)

    def lesson(self, cell: Cell) -> Lesson:
        return Lesson(DATA, None, cell.seed, self.cache)

    @property
    def made(self) -> list[str]:
        """Ids of the cells that were run, in order."""
        path = self.cache / "made"
        return path.read_text(encoding="utf-8").split() if path.exists() else []


def cell(
    system: str = "student",
    seed: int = 0,
    task: str = "weather",
    track: Track = "frozen",
    teacher: str | None = None,
    **options: Any,
) -> Cell:
    return Cell(system, task, track, teacher, seed, DIGEST, Options(options))


def ran(root: Path, *cells: Cell, final: bool = True) -> list[Ran]:
    """Run cells into a root, their workshop beside them."""
    root.mkdir(parents=True, exist_ok=True)
    return [run_cell(c, FakeWorkshop(root.parent), root, final) for c in cells]
