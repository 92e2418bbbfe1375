from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_teachers import save_teacher


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random model of a kind; shared by all tests, which leave it as it is."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = save_teacher(kind, tmp_path_factory.mktemp("models") / kind.replace(" ", "-"))
        return folders[kind]

    return folder
