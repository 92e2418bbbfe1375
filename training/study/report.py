"""docs/study.md, its plots and docs/study.json, from the plan and the cells' results alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.search.results import plot as plot_search
from training.search.results import read_search
from training.search.results import table as search_table
from training.study import paper
from training.study.archive import Archive
from training.study.baihua import hardware_bars, hardware_table, read_hardware
from training.study.bounds import bounds_table, target_lines, teacher_table
from training.study.cells import Track
from training.study.comparing import comparison_table, comparisons, marks, notes
from training.study.controls import UntaughtStudent
from training.study.cost import cost_plot, cost_table, read_cost
from training.study.grid import Plan, Section, read_plan
from training.study.plots import Measure, curves, dots
from training.study.results import CellFolders, Results, Split
from training.study.student import ADAPTED
from training.study.tables import (
    Table,
    accuracy_table,
    group,
    missing_table,
    noise_table,
    parameter_table,
    sweep_table,
    task_table,
    teachers_that_changed,
)

PLAN = "plan.json"  # in the folder of all cells
# In the folder of the documents, from `make bench-hardware` and `make bench-cost`.
HARDWARE, COST = "bench-hardware.json", "bench-cost.json"


@dataclass(frozen=True)
class _Curve:
    section: Section
    title: str
    axis: str
    note: str = ""


_SIZE_NOTE = (
    "A smaller set is part of a larger one. The teacher learned from all texts of the task, so the curve of a taught "
    "student says what fewer texts cost its distillation; those of the others, what fewer labels cost."
)
_CURVES = (
    _Curve("size", "Accuracy against the number of training texts", "training texts", _SIZE_NOTE),
    _Curve("qubits", "Accuracy against qubits", "qubits"),
    _Curve("layers", "Accuracy against layers", "layers"),
    _Curve("fidelity", "Accuracy against CZ fidelity", "CZ fidelity"),
    _Curve("readout", "Accuracy against readout error", "readout error"),
    _Curve("shots", "Accuracy against shots", "shots a text"),
)
NOISE_SECTIONS: tuple[Section, ...] = ("fidelity", "readout", "shots")
_INTRODUCTION = """# The study

Written by `qdtrain report` from the cells that `qdtrain study` ran; searches come from `qdtrain search`, Baihua through
the emulator and the cost against qubits from the benchmarks. What is measured on cells is in `study.json` unrounded.
Figures are of the {split} texts; each is the mean ± standard deviation of independent runs, one for each seed.
{done} of {all} cells are measured on these texts.

On the track `frozen` the features come from an encoder that is never trained, on `adapted` from one that was trained
once for all tasks, from the teachers' outputs, and on `adapted-large` from a larger one that was; `end-to-end` has no
such features, the model itself is trained.{adapted}
Students are noise-free where nothing else is said. The paper's figures stand beside ours where it has them: its texts,
encoder and teachers are others."""
_ADAPTED = (
    "\nThe parameters of an encoder that were trained when it was adapted ({trained}) are in no count of a student's "
    "or control's trained ones. Whatever has no teacher there, `student without a teacher` too, still reads features "
    "that teachers shaped."
)
_ADAPTED_PARAMETERS = (
    "Trained parameters are those of what stands on the features. The encoder below had others trained before, once "
    "for all tasks: {trained}; Acc/Param leaves them out."
)
_LOSSES = (
    "`CE` is `student without a teacher`: not its loss alone is another one, for its linear start is fitted to the "
    "labels where those of the other rows are fitted to the teacher's logits."
)
_READING = (
    "Acc/Param is accuracy divided by the trained parameters. Tkd is the CPU time of an epoch of learning on one "
    "thread, in seconds; a system without epochs counts as one, and one whose epochs came from a cache as not timed. "
    "TinyBERT's is an epoch of each of its two stages. All compression baselines copy or hear the MiniLM that was "
    "tuned on all texts of the task, and QD-LLM hears teachers that were; rows that say 2,400 texts, QD-LLM's among "
    "them, learn from no more themselves. The compression baselines are small-scale implementations of each method's "
    "loss: see `training/baselines/`."
)
_PAIRED = (
    "The difference is student minus other in accuracy, each averaged over its seeds; its interval is that of a "
    "bootstrap over texts, the same for both, and over each system's seeds, and what is said in words is what it "
    "allows. A system of one run has no seeds to draw: how its others would differ is not in the interval. McNemar's "
    "exact test compares single predictions, those of the lowest common seed. Neither is "
    "corrected for the number of comparisons. Systems that learned from different numbers of texts are not compared."
)
_TIMES: tuple[Measure, ...] = ("distil_seconds", "inference_us")
_TIME_TITLE = "Distillation and inference time (Fig. 3)"


def report_study(cells: Path, cache: Path | None, out: Path, split: Split = "test") -> Path:
    """`write_report` of an archive and the files `search-*.json` beside it, or of what is in a cache.

    Args:
        cells: The archive, which is read where there is no cache.
        cache: Where `qdtrain study` and `qdtrain search` ran.
        out: Folder of the documents.
        split: Texts that the figures are of.

    Raises:
        ConfigError: If the cache has no plan, or a search cannot be read.
        StudyError: If the archive or a cell's result cannot be read.
    """
    if cache is None:
        archive = Archive(cells)
        return write_report(archive.plan, archive, out, split, sorted(cells.parent.glob("search-*.json")))
    root = cache / "study"
    return write_report(
        read_plan(root / PLAN), CellFolders(root), out, split, sorted((cache / "search").glob("*.json"))
    )


def write_report(plan: Plan, results: Results, out: Path, split: Split = "test", searches: Sequence[Path] = ()) -> Path:
    """Write `out/study.md`, `out/study.json` and `out/study/*.png`.

    Args:
        plan: The study.
        results: Of its cells.
        out: Folder of the documents; what the benchmarks of hardware and cost measured is read there.
        split: Texts that the figures are of.
        searches: Files that `qdtrain search` wrote.

    Returns:
        The Markdown file.

    Raises:
        StudyError: If a cell's result cannot be read.
    """
    report = _Report(plan, results, out, split)
    done = sum(results.get(cell, split) is not None for cell in plan.cells)
    trained = _adapted_parameters(plan, results, split)
    adapted = _ADAPTED.format(trained=trained) if trained else ""
    report.parts.append(_INTRODUCTION.format(split=split, done=done, all=len(plan.cells), adapted=adapted))
    if plan.entries("main"):
        report.targets()
        report.main(trained)
    if plan.entries("losses"):
        losses = accuracy_table(plan, "losses", "loss", results, split, paper.LOSSES)
        if any(entry.cell.system == UntaughtStudent.name for entry in plan.entries("losses")):
            losses.notes.append(_LOSSES)
        report.table("Losses (Table 7)", losses)
    if plan.entries("teachers"):
        report.table("Teachers (Table 8)", teacher_table(plan, results, split, paper.TEACHERS))
    if plan.entries("related"):
        title = "Related-task baselines (Fig. 4)"
        report.table(title, accuracy_table(plan, "related", "system", results, split))
        report.plot("related", dots(plan, "related", ("accuracy",), results, split, report.png("related")), title)
    report.hardware(out / HARDWARE)
    for curve in _CURVES:
        if plan.entries(curve.section):
            report.curve(curve)
    report.cost(out / COST)
    if searches:
        report.searches(searches)
    if plan.entries("main"):
        report.table("What bounds it", bounds_table(plan, results, split))
    if changed := teachers_that_changed(plan, results, split):
        report.parts += ["## Teachers that changed between cells", *changed]
    lacking = missing_table(plan, results, split)
    report.parts += ["## Cells that are missing", str(lacking) if lacking.rows else "None."]
    return report.save(done)


def _adapted_parameters(plan: Plan, results: Results, split: Split) -> str:
    """Trained parameters of each adapted encoder, by track; empty where no cell has one."""
    found: dict[Track, int] = {}
    for cell in plan.cells:
        if cell.track in ADAPTED and cell.track not in found and (result := results.get(cell, split)) is not None:
            trained = result.figure("encoder_trained", split)
            if trained is not None:
                found[cell.track] = int(trained)
    return " and ".join(f"{trained:,} on `{track}`" for track, trained in found.items())


@dataclass
class _Report:
    """The parts of the document, and what its figures come from."""

    plan: Plan
    results: Results
    out: Path
    split: Split
    parts: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def targets(self) -> None:
        lines, self.found["targets"] = target_lines(self.plan, self.results, self.split, paper.TARGETS)
        self.parts += ["## Targets", *lines]

    def main(self, trained: str) -> None:
        plan, results, split = self.plan, self.results, self.split
        parameters = parameter_table(plan, results, split, paper.PARAMETERS)
        if trained:
            parameters.notes.append(_ADAPTED_PARAMETERS.format(trained=trained))
        self.table("Parameters (Table 3)", parameters)
        self.parts.append(f"## {_TIME_TITLE}")
        self.plot("time", dots(plan, "main", _TIMES, results, split, self.png("time")), _TIME_TITLE)
        self.found["comparisons"] = {}
        for number, task in enumerate(plan.tasks, start=4):
            found = comparisons(plan, task, results, split)
            of_paper = paper.ACCURACY.get(task, {})
            table = task_table(plan, task, results, split, marks(found, plan.controls), of_paper)
            table.notes = notes(found, plan.controls)
            self.table(f"{task.capitalize()} (Table {number})", table)
            self.parts += [_READING] if task == plan.tasks[0] else []
            if found:
                pairs = comparison_table(found)
                pairs.notes = [_PAIRED] if task == plan.tasks[0] else []
                self.parts += [f"### {task.capitalize()}: paired comparisons", str(pairs)]
            self.found["comparisons"][task] = [comparison.to_json() for comparison in found]

    def curve(self, curve: _Curve) -> None:
        plan, results, split = self.plan, self.results, self.split
        path = self.png(curve.section)
        drawn = curves(plan, curve.section, curve.axis, results, split, path)
        self.parts += [f"## {curve.title}", *([curve.note] if curve.note else [])]
        self.plot(curve.section, drawn, curve.title)
        make_table = noise_table if curve.section in NOISE_SECTIONS else sweep_table
        self.parts.append(str(make_table(plan, curve.section, curve.axis, results, split)))

    def hardware(self, path: Path) -> None:
        title = "Baihua through the emulator (Fig. 5)"
        if path.exists():
            self.found["hardware"] = figures = read_hardware(path)
            self.table(title, hardware_table(figures))
            self.plot("hardware", hardware_bars(figures, self.png("hardware")), title)
        else:
            self.parts += [f"## {title}", f"Not measured: `make bench-hardware` writes {path.name}."]
        if self.plan.entries("hardware"):
            table = accuracy_table(self.plan, "hardware", "system", self.results, self.split)
            self.table("Students on the emulated chip, every text", table)

    def cost(self, path: Path) -> None:
        title = "Cost against qubits"
        if not path.exists():
            self.parts += [f"## {title}", f"Not measured: `make bench-cost` writes {path.name}."]
            return
        self.found["cost"] = figures = read_cost(path)
        self.parts.append(f"## {title}")
        self.plot("cost", cost_plot(figures, self.png("cost")), title)
        self.parts += [
            str(cost_table(figures, preset)) for preset in dict.fromkeys(r["preset"] for r in figures["rows"])
        ]

    def searches(self, files: Sequence[Path]) -> None:
        self.parts.append("## Search for configurations (validation texts)")
        for file in files:
            found = read_search(file)
            self.parts.append(f"### {found.name}")
            self.plot(f"search-{found.name}", plot_search(found, self.png(f"search-{found.name}")), found.name)
            self.parts.append(str(search_table(found)))

    def table(self, title: str, table: Table) -> None:
        self.parts += [f"## {title}", str(table)]

    def plot(self, name: str, drawn: bool, title: str) -> None:
        missing = "Not run: none of its cells; the end of this page says which."
        self.parts.append(f"![{title}](study/{self.png(name).name})" if drawn else missing)

    def png(self, name: str) -> Path:
        return self.out / "study" / f"{name}.png"

    def save(self, done: int) -> Path:
        self.found |= {
            "split": self.split,
            "cells": {"measured": done, "all": len(self.plan.cells)},
            "sections": {
                name: [g.to_json() for g in group(entries, self.results, self.split)]
                for name, entries in self.plan.sections.items()
            },
            "paper": {
                "accuracy": paper.ACCURACY,
                "losses": paper.LOSSES,
                "teachers": paper.TEACHERS,
                "parameters": paper.PARAMETERS,
            },
        }
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "study.md"
        path.write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")
        (self.out / "study.json").write_text(json.dumps(self.found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path
