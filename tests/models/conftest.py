from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import FEATURES, TEXTS, random_weights

from models.bundle import Bundle, write_bundle
from models.circuit import student_circuit
from models.embedder import Embedder, find_embedder


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return Embedder(find_embedder("minilm-l6"), threads=1)


@pytest.fixture(scope="session")
def facts(embedder: Embedder) -> dict[str, Any]:
    """A manifest's fields but those that `write_bundle` fills in."""
    return {
        "task": "emotion",
        "labels": ["negative", "positive"],
        "embedder": {"name": embedder.name, "sha256": embedder.sha256, "features": FEATURES},
        "preset": "chain",
        "n_qubits": 4,
        "n_layers": 1,
        "metrics": {"test": {"accuracy": 0.5}},
        "teacher": {"model": "random"},
        "training": {"best_epoch": 0, "history": []},
        "data_sha256": {"train": "0" * 64},
        "seed": 0,
        "configuration": {"epochs": 0},
        "command": "qdtrain distil none.toml",
        "library_versions": {"numpy": np.__version__},
    }


@pytest.fixture(scope="session")
def write(embedder: Embedder, facts: dict[str, Any]) -> Callable[..., Bundle]:
    """Write a small random student; keywords replace facts, `weights`, `reader` (the embedder) or `texts`."""

    def write(folder: Path, **changes: Any) -> Bundle:
        circuit = student_circuit("chain", 4, 1)
        weights = changes.pop("weights", random_weights(circuit, embedder.hidden_size))
        reader = changes.pop("reader", embedder)
        texts = changes.pop("texts", TEXTS)
        return write_bundle(folder, {**facts, **changes}, circuit, weights, reader, texts)

    return write


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Bundle]) -> Path:
    """A bundle's folder that no test alters."""
    folder = tmp_path_factory.mktemp("bundles") / "emotion"
    write(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A bundle's folder of a test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "emotion"))
