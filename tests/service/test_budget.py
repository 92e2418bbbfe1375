"""What an API key pays for: circuits that it brings into the hardware's queue, each once, until its day is spent."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hardware import SHOTS, FakeProvider, draft, new_target, store_for
from pydantic import SecretStr
from redis.asyncio import Redis
from serving import client_of, parts_of, running, sample

from service.control.keys import Key, KeyRing, Scope, _sha256
from service.hardware.budget import Budget, OverBudgetError, seconds_to_midnight
from service.hardware.execution import Executor
from service.hardware.store import Store
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.tracing import OFF

pytestmark = pytest.mark.anyio

SECRET = "s" * 43

_ids = itertools.count()


@pytest.fixture
def store(redis: Redis) -> Store:
    return store_for(redis, new_target())


async def ask(store: Store, budget: Budget | None, *angles: float) -> str:
    job = await store.create(dataclasses.replace(draft(store.target, angles), budget=budget))
    assert job is not None
    return job.id


async def test_each_new_circuit_costs_its_shots_however_many_texts_have_it(store: Store) -> None:
    await ask(store, Budget("alice", 2 * SHOTS), 0.1, 0.2, 0.2)
    with pytest.raises(OverBudgetError):
        await ask(store, Budget("alice", 3 * SHOTS - 1), 0.3)


async def test_circuits_under_way_cost_nothing_whoever_brought_them(store: Store) -> None:
    alice, bob = Budget("alice", SHOTS), Budget("bob", SHOTS)
    await ask(store, alice, 0.1)
    await ask(store, alice, 0.1)
    await ask(store, bob, 0.1)
    await ask(store, bob, 0.1, 0.2)
    for budget in (alice, bob):  # by now each has brought one
        with pytest.raises(OverBudgetError):
            await ask(store, dataclasses.replace(budget, shots_per_day=2 * SHOTS - 1), 0.3)


async def test_job_that_costs_more_than_is_left_is_not_made_and_costs_nothing(store: Store) -> None:
    alice = Budget("alice", 2 * SHOTS)
    await ask(store, alice, 0.1)
    with pytest.raises(OverBudgetError):
        await ask(store, alice, 0.2, 0.3)
    assert await store.n_pending() == 1
    assert len(await store.jobs(None, None, 10, None)) == 1
    # What is left is exactly enough; after that, only what is under way may be asked for.
    await ask(store, alice, 0.2)
    with pytest.raises(OverBudgetError):
        await ask(store, alice, 0.3)
    await ask(store, alice, 0.1, 0.2)
    await ask(store, Budget("alice", 3 * SHOTS), 0.3)


async def test_callers_without_a_budget_pay_nothing(store: Store) -> None:
    await ask(store, None, 0.1)
    assert await store.n_pending() == 1


async def test_job_that_finds_the_queue_full_costs_nothing(redis: Redis) -> None:
    store = store_for(redis, new_target(), max_pending=1)
    alice = Budget("alice", 2 * SHOTS)
    assert await store.create(dataclasses.replace(draft(store.target, [0.1, 0.2]), budget=alice)) is None
    await ask(store, Budget("alice", SHOTS), 0.1)


async def test_cancelling_gives_nothing_back(store: Store) -> None:
    alice = Budget("alice", SHOTS)
    await store.cancel(await ask(store, alice, 0.1))
    with pytest.raises(OverBudgetError):
        await ask(store, alice, 0.2)


async def test_what_was_spent_is_forgotten_after_its_day(store: Store, redis: Redis) -> None:
    await ask(store, Budget("alice", SHOTS), 0.1)
    (name,) = [name async for name in redis.scan_iter(match=f"{store.target.prefix}spent:*", count=1000)]
    assert seconds_to_midnight() < await redis.ttl(name) <= 2 * 86_400


# --- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def app(bundles_dir: Path, redis_url: str) -> AsyncIterator[FastAPI]:
    settings = Settings(
        bundles_dir=bundles_dir,
        threads=1,
        redis_url=SecretStr(redis_url),
        quafu_url="http://127.0.0.1:1",
        quafu_device=f"budget-device-{next(_ids)}",
    )
    async with running(settings) as app:
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def give_key(app: FastAPI, shots_per_day: int) -> dict[str, str]:
    """The header with the app's only key."""
    key = Key(
        id=f"b0d9e7{next(_ids):02x}",
        name="alice",
        sha256=_sha256(SECRET),
        scopes=(Scope.CLASSIFY, Scope.HARDWARE),
        created_at=0.0,
        shots_per_day=shots_per_day,
    )
    ring = KeyRing(exposed=True, allow_anonymous=False)
    ring.replace([key])
    parts_of(app).keys = ring
    return {"Authorization": f"Bearer qd_{key.id}_{SECRET}"}


async def classify(client: httpx.AsyncClient, headers: dict[str, str], *texts: str) -> httpx.Response:
    return await client.post("/classify/emotion?backend=baihua", json={"inputs": texts}, headers=headers)


async def test_key_that_has_spent_its_day_is_answered_429_until_midnight_and_still_gets_what_is_there(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    headers = give_key(app, 2 * SHOTS)
    assert (await classify(client, headers, "one", "two")).status_code == 202
    answer = await classify(client, headers, "one", "three")
    assert answer.status_code == 429
    document = answer.json()
    assert document["type"] == "urn:qd:problem:budget-exhausted"
    assert document["limit"] == 2 * SHOTS
    assert int(answer.headers["Retry-After"]) == pytest.approx(seconds_to_midnight(), abs=60)
    assert document["retry_after_seconds"] == int(answer.headers["Retry-After"])
    assert "RateLimit" in answer.headers
    assert sample(app, "qd_denied_total", reason="budget") == 1
    # Under way, then cached.
    assert (await classify(client, headers, "two")).status_code == 202
    hardware = parts_of(app).hardware
    assert hardware is not None
    worker = Executor(
        hardware.store, hardware.cache, FakeProvider(), WorkerMetrics(), OFF, deadline_seconds=3600, shots=SHOTS
    )
    await worker.dispatch()
    while batches := await worker.open_batches():
        for token in batches:
            await worker.advance(token)
    answer = await classify(client, headers, "two", "one")
    assert answer.status_code == 200
    assert all(result["cached"] for result in answer.json()["results"])
    # Those two are all that it has paid for: a third fits where there is room for three.
    await ask(hardware.store, Budget(headers["Authorization"].split("_")[1], 3 * SHOTS), 0.1)
    # The simulator costs nothing.
    answer = await client.post("/classify/emotion?backend=simulator", json={"inputs": "three"}, headers=headers)
    assert answer.status_code == 200


async def test_refusals_count_circuits_in_words_that_fit(app: FastAPI, client: httpx.AsyncClient) -> None:
    headers = give_key(app, SHOTS - 1)
    answers = [await classify(client, headers, *texts) for texts in (["one"], ["one", "two"])]
    assert [answer.json()["detail"].partition(" more ")[0] for answer in answers] == [
        f"1 circuit of {SHOTS} shots is",
        f"2 circuits of {SHOTS} shots are",
    ]
    hardware = parts_of(app).hardware
    assert hardware is not None
    hardware.store.max_pending = 0
    headers = give_key(app, 0)
    answers = [await classify(client, headers, *texts) for texts in (["one"], ["one", "two"])]
    assert [answer.json()["detail"].partition(", expected ")[0] for answer in answers] == [
        "1 circuit was sent to a queue without room for it",
        "2 circuits were sent to a queue without room for them",
    ]


async def test_each_key_has_a_budget_of_its_own(app: FastAPI, client: httpx.AsyncClient) -> None:
    assert (await classify(client, give_key(app, SHOTS), "one")).status_code == 202
    assert (await classify(client, give_key(app, SHOTS), "two")).status_code == 202
