from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from study_fakes import DIGEST, FakeWorkshop

from training.cli import main
from training.errors import ConfigError
from training.study.grid import Grid, Plan, load_grid, plan_of, read_plan
from training.study.report import PLAN, report_study
from training.study.run import Work, run_study
from training.study.runners import Sequential

GRID = """
tasks = ["weather", "tides"]
seeds = [0, 1]
students = ["student"]
controls = ["control"]
[[sections.main]]
system = "student"
teacher = "bloom"
options = { share = 0.6 }
[[sections.main]]
system = "student"
track = "adapted"
options = { share = 0.95 }
[[sections.main]]
system = "control"
options = { share = 0.8 }
[[sections.losses]]
system = "student"
row = "CE"
[[sections.losses]]
system = "student"
row = "all"
teacher = "bloom"
options = { share = 0.6 }
[[sections.teachers]]
system = "student"
teacher = "bloom"
[[sections.related]]
system = "TextRCNN"
[[sections.hardware]]
system = "student on Baihua"
[[sections.size]]
system = "student"
sweep = { option = "n_train", values = [10, 20, 40] }
[[sections.layers]]
system = "student"
tasks = ["tides"]
seeds = [7]
sweep = { option = "n_layers", values = [1, 2] }
[[sections.qubits]]
system = "student"
sweep = { option = "n_qubits", values = [2, 4] }
"""


def load(text: str, folder: Path) -> Grid:
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return load_grid(path)


def make_plan(folder: Path, text: str = GRID) -> Plan:
    return plan_of(load(text, folder), {"weather": DIGEST, "tides": DIGEST}, lambda cell: "")


@pytest.fixture
def study(tmp_path: Path) -> tuple[Plan, Path]:
    """A plan and the folder of its cells, none of which is run."""
    plan = make_plan(tmp_path)
    plan.save(tmp_path / "study" / PLAN)
    return plan, tmp_path / "study"


def run(plan: Plan, root: Path, leave: Sequence[Any] = ()) -> None:
    cells = [cell for cell in plan.cells if cell not in leave]
    assert all(r.status == "done" for r in run_study(cells, Work(FakeWorkshop(root.parent), root, True), Sequential()))


def written(root: Path, out: Path) -> Path:
    return report_study(root / "no archive", root.parent, out)


def test_grid_becomes_a_cell_for_each_line_task_and_seed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    assert len(plan.entries("main")) == 3 * 2 * 2
    assert len(plan.entries("main", "tides")) == 3 * 2
    assert [(e.row, e.cell.task, e.cell.seed, dict(e.cell.options)) for e in plan.entries("layers")] == [
        (1, "tides", 7, {"n_layers": 1}),
        (2, "tides", 7, {"n_layers": 2}),
    ]


def test_cell_of_two_sections_is_one(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    taught = [e.cell for e in plan.entries("losses") if e.row == "all"]
    assert set(taught) <= {e.cell for e in plan.entries("main")}
    assert len(plan.cells) == len(set(plan.cells)) < sum(len(entries) for entries in plan.sections.values())


def test_plan_survives_its_file(study: tuple[Plan, Path]) -> None:
    plan, root = study
    assert read_plan(root / PLAN) == plan


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ("[[sections.size]]", "[[sections.sise]]", r"sections\.sise"),
        ('row = "CE"', "rows = 1", r"sections\.losses\.0\.rows"),
        ('track = "adapted"', 'track = "thawed"', r"sections\.main\.1\.track: .*'thawed'"),
        ("values = [2, 4]", "values = []", r"sections\.qubits\.0\.sweep\.values"),
        ('tasks = ["weather", "tides"]', "", "tasks: Field required"),
        ("[[sections.qubits]]", "[[sections.qubits", "not a TOML file"),
    ],
)
def test_wrong_grid_is_refused_and_the_field_named(tmp_path: Path, line: str, instead: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"grid\.toml: {said}"):
        load(GRID.replace(line, instead, 1), tmp_path)


def test_report_has_every_table_and_plot(study: tuple[Plan, Path]) -> None:
    plan, root = study
    run(plan, root)
    out = root.parent / "docs"
    text = written(root, out).read_text(encoding="utf-8")
    for said in ("Table 3", "Fig. 3", "Weather (Table 4)", "Tides (Table 5)", "Table 7", "Table 8", "Fig. 4", "Fig. 5"):
        assert said in text
    pictures = re.findall(r"\((study/\w+\.png)\)", text)
    assert sorted(pictures) == [f"study/{n}.png" for n in ("layers", "qubits", "related", "size", "time")]
    for picture in pictures:
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert f"{len(plan.cells)} of {len(plan.cells)} cells" in text
    assert text.endswith("## Cells that are missing\n\nNone.\n")
    assert "not run" not in text


def test_report_marks_the_student_that_a_control_beats_and_not_the_other(study: tuple[Plan, Path]) -> None:
    plan, root = study
    run(plan, root)
    text = written(root, root.parent / "docs").read_text(encoding="utf-8")
    section = text.partition("## Weather (Table 4)")[2].partition("## Tides")[0]
    rows = [line for line in section.splitlines() if line.startswith("| student |") and "±" in line]
    assert "†" in next(line for line in rows if "bloom" in line)
    assert "†" not in next(line for line in rows if "adapted" in line)
    assert "† student (frozen, bloom) does not beat the control control (frozen): difference -0.2000" in section


def test_report_without_results_names_every_cell(study: tuple[Plan, Path]) -> None:
    plan, root = study
    out = root.parent / "docs"
    text = written(root, out).read_text(encoding="utf-8")
    missing = text.partition("## Cells that are missing")[2]
    rows = [line.split(" | ") for line in missing.strip().splitlines()[2:]]
    assert sum(len(row[5].split(", ")) for row in rows) == len(plan.cells)
    ids = {f"`{cell.id}`" for cell in plan.cells}
    assert {row[6] for row in rows} <= ids
    assert all(row[7] == "not run |" for row in rows)
    assert list(out.rglob("*.png")) == []
    assert "![" not in text
    assert re.search(r"\| *\|", text) is None


def test_report_of_half_a_study_draws_what_there_is(study: tuple[Plan, Path]) -> None:
    plan, root = study
    run(plan, root, leave=[c for c in plan.cells if c.task == "tides"])
    text = written(root, root.parent / "docs").read_text(encoding="utf-8")
    assert "study/time.png" in text
    assert "study/layers.png" not in text


def test_equal_results_give_equal_reports(study: tuple[Plan, Path]) -> None:
    plan, root = study
    run(plan, root)
    for name in ("one", "two"):
        written(root, root.parent / name)
    files = sorted(p.relative_to(root.parent / "one") for p in (root.parent / "one").rglob("*.*"))
    assert {"study.md", "study.json"} < {file.name for file in files}
    for file in files:
        assert (root.parent / "one" / file).read_bytes() == (root.parent / "two" / file).read_bytes()


def test_stale_plot_goes_with_its_cells(study: tuple[Plan, Path]) -> None:
    _, root = study
    stale = root.parent / "docs" / "study" / "size.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    written(root, root.parent / "docs")
    assert not stale.exists()


def test_report_command_writes_the_file_it_names(study: tuple[Plan, Path], capsys: pytest.CaptureFixture[str]) -> None:
    plan, root = study
    run(plan, root)
    out = root.parent / "docs"
    assert main(["report", "--cache", str(root.parent), "--out", str(out), "--split", "validation"]) == 0
    assert capsys.readouterr().out == f"{out / 'study.md'}\n"
    assert "Figures are of the validation texts" in (out / "study.md").read_text(encoding="utf-8")


def test_report_without_a_study_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--cache", str(tmp_path), "--out", str(tmp_path / "docs")]) == 2
    assert "plan.json: no such file; expected the plan that `qdtrain study` writes" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()
