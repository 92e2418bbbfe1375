"""`/admin`: bodies, audit, and everything that is refused; a refusal changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from operating import backend_of, emptied, eventually, replica, replica_settings, switch
from serving import TASKS, parts_of

from service.control import audit, keyspace
from service.control.audit import Entry, Ledger
from service.control.keys import KeyStore, Scope
from service.control.switches import Switch
from service.embedded import embedded_redis
from service.errors import MEDIA_TYPE
from service.hardware.connection import connect
from service.settings import BackendName

pytestmark = pytest.mark.anyio

BACKEND = "/admin/tasks/emotion/backend"
ADMIN_PATHS = (("GET", BACKEND), ("PUT", BACKEND), ("GET", "/admin/audit"), ("POST", "/admin/reload"))


@pytest.fixture(scope="module")
async def own_redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with embedded_redis(tmp_path_factory.mktemp("admin")) as url:
        yield url


@pytest.fixture
async def url(own_redis: str) -> str:
    return await emptied(own_redis)


@pytest.fixture(scope="module")
async def started(bundles_dir: Path, own_redis: str) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    async with replica(replica_settings(bundles_dir, own_redis)) as found:
        yield found


@pytest.fixture
async def operated(started: tuple[FastAPI, httpx.AsyncClient], url: str) -> httpx.AsyncClient:
    """A client of a service that no operator has changed."""
    app, client = started

    async def is_unchanged() -> bool:
        return not any(parts_of(app).switches.is_set(task) for task in TASKS)

    await eventually(is_unchanged)
    return client


def slug(response: httpx.Response) -> str:
    assert response.headers["content-type"] == MEDIA_TYPE, response.text
    return str(response.json()["type"]).removeprefix("urn:qd:problem:")


async def test_switch_says_what_is_in_effect_since_when_and_by_whom(operated: httpx.AsyncClient) -> None:
    body = (await switch(operated, "emotion", "simulator", shadow_percent=2.5)).json()
    assert list(body) == ["task", "backend", "shadow_percent", "source", "since", "by"]
    assert (body["task"], body["backend"], body["shadow_percent"]) == ("emotion", "simulator", 2.5)
    assert (body["source"], body["by"]) == ("redis", "open")
    assert await backend_of(operated, "emotion") == body
    (entry,) = (await operated.get("/admin/audit")).json()["entries"]
    assert entry["at"][:19] == body["since"][:19]


async def test_audit_has_every_change_newest_first_with_what_was_before(operated: httpx.AsyncClient) -> None:
    headers = {"X-Request-ID": "change-1"}
    first = await operated.put(BACKEND, json={"backend": "simulator", "shadow_percent": 25}, headers=headers)
    assert first.status_code == 200
    await switch(operated, "emotion", "baihua")
    await operated.post("/admin/reload", json={})
    reload, second, entry = (await operated.get("/admin/audit")).json()["entries"]
    assert list(entry) == ["at", "by", "action", "task", "before", "after", "request_id"]
    assert (entry["by"], entry["action"], entry["task"], entry["request_id"]) == (
        "open",
        "switch",
        "emotion",
        "change-1",
    )
    assert entry["before"] == {"backend": "simulator", "shadow_percent": 0}
    assert entry["after"] == second["before"] == {"backend": "simulator", "shadow_percent": 25}
    assert second["after"] == {"backend": "baihua", "shadow_percent": 0}
    assert (reload["action"], "task" in reload) == ("reload", False)
    assert reload["before"] == reload["after"]
    assert len(reload["after"]["bundles"]) == 2
    assert len((await operated.get("/admin/audit?limit=1")).json()["entries"]) == 1


async def test_before_is_what_redis_holds_and_not_what_this_replica_knows(
    operated: httpx.AsyncClient, url: str
) -> None:
    redis = connect(url)
    # Another replica's switch, which this one has not seen yet.
    entry = Entry(by="0a1b2c3d", action="switch", task="topic", before={}, after={}, request_id="r")
    await Ledger(redis).switch("topic", Switch(backend=BackendName.BAIHUA), entry)
    await switch(operated, "topic", "simulator", shadow_percent=1)
    newest = (await operated.get("/admin/audit")).json()["entries"][0]
    assert newest["before"] == {"backend": "baihua", "shadow_percent": 0}
    await redis.aclose()


async def test_change_that_is_repeated_is_written_once(url: str) -> None:
    redis = connect(url)
    ledger = Ledger(redis)
    switched = Entry(by="open", action="switch", task="topic", before={"backend": "x"}, after={}, request_id="r")
    reloaded = Entry(by="open", action="reload", before={"bundles": ["a"]}, after={"bundles": ["b"]}, request_id="r")
    for _ in range(2):
        await ledger.switch("topic", Switch(backend=BackendName.BAIHUA), switched)
        assert await ledger.publish(reloaded) == 1
    assert await ledger.entries(10) == [reloaded, switched]
    await redis.aclose()


async def test_audit_keeps_the_last_thousand_and_passes_over_what_it_cannot_read(url: str) -> None:
    assert audit.N_KEPT == 1000
    redis = connect(url)
    await redis.rpush(keyspace.AUDIT, *(["unreadable"] * 1200))
    entry = Entry(by="open", action="reload", before={}, after={}, request_id="r")
    await Ledger(redis).publish(entry)
    assert await redis.llen(keyspace.AUDIT) == 1000
    assert [found.id for found in await Ledger(redis).entries(1000)] == [entry.id]
    await redis.aclose()


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"backend": "simulator", "shadow_percent": 101}, "#/shadow_percent", "expected at most 100, found 101"),
        ({"backend": "simulator", "shadow_percent": -1}, "#/shadow_percent", "expected at least 0, found -1"),
        ({"backend": "simulator", "shadow_percent": "25"}, "#/shadow_percent", "expected a number, found a string"),
        ({"backend": "simulator", "shadow_percent": True}, "#/shadow_percent", "expected a number, found a boolean"),
        ({"backend": "simulator", "shadow_percent": None}, "#/shadow_percent", "expected a number, found null"),
        (
            {"backend": "baihua", "shadow_percent": 25},
            "#/shadow_percent",
            "expected 0 with the backend baihua, found 25",
        ),
        ({"backend": "simulator", "shadow": 25}, "#/shadow", "unknown field"),
        ({"shadow_percent": 25}, "#/backend", "missing"),
        ({"backend": 5}, "#/backend", "expected a string"),
        (["simulator"], "#", '{"backend": "simulator"}'),
        (None, "#", '{"backend": "simulator"}'),
    ],
)
async def test_bad_switch_is_refused_and_changes_nothing(
    operated: httpx.AsyncClient, body: Any, pointer: str, words: str
) -> None:
    content = b"" if body is None else json.dumps(body).encode()
    response = await operated.put(BACKEND, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert slug(response) == "invalid-request"
    (error,) = response.json()["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]
    assert (await backend_of(operated, "emotion"))["source"] == "settings"
    assert (await operated.get("/admin/audit")).json()["entries"] == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_percentage_that_is_no_number_is_refused(operated: httpx.AsyncClient, number: str) -> None:
    content = f'{{"backend": "simulator", "shadow_percent": {number}}}'
    response = await operated.put(BACKEND, content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, slug(response)) == (422, "invalid-request")


@pytest.mark.parametrize("name", ["qpu", "SIMULATOR", "", "x" * 5000])
async def test_unknown_backend_names_the_backends(operated: httpx.AsyncClient, name: str) -> None:
    response = await switch(operated, "emotion", name)
    assert (response.status_code, slug(response)) == (422, "unknown-backend")
    assert response.json()["backends"] == ["simulator", "baihua"]
    assert (await operated.get("/admin/audit")).json()["entries"] == []


@pytest.mark.parametrize("task", ["emotions", "emotion@00000000"])
async def test_unknown_task_names_the_tasks(operated: httpx.AsyncClient, task: str) -> None:
    for response in (
        await switch(operated, task, "simulator"),
        await operated.get(f"/admin/tasks/{task}/backend"),
    ):
        assert (response.status_code, slug(response)) == (404, "unknown-task")
        assert response.json()["tasks"] == ["emotion", "topic"]


async def test_a_form_of_another_page_changes_nothing(operated: httpx.AsyncClient) -> None:
    """What a browser sends without asking first is not declared as JSON."""
    for declared in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        headers = {} if declared is None else {"Content-Type": declared}
        for method, path in (("POST", "/admin/reload"), ("PUT", BACKEND)):
            response = await operated.request(method, path, content=b'{"backend": "baihua"}', headers=headers)
            assert (response.status_code, slug(response)) == (415, "unsupported-media-type")
    assert (await operated.get("/admin/audit")).json()["entries"] == []


@pytest.mark.parametrize("limit", ["0", "1001", "many"])
async def test_bad_limit_of_the_audit_is_refused(operated: httpx.AsyncClient, limit: str) -> None:
    response = await operated.get(f"/admin/audit?limit={limit}")
    assert (response.status_code, slug(response)) == (422, "invalid-request")


async def test_only_admin_opens_any_of_it_and_the_audit_names_the_key(bundles_dir: Path, url: str) -> None:
    redis = connect(url)
    keys = KeyStore(redis)
    record, admin = await keys.create("operator", [Scope.ADMIN])
    _, other = await keys.create("other", [Scope.CLASSIFY, Scope.HARDWARE])
    await redis.aclose()
    async with replica(replica_settings(bundles_dir, url)) as (_, client):
        for method, path in ADMIN_PATHS:
            body = {"backend": "baihua"} if method == "PUT" else {}
            content = None if method == "GET" else json.dumps(body)
            headers = {"Content-Type": "application/json"}
            refused = await client.request(method, path, content=content, headers=headers)
            assert (refused.status_code, slug(refused)) == (401, "unauthenticated")
            headers["Authorization"] = f"Bearer {other}"
            refused = await client.request(method, path, content=content, headers=headers)
            assert (refused.status_code, slug(refused)) == (403, "forbidden")
            assert refused.json()["scope"] == "admin"
        authorised = {"Authorization": f"Bearer {admin}"}
        assert (await client.get("/admin/audit", headers=authorised)).json()["entries"] == []
        body = (await client.put(BACKEND, json={"backend": "baihua"}, headers=authorised)).json()
        assert body["by"] == record.id
        (entry,) = (await client.get("/admin/audit", headers=authorised)).json()["entries"]
        assert entry["by"] == record.id
        # `admin` implies nothing else.
        assert (await client.post("/classify/emotion", json={"inputs": "a"}, headers=authorised)).status_code == 403


async def test_service_without_redis_shows_the_settings_and_switches_nothing(client: httpx.AsyncClient) -> None:
    assert await backend_of(client, "emotion") == {
        "task": "emotion",
        "backend": "simulator",
        "shadow_percent": 0,
        "source": "settings",
    }
    for body in ({"backend": "baihua"}, {"backend": "simulator", "shadow_percent": 25}):
        response = await client.put(BACKEND, json=body)
        assert (response.status_code, slug(response)) == (501, "backend-not-configured")
    for response in (await switch(client, "emotion", "simulator"), await client.get("/admin/audit")):
        assert (response.status_code, slug(response)) == (501, "no-redis")


async def test_openapi_documents_every_answer(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    expected = {
        ("/admin/tasks/{task}/backend", "get"): "200 401 403 404 429 503 default",
        ("/admin/tasks/{task}/backend", "put"): "200 400 401 403 404 415 422 429 501 503 default",
        ("/admin/audit", "get"): "200 401 403 422 429 501 503 default",
        ("/admin/reload", "post"): "200 400 401 403 409 415 422 429 503 default",
    }
    for (path, method), statuses in expected.items():
        responses = document["paths"][path][method]["responses"]
        assert " ".join(sorted(responses)) == statuses
        assert all(list(responses[status]["content"]) == [MEDIA_TYPE] for status in responses if status != "200")
