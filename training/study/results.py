"""What finished cells say, read from their folders; the tables know nothing else."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol
from zipfile import BadZipFile

import numpy as np

from training.errors import StudyError
from training.study.cells import Cell

Split = Literal["validation", "test"]
FIELDS = {"metrics", "n_trainable", "n_total", "distil_seconds", "inference_us"}


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes:
        cell: Which.
        found: Its result.json, or what an archive keeps of it.
        read_correct: What `correct` gives.
    """

    cell: Cell
    found: dict[str, Any]
    read_correct: Callable[[Split], np.ndarray]

    @property
    def n_trainable(self) -> int:
        return int(self.found["n_trainable"])

    @property
    def splits(self) -> list[Split]:
        """Those that it is measured on."""
        return list(self.found["metrics"])

    def figure(self, name: str, split: Split) -> float | None:
        """`accuracy`, `precision`, `recall` or `f1` of a split; any other name is of the run itself, or of its facts.

        None is a time that nobody counted, or a fact that the system does not state.
        """
        metrics: dict[str, Any] = self.found["metrics"][split]
        for place in (metrics, self.found, self.found.get("facts", {})):
            if name in place:
                return None if place[name] is None else float(place[name])
        return None

    def correct(self, split: Split) -> np.ndarray:
        """Whether each text was classified as it should be, shape (n_texts,), bool."""
        return self.read_correct(split)


class Results(Protocol):
    """Where results come from."""

    def get(self, cell: Cell, split: Split) -> Result | None:
        """The cell's result, None where it was not run or not measured on the split.

        Raises:
            StudyError: If its result cannot be read; names the file.
        """

    def failure(self, cell: Cell) -> str | None:
        """What went wrong when the cell was last run; None where nothing did."""


@dataclass(frozen=True)
class CellFolders:
    """Results in the folder of all cells, as `qdtrain study` leaves them."""

    root: Path

    @cached_property
    def _read(self) -> dict[str, Result | None]:
        return {}

    def get(self, cell: Cell, split: Split) -> Result | None:
        result = self.result(cell)
        return result if result is not None and split in result.splits else None

    def result(self, cell: Cell) -> Result | None:
        """The cell's result, whatever it is measured on."""
        if cell.id not in self._read:
            self._read[cell.id] = self._load(cell)
        return self._read[cell.id]

    def failure(self, cell: Cell) -> str | None:
        try:
            found = json.loads((self.root / cell.id / "error.json").read_text(encoding="utf-8"))
            return f"{found['type']}: {found['message']}"
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return "failed, and its error.json cannot be read"

    def _load(self, cell: Cell) -> Result | None:
        folder = self.root / cell.id
        path = folder / "result.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise StudyError(f"{path}: not a cell's result: {exc}; delete its folder and run the cell again") from exc
        if not isinstance(found, dict) or not found.keys() >= FIELDS or not isinstance(found["metrics"], dict):
            raise StudyError(f"{path}: not a cell's result, expected {sorted(FIELDS)}; delete its folder, run it again")

        def correct(split: Split) -> np.ndarray:
            path = folder / "predictions.npz"
            try:
                # A file that NumPy opens itself stays open where it turns out to be no archive.
                with path.open("rb") as file, np.load(file) as arrays:
                    return np.asarray(arrays[split].argmax(axis=1) == arrays[f"{split}_targets"])
            except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as exc:
                raise StudyError(f"{path}: no predictions: {exc}; delete its folder and run the cell again") from exc

        return Result(cell, found, correct)
