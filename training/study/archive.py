"""Plan and results of a study in one small file, which a repository can keep: what a report needs, and no more.

    {"schema": 1, "plan": ..., "cells": {id: result}}

A result is that of result.json without what no table reads: of the hashes of texts there is that of the training texts,
which says what a cell learned from. For each split it was measured on, `correct` has a bit a text, 1 where it was
classified as it should be, in the texts' order, the first text being the highest bit of the first byte, written in
hexadecimal. A cell that failed has `failure` in place of all that. Neither texts nor logits are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import StudyError
from training.study.cells import Cell
from training.study.grid import Plan
from training.study.results import FIELDS, CellFolders, Result, Split

SCHEMA = 1
_KEPT = (
    "n_trainable",
    "n_total",
    "epochs",
    "distil_seconds",
    "inference_us",
    "facts",
    "teacher_sha256",
    "started",
    "ended",
)


def write_archive(path: Path, plan: Plan, results: CellFolders, earlier: Archive | None = None) -> None:
    """Write a plan and what its cells came to.

    Args:
        path: File; it may be that of `earlier`.
        plan: What the study has.
        results: The cells that ran here.
        earlier: What is kept of cells that have no result here.

    Raises:
        StudyError: If a cell's result cannot be read; names the file.
    """
    cells = {cell.id: entry for cell in plan.cells if (entry := _entry(cell, results, earlier)) is not None}
    # A line a cell: a change of one is a change of one line.
    lines = ",\n".join(f"{json.dumps(name)}: {_line(entry)}" for name, entry in sorted(cells.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(
        f'{{"schema": {SCHEMA},\n"plan": {_line(_compact(plan))},\n"cells": {{\n{lines}\n}}}}\n', encoding="utf-8"
    )
    partial.replace(path)


@dataclass(frozen=True)
class Archive:
    """Results of a file that `write_archive` wrote."""

    path: Path

    @property
    def plan(self) -> Plan:
        found = self._read["plan"]
        try:
            sections = {
                name: [{"row": row, "cell": found["cells"][number]} for row, number in entries]
                for name, entries in found["sections"].items()
            }
            return Plan.from_json({**found, "sections": sections})
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
            raise StudyError(f"{self.path}: expected the plan of a study, found {exc!r}") from exc

    def entry(self, cell: Cell) -> dict[str, Any]:
        """All that the file keeps of a cell; empty where that is nothing.

        Raises:
            StudyError: If it is no cell's; names the file and the cell.
        """
        entry = self._read["cells"].get(cell.id, {})
        if not isinstance(entry, dict) or not isinstance(entry.get("metrics", {}), dict):
            raise StudyError(
                f"{self.path}: cell {cell.id}: expected a result with metrics by split, found {entry!r:.80}"
            )
        return entry

    def get(self, cell: Cell, split: Split) -> Result | None:
        entry = self.entry(cell)
        if split not in entry.get("metrics", {}):
            return None
        if not entry.keys() >= FIELDS:
            raise StudyError(f"{self.path}: cell {cell.id}: expected {sorted(FIELDS)}, found {sorted(entry)}")

        def correct(split: Split) -> np.ndarray:
            try:
                n, packed = entry["metrics"][split]["n"], bytes.fromhex(entry["correct"][split])
                if len(packed) != (n + 7) // 8:
                    raise ValueError(f"{8 * len(packed)} bits for {n} texts")
            except (ValueError, KeyError, TypeError) as exc:
                raise StudyError(f"{self.path}: cell {cell.id}: expected a bit a {split} text, found {exc!r}") from exc
            return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=n).astype(bool)

        return Result(cell, entry, correct)

    def failure(self, cell: Cell) -> str | None:
        failure: str | None = self.entry(cell).get("failure")
        return failure

    @cached_property
    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise StudyError(f"{self.path}: no such file; expected what `qdtrain study --export` writes") from exc
        except ValueError as exc:
            raise StudyError(f"{self.path}: expected what `qdtrain study --export` writes, found {exc}") from exc
        if (
            not isinstance(found, dict)
            or found.get("schema") != SCHEMA
            or not isinstance(found.get("plan"), dict)
            or not isinstance(found.get("cells"), dict)
        ):
            raise StudyError(f"{self.path}: expected an archive of schema {SCHEMA}, with a plan and cells")
        return found


def _entry(cell: Cell, results: CellFolders, earlier: Archive | None) -> dict[str, Any] | None:
    result, failure = results.result(cell), results.failure(cell)
    entry: dict[str, Any] = {}
    if result is None and earlier is not None:
        entry |= earlier.entry(cell)
    if failure is not None:
        # Where the study ran is of no use elsewhere.
        entry["failure"] = failure.replace(str(results.root.parent), "CACHE")
    if result is not None:
        entry |= {name: result.found[name] for name in _KEPT if name in result.found}
        entry["metrics"] = result.found["metrics"]
        if "data_sha256" in result.found:
            entry["data_sha256"] = {"train": result.found["data_sha256"]["train"]}
        entry["correct"] = {split: np.packbits(result.correct(split)).tobytes().hex() for split in result.splits}
    return entry or None


def _compact(plan: Plan) -> dict[str, Any]:
    """The plan with every cell once; sections name their rows and the cells' numbers."""
    numbers = {cell: number for number, cell in enumerate(plan.cells)}
    return {
        **plan.to_json(),
        "cells": [cell.to_json() for cell in numbers],
        "sections": {
            name: [[entry.row, numbers[entry.cell]] for entry in entries] for name, entries in plan.sections.items()
        },
    }


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
