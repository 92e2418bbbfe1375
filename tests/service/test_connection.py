"""The addresses of Redis: one server, Sentinel and Cluster, read as docket reads them."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import pytest
from docket._redis_sentinel import parse_sentinel_url
from redis.asyncio import RedisCluster
from redis.exceptions import RedisError

from service.errors import SettingsError
from service.hardware.connection import connect
from service.hardware.watch import JobWatch

pytestmark = pytest.mark.anyio

_OF_OURS = {
    "decode_responses",
    "socket_timeout",
    "socket_connect_timeout",
    "retry",
    "retry_on_error",
    "max_connections",
    "connection_pool",
    "event_dispatcher",
    "himport_registry",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
}


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one/students",
        "redis+sentinel://one:1,two,[::1]:3/students/2",
        "redis+sentinel://user:pass%20word@one:1,two:2/students?max_connections=7",
        "redis+sentinel://:hunter2@one, two ,/students/0?sentinel_username=s&sentinel_password=p%40w",
        "rediss+sentinel://user@one/students?ssl_ca_certs=/ca.pem&ssl_check_hostname=no&db=4&password=no",
        "redis+sentinel://user@@one/students#part",
    ],
)
async def test_address_of_sentinels_is_read_as_docket_reads_it(url: str) -> None:
    expected = parse_sentinel_url(url)
    async with connect(url) as client:
        pool: Any = client.connection_pool
        assert pool.service_name == expected.service_name
        own = pool.connection_kwargs
        assert own["db"] == expected.db
        assert {name: own[name] for name in own.keys() - _OF_OURS - {"db"}} == {
            name: value for name, value in expected.connection_kwargs.items() if name not in ("max_connections", "ssl")
        }
        assert ("SSL" in pool.connection_class.__name__) == expected.connection_kwargs.get("ssl", False)
        assert pool.max_connections == expected.connection_kwargs.get("max_connections", 200)
        sentinels = pool.sentinel_manager.sentinels
        found = [each.connection_pool.connection_kwargs for each in sentinels]
        assert [(each["host"], each["port"]) for each in found] == expected.sentinels
        for name in ("username", "password", "ssl_ca_certs"):
            assert {each.get(name) for each in found} == {expected.sentinel_kwargs.get(name)}


@pytest.mark.parametrize("socket_timeout", [0.5, None])
async def test_sentinels_are_never_waited_for(socket_timeout: float | None) -> None:
    async with connect("redis+sentinel://one/students", socket_timeout) as client:
        pool: Any = client.connection_pool
        assert pool.connection_kwargs["socket_timeout"] == socket_timeout
        for sentinel in pool.sentinel_manager.sentinels:
            asked = sentinel.connection_pool.connection_kwargs
            assert asked["socket_timeout"] == asked["socket_connect_timeout"] == 0.5


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://hunter2",
        "redis+sentinel:///students",
        "redis+sentinel://:hunter2@one:port/students",
        "redis+sentinel://:hunter2@one/students/database",
        "redis+sentinel://:hunter2@one/students?max_connections=hunter2",
        "redis+cluster://:hunter2@one:port",
        "redis+cluster://:hunter2@one:6379/1",
        "redis+cluster://:hunter2@one:6379?hunter2=1",
        "redis+cluster:///hunter2",
        "redis+other://:hunter2@one",
        "unix+cluster://hunter2",
        "http+sentinel://:hunter2@one/students",
        "unix+sentinel://:hunter2@one/students",
    ],
)
async def test_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(
        SettingsError, match=r"QD_REDIS_URL: expected redis://.*redis\+sentinel://.*redis\+cluster://"
    ) as refused:
        connect(url)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "url", ["redis+sentinel://:hunter2@127.0.0.1:1,127.0.0.1:2/students", "redis+cluster://:hunter2@127.0.0.1:1"]
)
async def test_nobody_at_the_address_is_a_redis_error_and_not_a_wait(url: str) -> None:
    client = connect(url)
    async with asyncio.timeout(30):
        with pytest.raises(RedisError) as failed:
            await client.get("a")
        pipeline = client.pipeline(transaction=False)
        pipeline.get("a")
        with pytest.raises(RedisError):
            await pipeline.execute()
        with pytest.raises(RedisError):
            await client.register_script("return 1")(keys=["a"])
    assert "hunter2" not in str(failed.value)
    await client.aclose()


async def test_watch_of_a_cluster_that_is_away_wakes_those_who_wait() -> None:
    client = connect("redis+cluster://127.0.0.1:1", socket_timeout=None)
    assert isinstance(client, RedisCluster)
    async with asyncio.timeout(30), JobWatch(client, "events") as watch, watch.on("a") as event:
        for _ in range(2):
            await event.wait()
            event.clear()
    await client.aclose()
