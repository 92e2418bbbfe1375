"""One app for all tests that leave it as it was, and what a test needs to make its own."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from browsing import browser, console, new_page, page, seen  # noqa: F401  # fixtures of the console's tests
from fastapi import FastAPI
from processes import Valkey
from redis.asyncio import Redis
from serving import TASKS, client_of, running, write_test_bundle

from models.embedder import Embedder, find_embedder
from service.embedded import embedded_redis
from service.hardware.connection import connect
from service.settings import Settings


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return Embedder(find_embedder("minilm-l6"), threads=1)


@pytest.fixture(scope="session")
def bundles_dir(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    """A folder with a bundle for each of `TASKS`, in folders not named after them."""
    folder = tmp_path_factory.mktemp("bundles")
    for number, task in enumerate(TASKS):
        write_test_bundle(folder / f"bundle-{number}", task, embedder, seed=number)
    return folder


@pytest.fixture(scope="session")
async def redis_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A real Valkey for all tests that keep to a target of their own."""
    async with embedded_redis(tmp_path_factory.mktemp("state")) as url:
        yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of that Valkey, as the service makes it."""
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def settings(bundles_dir: Path) -> Settings:
    return Settings(bundles_dir=bundles_dir, threads=1)


@pytest.fixture(scope="session")
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    async with running(settings) as app:
        yield app


@pytest.fixture(scope="session")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
def own(tmp_path: Path, bundles_dir: Path) -> Path:
    """A copy of the bundles to change."""
    return Path(shutil.copytree(bundles_dir, tmp_path / "own"))


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Redis of the test's own, which may be killed."""
    found = Valkey(tmp_path)
    found.start()
    yield found
    found.kill()
