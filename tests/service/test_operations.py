"""Health, metrics, request ids, log lines, clients that leave, and the documentation."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from fakes import FakeEmbedder, fake_bundle
from fastapi import FastAPI
from serving import client_of, parts_of, running, sample, until

from service.app import create_app
from service.errors import MEDIA_TYPE
from service.logs import JsonFormatter
from service.registry import Snapshot
from service.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fresh(settings: Settings) -> AsyncIterator[FastAPI]:
    """An app that has answered nothing yet."""
    async with running(settings) as app:
        yield app


class Lines(logging.Handler):
    """Collects log lines as they would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    handler = Lines()
    logger = logging.getLogger("service")
    logger.addHandler(handler)
    with caplog.at_level(logging.INFO, "service"):
        yield handler.lines
    logger.removeHandler(handler)


async def test_app_is_alive_but_not_ready_before_its_bundles_are_loaded(settings: Settings) -> None:
    async with client_of(create_app(settings)) as client:
        assert (await client.get("/livez")).json() == {"status": "alive"}
        body = (await client.get("/readyz")).json()
    assert body["status"] == 503
    assert body["parts"] == {"bundles": "none loaded", "batching": "stopped", "keys": "ready", "shutdown": "ready"}


async def test_running_app_is_ready(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "parts": {"bundles": "ready", "batching": "ready", "keys": "ready", "shutdown": "ready"},
    }


async def test_metrics_count_what_was_asked(fresh: FastAPI) -> None:
    async with client_of(fresh) as client:
        for body in ({"inputs": "one"}, {"inputs": ["two", "three"]}, {"inputs": ""}):
            await client.post("/classify/emotion", json=body)
        await client.post("/classify/emotion?backend=baihua", json={"inputs": "a"})
        await client.post("/classify/emotion", content=b"{", headers={"Content-Type": "application/json"})
        for n in range(5):
            await client.post(f"/classify/made-up-{n}", json={"inputs": "a"})
            await client.get(f"/made/up/{n}")
        text = (await client.get("/metrics")).text

    def requests(task: str, backend: str, outcome: str) -> float:
        return sample(fresh, "qd_requests_total", task=task, backend=backend, outcome=outcome)

    assert requests("emotion", "simulator", "ok") == 2
    assert requests("emotion", "none", "invalid") == 2
    assert requests("emotion", "baihua", "invalid") == 1
    assert requests("none", "none", "invalid") == 5
    assert sample(fresh, "qd_texts_total", task="emotion", backend="simulator") == 3
    assert sample(fresh, "qd_http_responses_total", route="none", status="404") == 5
    ok = {"task": "emotion", "backend": "simulator", "outcome": "ok"}
    assert sample(fresh, "qd_request_seconds_count", **ok) == 2
    assert sample(fresh, "qd_batch_texts_sum") == 3
    for name in ("qd_tokenise_seconds", "qd_batch_wait_seconds"):
        assert sample(fresh, f"{name}_count") == 2
    assert sample(fresh, "qd_encoder_seconds_count") == sample(fresh, "qd_batch_texts_count") >= 2
    assert sample(fresh, "qd_circuit_seconds_count", task="emotion") >= 2
    assert "made-up" not in text
    assert "qd_requests_total{" in text
    assert len(re.findall(r"^qd_bundle_info\{.*\} 1\.0$", text, re.M)) == 2


async def test_gauges_are_zero_when_nothing_is_asked(fresh: FastAPI) -> None:
    async with client_of(fresh) as client:
        await asyncio.gather(*(client.post("/classify/topic", json={"inputs": ["a", "b"]}) for _ in range(20)))
    assert sample(fresh, "qd_queued_texts") == 0
    assert sample(fresh, "qd_requests_in_flight") == 0


async def test_stages_have_buckets_of_their_own(fresh: FastAPI) -> None:
    async with client_of(fresh) as client:
        await client.post("/classify/topic", json={"inputs": "a"})
        text = (await client.get("/metrics")).text

    def smallest(name: str) -> float:
        found = re.search(rf'^{name}_bucket{{.*?le="([^"]+)"', text, re.M)
        assert found is not None
        return float(found[1])

    assert smallest("qd_circuit_seconds") <= 1e-5 < smallest("qd_encoder_seconds") < smallest("qd_request_seconds")


async def test_scraper_that_accepts_openmetrics_gets_it(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
    assert (await client.get("/metrics")).headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("given", ["abc", "A-b_c.9", "x" * 128])
async def test_sane_request_id_is_kept(client: httpx.AsyncClient, given: str) -> None:
    for path in ("/tasks", "/none", "/classify/emotion"):
        response = await client.get(path, headers={"X-Request-ID": given})
        assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a;b", 'a"b', "é"])
async def test_other_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    headers = {b"X-Request-ID": given.encode("latin-1")}
    first, second = [(await client.get("/tasks", headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert first != second


async def test_one_log_line_a_request_without_its_texts(client: httpx.AsyncClient, lines: list[dict[str, Any]]) -> None:
    headers = {"X-Request-ID": "id-1"}
    await client.post("/classify/emotion", json={"inputs": ["a secret", "and another"]}, headers=headers)
    await client.get("/tasks/topic/circuit", params={"text": "a secret"}, headers={"X-Request-ID": "id-2"})
    await client.get("/a-secret-path", headers={"X-Request-ID": "id-3"})
    found = [{key: line.get(key) for key in line if key not in ("time", "duration_ms")} for line in lines]
    common = {"level": "info", "logger": "service.middleware", "message": "request", "key": None}
    assert found == [
        common
        | {"request_id": "id-1", "method": "POST", "route": "/classify/{task}", "status": 200}
        | {"task": "emotion", "backend": "simulator", "texts": 2},
        common
        | {"request_id": "id-2", "method": "GET", "route": "/tasks/{task}/circuit", "status": 200}
        | {"task": "topic", "backend": None, "texts": None},
        common
        | {"request_id": "id-3", "method": "GET", "route": None, "status": 404}
        | {"task": None, "backend": None, "texts": None},
    ]
    assert "secret" not in json.dumps(lines)
    assert all(line["duration_ms"] > 0 for line in lines)


async def test_client_that_leaves_frees_its_place(settings: Settings, lines: list[dict[str, Any]]) -> None:
    embedder = FakeEmbedder()
    async with running(settings) as app:
        parts_of(app).snapshot = Snapshot(MappingProxyType({"fake": fake_bundle("fake", embedder)}))
        async with client_of(app) as client:
            stays = asyncio.create_task(client.post("/classify/fake", json={"inputs": "stays"}))
            await asyncio.to_thread(embedder.begun.get, timeout=30)
            left = asyncio.Event()
            leaves = asyncio.create_task(_post_and_leave(app, "/classify/fake", {"inputs": ["a", "b"]}, left))
            await until(lambda: sample(app, "qd_queued_texts") == 2)
            left.set()
            await leaves
            assert sample(app, "qd_queued_texts") == 0
            assert sample(app, "qd_requests_total", task="fake", backend="simulator", outcome="cancelled") == 1
            embedder.free_run()
            assert (await stays).status_code == 200
    assert [line["status"] for line in lines if line["message"] == "request"] == [499, 200]
    assert sample(app, "qd_requests_in_flight") == 0


async def _post_and_leave(app: FastAPI, path: str, body: Any, left: asyncio.Event) -> None:
    """Send a request as a server would, and close the connection once `left` is set."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }
    await app(scope, receive, send)


async def test_docs_ask_no_other_host(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    urls = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(urls) >= 3
    for url in urls:
        assert url.startswith("/docs/assets/")
        assert (await client.get(url)).status_code == 200
    assert "https://" not in page


async def test_openapi_documents_every_problem_as_problem_json(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "HTTPValidationError" not in json.dumps(document)
    responses = document["paths"]["/classify/{task}"]["post"]["responses"]
    statuses = {"200", "202", "400", "401", "403", "404", "413", "415", "422", "429", "default"}
    statuses |= {"500", "501", "502", "503", "504"}
    assert set(responses) == statuses
    assert all(list(responses[status]["content"]) == [MEDIA_TYPE] for status in statuses - {"200", "202"})
    assert set(responses["422"]["content"][MEDIA_TYPE]["examples"]) == {
        "invalid-request",
        "shots",
        "too-many-texts",
        "unknown-backend",
        "unknown-provider",
    }
    assert "Retry-After" in responses["429"]["headers"]
    inputs = document["components"]["schemas"]["ClassifyRequest"]["properties"]["inputs"]
    assert [kind["type"] for kind in inputs["anyOf"]] == ["string", "array"]
