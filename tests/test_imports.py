"""Imports point one way: service -> models <- training."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "training", "mindquantum"}


@pytest.mark.parametrize("module", ["service.app", "service.cli"])
def test_service_loads_nothing_that_only_training_needs(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert {"service", "models", "fastapi"} <= loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("models", {"service", "training", "torch", "transformers", "peft", "fastapi", "pydantic"}),
        ("service", {"training", "torch", "transformers", "peft", "mindquantum"}),
        ("training", {"service", "fastapi"}),
    ],
)
def test_no_file_imports_against_the_arrows(package: str, forbidden: set[str]) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {(path.name, name) for path in files for name in _imports(path) if name in forbidden}
    assert found == set()


def _imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names
