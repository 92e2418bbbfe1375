"""Run one cell into its folder: learn, measure, time; a folder is complete or it is not there."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import numpy as np

from models.folders import replace_folder
from training.data import Texts
from training.errors import StudyError
from training.evaluate import measure
from training.locks import alone
from training.study.cells import Cell
from training.study.system import Learned, Lesson, Outcome, System

_TIMED_TEXTS = 32
_TIMED_CALLS = 3
_LIBRARIES = ("numpy", "onnxruntime", "peft", "scikit-learn", "tokenizers", "torch", "transformers")


class Workshop(Protocol):
    """Where a cell's system and lesson come from. It is sent to workers, so it can be pickled."""

    def system(self, cell: Cell) -> System:
        """The cell's system, set up by the cell's options."""

    def lesson(self, cell: Cell) -> Lesson:
        """What the cell's system learns from."""


@dataclass(frozen=True)
class Ran:
    """What became of a cell; `message` says why one failed."""

    cell: Cell
    status: Literal["done", "skipped", "failed"]
    message: str = ""


class Runner(Protocol):
    """A way to run cells: here, in processes of their own, or on a cluster."""

    def run(self, work: Callable[[Cell], Ran], cells: list[Cell]) -> Iterator[Ran]:
        """Yield what became of each cell, as they end."""


@dataclass(frozen=True)
class Work:
    """`run_cell` with all but the cell; it is sent to workers."""

    workshop: Workshop
    root: Path
    final: bool
    timed: bool = True

    def __call__(self, cell: Cell) -> Ran:
        return run_cell(cell, self.workshop, self.root, self.final, self.timed)


def run_study(
    cells: list[Cell], work: Work, runner: Runner, elsewhere: Callable[[Cell], bool] = lambda cell: False
) -> Iterator[Ran]:
    """Run what is not finished; yields what became of every cell, finished ones first.

    Args:
        cells: Which.
        work: How to run one.
        runner: Where to run them.
        elsewhere: Whether a cell has a result in another place than `work.root`.
    """
    work.root.mkdir(parents=True, exist_ok=True)
    waiting = [cell for cell in cells if not finished(cell, work.root, work.final) and not elsewhere(cell)]
    left = set(waiting)
    yield from (Ran(cell, "skipped") for cell in cells if cell not in left)
    yield from runner.run(work, waiting)


def finished(cell: Cell, root: Path, final: bool) -> bool:
    """Whether a cell has a result, of the test texts too where it is `final`."""
    try:
        metrics = json.loads((root / cell.id / "result.json").read_text(encoding="utf-8"))["metrics"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return isinstance(metrics, dict) and ("test" in metrics or not final)


def run_cell(cell: Cell, workshop: Workshop, root: Path, final: bool = False, timed: bool = True) -> Ran:
    """Run a cell into `root/<id>/`, unless it is finished.

    It writes cell.json, result.json and predictions.npz, all or none. A cell that fails leaves error.json instead,
    beside an earlier result where there is one, and is run by the next call.

    Args:
        cell: Which.
        workshop: Where its system and lesson come from.
        root: Folder of all cells.
        final: Also measure on the test texts.
        timed: Keep how long it took; else its times are None, which no mean counts.
    """
    # Two studies may have a cell in common: one runs it, the other then finds it finished.
    with alone(root / ".locks" / cell.id):
        if finished(cell, root, final):
            return Ran(cell, "skipped")
        try:
            result, arrays = _run(cell, workshop, final, timed)
            _write(root / cell.id, cell, result, arrays)
        except Exception as exc:  # whatever it is, the other cells go on
            return record_failure(cell, root, exc)
    return Ran(cell, "done")


def _run(cell: Cell, workshop: Workshop, final: bool, timed: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What becomes result.json and predictions.npz."""
    started = _now()
    lesson = workshop.lesson(cell)
    system = workshop.system(cell)
    begin = time.process_time()
    outcome = system.learn(lesson)
    learn_seconds = time.process_time() - begin
    if not timed:
        outcome = replace(outcome, facts={**outcome.facts, "seconds_per_epoch": None, "inference_us": None})
    arrays, metrics = _measure(cell, outcome.learned, lesson, final)
    result = {
        **_figures(outcome, learn_seconds, lesson.data.validation),
        "metrics": metrics,
        "seed": cell.seed,
        "data_sha256": lesson.data.sha256,
        "teacher_sha256": None if lesson.soft is None else _sha256(lesson.soft.train),
        "library_versions": _versions(),
        "started": started,
        "ended": _now(),
    }
    return result, arrays


def record_failure(cell: Cell, root: Path, error: BaseException) -> Ran:
    """Write error.json into the cell's folder."""
    folder = root / cell.id
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "cell": cell.to_json(),
        "ended": _now(),
    }
    _write_json(folder / "error.partial", found)
    (folder / "error.partial").replace(folder / "error.json")
    return Ran(cell, "failed", f"{found['type']}: {found['message']}")


def _measure(
    cell: Cell, learned: Learned, lesson: Lesson, final: bool
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    arrays: dict[str, np.ndarray] = {}
    metrics: dict[str, dict[str, Any]] = {}
    for split in ("validation", "test") if final else ("validation",):
        texts: Texts = getattr(lesson.data, split)
        logits = np.asarray(learned.logits(texts))
        if logits.shape != (len(texts), len(texts.labels)):
            raise StudyError(
                f"{cell.system}: logits of the {split} texts have shape {logits.shape}, "
                f"expected {(len(texts), len(texts.labels))}"
            )
        wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(wrong):
            raise StudyError(
                f"{cell.system}: logits of {len(wrong)} of the {len(texts)} {split} texts are not finite, "
                f"the first is text {wrong[0] + 1}"
            )
        arrays |= {split: logits, f"{split}_targets": texts.targets}
        metrics[split] = measure(logits.argmax(axis=1), texts.targets, texts.labels)
    return arrays, metrics


def _figures(outcome: Outcome, learn_seconds: float, texts: Texts) -> dict[str, Any]:
    """Parameters and times, which are CPU time: what else the machine does is not in them.

    A system that resumed or read a cache knows better than this clock how long an epoch took, or that nobody counted:
    what its facts say goes first, None among them.
    """
    facts = outcome.facts
    per_epoch = learn_seconds / max(1, len(outcome.epochs))
    inference_us = facts["inference_us"] if "inference_us" in facts else _inference_us(outcome.learned, texts)
    return {
        "n_trainable": outcome.n_trainable,
        "n_total": outcome.n_total,
        "epochs": outcome.epochs,
        "distil_seconds": facts.get("seconds_per_epoch", per_epoch),  # Tkd
        "inference_us": inference_us,
        "facts": facts,
    }


def _inference_us(learned: Learned, texts: Texts) -> float:
    """Microseconds of CPU time a text, of whatever it needs, its embedding among it: median of a few batches."""
    rng, seconds = np.random.default_rng(0), []
    for _ in range(_TIMED_CALLS):
        rows = rng.permutation(len(texts))[:_TIMED_TEXTS]
        batch = Texts(tuple(texts.texts[i] for i in rows), texts.targets[rows], texts.labels, "timed texts")
        begin = time.process_time()
        learned.logits(batch)
        seconds.append((time.process_time() - begin) / len(batch))
    return 1e6 * median(seconds)


def _write(folder: Path, cell: Cell, result: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_json(new / "cell.json", cell.to_json())
        np.savez_compressed(new / "predictions.npz", allow_pickle=False, **arrays)
        _write_json(new / "result.json", result)
        replace_folder(folder, new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _write_json(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
