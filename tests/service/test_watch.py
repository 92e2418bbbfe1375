"""Waking those who wait for a job, and connections to a Redis that goes away."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from service.embedded import embedded_redis
from service.errors import SettingsError
from service.hardware.connection import connect
from service.hardware.watch import JobWatch, wait_for

pytestmark = pytest.mark.anyio


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll; the test fails if the condition does not come true."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


async def woken(event: asyncio.Event) -> None:
    """Wait for a wake-up; the test fails if it does not come."""
    async with asyncio.timeout(30):
        await event.wait()


class Station:
    """A channel of a Valkey with a watch on it."""

    def __init__(self, redis: Redis, watch: JobWatch, channel: str) -> None:
        self.redis = redis
        self.watch = watch
        self.channel = channel

    async def n_subscribers(self) -> int:
        ((_, number),) = await self.redis.pubsub_numsub(self.channel)
        return int(number)

    async def is_subscribed(self) -> bool:
        try:
            return await self.n_subscribers() == 1
        except RedisError:
            return False

    async def change(self, job_id: str) -> None:
        await self.redis.publish(self.channel, job_id)

    async def settled(self, *events: asyncio.Event) -> None:
        """Wait until the subscription stands and all that it wakes are woken, then put the events back to sleep."""
        await eventually(self.is_subscribed)
        # Messages come in order: once this one has arrived, so have all before it.
        async with self.watch.on("marker") as marker:
            for _ in range(2):
                marker.clear()
                await self.change("marker")
                await woken(marker)
        for event in events:
            event.clear()


@asynccontextmanager
async def watching(url: str, channel: str) -> AsyncIterator[Station]:
    redis, listener = connect(url), connect(url, socket_timeout=None)
    async with JobWatch(listener, channel) as watch:
        yield Station(redis, watch, channel)
    await listener.aclose()
    await redis.aclose()


@pytest.fixture
async def station(redis_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    async with watching(redis_url, f"events of {request.node.name}") as station:
        yield station


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[Station]:
    """On a Valkey of the test's own, which it may kill."""
    async with embedded_redis(tmp_path) as url, watching(url, "events") as station:
        yield station


async def test_change_of_a_job_wakes_all_who_wait_for_it_and_nobody_else(station: Station) -> None:
    async with station.watch.on("a") as first, station.watch.on("a") as second, station.watch.on("b") as other:
        await station.settled(first, second, other)
        await station.change("a")
        await asyncio.gather(woken(first), woken(second))
        await station.change("nobody waits for this one")
        await station.change("b")
        first.clear()
        await woken(other)
        assert not first.is_set()


async def test_event_that_was_cleared_is_set_by_the_next_change(station: Station) -> None:
    async with station.watch.on("a") as event:
        await station.settled(event)
        for _ in range(3):
            await station.change("a")
            await woken(event)
            event.clear()


async def test_subscription_that_comes_to_stand_wakes_those_who_waited_before(
    redis_url: str, request: pytest.FixtureRequest
) -> None:
    listener = connect(redis_url, socket_timeout=None)
    watch = JobWatch(listener, f"events of {request.node.name}")
    async with watch.on("a") as event, watch:
        await woken(event)
    await listener.aclose()


async def test_nothing_is_left_of_those_who_waited(station: Station) -> None:
    async with station.watch.on("a"):
        async with station.watch.on("a") as event, station.watch.on("b"):
            pass
        await station.settled()
        async with station.watch.on("a") as other:
            await station.change("a")
            await woken(other)
        assert not event.is_set()
        assert list(station.watch._waiting) == ["a"]
    with pytest.raises(ZeroDivisionError):
        async with station.watch.on("a"):
            raise ZeroDivisionError

    async def wait() -> None:
        async with station.watch.on("a") as event:
            event.clear()
            started.set()
            await event.wait()

    started = asyncio.Event()
    waiter = asyncio.create_task(wait())
    await woken(started)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await station.change("a")
    await station.settled()
    assert not station.watch._waiting


async def test_watch_that_has_ended_is_subscribed_no_longer_and_leaves_no_task(
    redis_url: str, request: pytest.FixtureRequest
) -> None:
    before = asyncio.all_tasks()
    async with watching(redis_url, f"events of {request.node.name}") as station:
        await station.settled()
    async with connect(redis_url) as redis:
        gone = Station(redis, station.watch, station.channel)

        async def is_gone() -> bool:
            return await gone.n_subscribers() == 0

        await eventually(is_gone)
    assert asyncio.all_tasks() == before


async def test_valkey_that_is_killed_wakes_all_and_wakes_again_once_it_is_back(
    mortal: Station, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "service.hardware.watch")
    async with mortal.watch.on("a") as first, mortal.watch.on("b") as second:
        await mortal.settled(first, second)
        os.kill((await mortal.redis.info("server"))["process_id"], signal.SIGKILL)
        await asyncio.gather(woken(first), woken(second))
        # Until it is back, again and again.
        first.clear()
        second.clear()
        await asyncio.gather(woken(first), woken(second))
        await mortal.settled(first, second)
        await mortal.change("b")
        await woken(second)
        assert not first.is_set()
    assert "no job events" in caplog.messages


async def test_subscription_that_the_client_renews_by_itself_wakes_all(mortal: Station) -> None:
    async with mortal.watch.on("a") as first, mortal.watch.on("b") as second:
        await mortal.settled(first, second)
        (connection,) = await mortal.redis.client_list(_type="pubsub")
        # The next connection is made at once: nothing is raised, but what was published in between is lost.
        await mortal.redis.client_kill_filter(_id=connection["id"])
        await asyncio.gather(woken(first), woken(second))
        await mortal.settled(first, second)
        await mortal.change("a")
        await woken(first)


async def test_waiting_ends_with_the_event_or_without_it_when_the_time_is_over() -> None:
    event = asyncio.Event()
    await wait_for(event, 0.0)
    await wait_for(event, 0.01)
    assert not event.is_set()
    asyncio.get_running_loop().call_soon(event.set)
    async with asyncio.timeout(30):
        await wait_for(event, 3600)


async def test_waiting_that_is_cancelled_is_not_taken_for_an_end_of_the_time() -> None:
    waiter = asyncio.create_task(wait_for(asyncio.Event(), 3600))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@redis.example:6379",
        "hunter2@redis.example",
        "",
        # Passwords that should have been escaped: the cause would quote them.
        "redis://:hunter2/@redis.example:6379",
        "redis://[hunter2",
        "redis://:hunter2℀@redis.example:6379",
    ],
)
async def test_url_of_something_else_is_refused_without_repeating_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"QD_REDIS_URL: expected redis://, rediss:// or unix://") as refused:
        connect(url)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("url", ["redis://:hunter2@127.0.0.1:1", "unix:///nowhere/valkey.sock"])
async def test_redis_that_is_not_there_is_an_error_and_not_a_wait(url: str) -> None:
    async with connect(url) as redis, asyncio.timeout(30):
        with pytest.raises(RedisConnectionError) as failed:
            await redis.ping()
    assert "hunter2" not in str(failed.value)


async def test_answers_are_decoded(redis_url: str) -> None:
    async with connect(redis_url) as redis:
        await redis.set("key of test_watch", "wert für alle", ex=60)
        assert await redis.get("key of test_watch") == "wert für alle"
