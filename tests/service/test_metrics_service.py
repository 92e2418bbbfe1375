"""What a replica of the service shows of hardware: its own lookups and comparisons, and what is in Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hardware import HEALTH, FakeProvider, store_for
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer, format_trace_id
from operating import replica_settings
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from redis.asyncio import Redis
from serving import client_of, parts_of, running, sample

from models.device import Device
from service.app import create_app
from service.hardware.execution import Executor
from service.hardware.facts import FactFinder
from service.hardware.readout import ReadoutSchedule
from service.hardware.records import Exact, Readout, Status
from service.hardware.store import Store
from service.metrics import WorkerMetrics
from service.providers.base import DeviceOfflineError, Health, Quota
from service.providers.observed import ObservedProvider
from service.settings import Settings
from service.tracing import OFF

pytestmark = pytest.mark.anyio

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
def store(app: FastAPI) -> Store:
    hardware = parts_of(app).hardware
    assert hardware is not None
    return hardware.store


async def finish(app: FastAPI, provider: FakeProvider, tracer: Tracer = OFF) -> None:
    """Take steps until no batch is open."""
    hardware = parts_of(app).hardware
    assert hardware is not None
    metrics = WorkerMetrics()
    observed = ObservedProvider(provider, metrics, tracer)
    worker = Executor(hardware.store, hardware.cache, observed, metrics, tracer, deadline_seconds=3600, shots=10_240)
    await worker.dispatch()
    while batches := await worker.open_batches():
        for token in batches:
            await worker.advance(token)


async def ask(client: httpx.AsyncClient, inputs: Any) -> httpx.Response:
    return await client.post("/classify/emotion?backend=baihua", json={"inputs": inputs})


async def shown(client: httpx.AsyncClient) -> dict[str, float]:
    """What `/metrics` shows of gauges, by name and, where there is one, label."""
    text = (await client.get("/metrics")).text
    return {
        " ".join([found.name, *found.labels.values()]): found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
        if family.type == "gauge" and not found.name.endswith("_created")
    }


def lookups(app: FastAPI) -> dict[str, float]:
    return {
        result: sample(app, "qd_cache_lookups_total", task="emotion", result=result)
        for result in ("hit", "coalesced", "miss")
    }


async def test_each_distinct_circuit_is_a_hit_a_miss_or_coalesced(app: FastAPI, client: httpx.AsyncClient) -> None:
    await ask(client, "one")
    assert lookups(app) == {"hit": 0, "coalesced": 0, "miss": 1}
    await ask(client, ["one", "two words", "one"])
    assert lookups(app) == {"hit": 0, "coalesced": 1, "miss": 2}
    await finish(app, FakeProvider())
    await ask(client, ["one", "one", "three words here"])
    assert lookups(app) == {"hit": 1, "coalesced": 1, "miss": 3}
    await ask(client, ["one", "two words"])
    assert lookups(app) == {"hit": 3, "coalesced": 1, "miss": 3}


async def test_cached_answers_are_compared_with_the_exact_label(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compared(result: str) -> float:
        return sample(app, "qd_comparisons_total", task="emotion", result=result, cached="true")

    await ask(client, ["one", "two words"])
    await finish(app, FakeProvider())
    assert compared("agree") + compared("disagree") == 0
    results = (await ask(client, ["one", "two words"])).json()["results"]
    assert compared("agree") + compared("disagree") == 2
    before = compared("disagree")
    monkeypatch.setattr(
        "service.backends.baihua._exact", lambda bundle, angles: [Exact(label="other", expvals=[])] * len(angles)
    )
    assert (await ask(client, ["one"])).json()["results"] == results[:1]
    assert compared("disagree") == before + 1


async def test_request_that_is_refused_has_looked_up_nothing(bundles_dir: Path, redis_url: str) -> None:
    settings = Settings(
        bundles_dir=bundles_dir,
        threads=1,
        redis_url=SecretStr(redis_url),
        quafu_device=f"metrics-device-{next(_devices)}",
        max_queued_circuits=1,
    )
    async with running(settings) as app, client_of(app) as client:
        assert (await ask(client, ["one", "two words"])).status_code == 429
        assert sum(lookups(app).values()) == 0


async def test_job_that_a_caller_cancels_is_counted_where_it_is_cancelled_and_once(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    location = (await ask(client, ["one", "two words"])).headers["Location"]
    for _ in range(2):
        await client.delete(location)
    assert sample(app, "qd_job_seconds_count", task="emotion", status="cancelled") == 1
    assert sample(app, "qd_circuits_ended_total", status="cancelled") == 2


async def test_one_trace_goes_from_the_caller_through_service_and_job_to_the_provider(
    hardware_settings: Settings,
) -> None:
    spans = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    tracer = tracers.get_tracer("test")
    app = create_app(hardware_settings, tracer)
    headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    async with app.router.lifespan_context(app), client_of(app) as client:
        await client.post("/classify/emotion?backend=baihua", json={"inputs": "one"}, headers=headers)
        await finish(app, FakeProvider(), tracer)
    found = spans.get_finished_spans()
    by_id = {span.context.span_id: span for span in found if span.context}
    (submit,) = (span for span in found if span.name == "provider.submit")
    path = [submit]
    while (parent := path[-1].parent) is not None and parent.span_id in by_id:
        path.append(by_id[parent.span_id])
    assert [span.name for span in path] == ["provider.submit", "batch.send", "POST /classify/{task}"]
    assert {format_trace_id(span.context.trace_id) for span in found if span.context} == {"ab" * 16}


async def test_queue_and_jobs_are_shown_and_fall(app: FastAPI, client: httpx.AsyncClient, redis: Redis) -> None:
    job_id = (await ask(client, ["one", "two words"])).json()["id"]
    hardware = parts_of(app).hardware
    assert hardware is not None
    prefix = hardware.store.target.prefix
    first, _ = [str(run_id) for run_id in await redis.lrange(f"{prefix}pending", 0, -1)]
    await redis.hset(f"{prefix}run:{first}", "created_at", repr(time() - 500.0))
    await redis.zadd(f"{prefix}jobs:queued", {job_id: time() - 900.0})
    before = await shown(client)
    assert before["qd_queue_circuits"] == 2
    assert before["qd_queue_oldest_seconds"] == pytest.approx(500.0, abs=30.0)
    assert before["qd_job_oldest_seconds"] == pytest.approx(900.0, abs=30.0)
    assert before["qd_jobs queued"] == 1
    assert before["qd_jobs done"] == 0
    await finish(app, FakeProvider())
    after = await shown(client)
    assert [after[f"qd_{name}"] for name in ("queue_circuits", "queue_oldest_seconds", "job_oldest_seconds")] == [0] * 3
    assert after["qd_jobs queued"] == 0
    assert after["qd_jobs done"] == 1


async def test_job_that_is_kept_no_longer_is_counted_no_longer(
    client: httpx.AsyncClient, store: Store, redis: Redis
) -> None:
    location = (await ask(client, "one")).headers["Location"]
    await client.delete(location)
    assert (await store.noticeboard.survey()).jobs[Status.CANCELLED] == 1
    later = store_for(redis, store.target, job_ttl_seconds=0)
    assert (await later.noticeboard.survey()).jobs[Status.CANCELLED] == 0


async def test_what_is_not_known_is_absent_and_not_zero(client: httpx.AsyncClient) -> None:
    found = await shown(client)
    assert found["qd_worker_up"] == 0
    assert found["qd_redis_up"] == 1
    for name in (
        "qd_device_online",
        "qd_device_queue_jobs",
        "qd_provider_quota_left",
        "qd_provider_seen_timestamp_seconds",
        "qd_calibration_timestamp_seconds",
        "qd_readout_timestamp_seconds",
    ):
        assert name not in found


async def test_facts_about_the_provider_reach_every_replica_alike(
    hardware_settings: Settings, client: httpx.AsyncClient, store: Store
) -> None:
    provider = FakeProvider(health_now=Health("someone", "online", 7, Quota(20, 300, None), "cal-1", True))
    await FactFinder(store, provider).keep_up()
    await store.noticeboard.beat()
    await store.noticeboard.keep_readout(Readout(calibration_id="cal-1", executed_at=1000.5, shots=1024, flips={}))
    found = await shown(client)
    assert found["qd_worker_up"] == found["qd_device_online"] == 1
    assert found["qd_device_queue_jobs"] == 7
    assert found["qd_provider_quota_left"] == 280
    assert found["qd_provider_seen_timestamp_seconds"] == pytest.approx(time(), abs=30.0)
    assert found["qd_readout_timestamp_seconds"] == 1000.5
    async with running(hardware_settings) as replica, client_of(replica) as other:
        again = await shown(other)
    names = ("qd_device_queue_jobs", "qd_provider_quota_left", "qd_provider_seen_timestamp_seconds", "qd_worker_up")
    assert [again[name] for name in names] == [found[name] for name in names]
    provider.health_now = Health("someone", "maintenance", None, Quota(301, 300, None), "cal-1", True)
    await FactFinder(store, provider).keep_up()
    found = await shown(client)
    assert found["qd_device_online"] == 0
    assert found["qd_provider_quota_left"] == 0
    assert "qd_device_queue_jobs" not in found


async def test_calibration_is_as_old_as_its_first_sight(client: httpx.AsyncClient, store: Store, redis: Redis) -> None:
    provider = FakeProvider(health_now=HEALTH)
    readouts = ReadoutSchedule(store, provider, layout="server", interval_seconds=0, shots=1024)
    await readouts.keep_up()
    await redis.set(f"{store.target.prefix}calibration:at", "1000.0")
    await readouts.keep_up()
    provider.fail("device", DeviceOfflineError("calibrating"))
    await readouts.keep_up()
    assert (await shown(client))["qd_calibration_timestamp_seconds"] == 1000.0
    assert provider.device_now is not None
    now = provider.device_now
    provider.device_now = Device(now.name, "cal-2", now.qubits, now.couplers)
    await readouts.keep_up()
    assert (await shown(client))["qd_calibration_timestamp_seconds"] > 1000.0
    provider.device_now = None
    await readouts.keep_up()
    assert "qd_calibration_timestamp_seconds" not in await shown(client)


async def test_replica_without_redis_shows_its_own_metrics_alone(bundles_dir: Path) -> None:
    async with running(Settings(bundles_dir=bundles_dir, threads=1)) as app, client_of(app) as client:
        found = await shown(client)
    assert "qd_requests_in_flight" in found
    assert not {"qd_jobs queued", "qd_queue_circuits", "qd_worker_up"} & found.keys()


@pytest.mark.parametrize("answers", ["refused", "never"])
async def test_redis_that_is_away_leaves_its_metrics_out_and_the_others_there(bundles_dir: Path, answers: str) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if answers == "refused":
        server.close()
    settings = Settings(bundles_dir=bundles_dir, threads=1, redis_url=SecretStr(f"redis://127.0.0.1:{port}"))
    async with running(settings) as app, client_of(app) as client:
        found = await shown(client)
    gone.set()
    server.close()
    assert found["qd_redis_up"] == 0
    assert "qd_requests_in_flight" in found
    assert not {"qd_jobs queued", "qd_queue_circuits", "qd_worker_up"} & found.keys()
