"""Rewrite the tables of README and docs from the code and what commands measured, and the example's output.

    python -m benchmarks.readme [--check]

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. With `--check` nothing is written and a table that is out
of date ends with exit code 1; the example, whose last digits depend on the processor, is left to the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.hardware import TARGET_POINTS, points_lost
from benchmarks.serving import ROOT, serving
from models.bundle import SHIPPED
from models.embedder import SHIPPED as EMBEDDERS
from service.metrics import metrics_table
from service.settings import settings_table
from training.study.paper import TARGETS

README = ROOT / "README.md"
ADAPTED = EMBEDDERS / "minilm-l6-adapted"
# Best cell of the paper's Tables 4-6 for its own students, on the authors' texts and with teachers of up to 8 B.
_PAPER = {"emotion": 0.8157, "hiding": 0.8231, "thematic": 0.8670}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is out of date")
    options = parser.parse_args(argv)
    before = {path: path.read_text(encoding="utf-8") for path in TABLES}
    after = {path: with_tables(path, text) for path, text in before.items()}
    if options.check:
        stale = [path for path in TABLES if after[path] != before[path]]
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)}: a table is out of date; run `make readme`\n")
        return int(bool(stale))
    example = f"```text\n{example_output(after[README])}```"
    after[README] = between(after[README], "example", example, README)
    for path, text in after.items():
        path.write_text(text, encoding="utf-8")
    return 0


def example_output(readme: str) -> str:
    """What the README's Python example prints, run against a service of its own on a free port."""
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    if code is None:
        raise ValueError("README.md: expected a ```python block, found none")
    with serving({"QD_EMBEDDED": "false"}) as url:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code[1].replace("http://127.0.0.1:8000", url), {})
    return printed.getvalue()


def between(text: str, name: str, content: str, path: Path) -> str:
    """The text of a file with what stands between `<!-- name -->` and `<!-- /name -->` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{path.name}: expected <!-- {name} --> and <!-- /{name} -->, found none")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def with_tables(path: Path, text: str) -> str:
    """The text of a file of `TABLES` with every table made anew."""
    for name, table in TABLES[path].items():
        text = between(text, name, table(), path)
    return text


def accuracy_table() -> str:
    """Test accuracy of every shipped student, the control on the same features and the teacher."""
    rows = []
    for path in sorted(SHIPPED.glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        test = manifest["metrics"]["test"]
        accuracy, n = test["student"]["accuracy"], test["student"]["n"]
        rows.append(
            [
                manifest["task"],
                str(n),
                f"{manifest['parameter_counts']['total']:,}",
                f"**{accuracy:.4f}** ± {sqrt(accuracy * (1 - accuracy) / n):.4f}",
                target_cell(manifest["task"], accuracy),
                f"{test['student']['f1']:.4f}",
                control_cell(accuracy, test["logistic_regression"]["accuracy"]),
                f"{test['teacher']['accuracy']:.4f}",
                f"{_PAPER[manifest['task']]:.4f}",
            ]
        )
    head = [
        "task",
        "test texts",
        "parameters",
        "student",
        "target",
        "student, macro F1",
        "logistic regression, same features",
        "teacher",
        "paper, best teacher",
    ]
    return markdown(head, rows)


def target_cell(task: str, accuracy: float) -> str:
    """The accuracy that was aimed at, and whether it was reached."""
    return f"{TARGETS[task]:.4f}, {'met' if accuracy >= TARGETS[task] else '**missed**'}"


def control_cell(accuracy: float, control: float) -> str:
    """The accuracy of the control, and whether the student falls short of it."""
    return f"{control:.4f}" + (", **better**" if control > accuracy else "")


def adapted_line() -> str:
    """What the shipped students' encoder cost in trained parameters, beside their own."""
    info = json.loads((ADAPTED / "embedder.json").read_text(encoding="utf-8"))
    trained = info["source"]["adapted"]["trained_parameters"]
    return (
        f"*Parameters* are a student's own, all trained. Of the encoder, {trained:,} were trained when it was adapted, "
        "for all tasks together."
    )


def study_table() -> str:
    """Five-seed means of the study's students against what the project set out to reach."""
    found = _figures("study.json")
    rows = []
    for student in found["targets"]:
        if (accuracy := student["accuracy"]) is None:
            where = f"{student['task']}, {student['track']}"
            raise ValueError(f"docs/study.json: {where}: expected an accuracy, found none")
        rows.append(
            [
                student["task"],
                student["row"],
                student["track"],
                f"{accuracy['mean']:.4f} ± {accuracy['std']:.4f}",
                f"{student['target']:.4f}",
                student["said"].replace("missed", "**missed**"),
                f"{student['n_trainable']:,}",
            ]
        )
    return markdown(
        ["task", "student", "track", f"accuracy, {found['split']}", "target", "target is", "trained parameters"], rows
    )


def speed_table() -> str:
    """What `make bench-student` measured."""
    figures = _figures("bench-student.json")
    rows = []
    for part, unit in (("inference", "text"), ("training", "sample")):
        for row in figures[part]:
            rows.append(
                [
                    str(row["n_layers"]),
                    row["what"],
                    f"{row['microseconds']:,.1f} a {unit}",
                    "" if row["ratio"] is None else f"{row['ratio']:.0f}x",
                    ""
                    if row["target"] is None
                    else f"{row['target']:.0f}x, {'met' if row['target_met'] else '**missed**'}",
                    "" if row["error"] is None else f"{row['error']:.0e}",
                ]
            )
    return markdown(["layers", "what", "µs", "faster than MindQuantum", "target", "largest difference"], rows)


def embedder_table() -> str:
    """What `make bench-embedder` measured."""
    figures = _figures("bench-embedder.json")
    rows = [[f"linear probe, {task}", *_pair(v, "{:.4f}")] for task, v in figures["accuracy"].items()]
    rows += [[f"CPU milliseconds, {shape}", *_pair(v, "{:.1f}")] for shape, v in figures["milliseconds"].items()]
    rows.append(["size, MB", *_pair(figures["megabytes"], "{:.1f}")])
    return markdown(["", "int8 (shipped)", "fp32"], rows)


def hardware_table() -> str:
    """What `make bench-hardware` measured."""
    figures = _figures("bench-hardware.json")
    rows = []
    for task, found in figures["tasks"].items():
        lost = points_lost(found)
        rows.append(
            [
                task,
                found["circuit"],
                str(found["texts"]),
                f"{found['simulator']:.4f}",
                f"{found['raw']:.4f}",
                f"**{found['corrected']:.4f}**",
                f"{lost:.1f} points, {'met' if lost <= TARGET_POINTS else '**missed**'}",
                f"{found['disagreement']:.1%}",
            ]
        )
    head = ["task", "circuit", "texts", "simulator", "raw", "corrected", "lost after correction", "other label"]
    return markdown(head, rows)


def operating_table() -> str:
    """What `make bench-operating` measured, phase by phase."""
    figures = _figures("bench-operating.json")
    rows = []
    for phase in figures["phases"]:
        failed = sum(n for status, n in phase["by_status"].items() if status not in ("200", "202"))
        rows.append(
            [
                phase["phase"],
                f"`{json.dumps(phase['switch'])}`",
                f"{phase['seconds_until_the_other_replica_agreed']:.2f}",
                f"{phase['requests']:,}",
                str(failed),
                ", ".join(f"{name} {n:,}" for name, n in phase["by_replica_and_backend"].items()),
                f"{phase['median_ms']:,.0f}",
                f"{phase['p95_ms']:,.0f}",
            ]
        )
    reloads = figures["reloads"]
    slowest = max(found["seconds_until_the_other_replica_agreed"] for found in reloads)
    what = [f"{len(reloads)} reloads", "`POST /admin/reload`", f"at most {slowest:.2f}"]
    rows.append([*what, f"{figures['reload_requests']:,}", str(figures["reload_failures"]), "", "", ""])
    rows.append(["all", "", "", f"{figures['requests']:,}", f"**{figures['failed_requests']}**", "", "", ""])
    head = [
        "phase",
        "switch",
        "s until the other replica agreed",
        "requests",
        "failed",
        "replica: backend that answered",
        "median, ms",
        "p95, ms",
    ]
    return markdown(head, rows)


def session_line() -> str:
    """What that session came to, in a line."""
    figures = _figures("bench-operating.json")
    return f"{figures['requests']:,} requests, {figures['failed_requests']} failed"


def wrong_inputs_table() -> str:
    """What that session was refused."""
    rows = [
        [
            found["input"],
            f"{found['status']} `{found['type']}`",
            found["detail"],
            "yes" if found["unchanged"] else "**no**",
        ]
        for found in _figures("bench-operating.json")["wrong_inputs"]
    ]
    return markdown(["input", "answer", "detail", "unchanged"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    README: {
        "accuracy": accuracy_table,
        "adapted": adapted_line,
        "study": study_table,
        "speed": speed_table,
        "embedder": embedder_table,
        "hardware": hardware_table,
        "session": session_line,
        "settings": settings_table,
    },
    ROOT / "docs" / "metrics.md": {"metrics": metrics_table},
    ROOT / "docs" / "operations.md": {"operating": operating_table, "wrong": wrong_inputs_table},
}


def _figures(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))
    return figures


def _pair(values: Mapping[str, float], form: str) -> list[str]:
    return [form.format(values["int8"]), form.format(values["fp32"])]


if __name__ == "__main__":
    sys.exit(main())
