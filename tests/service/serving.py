"""Real bundles with random weights, and apps that serve them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from models.bundle import write_bundle
from models.circuit import student_circuit
from models.embedder import Embedder
from models.student import StudentWeights
from service.app import create_app
from service.settings import Settings
from service.state import AppState

N_QUBITS = 4
GOLDEN_TEXTS = ['a "quoted" text\nover two lines', "the train is late again", "so it goes"]
# Two tasks on different layers and with different numbers of classes.
TASKS = {
    "emotion": (["positive", "negative"], ["mean:4"]),
    "topic": (["art", "food", "sport"], ["mean:2", "mean:6"]),
}


def write_test_bundle(folder: Path, task: str, embedder: Embedder, seed: int = 0) -> None:
    """A bundle for one of `TASKS` whose weights were drawn and not trained."""
    labels, features = TASKS[task]
    rng = np.random.default_rng(seed)
    circuit = student_circuit("chain", N_QUBITS, 1)
    size = embedder.embedding_size(features)
    weights = StudentWeights(
        reducer_weight=rng.normal(size=(N_QUBITS, size)),
        reducer_bias=rng.normal(size=N_QUBITS),
        ansatz=rng.uniform(-np.pi, np.pi, circuit.n_parameters),
        head_weight=rng.normal(size=(len(labels), N_QUBITS)),
        head_bias=rng.normal(size=len(labels)),
    )
    facts: dict[str, Any] = {
        "task": task,
        "labels": labels,
        "embedder": {"name": embedder.name, "sha256": embedder.sha256, "features": features},
        "preset": "chain",
        "n_qubits": N_QUBITS,
        "n_layers": 1,
        "metrics": {"test": {"accuracy": 0.5}},
        "teacher": {"name": "none"},
        "training": {"best_epoch": 0, "history": []},
        "data_sha256": {"train": "0" * 64},
        "seed": seed,
        "configuration": {"seed": seed},
        "command": "drawn by the tests",
        "library_versions": {"numpy": np.__version__},
    }
    write_bundle(folder, facts, circuit, weights, embedder, GOLDEN_TEXTS)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[FastAPI]:
    """An app within its lifespan."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def parts_of(app: FastAPI) -> AppState:
    found = app.state.parts
    assert isinstance(found, AppState)
    return found


def sample(app: FastAPI, name: str, **labels: str) -> float:
    """The value of a metric's sample; 0 where it has none."""
    return parts_of(app).metrics.registry.get_sample_value(name, labels) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)
