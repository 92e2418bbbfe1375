"""Fig. 5: the shipped students on Baihua, from what `make bench-hardware` measured over HTTP."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.errors import StudyError
from training.figures import save
from training.study.tables import Table

PAPER_ACCURACY = (0.6785, 0.7375)
"""What the paper reads off the chip in Fig. 5, lowest and highest: its own students and texts, 10,240 shots."""

_READINGS = {"simulator": "simulator", "raw": "raw counts", "corrected": "corrected counts"}
_FIELDS = {"bundle", "circuit", "texts", "shots", "emulated", *_READINGS}


def read_hardware(path: Path) -> dict[str, Any]:
    """The figures of `make bench-hardware`: `split`, and `tasks` by name.

    Raises:
        StudyError: If there are none or they lack a field; names the file.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lacking = {task: sorted(_FIELDS - figures.keys()) for task, figures in found["tasks"].items()}
        split = found["split"]
    except FileNotFoundError as exc:
        raise StudyError(f"{path}: no such file; expected what `make bench-hardware JSON={path.name}` writes") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StudyError(f"{path}: expected what `make bench-hardware` writes, found {exc!r}") from exc
    for task, names in lacking.items():
        if names:
            raise StudyError(f"{path}: {task} lacks {names}; run `make bench-hardware` again")
    return {"split": split, "tasks": found["tasks"]}


def hardware_table(figures: dict[str, Any]) -> Table:
    """Accuracy of each task's shipped student by exact values, counts as they are, and counts corrected for readout."""
    table = Table(["task", "bundle", "circuit", "texts", "shots", "where", *_READINGS.values(), "points lost"])
    for task, found in figures["tasks"].items():
        table.rows.append(
            [
                task,
                f"`{found['bundle']}`",
                found["circuit"],
                str(found["texts"]),
                f"{found['shots']:,}",
                "emulator" if found["emulated"] else "chip",
                *(f"{found[name]:.4f} ± {standard_error(found[name], found['texts']):.4f}" for name in _READINGS),
                f"{100 * (found['simulator'] - found['corrected']):+.2f}",
            ]
        )
    low, high = PAPER_ACCURACY
    table.notes = [
        f"Some of the {figures['split']} texts, drawn with a fixed seed, through the service: `simulator` against "
        "`baihua`. Behind ± is the standard error of an accuracy on so many texts, sqrt(a (1 - a) / n); the readings "
        "are of the same texts, so that their differences are surer than that. Points lost: simulator less corrected.",
        f"The paper's own students had {low:.2%} to {high:.2%} on the chip (Fig. 5): another session of the chip, "
        "other texts and another circuit, so no figure here is better or worse than theirs by the difference.",
    ]
    return table


def hardware_bars(figures: dict[str, Any], path: Path) -> bool:
    """The table as bars, the paper's range behind them, PNG.

    Returns:
        Whether there was anything to draw; without, no file is left.
    """
    tasks = figures["tasks"]
    if not tasks:
        path.unlink(missing_ok=True)
        return False
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.axhspan(*PAPER_ACCURACY, color="0.85", label="the paper, on the chip: another session, other texts")
    width = 0.8 / len(_READINGS)
    for number, (name, label) in enumerate(_READINGS.items()):
        places = [i + (number - (len(_READINGS) - 1) / 2) * width for i in range(len(tasks))]
        errors = [standard_error(found[name], found["texts"]) for found in tasks.values()]
        axis.bar(places, [found[name] for found in tasks.values()], width, yerr=errors, capsize=2, label=label)
    axis.set_xticks(range(len(tasks)), [_title(task, found) for task, found in tasks.items()], fontsize=8)
    axis.set_ylabel("accuracy", fontsize=8)
    lowest = min(PAPER_ACCURACY[0], *(found[name] for found in tasks.values() for name in _READINGS))
    axis.set_ylim(math.floor(10 * lowest - 0.5) / 10, 1.0)
    axis.legend(fontsize=7, loc="upper left")
    return save(figure, path)


def standard_error(accuracy: float, n_texts: int) -> float:
    """Of an accuracy that is a mean over so many texts."""
    return math.sqrt(accuracy * (1 - accuracy) / n_texts)


def _title(task: str, found: dict[str, Any]) -> str:
    return f"{task}\n{found['circuit']}\n{found['shots']:,} shots, {found['texts']} texts"
