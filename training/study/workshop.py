"""Where a cell's system and lesson come from: names in the grid to code, folders and teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from training.data import TaskData, Texts, load_task
from training.errors import ConfigError, DataError
from training.locks import alone
from training.study.cells import Cell, Options, data_digest
from training.study.system import Lesson, Soft, System

MakeSystem = Callable[[Cell], System]
"""A cell's system, set up by its task and options; an unknown or wrong option raises ConfigError."""
AskTeacher = Callable[[str, TaskData, Path], Soft]
"""What a teacher says of a task (its name, texts, cache); from the cache once it was asked."""
N_TRAIN = "n_train"
"""The option that shortens the training texts; no system sees it."""

# What the teacher that this process asked last said: the next cell is commonly another seed's.
_ASKED: dict[tuple[str, str, str, Path], Soft] = {}


@dataclass(frozen=True)
class NamedWorkshop:
    """Systems and teachers by name. Sent to workers: the functions are a module's own.

    Attributes:
        systems: By the grid's names.
        teachers: By the grid's names.
        data: Folder of the tasks' folders.
        cache: Folder of teachers, embeddings and checkpoints.
    """

    systems: Mapping[str, MakeSystem]
    teachers: Mapping[str, AskTeacher]
    data: Path
    cache: Path

    def check(self, cells: list[Cell]) -> None:
        """Refuse what no system or teacher can be made of, before anything runs.

        Raises:
            ConfigError: If there is no system or teacher of that name, or an option is unknown or wrong; says which.
        """
        for cell in cells:
            if cell.system not in self.systems:
                raise ConfigError(f"system {cell.system!r}: expected one of {sorted(self.systems)}")
            if cell.teacher is not None and cell.teacher not in self.teachers:
                raise ConfigError(f"teacher {cell.teacher!r}: expected one of {sorted(self.teachers)}")
            n_train = cell.options.get(N_TRAIN, 1)
            if type(n_train) is not int or n_train < 1:
                raise ConfigError(f"option {N_TRAIN!r}: expected a whole number of at least 1, found {n_train!r}")
        for alike in {replace(cell, seed=0) for cell in cells}:
            self.system(alike)

    def system(self, cell: Cell) -> System:
        left = {name: value for name, value in cell.options.items() if name != N_TRAIN}
        return self.systems[cell.system](replace(cell, options=Options(left)))

    def lesson(self, cell: Cell) -> Lesson:
        """The task's texts and what the teacher says of them.

        Raises:
            DataError: If the texts are not those that the cell was planned with.
        """
        data = load_task(self.data / cell.task)
        found = data_digest(data)
        if found != cell.data:
            raise DataError(
                f"{self.data / cell.task}: expected the texts with the digest {cell.data[:12]}, found {found[:12]}: "
                "they changed since the cell was planned"
            )
        soft = None if cell.teacher is None else self._ask(cell.teacher, cell.task, data)
        whole = data
        if N_TRAIN in cell.options:
            rows = first_rows(data.train, cell.options[N_TRAIN], cell.seed)
            data = replace(data, train=_choose(data.train, rows))
            # A teacher that learned from all texts speaks of fewer.
            soft = None if soft is None else replace(soft, train=soft.train[rows])
        return Lesson(data, soft, cell.seed, self.cache, whole)

    def _ask(self, teacher: str, task: str, data: TaskData) -> Soft:
        key = (teacher, task, data_digest(data), self.cache)
        if key not in _ASKED:
            _ASKED.clear()  # teachers are large
            # Of cells that begin side by side one makes the teacher and the others find it in the cache.
            with alone(self.cache / "locks" / f"{teacher}-{task}"):
                _ASKED[key] = self.teachers[teacher](task, data, self.cache)
        return _ASKED[key]


def first_rows(texts: Texts, n: int, seed: int) -> np.ndarray:
    """Rows of n texts, every class in its share; the texts of a smaller n are among those of a larger one.

    Raises:
        ConfigError: If there are not so many, or some class would have none.
    """
    rng = np.random.default_rng(seed)
    places = np.empty(len(texts))
    for target in range(len(texts.labels)):
        members = rng.permutation(np.flatnonzero(texts.targets == target))
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    rows = np.sort(np.argsort(places, kind="stable")[:n]) if 0 < n <= len(texts) else np.array([], dtype=int)
    found = set(texts.targets[rows].tolist())
    if len(found) < len(texts.labels):
        raise ConfigError(
            f"{N_TRAIN} = {n}: {texts.source} has {len(texts)} texts of {len(texts.labels)} classes, "
            "expected some of each"
        )
    return rows


def _choose(texts: Texts, rows: np.ndarray) -> Texts:
    return Texts(
        tuple(texts.texts[i] for i in rows), texts.targets[rows], texts.labels, f"{texts.source} ({len(rows)} texts)"
    )
