"""`backend=baihua` over HTTP: 200 from the cache, 202 with a job, jobs, events and everything that is wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hardware import FakeProvider
from operating import replica_settings
from pydantic import SecretStr
from serving import N_QUBITS, TASKS, client_of, parts_of, running, sample, until

from service.hardware.connection import connect
from service.hardware.execution import Executor
from service.metrics import WorkerMetrics
from service.providers.base import RejectedError, UnreachableError
from service.settings import Settings
from service.tracing import OFF

pytestmark = pytest.mark.anyio

LABELS = TASKS["emotion"][0]

_devices = itertools.count()


@pytest.fixture
def hardware_settings(bundles_dir: Path, redis_url: str) -> Settings:
    return replica_settings(bundles_dir, redis_url)


@pytest.fixture
async def app(hardware_settings: Settings) -> AsyncIterator[FastAPI]:
    async with running(hardware_settings) as app:
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


def worker_of(app: FastAPI, provider: FakeProvider) -> Executor:
    hardware = parts_of(app).hardware
    assert hardware is not None
    return Executor(hardware.store, hardware.cache, provider, WorkerMetrics(), OFF, deadline_seconds=3600, shots=10_240)


async def finish(worker: Executor) -> None:
    """Take steps until no batch is open."""
    await worker.beat()
    await worker.dispatch()
    while batches := await worker.open_batches():
        for token in batches:
            await worker.advance(token)


@asynccontextmanager
async def at_work(worker: Executor) -> AsyncIterator[None]:
    """A worker that takes steps all the time."""
    stopping = asyncio.Event()

    async def loop() -> None:
        while not stopping.is_set():
            await finish(worker)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(loop())
    try:
        yield
    finally:
        stopping.set()
        await task


async def ask(client: httpx.AsyncClient, inputs: Any, query: str = "", **kwargs: Any) -> httpx.Response:
    return await client.post(f"/classify/emotion?backend=baihua{query}", json={"inputs": inputs}, **kwargs)


async def test_uncached_text_is_answered_202_with_a_job_and_later_200_with_its_counts(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    first = await ask(client, "what a lovely day")
    assert first.status_code == 202
    job = first.json()
    assert first.headers["Location"] == f"/jobs/{job['id']}"
    assert int(first.headers["Retry-After"]) >= 1
    assert job["status"] == "queued"
    assert "eta" not in job
    assert "results" not in job
    await finish(worker_of(app, provider))
    second = await ask(client, "what a lovely day")
    assert second.status_code == 200
    body = second.json()
    assert {"task", "backend", "bundle", "results", "timing"} == set(body)
    assert body["backend"] == "baihua"
    (result,) = body["results"]
    assert set(result) == {
        "label",
        "score",
        "scores",
        "truncated",
        "device",
        "emulated",
        "shots",
        "cached",
        "expvals",
        "expvals_raw",
        "mitigated",
        "flip_probability",
        "calibration_id",
        "executed_at",
    }
    assert (result["cached"], result["emulated"], result["shots"]) == (True, True, 10_240)
    assert len(result["expvals"]) == len(result["expvals_raw"]) == N_QUBITS
    assert 0.0 <= result["flip_probability"] <= 1.0
    # The job holds the same answer, and says that its counts were not there before it.
    done = (await client.get(first.headers["Location"])).json()
    assert done["status"] == "done"
    assert done["results"] == [result | {"cached": False}]
    assert [change["status"] for change in done["changes"]] == ["queued", "submitted", "running", "done"]
    assert len(done["provider_jobs"]) == 1


async def test_label_is_that_of_the_bundles_head_on_the_measured_expvals(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    await ask(client, "what a lovely day")
    await finish(worker_of(app, provider))
    (result,) = (await ask(client, "what a lovely day")).json()["results"]
    student = parts_of(app).snapshot.get("emotion").student
    logits = student.logits_from_expvals(np.array([result["expvals"]]))[0]
    assert result["label"] == LABELS[int(logits.argmax())]


async def test_batch_is_one_job_with_results_in_the_callers_order(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    texts = ["one", "two words", "one", "three words here"]
    await ask(client, "two words")
    await finish(worker_of(app, provider))
    job = (await ask(client, texts)).json()
    assert job["n_texts"] == 4
    await finish(worker_of(app, provider))
    done = (await client.get(f"/jobs/{job['id']}")).json()
    singles = [(await ask(client, text)).json()["results"][0] for text in texts]
    assert [r["expvals"] for r in done["results"]] == [r["expvals"] for r in singles]
    assert [r["cached"] for r in done["results"]] == [False, True, False, False]
    assert len(set(provider.circuits)) == len(provider.circuits) == 3


async def test_waiting_request_is_answered_200_as_soon_as_the_counts_are_there(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    async with at_work(worker_of(app, provider)):
        by_query = await ask(client, "by query", "&wait=30")
        by_header = await ask(client, "by header", headers={"Prefer": "respond-async, wait=30"})
    for response in (by_query, by_header):
        assert response.status_code == 200
        assert response.json()["results"][0]["cached"] is False


async def test_wait_that_is_not_long_enough_ends_in_202(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "nobody works", "&wait=1")).status_code == 202


async def test_wait_reaches_a_job_too(app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider) -> None:
    location = (await ask(client, "a text")).headers["Location"]
    async with at_work(worker_of(app, provider)):
        assert (await client.get(f"{location}?wait=30")).json()["status"] == "done"


async def test_job_that_fails_while_a_request_waits_is_answered_with_its_problem(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    provider.fail("submit", RejectedError("too many gates"))
    async with at_work(worker_of(app, provider)):
        response = await ask(client, "a text", "&wait=30")
    assert response.status_code == 502
    problem = response.json()
    assert problem["type"] == "urn:qd:problem:circuit-rejected"
    assert "too many gates" in problem["detail"]
    job = (await client.get(response.headers["Location"])).json()
    assert job["status"] == "failed"
    assert job["error"]["type"] == problem["type"]
    assert job["results"] == [None]
    # The refusal is remembered for a while: no second job is made of it.
    again = await ask(client, "a text")
    assert again.status_code == 502
    assert "too many gates" in again.json()["detail"]


async def test_held_job_says_why_and_until_when(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    location = (await ask(client, "a text")).headers["Location"]
    provider.fail("submit", UnreachableError("no connection", 7.0))
    worker = worker_of(app, provider)
    (token,) = await worker.dispatch()
    await worker.advance(token)
    job = (await client.get(location)).json()
    assert job["status"] == "queued"
    assert job["held"]["reason"] == "provider-unreachable"
    assert job["held"]["detail"] == "no connection"
    assert job["held"]["until"] > job["created_at"]


async def test_job_has_an_estimate_once_there_is_a_history(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    await ask(client, "first")
    await asyncio.sleep(0.05)
    await finish(worker_of(app, provider))
    hardware = parts_of(app).hardware
    assert hardware is not None
    for _ in range(3):
        await hardware.store.noticeboard.remember_duration(40.0)
    response = await ask(client, "second")
    assert response.json()["eta"] > response.json()["created_at"]
    assert 30 <= int(response.headers["Retry-After"]) <= 40


async def test_events_follow_a_job_to_its_end(app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider) -> None:
    location = (await ask(client, "a text")).headers["Location"]
    following = asyncio.create_task(client.get(f"{location}/events"))
    # Before there is a worker: on a busy machine it could be done before anybody follows.
    await until(lambda: sample(app, "qd_job_followers") == 1)
    async with at_work(worker_of(app, provider)):
        response = await following
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in response.text.split("\n\n") if block
    ]
    assert events[0]["event"] in ("queued", "submitted")
    assert events[-1]["event"] == "done"
    assert json.loads(events[-1]["data"])["results"][0]["label"] in LABELS
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(ids)
    rest = await client.get(f"{location}/events", headers={"Last-Event-ID": str(ids[-1] - 1)})
    assert rest.text.count("event: ") == 1


async def test_cancelled_job_stays_cancelled_and_a_second_cancel_is_harmless(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    location = (await ask(client, "a text")).headers["Location"]
    for _ in range(2):
        response = await client.delete(location)
        assert response.status_code == 200
        assert response.json()["status"] == "cancelled"
    await finish(worker_of(app, provider))
    assert provider.submissions == {}
    assert (await client.get(location)).json()["status"] == "cancelled"


async def test_done_job_is_not_cancelled(app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider) -> None:
    location = (await ask(client, "a text")).headers["Location"]
    await finish(worker_of(app, provider))
    assert (await client.delete(location)).json()["status"] == "done"


async def test_jobs_are_listed_in_pages_by_state_and_task(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    for text in ("one", "two", "three"):
        await ask(client, text)
    await client.post("/classify/topic?backend=baihua", json={"inputs": "four"})
    page = (await client.get("/jobs?task=emotion&limit=2")).json()
    assert len(page["jobs"]) == 2
    last = (await client.get(page["next"])).json()
    assert len(last["jobs"]) == 1
    assert "next" not in last
    created = [job["created_at"] for job in page["jobs"] + last["jobs"]]
    assert created == sorted(created, reverse=True)
    await finish(worker_of(app, provider))
    assert (await client.get("/jobs?status=queued")).json() == {"jobs": []}
    assert len((await client.get("/jobs?status=done")).json()["jobs"]) == 4


async def test_top_k_and_truncation_reach_a_job(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    body = {"inputs": "word " * 600, "top_k": 1}
    location = (await client.post("/classify/topic?backend=baihua", json=body)).headers["Location"]
    await finish(worker_of(app, provider))
    (result,) = (await client.get(location)).json()["results"]
    assert len(result["scores"]) == 1
    assert result["truncated"] is True


async def test_default_backend_may_be_baihua(bundles_dir: Path, redis_url: str) -> None:
    settings = Settings(
        bundles_dir=bundles_dir,
        threads=1,
        redis_url=SecretStr(redis_url),
        quafu_device=f"route-device-{next(_devices)}",
        default_backend="baihua",
    )
    async with running(settings) as app, client_of(app) as client:
        assert (await client.post("/classify/emotion", json={"inputs": "a text"})).status_code == 202


@pytest.mark.parametrize("shots", ["0", "1000", "1025", "-1024", "103424"])
async def test_shots_that_no_device_takes_are_refused(client: httpx.AsyncClient, shots: str) -> None:
    response = await ask(client, "a text", f"&shots={shots}")
    assert response.status_code == 422
    assert response.json()["type"] == "urn:qd:problem:shots"
    assert f"shots is {shots}, expected a multiple of 1024" in response.json()["detail"]
    assert (await client.get("/jobs")).json() == {"jobs": []}


@pytest.mark.parametrize(
    ("query", "slug", "said"),
    [
        ("&shots=many", "invalid-request", "shots"),
        ("&shots=1024.5", "invalid-request", "shots"),
        ("&wait=31", "invalid-request", "wait"),
        ("&wait=-1", "invalid-request", "wait"),
        ("&provider=ibm", "unknown-provider", "expected 'quafu'"),
        ("&provider=quafu_sqc", "unknown-provider", "expected 'quafu'"),
        ("&shot=1024", "invalid-request", "shot"),
    ],
)
async def test_wrong_query_is_refused(client: httpx.AsyncClient, query: str, slug: str, said: str) -> None:
    response = await ask(client, "a text", query)
    assert response.status_code == 422
    assert response.json()["type"] == f"urn:qd:problem:{slug}"
    assert said in response.json()["detail"]


async def test_provider_in_use_may_be_named_and_shots_chosen(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    await ask(client, "a text", "&provider=quafu&shots=2048")
    await finish(worker_of(app, provider))
    (result,) = (await ask(client, "a text", "&shots=2048")).json()["results"]
    assert result["shots"] == 2048
    assert (await ask(client, "a text")).status_code == 202


async def test_shots_on_the_simulator_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/classify/emotion?shots=1024", json={"inputs": "a text"})
    assert response.status_code == 422
    assert "the simulator is exact" in response.json()["detail"]


@pytest.mark.parametrize("job_id", ["nothing", "0" * 32, "..%2f..%2fetc", "x" * 500, "a:b", "%00"])
@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("DELETE", ""), ("GET", "/events")])
async def test_unknown_job_is_404(client: httpx.AsyncClient, job_id: str, method: str, suffix: str) -> None:
    response = await client.request(method, f"/jobs/{job_id}{suffix}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("query", ["status=finished", "limit=0", "limit=1000", "before=nan", "before=x", "state=done"])
async def test_wrong_list_of_jobs_is_422(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/jobs?{query}")).status_code == 422


async def test_full_queue_answers_429_and_keeps_nothing(bundles_dir: Path, redis_url: str) -> None:
    settings = Settings(
        bundles_dir=bundles_dir,
        threads=1,
        redis_url=SecretStr(redis_url),
        quafu_device=f"route-device-{next(_devices)}",
        max_queued_circuits=2,
    )
    async with running(settings) as app, client_of(app) as client:
        response = await ask(client, ["one", "two", "three"])
        assert response.status_code == 429
        assert "Retry-After" in response.headers
        assert (await client.get("/jobs")).json() == {"jobs": []}
        assert (await ask(client, ["one", "two"])).status_code == 202


async def test_service_without_redis_has_no_jobs(bundles_dir: Path) -> None:
    async with running(Settings(bundles_dir=bundles_dir, threads=1)) as app, client_of(app) as client:
        for response in (await ask(client, "a text"), await client.get("/jobs"), await client.get("/jobs/x")):
            assert response.status_code == 501
            assert response.json()["type"] == "urn:qd:problem:backend-not-configured"


async def test_redis_that_does_not_answer_leaves_the_simulator_and_liveness_alone(bundles_dir: Path) -> None:
    settings = Settings(bundles_dir=bundles_dir, threads=1, redis_url=SecretStr("redis://127.0.0.1:1"))
    async with running(settings) as app, client_of(app) as client:
        refused = await ask(client, "a text")
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:qd:problem:store-unavailable"
        assert "Retry-After" in refused.headers
        assert (await client.get("/jobs/abc")).status_code == 503
        assert (await client.post("/classify/emotion", json={"inputs": "a text"})).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["status"] == "degraded"
        assert ready.json()["parts"]["redis"].startswith("degraded")


async def test_readiness_says_whether_a_worker_is_at_work(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider
) -> None:
    before = (await client.get("/readyz")).json()
    assert before["status"] == "degraded"
    assert before["parts"]["worker"].startswith("degraded")
    await finish(worker_of(app, provider))
    assert (await client.get("/readyz")).json()["status"] == "ready"


async def test_counts_of_an_earlier_calibration_can_be_made_to_miss(bundles_dir: Path, redis_url: str) -> None:
    settings = Settings(
        bundles_dir=bundles_dir,
        threads=1,
        redis_url=SecretStr(redis_url),
        quafu_device=f"route-device-{next(_devices)}",
        cache_by_calibration=True,
    )
    provider = FakeProvider()
    async with running(settings) as app, client_of(app) as client:
        worker = worker_of(app, provider)
        hardware = parts_of(app).hardware
        assert hardware is not None
        await hardware.store.noticeboard.note_calibration("cal-1")
        await ask(client, "a text")
        await finish(worker)
        assert (await ask(client, "a text")).status_code == 200
        await hardware.store.noticeboard.note_calibration("cal-2")
        assert (await ask(client, "a text")).status_code == 202


async def test_text_itself_is_nowhere_in_redis(
    app: FastAPI, client: httpx.AsyncClient, provider: FakeProvider, redis_url: str
) -> None:
    secret = "a secret that nobody else may read"
    await ask(client, secret)
    await finish(worker_of(app, provider))
    async with connect(redis_url) as redis:
        found = []
        async for key in redis.scan_iter():
            kind = await redis.type(key)
            value = await (
                redis.hgetall(key) if kind == "hash" else redis.get(key) if kind == "string" else redis.ttl(key)
            )
            found.append(f"{key} {value}")
    assert any(N_QUBITS * "0" in line for line in found)
    assert not any("secret that" in line for line in found)
