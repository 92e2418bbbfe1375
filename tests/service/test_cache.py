"""What the cache keeps, for how long, and what it never keeps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from service.hardware.cache import Cache
from service.hardware.connection import connect
from service.hardware.records import CountsRecord, Refusal
from service.hardware.target import angles_key, counts_key, refusal_key

pytestmark = pytest.mark.anyio

TTL = 10_000
RECORD = CountsRecord(
    counts={"00": 700, "11": 324},
    n_qubits=2,
    device="Baihua",
    emulated=False,
    physical_qubits=(4, 5),
    calibration_id="cal-1",
    provider_jobs=["job-1"],
    executed_at=1_800_000_000.0,
    readout=None,
)


@pytest.fixture
def cache(redis: Redis) -> Cache:
    return Cache(redis, TTL)


@pytest.fixture
def bundle(request: pytest.FixtureRequest) -> str:
    """The id of a bundle that no other test uses."""
    return f"emotion@{request.node.name}"


@pytest.fixture
def sha(request: pytest.FixtureRequest) -> str:
    """A fingerprint that no other test uses."""
    return f"sha-{request.node.name}"


async def everything(redis: Redis) -> list[str]:
    """Every key and every value, of any type."""
    found = []
    async for key in redis.scan_iter(count=1000):
        kind = await redis.type(key)
        value: Any
        if kind == "string":
            value = await redis.get(key)
        elif kind == "hash":
            value = await redis.hgetall(key)
        elif kind == "set":
            value = await redis.smembers(key)
        elif kind == "list":
            value = await redis.lrange(key, 0, -1)
        elif kind == "zset":
            value = await redis.zrange(key, 0, -1)
        else:
            value = await redis.xrange(key)
        found.append(f"{key} {value}")
    return found


async def test_first_angles_of_a_text_stand_for_it_in_every_process(redis: Redis, redis_url: str, bundle: str) -> None:
    other_client = connect(redis_url)
    first = np.random.default_rng(1).normal(size=(2, 11))
    settled = await Cache(redis, TTL).settle_angles(bundle, ["a", "b"], first)
    np.testing.assert_array_equal(settled, first)
    for _ in range(2):
        later = await Cache(other_client, TTL).settle_angles(bundle, ["b", "c", "a"], np.zeros((3, 11)))
        # To the last bit, or the circuit would be another.
        np.testing.assert_array_equal(later, [first[1], np.zeros(11), first[0]])
    await other_client.aclose()


async def test_first_angles_of_a_text_stand_for_it_within_one_batch(cache: Cache, bundle: str) -> None:
    angles = np.arange(6.0).reshape(3, 2)
    settled = await cache.settle_angles(bundle, ["twice", "once", "twice"], angles)
    np.testing.assert_array_equal(settled, angles[[0, 1, 0]])


async def test_angles_of_another_bundle_are_others(cache: Cache, bundle: str) -> None:
    await cache.settle_angles(bundle, ["text"], np.ones((1, 2)))
    np.testing.assert_array_equal(await cache.settle_angles(f"{bundle}2", ["text"], np.zeros((1, 2))), np.zeros((1, 2)))


async def test_float32_angles_are_settled_as_what_they_are(cache: Cache, bundle: str) -> None:
    angles = np.random.default_rng(2).normal(size=(1, 11)).astype(np.float32)
    for _ in range(2):
        settled = await cache.settle_angles(bundle, ["text"], angles)
        assert settled.dtype == np.float64
        np.testing.assert_array_equal(settled, angles.astype(np.float64))


async def test_angles_expire(redis: Redis, cache: Cache, bundle: str) -> None:
    await cache.settle_angles(bundle, ["text"], np.zeros((1, 2)))
    assert await redis.ttl(angles_key(bundle, "text")) > 0.8 * TTL


async def test_text_is_stored_nowhere(redis: Redis, cache: Cache, bundle: str) -> None:
    angles = np.array([[0.123456789, 2.0]])
    await cache.settle_angles(bundle, ["confidential: the merger with Kestrel"], angles)
    stored = await everything(redis)
    assert any("0.123456789" in one for one in stored)
    assert not any(word in one for one in stored for word in ("confidential", "merger", "Kestrel"))


async def test_counts_come_back_by_fingerprint_and_those_that_are_not_there_do_not(cache: Cache, sha: str) -> None:
    other = RECORD.model_copy(update={"counts": {"01": 1024}})
    await cache.keep_counts(sha, RECORD)
    await cache.keep_counts(f"{sha}-2", other)
    found = await cache.counts([f"{sha}-2", f"{sha}-3", sha, sha])
    assert found == {sha: RECORD, f"{sha}-2": other}


async def test_counts_and_refusals_of_a_circuit_are_apart(cache: Cache, sha: str) -> None:
    await cache.keep_refusal(sha, Refusal(detail="too deep"))
    assert await cache.counts([sha]) == {}
    assert await cache.refusals([sha, f"{sha}-2"]) == {sha: Refusal(detail="too deep")}


async def test_nothing_is_found_of_no_fingerprints(cache: Cache) -> None:
    assert await cache.counts([]) == {}
    assert await cache.refusals([]) == {}


async def test_counts_are_kept_for_their_time_give_or_take_a_tenth_and_not_all_for_the_same(
    redis: Redis, cache: Cache, sha: str
) -> None:
    names = [f"{sha}-{index}" for index in range(200)]
    for name in names:
        await cache.keep_counts(name, RECORD)
    ttls = np.array([await redis.ttl(counts_key(name)) for name in names])
    # Some seconds may have passed since.
    assert (ttls > 0.899 * TTL).all()
    assert (ttls <= 1.1 * TTL).all()
    # Uniform between the two: that 200 draws leave out an outer eighth has a probability of 1e-11.
    assert ttls.min() < 0.925 * TTL
    assert ttls.max() > 1.075 * TTL


async def test_counts_of_the_shortest_time_still_expire(redis: Redis, sha: str) -> None:
    await Cache(redis, 1).keep_counts(sha, RECORD)
    assert await redis.ttl(counts_key(sha)) != -1


async def test_refusals_are_remembered_for_less_than_a_minute(redis: Redis, cache: Cache, sha: str) -> None:
    await cache.keep_refusal(sha, Refusal(detail="too deep"))
    assert 30 < await redis.ttl(refusal_key(sha)) < 60


@pytest.mark.parametrize(
    "value",
    [
        RECORD.model_copy(update={"schema_version": 2}).model_dump_json(),
        json.dumps({"schema_version": 1}),
        json.dumps({**RECORD.model_dump(mode="json"), "n_qubits": 3}),
        RECORD.model_dump_json()[:-5],
        "{",
        "garbage",
        "null",
        "",
    ],
)
async def test_what_cannot_be_read_counts_as_absent_until_it_is_replaced(
    redis: Redis, cache: Cache, sha: str, value: str
) -> None:
    await redis.set(counts_key(sha), value, ex=60)
    await redis.set(refusal_key(sha), value, ex=60)
    await cache.keep_counts(f"{sha}-2", RECORD)
    assert await cache.counts([sha, f"{sha}-2"]) == {f"{sha}-2": RECORD}
    assert await cache.refusals([sha]) == {}
    await cache.keep_counts(sha, RECORD)
    assert await cache.counts([sha]) == {sha: RECORD}
