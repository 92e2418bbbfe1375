"""Replacing a folder whole: the old one stays until the new one is complete, and nothing else is ever deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

from models.errors import FolderError


def require_replaceable(folder: Path, marker: str) -> None:
    """Refuse a target that exists and is neither empty nor marked as what replaces it: it would be deleted whole.

    Raises:
        FolderError: If it is; names the folder.
    """
    if folder.exists() and not (folder / marker).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"{folder}: expected a new folder or one with {marker} to replace, found something else")


def replace_folder(folder: Path, new: Path) -> None:
    """Put `new`, on the same file system, in the place of `folder`; the old one comes back if that fails."""
    new.chmod(0o755)
    if not folder.exists():
        new.replace(folder)
        return
    old = new.with_name(f"{new.name}.old")
    folder.replace(old)
    try:
        new.replace(folder)
    except BaseException:
        old.replace(folder)
        raise
    shutil.rmtree(old)
