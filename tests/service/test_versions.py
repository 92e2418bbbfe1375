"""`task@version` in a path: one bundle down to the last bit, whatever the default is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from serving import client_of, running, sample, write_test_bundle

from models.bundle import load_bundle
from models.embedder import Embedder
from service.settings import Settings

pytestmark = pytest.mark.anyio

BODY = {"inputs": "what a lovely day"}


@pytest.fixture
def old_version(own: Path, embedder: Embedder) -> str:
    """The version of an emotion bundle that is only served when pinned."""
    write_test_bundle(own / "versions" / "before", "emotion", embedder, seed=30)
    return load_bundle(own / "versions" / "before").id.partition("@")[2]


@pytest.fixture
async def served(own: Path, old_version: str) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    async with running(Settings(bundles_dir=own, threads=1)) as app, client_of(app) as client:
        yield app, client


def default_version(own: Path) -> str:
    return load_bundle(own / "bundle-0").id.partition("@")[2]


async def test_pinned_version_answers_beside_the_default(
    served: tuple[FastAPI, httpx.AsyncClient], own: Path, old_version: str
) -> None:
    app, client = served
    default = (await client.post("/classify/emotion", json=BODY)).json()
    pinned = (await client.post(f"/classify/emotion@{old_version}", json=BODY)).json()
    assert (pinned["task"], pinned["bundle"]) == ("emotion", f"emotion@{old_version}")
    assert default["bundle"] == f"emotion@{default_version(own)}"
    assert abs(pinned["results"][0]["score"] - default["results"][0]["score"]) > 1e-6
    same = (await client.post(f"/classify/emotion@{default_version(own)}", json=BODY)).json()
    assert (same["bundle"], same["results"]) == (default["bundle"], default["results"])
    escaped = await client.post(f"/classify/emotion%40{old_version}", json=BODY)
    assert escaped.json()["bundle"] == pinned["bundle"]
    assert sample(app, "qd_requests_total", task="emotion", backend="simulator", outcome="ok") == 4


async def test_every_path_of_a_task_takes_a_version(
    served: tuple[FastAPI, httpx.AsyncClient], own: Path, old_version: str
) -> None:
    _, client = served
    path = f"/tasks/emotion@{old_version}"
    body = (await client.get(path)).json()
    assert (body["task"], body["bundle"]) == ("emotion", f"emotion@{old_version}")
    assert body["versions"] == sorted([old_version, default_version(own)])
    assert (await client.get(f"{path}/circuit")).status_code == 200
    assert f"emotion@{old_version}" in (await client.get(f"{path}/circuit.qasm")).text
    assert f"emotion@{old_version}" in (await client.get(f"{path}/circuit.svg")).text


async def test_tasks_list_the_versions_that_may_be_pinned(
    served: tuple[FastAPI, httpx.AsyncClient], own: Path, old_version: str
) -> None:
    _, client = served
    emotion, topic = (await client.get("/tasks")).json()["tasks"]
    assert emotion["bundle"] == f"emotion@{default_version(own)}"
    assert emotion["versions"] == sorted([old_version, default_version(own)])
    assert topic["versions"] == [topic["bundle"].partition("@")[2]]


@pytest.mark.parametrize("version", ["00000000", "", "@", "x" * 500])
async def test_unknown_version_names_the_known_ones(
    served: tuple[FastAPI, httpx.AsyncClient], own: Path, old_version: str, version: str
) -> None:
    app, client = served
    for response in (
        await client.post(f"/classify/emotion@{version}", json=BODY),
        await client.get(f"/tasks/emotion@{version}"),
    ):
        assert response.status_code == 404
        body = response.json()
        assert body["type"] == "urn:qd:problem:unknown-version"
        assert body["versions"] == sorted([old_version, default_version(own)])
        assert len(response.content) < 1000
    assert sample(app, "qd_requests_total", task="emotion", backend="none", outcome="invalid") == 1
    assert "@" not in (await client.get("/metrics")).text.replace('bundle="emotion@', "").replace('bundle="topic@', "")


async def test_version_of_an_unknown_task_is_an_unknown_task(served: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = served
    response = await client.post("/classify/emotions@00000000", json=BODY)
    assert response.status_code == 404
    assert response.json()["type"] == "urn:qd:problem:unknown-task"
    assert sample(app, "qd_requests_total", task="none", backend="none", outcome="invalid") == 1


async def test_version_that_stops_being_the_default_can_still_be_pinned(
    served: tuple[FastAPI, httpx.AsyncClient], own: Path, old_version: str
) -> None:
    _, client = served
    was_default = default_version(own)
    (own / "bundle-0").rename(own / "versions" / "after")
    (own / "versions" / "before").rename(own / "bundle-0")
    body = (await client.post("/admin/reload", json={})).json()
    assert body["changed"] == [f"emotion@{old_version}"]
    answers = [
        (await client.post(f"/classify/{name}", json=BODY)).json()["bundle"]
        for name in ("emotion", f"emotion@{was_default}")
    ]
    assert answers == [f"emotion@{old_version}", f"emotion@{was_default}"]
