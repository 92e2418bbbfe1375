"""Imports point one way: service -> models <- training."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "training", "mindquantum"}
# What a student is must stay readable and runnable anywhere; mindquantum only where it is installed.
MODELS_MAY = {"models", "numpy", "onnxruntime", "tokenizers", "safetensors", "mindquantum"} | sys.stdlib_module_names


@pytest.mark.parametrize("module", ["service.app", "service.serve", "service.worker", "service.emulator.app"])
def test_service_loads_nothing_that_only_training_needs(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert {"service", "models", "pydantic"} <= loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("service", {"training", "torch", "transformers", "peft", "mindquantum"}),
        ("training", {"service", "fastapi"}),
    ],
)
def test_no_file_imports_against_the_arrows(package: str, forbidden: set[str]) -> None:
    assert {(file, name) for file, name in _imports_of(package) if name in forbidden} == set()


def test_models_import_nothing_but_their_few_packages() -> None:
    assert {(file, name) for file, name in _imports_of("models") if name not in MODELS_MAY} == set()


@pytest.mark.parametrize("package", ["models", "service", "training"])
def test_mindquantum_is_imported_only_when_it_is_used(package: str) -> None:
    # It has no wheels for Python 3.12 and newer.
    for path in sorted((ROOT / package).rglob("*.py")):
        names = {name for node in ast.parse(path.read_text(encoding="utf-8")).body for name in _names(node)}
        assert "mindquantum" not in names, path.name


def _imports_of(package: str) -> set[tuple[str, str]]:
    """File and top-level package of every import of a package of ours."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return {(str(path.relative_to(ROOT)), name) for path in files for name in _imports(path)}


def _imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    return {name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for name in _names(node)}


def _names(node: ast.AST) -> set[str]:
    """Top-level packages that one statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module.partition(".")[0]}
    return set()
