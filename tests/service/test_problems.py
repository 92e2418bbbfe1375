"""Every row of the error table, as a caller sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from fakes import FakeEmbedder, FakeStudent, fake_bundle
from fastapi import FastAPI
from serving import client_of, parts_of, running, sample, until

from service.errors import MEDIA_TYPE, PROBLEMS, ProblemError
from service.registry import Snapshot
from service.settings import Settings

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
CLASSIFY = "/classify/emotion"


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem document of a response, after what is common to all has been checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.headers["x-request-id"]
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:qd:problem:{slug}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


async def test_unknown_task_names_the_tasks(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post("/classify/emotions", json={"inputs": "a text"}),
        await client.post("/classify/emotions", json={"wrong": "body"}),
        await client.get("/tasks/emotions"),
        await client.get("/tasks/emotions/circuit.svg"),
    ):
        body = problem(response, 404, "unknown-task")
        assert body["tasks"] == ["emotion", "topic"]
        assert "'emotions'" in body["detail"]


@pytest.mark.parametrize(
    "path", ["/none", "/classify", "/classify/", "/classify/emotion/x", "/tasks/", "/docs/assets/none"]
)
async def test_unknown_path(client: httpx.AsyncClient, path: str) -> None:
    problem(await client.get(path), 404, "unknown-path")


async def test_wrong_method_names_the_right_one(client: httpx.AsyncClient) -> None:
    response = await client.get(CLASSIFY)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


async def test_wrong_method_names_those_of_every_route_of_the_path(client: httpx.AsyncClient) -> None:
    response = await client.post("/admin/tasks/emotion/backend", json={})
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET, PUT"


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({}, "#/inputs", "missing, expected a value"),
        ({"inputs": ""}, "#/inputs/0", "white space"),
        ({"inputs": " \n\t "}, "#/inputs/0", "white space"),
        ({"inputs": []}, "#/inputs", "at least one text"),
        ({"inputs": ["fine", "  "]}, "#/inputs/1", "white space"),
        ({"inputs": ["fine", 5]}, "#/inputs/1", "string"),
        ({"inputs": [["a"], ["b"]]}, "#/inputs/0", "string"),
        ({"inputs": 5}, "#/inputs", "a text or a list of texts"),
        ({"inputs": None}, "#/inputs", "a text or a list of texts"),
        ({"inputs": {"text": "a"}}, "#/inputs", "a text or a list of texts"),
        ({"inputs": "a", "topk": 1}, "#/topk", "unknown field"),
        ({"inputs": "a", "a/b~c": 1}, "#/a~1b~0c", "unknown field"),
        ({"inputs": "a", "top_k": 0}, "#/top_k", "expected at least 1, found 0"),
        ({"inputs": "a", "top_k": -3}, "#/top_k", "expected at least 1, found -3"),
        ({"inputs": "a", "top_k": "2"}, "#/top_k", "integer"),
        ({"inputs": "a", "top_k": 1.5}, "#/top_k", "integer"),
        ({"inputs": "a", "top_k": True}, "#/top_k", "integer"),
        ([{"inputs": "a"}], "#", "object"),
        ("a text", "#", "object"),
        ({str(number): 1 for number in range(100_000)}, "#", "found 100000 fields"),
    ],
)
async def test_body_of_the_wrong_form_says_where_and_what(
    client: httpx.AsyncClient, body: Any, pointer: str, words: str
) -> None:
    (error,) = problem(await client.post(CLASSIFY, json=body), 422, "invalid-request")["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]


async def test_missing_body_is_of_the_wrong_form(client: httpx.AsyncClient) -> None:
    problem(await client.post(CLASSIFY, headers=JSON), 422, "invalid-request")


async def test_many_errors_are_counted_and_ten_are_listed(client: httpx.AsyncClient) -> None:
    body = problem(await client.post(CLASSIFY, json={str(n): n for n in range(50)}), 422, "invalid-request")
    assert len(body["errors"]) == 10
    assert body["detail"].startswith("51 errors")


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        (f"{CLASSIFY}?backnd=simulator", "backnd"),
        ("/tasks/emotion/circuit?tekst=a", "tekst"),
        ("/tasks/emotion/circuit?text=%20", "text"),
        ("/tasks/emotion/circuit.qasm?version=4", "version"),
        ("/tasks/emotion/circuit.qasm?version=two", "version"),
    ],
)
async def test_query_of_the_wrong_form_names_the_parameter(
    client: httpx.AsyncClient, path: str, parameter: str
) -> None:
    method = "POST" if path.startswith("/classify") else "GET"
    response = await client.request(method, path, json={"inputs": "a"} if method == "POST" else None)
    (error,) = problem(response, 422, "invalid-request")["errors"]
    assert error["parameter"] == parameter


@pytest.mark.parametrize("name", ["qpu", "SIMULATOR", "", "x" * 5000])
async def test_unknown_backend_names_the_backends(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post(CLASSIFY, params={"backend": name}, json={"inputs": "a"})
    body = problem(response, 422, "unknown-backend")
    assert body["backends"] == ["simulator", "baihua"]
    assert len(response.content) < 1000


async def test_backend_that_is_not_configured(client: httpx.AsyncClient) -> None:
    response = await client.post(f"{CLASSIFY}?backend=baihua", json={"inputs": "a"})
    assert problem(response, 501, "backend-not-configured")["backends"] == ["simulator"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"not json",
        b'{"inputs": "a",}',
        b'{"inputs": "\xff"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"top_k": ' + b"9" * 5000,
    ],
)
async def test_malformed_json(client: httpx.AsyncClient, content: bytes) -> None:
    problem(await client.post(CLASSIFY, content=content, headers=JSON), 400, "malformed-json")


@pytest.mark.parametrize("content", [rb'{"inputs": "a \ud800 b"}', rb'{"inputs": "a", "\udfff": 1}'])
async def test_lone_surrogates_are_the_callers_error(client: httpx.AsyncClient, content: bytes) -> None:
    problem(await client.post(CLASSIFY, content=content, headers=JSON), 422, "invalid-request")


@pytest.mark.parametrize("declared", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None])
async def test_body_that_is_not_declared_as_json(client: httpx.AsyncClient, declared: str | None) -> None:
    headers = {} if declared is None else {"Content-Type": declared}
    response = await client.post(CLASSIFY, content=b'{"inputs": "a"}', headers=headers)
    problem(response, 415, "unsupported-media-type")


async def test_json_with_a_charset_is_json(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (await client.post(CLASSIFY, content=b'{"inputs": "a"}', headers=headers)).status_code == 200


@pytest.fixture(scope="module")
async def small(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app with small limits."""
    limits = {"max_texts": 3, "max_queued_texts": 3, "max_body_bytes": 1000}
    async with running(settings.model_copy(update=limits)) as app, client_of(app) as client:
        yield client


async def test_too_many_texts_names_the_limit(small: httpx.AsyncClient) -> None:
    assert (await small.post(CLASSIFY, json={"inputs": ["a"] * 3})).status_code == 200
    body = problem(await small.post(CLASSIFY, json={"inputs": ["a"] * 4}), 422, "too-many-texts")
    assert (body["limit"], body["found"]) == (3, 4)
    assert "expected at most 3" in body["detail"]


def _body(n_bytes: int, *, batch: bool) -> bytes:
    empty = json.dumps({"inputs": [""]} if batch else {"inputs": ""})
    text = "a" * (n_bytes - len(empty))
    return json.dumps({"inputs": [text]} if batch else {"inputs": text}).encode()


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_body_limit_is_exact_for_one_text_and_a_batch_declared_or_streamed(
    small: httpx.AsyncClient, batch: bool, streamed: bool
) -> None:
    async def post(n_bytes: int) -> httpx.Response:
        content = _body(n_bytes, batch=batch)

        async def chunks() -> AsyncIterator[bytes]:
            for begin in range(0, len(content), 100):
                yield content[begin : begin + 100]

        return await small.post(CLASSIFY, content=chunks() if streamed else content, headers=JSON)

    assert (await post(1000)).status_code == 200
    body = problem(await post(1001), 413, "body-too-large")
    assert body["limit"] == 1000
    assert "1000 bytes" in body["detail"]


async def test_endless_body_is_refused_before_it_ends(small: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b"a" * 100

    # httpx sends no body to an app that has answered, so this returns only because the app stopped reading.
    response = await asyncio.wait_for(small.post(CLASSIFY, content=endless(), headers=JSON), 30)
    problem(response, 413, "body-too-large")
    assert sent < 10_000


@pytest.fixture
async def fake(settings: Settings) -> AsyncIterator[tuple[FastAPI, FakeEmbedder]]:
    """An app with small limits whose only task runs on a fake embedder that a test holds up."""
    embedder = FakeEmbedder()
    limits = {"max_texts": 2, "max_queued_texts": 2}
    async with running(settings.model_copy(update=limits)) as app:
        parts_of(app).snapshot = Snapshot(MappingProxyType({"fake": fake_bundle("fake", embedder)}))
        yield app, embedder
        embedder.free_run()


async def test_overload_says_when_to_retry(fake: tuple[FastAPI, FakeEmbedder]) -> None:
    app, embedder = fake
    async with client_of(app) as client:
        running_one = asyncio.create_task(client.post("/classify/fake", json={"inputs": "runs"}))
        await asyncio.to_thread(embedder.begun.get, timeout=30)
        queued = asyncio.create_task(client.post("/classify/fake", json={"inputs": ["waits", "waits"]}))
        await until(lambda: sample(app, "qd_queued_texts") == 2)
        response = await client.post("/classify/fake", json={"inputs": "too many"})
        body = problem(response, 429, "overloaded")
        assert body["limit"] == 2
        assert int(response.headers["retry-after"]) == body["retry_after_seconds"] >= 1
        embedder.free_run()
        assert [(await task).status_code for task in (running_one, queued)] == [200, 200]


async def test_unexpected_error_tells_the_request_id_and_nothing_else(
    fake: tuple[FastAPI, FakeEmbedder], caplog: pytest.LogCaptureFixture
) -> None:
    app, embedder = fake
    embedder.free_run()
    broken = fake_bundle("fake", embedder, FakeStudent(error=RuntimeError("a secret of the inside")))
    parts_of(app).snapshot = Snapshot(MappingProxyType({"fake": broken}))
    async with client_of(app) as client:
        response = await client.post("/classify/fake", json={"inputs": "a"}, headers={"X-Request-ID": "abc-1"})
    assert problem(response, 500, "internal")["request_id"] == "abc-1"
    assert "secret" not in response.text
    assert "RuntimeError: a secret of the inside" in caplog.text
    assert sample(app, "qd_requests_total", task="fake", backend="simulator", outcome="error") == 1


async def test_stopped_batching_is_shutting_down(fake: tuple[FastAPI, FakeEmbedder]) -> None:
    app, _ = fake
    await parts_of(app).batcher.__aexit__(None, None, None)
    async with client_of(app) as client:
        response = await client.post("/classify/fake", json={"inputs": "a"})
    problem(response, 503, "shutting-down")
    assert response.headers["retry-after"]


async def test_draining_service_is_not_ready(fake: tuple[FastAPI, FakeEmbedder]) -> None:
    app, _ = fake
    parts_of(app).draining = True
    async with client_of(app) as client:
        body = problem(await client.get("/readyz"), 503, "not-ready")
    assert body["parts"] == {"bundles": "ready", "batching": "ready", "keys": "ready", "shutdown": "draining"}


def test_table_has_one_row_for_each_problem_and_types_are_unique() -> None:
    def leaves(kind: type[ProblemError]) -> set[type[ProblemError]]:
        children = kind.__subclasses__()
        return {kind} if not children else {leaf for child in children for leaf in leaves(child)}

    assert set(PROBLEMS) == leaves(ProblemError)
    assert len({row.type for row in PROBLEMS.values()}) == len(PROBLEMS)
    assert all(400 <= row.status < 600 for row in PROBLEMS.values())
