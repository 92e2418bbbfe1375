from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import FolderError
from models.folders import replace_folder, require_replaceable


def fill(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_new_empty_or_marked_folder_may_be_replaced(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", fill(tmp_path / "empty"), fill(tmp_path / "old", marker="", other="")):
        require_replaceable(folder, "marker.json")


def test_anything_else_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nested" / "marker.json").mkdir(parents=True)
    fill(tmp_path / "parent" / "old", marker="")
    for folder in (tmp_path / "file", tmp_path / "nested", tmp_path / "parent", fill(tmp_path / "other", notes="")):
        with pytest.raises(FolderError, match=rf"{folder}: expected a new folder or one with marker\.json"):
            require_replaceable(folder, "marker.json")


@pytest.mark.parametrize("exists", [True, False])
def test_new_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path, exists: bool) -> None:
    if exists:
        fill(tmp_path / "target", marker="old", leftover="old")
    replace_folder(tmp_path / "target", fill(tmp_path / "new", marker="new"))
    assert contents(tmp_path / "target") == {"marker": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
