from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.errors import StudyError
from training.study.baihua import hardware_bars, hardware_table, read_hardware, standard_error


def figures(**changed: Any) -> dict[str, Any]:
    task = {
        "bundle": "weather@12345678",
        "circuit": "chain, p = 2",
        "texts": 200,
        "simulator": 0.785,
        "raw": 0.73,
        "corrected": 0.77,
        "emulated": True,
        "shots": 10_240,
    }
    return {"split": "test", "tasks": {"weather": {**task, **changed}}}


def test_row_has_the_three_readings_and_what_noise_costs() -> None:
    (row,) = hardware_table(figures()).rows
    assert row[:6] == ["weather", "`weather@12345678`", "chain, p = 2", "200", "10,240", "emulator"]
    assert row[6:] == ["0.7850 ± 0.0290", "0.7300 ± 0.0314", "0.7700 ± 0.0298", "+1.50"]


def test_points_gained_by_chance_are_negative() -> None:
    assert hardware_table(figures(corrected=0.8)).rows[0][-1] == "-1.50"


def test_chip_is_told_from_its_emulator() -> None:
    assert hardware_table(figures(emulated=False)).rows[0][5] == "chip"


def test_the_papers_figures_are_marked_as_another_session_and_other_texts() -> None:
    said = " ".join(hardware_table(figures()).notes)
    assert "67.85% to 73.75%" in said
    assert "another session of the chip, other texts" in said
    assert "Some of the test texts" in said


@pytest.mark.parametrize(("accuracy", "n", "expected"), [(0.5, 100, 0.05), (1.0, 10, 0.0)])
def test_standard_error_is_binomial(accuracy: float, n: int, expected: float) -> None:
    assert standard_error(accuracy, n) == pytest.approx(expected)


def test_benchmark_of_the_project_can_be_read() -> None:
    found = read_hardware(Path(__file__).parents[2] / "docs" / "bench-hardware.json")
    assert len(hardware_table(found).rows) == len(found["tasks"]) > 0


def test_bars_are_drawn_and_equal_figures_give_equal_files(tmp_path: Path) -> None:
    paths = [tmp_path / "plots" / name for name in ("a.png", "b.png")]
    assert [hardware_bars(figures(), path) for path in paths] == [True, True]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def test_nothing_measured_leaves_no_plot(tmp_path: Path) -> None:
    path = tmp_path / "bars.png"
    hardware_bars(figures(), path)
    assert not hardware_bars({"split": "test", "tasks": {}}, path)
    assert not path.exists()


def test_missing_figures_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none\.json: no such file; expected what `make bench-hardware"):
        read_hardware(tmp_path / "none.json")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"tasks": {"weather": 3}, "split": "test"}'])
def test_other_content_is_refused_and_the_file_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(StudyError, match=r"bench\.json: expected what `make bench-hardware` writes"):
        read_hardware(path)


def test_lacking_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    found = figures()
    del found["tasks"]["weather"]["raw"]
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(StudyError, match=r"weather lacks \['raw'\]"):
        read_hardware(path)
