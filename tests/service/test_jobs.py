"""The queue itself, on a real Valkey: what is due is done, by whoever is at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hardware import SHOTS, FakeProvider, draft, store_for
from redis.asyncio import Redis

from service.embedded import embedded_redis
from service.hardware.cache import Cache
from service.hardware.execution import Executor
from service.hardware.facts import FactFinder
from service.hardware.readout import ReadoutSchedule
from service.hardware.records import Job, Status
from service.hardware.store import Store
from service.jobs import run_worker
from service.metrics import WorkerMetrics
from service.providers.base import JobState
from service.tracing import OFF

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def redis_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A Valkey of their own: the queue keeps values that are no text, and other tests read all that is in theirs."""
    async with embedded_redis(tmp_path_factory.mktemp("jobs")) as url:
        yield url


@asynccontextmanager
async def at_work(
    redis_url: str, redis: Redis, store: Store, provider: FakeProvider, interval: int = 0
) -> AsyncIterator[WorkerMetrics]:
    """A worker in this process, until the context is left; what it counts."""
    metrics = WorkerMetrics()
    executor = Executor(store, Cache(redis, 3600), provider, metrics, OFF, deadline_seconds=3600, shots=SHOTS)
    readouts = ReadoutSchedule(store, provider, layout="chain", interval_seconds=interval, shots=SHOTS)
    stopping = asyncio.Event()
    worker = asyncio.create_task(
        run_worker(
            redis_url,
            store.target,
            executor,
            readouts,
            FactFinder(store, provider),
            metrics,
            concurrency=4,
            lease_seconds=2,
            micro_batch_seconds=0.05,
            stopping=stopping,
        )
    )
    try:
        yield metrics
    finally:
        stopping.set()
        await worker


async def ended(store: Store, job: Job) -> Job:
    async with asyncio.timeout(60):
        while (found := await store.job(job.id)) is None or not found.status.is_final:
            await asyncio.sleep(0.05)
    return found


async def test_worker_takes_a_job_from_the_queue_to_its_end_and_stops_when_told(redis_url: str, redis: Redis) -> None:
    store, provider = store_for(redis), FakeProvider()
    job = await store.create(draft(store.target, [0.2, 3.0]))
    assert job is not None
    async with at_work(redis_url, redis, store, provider):
        assert (await ended(store, job)).status is Status.DONE
        assert await store.noticeboard.has_worker()
    assert len(provider.circuits) == 2


async def test_batch_that_was_stored_and_never_scheduled_is_found_and_done(redis_url: str, redis: Redis) -> None:
    store, provider = store_for(redis), FakeProvider()
    job = await store.create(draft(store.target, [0.2]))
    assert job is not None
    # As if a worker had stopped right here.
    token = await store.claim(10)
    async with at_work(redis_url, redis, store, provider):
        assert (await ended(store, job)).status is Status.DONE
    assert list(provider.submissions) == [token]


async def test_run_that_ended_before_its_jobs_were_told_is_handed_out(redis_url: str, redis: Redis) -> None:
    store, provider = store_for(redis), FakeProvider()
    job = await store.create(draft(store.target, [0.2]))
    assert job is not None
    token = await store.claim(10)
    assert token is not None
    (run,) = await store.runs(job.runs.values())
    await store.finish_run(run, token, Status.FAILED, {"type": "urn:qd:problem:circuit-failed", "status": 502})
    async with at_work(redis_url, redis, store, provider):
        failed = await ended(store, job)
    assert failed.errors[0]["type"] == "urn:qd:problem:circuit-failed"
    assert provider.submissions == {}


async def test_readout_errors_are_measured_without_being_asked_for(redis_url: str, redis: Redis) -> None:
    store, provider = store_for(redis), FakeProvider()
    async with at_work(redis_url, redis, store, provider, interval=3600), asyncio.timeout(60):
        while await store.noticeboard.newest_readout() is None:
            await asyncio.sleep(0.05)
    assert len(provider.submissions) == 1


async def test_provider_is_asked_how_it_is_and_no_step_is_counted_once_all_are_over(
    redis_url: str, redis: Redis
) -> None:
    store, provider = store_for(redis), FakeProvider()
    async with at_work(redis_url, redis, store, provider) as metrics, asyncio.timeout(60):
        while (await store.noticeboard.survey()).provider is None:
            await asyncio.sleep(0.05)
    assert metrics.registry.get_sample_value("qd_worker_steps") == 0


async def test_step_under_way_is_counted(redis_url: str, redis: Redis) -> None:
    store, provider = store_for(redis), FakeProvider()
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(job_id: str) -> JobState:
        asked.set()
        await answer.wait()
        return JobState.ENDED

    provider.status = slow  # type: ignore[method-assign]
    assert await store.create(draft(store.target, [0.2])) is not None
    async with at_work(redis_url, redis, store, provider) as metrics, asyncio.timeout(60):
        await asked.wait()
        steps = metrics.registry.get_sample_value("qd_worker_steps")
        answer.set()
    assert steps is not None
    assert steps >= 1
