"""`POST /admin/reload`: other bundles under traffic, in every replica, and never a broken one."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import MappingProxyType

import httpx
import pytest
from fakes import FakeEmbedder, fake_bundle
from fastapi import FastAPI
from operating import emptied, eventually, replica, replica_settings
from serving import client_of, parts_of, running, sample, write_test_bundle

from models.embedder import Embedder
from service.control import keyspace
from service.embedded import embedded_redis
from service.hardware.connection import connect
from service.registry import Snapshot
from service.settings import Settings

pytestmark = pytest.mark.anyio

BODY = {"inputs": "what a lovely day"}


@pytest.fixture
async def alone(own: Path) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """A service without Redis on that copy."""
    async with running(Settings(bundles_dir=own, threads=1)) as app, client_of(app) as client:
        yield app, client


@pytest.fixture(scope="module")
async def own_redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with embedded_redis(tmp_path_factory.mktemp("reload")) as url:
        yield url


@pytest.fixture
async def url(own_redis: str) -> str:
    return await emptied(own_redis)


async def reload(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/admin/reload", json={})


async def bundle_of(client: httpx.AsyncClient, task: str) -> str:
    return str((await client.get(f"/tasks/{task}")).json()["bundle"])


def spoil(bundle: Path) -> None:
    path = bundle / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


async def test_reload_serves_what_is_in_the_folder_and_says_what_changed(
    alone: tuple[FastAPI, httpx.AsyncClient], own: Path, embedder: Embedder
) -> None:
    app, client = alone
    old, kept = await bundle_of(client, "emotion"), parts_of(app).snapshot.get("topic")
    write_test_bundle(own / "bundle-0", "emotion", embedder, seed=17)
    body = (await reload(client)).json()
    new = await bundle_of(client, "emotion")
    assert new != old
    assert body == {"bundles": sorted([new, kept.id]), "changed": [new], "removed": [old]}
    assert (await client.post("/classify/emotion", json=BODY)).json()["bundle"] == new
    # What has not changed is not even loaded again, and requests of before and after share batches.
    assert parts_of(app).snapshot.get("topic") is kept
    assert parts_of(app).snapshot.get("emotion").embedder is kept.embedder
    info = {"task": "emotion", "embedder": "minilm-l6", "engine": "compiled"}
    assert sample(app, "qd_bundle_info", bundle=new, **info) == 1
    assert sample(app, "qd_bundle_info", bundle=old, **info) == 0
    assert sample(app, "qd_reloads_total", outcome="ok") == 1


async def test_reload_of_an_unchanged_folder_changes_nothing(alone: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = alone
    before = list(parts_of(app).snapshot)
    assert (await reload(client)).json()["changed"] == []
    assert all(one is other for one, other in zip(parts_of(app).snapshot, before, strict=True))


async def test_task_that_comes_or_goes_is_known_or_unknown_at_once(
    alone: tuple[FastAPI, httpx.AsyncClient], own: Path
) -> None:
    app, client = alone
    gone = await bundle_of(client, "topic")
    (own / "bundle-1").rename(own / ".bundle-1")
    assert (await reload(client)).json()["removed"] == [gone]
    assert (await client.post("/classify/topic", json=BODY)).status_code == 404
    assert sample(app, "qd_default_backend", task="emotion", backend="simulator") == 1
    assert parts_of(app).metrics.registry.get_sample_value("qd_shadow_ratio", {"task": "topic"}) is None
    (own / ".bundle-1").rename(own / "bundle-1")
    assert (await reload(client)).json()["changed"] == [await bundle_of(client, "topic")]
    assert (await client.post("/classify/topic", json=BODY)).status_code == 200


@pytest.mark.parametrize("damage", ["weights", "manifest", "empty", "doubled", "gone"])
async def test_broken_bundle_is_named_and_the_old_ones_stay(
    alone: tuple[FastAPI, httpx.AsyncClient], own: Path, embedder: Embedder, damage: str
) -> None:
    app, client = alone
    before = parts_of(app).snapshot
    write_test_bundle(own / "bundle-1", "topic", embedder, seed=18)  # good, but not served beside what is broken
    named = own / "bundle-0"
    match damage:
        case "weights":
            spoil(named)
        case "manifest":
            (named / "manifest.json").write_text("{")
        case "empty":
            (own / "notes").mkdir()
            named = own / "notes"
        case "doubled":
            shutil.copytree(named, own / "second")
        case "gone":
            shutil.rmtree(own)
            named = own
    response = await reload(client)
    assert response.status_code == 409
    assert response.json()["type"] == "urn:qd:problem:bundles-rejected"
    assert str(named) in response.json()["detail"]
    assert parts_of(app).snapshot is before
    assert (await client.post("/classify/emotion", json=BODY)).status_code == 200
    assert sample(app, "qd_reloads_total", outcome="rejected") == 1
    assert sample(app, "qd_reloads_total", outcome="ok") == 0


async def test_body_with_wishes_is_refused(alone: tuple[FastAPI, httpx.AsyncClient]) -> None:
    _, client = alone
    response = await client.post("/admin/reload", json={"folder": "/elsewhere"})
    assert response.status_code == 422
    headers = {"Content-Type": "application/json"}
    assert (await client.post("/admin/reload", headers=headers)).status_code == 200


async def test_no_request_fails_during_twenty_reloads(
    alone: tuple[FastAPI, httpx.AsyncClient], own: Path, embedder: Embedder, tmp_path: Path
) -> None:
    app, client = alone
    for seed in (0, 19):
        write_test_bundle(tmp_path / "made" / str(seed), "emotion", embedder, seed=seed)
    done = asyncio.Event()
    answers: list[httpx.Response] = []

    async def traffic(task: str) -> None:
        while not done.is_set():
            answers.append(await client.post(f"/classify/{task}", json=BODY))

    flows = [asyncio.create_task(traffic(task)) for task in ("emotion", "topic", "emotion")]
    ids = []
    for number in range(20):
        # As qdtrain does it: the old folder is never half replaced.
        (own / "bundle-0").rename(own / f".old-{number}")
        shutil.copytree(tmp_path / "made" / str(19 if number % 2 == 0 else 0), own / ".new")
        (own / ".new").rename(own / "bundle-0")
        n_before = len(answers)
        response = await reload(client)
        assert response.status_code == 200, response.text
        ids.append(await bundle_of(client, "emotion"))
        while len(answers) < n_before + 5:
            await asyncio.sleep(0.005)
    done.set()
    await asyncio.gather(*flows)
    assert len(set(ids)) == 2
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["bundle"] for answer in answers if answer.json()["task"] == "emotion"} == set(ids)
    assert sample(app, "qd_reloads_total", outcome="ok") == 20


async def test_request_in_flight_ends_on_the_bundle_it_began_with(alone: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = alone
    loaded, embedder = parts_of(app).snapshot, FakeEmbedder()
    parts_of(app).snapshot = Snapshot(MappingProxyType({"fake": fake_bundle("fake", embedder)}))
    in_flight = asyncio.create_task(client.post("/classify/fake", json=BODY))
    await asyncio.to_thread(embedder.begun.get, timeout=30)
    parts_of(app).snapshot = loaded
    assert (await client.post("/classify/fake", json=BODY)).status_code == 404
    embedder.free_run()
    answer = await in_flight
    assert (answer.status_code, answer.json()["bundle"]) == (200, "fake@00000000")


async def test_concurrent_reloads_come_one_after_the_other(alone: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = alone
    async with parts_of(app).loading:
        waiting = [asyncio.create_task(reload(client)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
    assert [(await task).status_code for task in waiting] == [200] * 3


async def test_other_replica_loads_them_too(own: Path, url: str, embedder: Embedder) -> None:
    settings = replica_settings(own, url)
    async with replica(settings) as (app, client), replica(settings) as (other_app, other):
        write_test_bundle(own / "bundle-0", "emotion", embedder, seed=20)
        body = (await reload(client)).json()
        assert body["generation"] == 1
        (new,) = body["changed"]

        async def follows() -> bool:
            return await bundle_of(other, "emotion") == new

        await eventually(follows)
        assert sample(other_app, "qd_reloads_total", outcome="ok") == 1
        # The one that was asked has not loaded them a second time.
        assert sample(app, "qd_reloads_total", outcome="ok") == 1
        assert (await reload(other)).json()["generation"] == 2


async def test_other_replica_that_must_not_serve_them_keeps_its_own_and_tries_once(
    own: Path, url: str, embedder: Embedder, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(own, tmp_path / "broken"))
    async with (
        replica(replica_settings(own, url)) as (_, client),
        replica(replica_settings(broken, url)) as (other_app, other),
    ):
        before = parts_of(other_app).snapshot
        spoil(broken / "bundle-0")
        write_test_bundle(own / "bundle-0", "emotion", embedder, seed=21)
        assert (await reload(client)).status_code == 200

        async def has_tried() -> bool:
            return sample(other_app, "qd_reloads_total", outcome="rejected") == 1

        await eventually(has_tried)
        control = parts_of(other_app).control
        assert control is not None
        # It goes on looking, and sees a switch, but does not try this generation again.
        await client.put("/admin/tasks/topic/backend", json={"backend": "baihua"})

        async def has_looked() -> bool:
            return (await other.get("/admin/tasks/topic/backend")).json()["backend"] == "baihua"

        await eventually(has_looked)
        assert control.generation == 1
        assert sample(other_app, "qd_reloads_total", outcome="rejected") == 1
        assert parts_of(other_app).snapshot is before
        assert (await other.post("/classify/emotion", json=BODY)).status_code == 200


async def test_rejected_reload_is_not_published(own: Path, url: str) -> None:
    async with replica(replica_settings(own, url)) as (_, client):
        spoil(own / "bundle-0")
        assert (await reload(client)).status_code == 409
        assert (await client.get("/admin/audit")).json()["entries"] == []
    redis = connect(url)
    assert await redis.get(keyspace.BUNDLES) is None
    await redis.aclose()


async def test_reload_without_redis_to_publish_it_changes_nothing(
    own: Path, tmp_path: Path, embedder: Embedder
) -> None:
    async with embedded_redis(tmp_path / "state") as url:
        context = replica(replica_settings(own, url))
        app, client = await context.__aenter__()
    before = parts_of(app).snapshot
    write_test_bundle(own / "bundle-0", "emotion", embedder, seed=22)
    response = await reload(client)
    assert response.status_code == 503
    assert response.json()["type"] == "urn:qd:problem:store-unavailable"
    assert parts_of(app).snapshot is before
    await context.__aexit__(None, None, None)


async def test_replica_of_before_a_reload_that_starts_late_does_not_load_twice(own: Path, url: str) -> None:
    redis = connect(url)
    await redis.set(keyspace.BUNDLES, 7)
    async with replica(replica_settings(own, url)) as (app, client):
        control = parts_of(app).control
        assert control is not None
        assert control.generation == 7
        assert json.loads((await reload(client)).content)["generation"] == 8
        assert control.generation == 8
        assert sample(app, "qd_reloads_total", outcome="ok") == 1
    await redis.aclose()
