"""Requests that the simulator answers and hardware runs too: how many, and that nobody notices."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from types import MappingProxyType

import httpx
import numpy as np
import pytest
from fakes import FakeEmbedder, fake_bundle
from operating import emptied, eventually, replica, replica_settings, switch
from redis.exceptions import ConnectionError as RedisConnectionError
from serving import parts_of, sample

from service.backends.base import Measurement, Pending, Work
from service.backends.shadow import Shadow
from service.batching import Evaluation
from service.embedded import embedded_redis
from service.hardware.budget import Budget
from service.metrics import Metrics
from service.registry import LoadedBundle, Snapshot

pytestmark = pytest.mark.anyio

EVALUATION = Evaluation(np.zeros((1, 2)), np.zeros((1, 2)), (False,), 0.0, 0.0)
WORK = Work(["a text"], top_k=1, budget=Budget("0a1b2c3d", 1024))
BODY = {"inputs": "what a lovely day"}


class FakeHardware:
    """Answers from its cache once it may; or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_answer = asyncio.Event()
        self.asked: list[Work] = []
        self.ended = 0
        self._error = error

    async def measure(self, bundle: LoadedBundle, work: Work, evaluation: Evaluation) -> Measurement | Pending:
        assert evaluation is EVALUATION
        self.asked.append(work)
        try:
            await self.may_answer.wait()
        finally:
            self.ended += 1
        if self._error is not None:
            raise self._error
        return Measurement([], 0.0, 0.0)


def shadows(metrics: Metrics, outcome: str, task: str = "fake") -> float:
    return metrics.registry.get_sample_value("qd_shadows_total", {"task": task, "outcome": outcome}) or 0.0


BUNDLE = fake_bundle("fake", FakeEmbedder())


@pytest.mark.parametrize("percent", [0.0, 25.0, 100.0])
async def test_share_of_requests_is_the_percentage(percent: float) -> None:
    hardware, metrics = FakeHardware(), Metrics()
    hardware.may_answer.set()
    n = 2000
    async with Shadow(hardware, metrics, random.Random(7)) as shadow:
        for _ in range(n):
            shadow.offer(percent, BUNDLE, WORK, EVALUATION)
            await asyncio.sleep(0)
    expected = n * percent / 100
    sigma = (expected * (1 - percent / 100)) ** 0.5
    assert abs(len(hardware.asked) - expected) <= 5 * sigma
    assert shadows(metrics, "cached") == len(hardware.asked)
    assert shadows(metrics, "dropped") == shadows(metrics, "failed") == 0


async def test_nobody_pays_for_it_and_it_has_no_wishes_of_its_own() -> None:
    hardware = FakeHardware()
    hardware.may_answer.set()
    async with Shadow(hardware, Metrics(), random.Random(7)) as shadow:
        shadow.offer(100, BUNDLE, WORK, EVALUATION)
    assert hardware.asked == [Work(["a text"])]


async def test_what_is_too_much_is_dropped() -> None:
    hardware, metrics = FakeHardware(), Metrics()
    async with Shadow(hardware, metrics, random.Random(7)) as shadow:
        for _ in range(100):
            shadow.offer(100, BUNDLE, WORK, EVALUATION)
        assert shadows(metrics, "dropped") == 36
        hardware.may_answer.set()
    assert shadows(metrics, "cached") == 64


async def test_error_is_counted_and_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    hardware, metrics = FakeHardware(RedisConnectionError("gone")), Metrics()
    hardware.may_answer.set()
    async with Shadow(hardware, metrics, random.Random(7)) as shadow:
        shadow.offer(100, BUNDLE, WORK, EVALUATION)
    assert shadows(metrics, "failed") == 1
    assert "a request was not shadowed" in caplog.text


async def test_shutdown_lets_them_end_and_cancels_those_that_do_not() -> None:
    hardware, metrics = FakeHardware(), Metrics()
    async with Shadow(hardware, metrics, random.Random(7), grace_seconds=0.01) as shadow:
        shadow.offer(100, BUNDLE, WORK, EVALUATION)
        await asyncio.sleep(0)
        assert hardware.asked
    assert hardware.ended == 1
    assert shadows(metrics, "failed") == 1


@pytest.fixture(scope="module")
async def own_redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with embedded_redis(tmp_path_factory.mktemp("shadow")) as url:
        yield url


@pytest.fixture
async def url(own_redis: str) -> str:
    return await emptied(own_redis)


async def test_shadowed_request_is_answered_by_the_simulator_and_leaves_a_job(bundles_dir: Path, url: str) -> None:
    async with replica(replica_settings(bundles_dir, url)) as (app, client):
        assert (await switch(client, "emotion", "simulator", shadow_percent=100)).status_code == 200
        answer = await client.post("/classify/emotion", json={**BODY, "top_k": 1})
        assert (answer.status_code, answer.json()["backend"]) == (200, "simulator")

        async def is_queued() -> bool:
            return sample(app, "qd_shadows_total", task="emotion", outcome="queued") == 1

        await eventually(is_queued)
        (job,) = (await client.get("/jobs")).json()["jobs"]
        assert (job["task"], job["bundle"], job["n_texts"]) == ("emotion", answer.json()["bundle"], 1)
        hardware = parts_of(app).hardware
        assert hardware is not None
        kept = await hardware.store.job(job["id"])
        assert kept is not None
        assert kept.spec.top_k is None
        (item,) = kept.spec.items
        assert item.exact is not None
        assert item.exact.label == answer.json()["results"][0]["label"]
        assert sample(app, "qd_shadow_ratio", task="emotion") == 1


async def test_named_simulator_and_other_tasks_are_not_shadowed(bundles_dir: Path, url: str) -> None:
    async with replica(replica_settings(bundles_dir, url)) as (app, client):
        assert (await switch(client, "emotion", "simulator", shadow_percent=100)).status_code == 200
        for path in ("/classify/emotion?backend=simulator", "/classify/topic"):
            assert (await client.post(path, json=BODY)).status_code == 200
    assert sample(app, "qd_shadows_total", task="emotion", outcome="queued") == 0
    assert sample(app, "qd_shadows_total", task="topic", outcome="queued") == 0


async def test_answer_does_not_wait_for_hardware(bundles_dir: Path, url: str) -> None:
    async with replica(replica_settings(bundles_dir, url)) as (app, client):
        state = parts_of(app)
        may_go_on = asyncio.Event()

        class Waits:
            async def measure(self, *_: object) -> Measurement:
                await may_go_on.wait()
                return Measurement([], 0.0, 0.0)

        async with Shadow(Waits(), state.metrics, random.Random(7)) as shadow:
            state.shadow = shadow
            assert (await switch(client, "emotion", "simulator", shadow_percent=100)).status_code == 200
            answers = [await client.post("/classify/emotion", json=BODY) for _ in range(5)]
            assert {answer.status_code for answer in answers} == {200}
            assert sample(app, "qd_shadows_total", task="emotion", outcome="cached") == 0
            may_go_on.set()
        assert sample(app, "qd_shadows_total", task="emotion", outcome="cached") == 5


async def test_hardware_that_cannot_be_used_fails_no_request(bundles_dir: Path, url: str) -> None:
    """The fake student has no circuit, so every shadow ends in an error."""
    embedder = FakeEmbedder()
    embedder.free_run()
    async with replica(replica_settings(bundles_dir, url)) as (app, client):
        parts_of(app).snapshot = Snapshot(MappingProxyType({"fake": fake_bundle("fake", embedder)}))
        assert (await switch(client, "fake", "simulator", shadow_percent=100)).status_code == 200
        answers: list[httpx.Response] = [await client.post("/classify/fake", json=BODY) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}

        async def have_failed() -> bool:
            return sample(app, "qd_shadows_total", task="fake", outcome="failed") == 3

        await eventually(have_failed)
