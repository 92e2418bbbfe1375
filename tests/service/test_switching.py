"""The default backend of a task: who gets it, that replicas agree on it, and what it is while Redis is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from operating import backend_of, emptied, eventually, replica, replica_settings, switch
from serving import parts_of, sample

from service.backends.base import Backend, Backends
from service.control import keyspace, sync
from service.control.keys import Caller, KeyStore, Scope
from service.control.switches import Switch, Switches, parse_switches
from service.embedded import embedded_redis
from service.errors import BackendNotConfiguredError, ForbiddenError, UnknownBackendError
from service.hardware.connection import connect
from service.metrics import Metrics
from service.settings import BackendName

pytestmark = pytest.mark.anyio

EVERYTHING = Caller(None, frozenset(Scope))
NO_HARDWARE = Caller("0a1b2c3d", frozenset({Scope.CLASSIFY}))
SIMULATOR, BAIHUA = BackendName.SIMULATOR, BackendName.BAIHUA
BODY = {"inputs": "what a lovely day"}


@pytest.fixture(scope="module")
async def own_redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with embedded_redis(tmp_path_factory.mktemp("switching")) as url:
        yield url


@pytest.fixture
async def url(own_redis: str) -> str:
    return await emptied(own_redis)


def backends(switches: Switches, default: BackendName = SIMULATOR) -> Backends:
    both = {name: cast(Backend, object()) for name in BackendName}
    return Backends(both, default, switches)


def test_unnamed_backend_is_the_tasks_own_and_a_named_one_is_taken() -> None:
    switches = Switches(SIMULATOR)
    switches.set("topic", Switch(backend=BAIHUA))
    both = backends(switches)
    assert both.resolve(None, "emotion", EVERYTHING) is SIMULATOR
    assert both.resolve(None, "topic", EVERYTHING) is BAIHUA
    assert both.resolve("simulator", "topic", EVERYTHING) is SIMULATOR
    assert both.resolve("baihua", "emotion", EVERYTHING) is BAIHUA


def test_caller_without_hardware_stays_on_the_simulator_and_may_not_name_hardware() -> None:
    switched = Switches(SIMULATOR)
    switched.set("topic", Switch(backend=BAIHUA))
    for both in (backends(switched), backends(Switches(BAIHUA), BAIHUA)):
        assert both.resolve(None, "topic", NO_HARDWARE) is SIMULATOR
        assert both.resolve("simulator", "topic", NO_HARDWARE) is SIMULATOR
        with pytest.raises(ForbiddenError, match="'hardware'"):
            both.resolve("baihua", "topic", NO_HARDWARE)


def test_unknown_and_unconfigured_backends_are_refused() -> None:
    with pytest.raises(UnknownBackendError, match="'qpu'"):
        backends(Switches(SIMULATOR)).resolve("qpu", "topic", EVERYTHING)
    with pytest.raises(BackendNotConfiguredError):
        Backends({SIMULATOR: cast(Backend, object())}, BAIHUA, Switches(BAIHUA))


def test_switch_that_cannot_be_read_counts_as_none() -> None:
    good = Switch(backend=BAIHUA).model_dump_json()
    raw = {
        "a": good,
        "b": "no json",
        "c": '{"backend": "qpu"}',
        "d": good.replace('"schema_version":1', '"schema_version":2'),
        "e": '{"backend": "simulator", "shadow_percent": 101}',
    }
    assert parse_switches(raw) == {"a": Switch(backend=BAIHUA)}


def test_gauges_show_the_tasks_that_are_served_and_no_others() -> None:
    metrics, switches = Metrics(), Switches(SIMULATOR)
    switches.set("topic", Switch(backend=SIMULATOR, shadow_percent=25))
    switches.show(metrics, ["emotion", "topic"])
    switches.set("topic", Switch(backend=BAIHUA))
    switches.show(metrics, ["topic"])

    def found(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert found("qd_default_backend", task="topic", backend="baihua") == 1
    assert found("qd_default_backend", task="topic", backend="simulator") == 0
    assert found("qd_shadow_ratio", task="topic") == 0
    assert found("qd_shadow_ratio", task="emotion") is None
    assert found("qd_default_backend", task="emotion", backend="simulator") is None


def test_a_replica_is_never_two_seconds_behind() -> None:
    assert sync._PERIOD_SECONDS + sync._PATIENCE_SECONDS < 2


async def test_switch_is_in_effect_at_once_here_and_soon_in_the_other_replica(bundles_dir: Path, url: str) -> None:
    settings = replica_settings(bundles_dir, url)
    async with replica(settings) as (app, client), replica(settings) as (other_app, other):
        assert await backend_of(other, "emotion") == {
            "task": "emotion",
            "backend": "simulator",
            "shadow_percent": 0,
            "source": "settings",
        }
        said = await switch(client, "emotion", "baihua")
        assert said.status_code == 200
        assert said.json()["by"] == "open"
        assert (await client.post("/classify/emotion", json=BODY)).status_code == 202
        assert sample(app, "qd_default_backend", task="emotion", backend="baihua") == 1

        async def agrees() -> bool:
            return await backend_of(other, "emotion") == said.json()

        await eventually(agrees)
        answer = await other.post("/classify/emotion", json=BODY)
        assert answer.status_code == 202
        assert answer.json()["backend"] == "baihua"
        assert sample(other_app, "qd_default_backend", task="emotion", backend="baihua") == 1
        assert sample(other_app, "qd_redis_up") == 1
        assert (await backend_of(other, "topic"))["source"] == "settings"
        topic = await other.post("/classify/topic", json=BODY)
        assert (topic.status_code, topic.json()["backend"]) == (200, "simulator")
        accepted = {"task": "emotion", "backend": "baihua", "outcome": "accepted"}
        assert sample(other_app, "qd_requests_total", **accepted) == 1


async def test_replica_that_starts_has_the_switch_before_its_first_request(bundles_dir: Path, url: str) -> None:
    settings = replica_settings(bundles_dir, url)
    async with replica(settings) as (_, client):
        await switch(client, "topic", "simulator", shadow_percent=12.5)
        assert (await switch(client, "emotion", "baihua")).status_code == 200
    async with replica(settings) as (app, client):
        assert (await client.post("/classify/emotion", json=BODY)).status_code == 202
        assert sample(app, "qd_shadow_ratio", task="topic") == 0.125


async def test_no_request_fails_while_a_task_is_switched_to_and_fro(bundles_dir: Path, url: str) -> None:
    async with replica(replica_settings(bundles_dir, url)) as (_, client):
        done = asyncio.Event()
        answers: list[httpx.Response] = []

        async def traffic() -> None:
            while not done.is_set():
                answers.append(await client.post("/classify/emotion", json=BODY))

        flows = [asyncio.create_task(traffic()) for _ in range(4)]
        steps: list[dict[str, Any]] = [
            {"backend": "simulator", "shadow_percent": 100},
            {"backend": "baihua"},
            {"backend": "simulator"},
        ]
        for step in steps * 3:
            n_before = len(answers)
            assert (await switch(client, "emotion", **step)).status_code == 200
            while len(answers) < n_before + 10:
                await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*flows)
    assert {answer.status_code for answer in answers} == {200, 202}
    for answer in answers:
        assert answer.json()["backend"] == {200: "simulator", 202: "baihua"}[answer.status_code]


async def test_key_without_hardware_is_answered_by_the_simulator_after_a_switch(bundles_dir: Path, url: str) -> None:
    redis = connect(url)
    keys = KeyStore(redis)
    _, admin = await keys.create("operator", [Scope.ADMIN])
    _, full = await keys.create("full", [Scope.CLASSIFY, Scope.HARDWARE])
    _, plain = await keys.create("plain", [Scope.CLASSIFY])
    await redis.aclose()

    def bearer(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    async with replica(replica_settings(bundles_dir, url)) as (app, client):
        path = "/admin/tasks/emotion/backend"
        assert (await client.put(path, json={"backend": "baihua"}, headers=bearer(admin))).status_code == 200
        stays = await client.post("/classify/emotion", json=BODY, headers=bearer(plain))
        assert (stays.status_code, stays.json()["backend"]) == (200, "simulator")
        named = await client.post("/classify/emotion?backend=baihua", json=BODY, headers=bearer(plain))
        assert named.status_code == 403
        assert named.json()["scope"] == "hardware"
        assert (await client.post("/classify/emotion", json=BODY, headers=bearer(full))).status_code == 202
        assert (await client.post("/classify/emotion", json=BODY)).status_code == 401
        denied = {"task": "emotion", "backend": "none", "outcome": "denied"}
        assert sample(app, "qd_requests_total", **denied) == 2


async def test_budget_of_a_key_is_charged_for_what_it_asks_of_hardware(bundles_dir: Path, url: str) -> None:
    redis = connect(url)
    _, secret = await KeyStore(redis).create("small", [Scope.CLASSIFY, Scope.HARDWARE], shots_per_day=1024)
    await redis.aclose()
    headers = {"Authorization": f"Bearer {secret}"}
    async with replica(replica_settings(bundles_dir, url)) as (app, client):
        path = "/classify/emotion?backend=baihua&shots=1024"
        assert (await client.post(path, json={"inputs": "one"}, headers=headers)).status_code == 202
        refused = await client.post(path, json={"inputs": "two"}, headers=headers)
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:qd:problem:budget-exhausted"
        labels = {"task": "emotion", "backend": "baihua"}
        assert sample(app, "qd_requests_total", outcome="denied", **labels) == 1
        assert sample(app, "qd_requests_total", outcome="overloaded", **labels) == 0


async def test_settings_decide_while_redis_is_away_and_the_switch_when_it_is_back(
    bundles_dir: Path, tmp_path: Path
) -> None:
    async with AsyncExitStack() as apps:
        async with embedded_redis(tmp_path) as url:
            app, client = await apps.enter_async_context(replica(replica_settings(bundles_dir, url)))
            assert (await switch(client, "emotion", "baihua")).status_code == 200
            assert (await client.post("/classify/emotion", json=BODY)).status_code == 202

        async def falls_back() -> bool:
            return (await backend_of(client, "emotion"))["source"] == "settings"

        await eventually(falls_back)
        answer = await client.post("/classify/emotion", json=BODY)
        assert (answer.status_code, answer.json()["backend"]) == (200, "simulator")
        assert sample(app, "qd_redis_up") == 0
        assert parts_of(app).limits.redis_is_away
        assert sample(app, "qd_default_backend", task="emotion", backend="simulator") == 1
        refused = await switch(client, "topic", "simulator", shadow_percent=5)
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:qd:problem:store-unavailable"
        assert (await client.get("/admin/audit")).status_code == 503
        assert (await backend_of(client, "topic"))["shadow_percent"] == 0

        async with embedded_redis(tmp_path) as same_url:
            assert same_url == url

            async def is_back() -> bool:
                return (await backend_of(client, "emotion"))["source"] == "redis"

            await eventually(is_back)
            assert (await backend_of(client, "emotion"))["backend"] == "baihua"
            assert sample(app, "qd_redis_up") == 1
            assert not parts_of(app).limits.redis_is_away
            entries = (await client.get("/admin/audit")).json()["entries"]
            assert [entry["task"] for entry in entries] == ["emotion"]
            await apps.aclose()


async def test_keys_stay_known_while_redis_is_away(bundles_dir: Path, tmp_path: Path) -> None:
    async with AsyncExitStack() as apps:
        async with embedded_redis(tmp_path) as url:
            redis = connect(url)
            _, key = await KeyStore(redis).create("someone", [Scope.CLASSIFY])
            await redis.aclose()
            app, client = await apps.enter_async_context(replica(replica_settings(bundles_dir, url)))

        async def is_away() -> bool:
            return sample(app, "qd_redis_up") == 0

        await eventually(is_away)
        assert (await client.post("/classify/emotion", json=BODY)).status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert (await client.post("/classify/emotion", json=BODY, headers=headers)).status_code == 200


async def test_key_that_is_revoked_opens_nothing_soon(bundles_dir: Path, url: str) -> None:
    redis = connect(url)
    keys = KeyStore(redis)
    record, key = await keys.create("someone", [Scope.CLASSIFY])
    headers = {"Authorization": f"Bearer {key}"}
    async with replica(replica_settings(bundles_dir, url)) as (_, client):
        assert (await client.get("/tasks", headers=headers)).status_code == 200
        await keys.revoke(record.id)

        async def is_refused() -> bool:
            return (await client.get("/tasks", headers=headers)).status_code == 401

        await eventually(is_refused)
    await redis.aclose()


async def test_what_cannot_be_read_is_passed_over_and_followed_once_it_can(
    bundles_dir: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis = connect(url)
    await redis.hset(keyspace.BACKENDS, mapping={"emotion": "no json", "topic": json.dumps({"backend": "qpu"})})
    await redis.set(keyspace.BUNDLES, "many")
    async with replica(replica_settings(bundles_dir, url)) as (_, client):
        assert (await client.post("/classify/emotion", json=BODY)).json()["backend"] == "simulator"
        await redis.set(keyspace.BUNDLES, "0")
        await redis.hset(keyspace.BACKENDS, "topic", Switch(backend=BAIHUA).model_dump_json())

        async def is_followed() -> bool:
            return (await backend_of(client, "topic"))["backend"] == "baihua"

        await eventually(is_followed)
        # The one that is still wrong is replaced like any other.
        assert (await switch(client, "emotion", "simulator")).status_code == 200
        (entry,) = (await client.get("/admin/audit")).json()["entries"]
        assert entry["before"] == {"backend": "simulator", "shadow_percent": 0}
    await redis.aclose()
    assert caplog.text.count("switches of another version are not followed") == 1


async def test_job_followers_are_counted_while_they_wait(bundles_dir: Path, url: str) -> None:
    async with replica(replica_settings(bundles_dir, url)) as (app, client):
        path = "/classify/emotion?backend=baihua&wait=30"
        waits = asyncio.create_task(client.post(path, json={"inputs": "waits"}))
        await eventually(lambda: _followers(app, 1))
        hardware = parts_of(app).hardware
        assert hardware is not None
        (job,) = await hardware.store.jobs(None, None, 10, None)
        assert (await client.delete(f"/jobs/{job.id}")).status_code == 200
        assert (await waits).status_code == 202
        assert sample(app, "qd_job_followers") == 0


async def _followers(app: FastAPI, n: int) -> bool:
    return sample(app, "qd_job_followers") == n
