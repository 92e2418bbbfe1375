"""A Redis client that fails soon instead of hanging: of one server, of what Sentinel calls the master, or of a Cluster.

The addresses are docket's, which gets the same one. Every key of a step is in one slot, and pipelines that span
slots are no transactions, so that nothing else needs to know which of the three it is.
"""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import parse_qs, urlencode, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterPipeline
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import SettingsError

_TIMEOUT_SECONDS = 0.5
_RETRIES = 2
_MAX_CONNECTIONS = 200
_SENTINEL_PORT = 26379
_NOT_OPTIONS = ("db", "username", "password")
_EXPECTED = "redis://, rediss:// or unix://, redis+sentinel://host,host/service or redis+cluster://"


def connect(url: str, socket_timeout: float | None = _TIMEOUT_SECONDS) -> Redis:
    """A client of the Redis at a URL; nothing is sent yet.

    Args:
        url: `redis://`, `rediss://` or `unix://`; `redis+sentinel://[user:password@]host[:port],…/service[/db]`, where
            the user is the data nodes' and `?sentinel_username=…&sentinel_password=…` are the Sentinels' own; or
            `redis+cluster://` with any node of a Cluster. `rediss+…` speaks TLS to all of them.
        socket_timeout: Seconds that an answer may take; None for a client that waits for messages.

    Raises:
        SettingsError: If the URL is none that Redis has.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": _TIMEOUT_SECONDS,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), _RETRIES),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
        "max_connections": _MAX_CONNECTIONS,
    }
    scheme, _, rest = url.partition("://")
    security, _, kind = scheme.partition("+")
    try:
        if kind and security not in ("redis", "rediss"):
            raise ValueError("expected redis+… or rediss+…")
        if kind == "sentinel":
            return Redis.from_pool(_master_pool(security, rest, options))
        if kind == "cluster":
            # It has every method that we call; only its type is another.
            return cast(Redis, _Cluster.from_url(f"{security}://{rest}", **options))
        return Redis.from_url(url, **options)
    except (ValueError, TypeError, RedisClusterException):
        # The URL may hold a password, so it is not repeated; nor is the cause, which quotes a part of it.
        raise SettingsError(f"QD_REDIS_URL: expected {_EXPECTED}, found another address") from None


class _Cluster(RedisCluster):
    """Raises a Redis error when the cluster is away, as the other clients do; and finds one that moved altogether."""

    async def initialize(self, *_: Any, last_failed_node_name: str | None = None) -> RedisCluster:
        # Once it knows the nodes it forgets the address it was given, behind which there may be others by then.
        given = [(node.host, int(node.port)) for node in self.startup_nodes]
        try:
            return await super().initialize(given, last_failed_node_name)
        except RedisClusterException as exc:
            raise RedisConnectionError(str(exc)) from exc

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().execute_command(*args, **kwargs)
        except RedisClusterException as exc:  # a slot that no node has
            raise RedisConnectionError(str(exc)) from exc

    def pipeline(self, transaction: Any | None = None, shard_hint: Any | None = None) -> ClusterPipeline:
        return _Pipeline(self, transaction)  # type: ignore[abstract]


class _Pipeline(ClusterPipeline):
    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        try:
            return await super().execute(raise_on_error, allow_redirections)
        except RedisClusterException as exc:
            raise RedisConnectionError(str(exc)) from exc


class _MasterPool(SentinelConnectionPool):
    """Connections to the master, and those to the Sentinels that name it."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def _master_pool(security: str, rest: str, options: dict[str, Any]) -> _MasterPool:
    """Of `[user:password@]host[:port],…/service[/db][?option=value]`.

    Raises:
        ValueError: If it is not of this form.
    """
    netloc = rest[: min((rest.find(end) for end in "/?#" if end in rest), default=len(rest))]
    user, _, hosts = netloc.rpartition("@")
    # What follows the addresses, as if it belonged to one of them: several are more than a URL may have.
    tail = urlsplit(f"//host{rest[len(netloc) :]}")
    service, *database = [part for part in tail.path.split("/") if part] or [""]
    sentinels = [_address(host.strip()) for host in hosts.split(",") if host.strip()]
    if not sentinels or not service:
        raise ValueError("expected at least one Sentinel and the name of a service")
    # The database and who asks for it are said before, and not again here.
    query = {name: values[0] for name, values in parse_qs(tail.query).items() if name not in _NOT_OPTIONS}
    own = {name: query.pop(f"sentinel_{name}", "") for name in ("username", "password")}
    given: dict[str, Any] = dict(parse_url(f"{security}://{user}@host?{urlencode(query)}"))
    tls = given.pop("connection_class", None) is not None
    own_options = {name: value for name, value in own.items() if value} | {
        name: options[name] for name in ("socket_timeout", "socket_connect_timeout", "retry", "retry_on_error")
    }
    own_options["socket_timeout"] = _TIMEOUT_SECONDS  # nobody waits for a message of theirs
    if tls:
        own_options |= {"ssl": True} | {name: value for name, value in given.items() if name.startswith("ssl_")}
    del given["host"]
    manager = Sentinel(sentinels, sentinel_kwargs=own_options)  # type: ignore[no-untyped-call]
    database_number = int(database[0]) if database else 0
    return _MasterPool(service, manager, **options | given | {"db": database_number, "ssl": tls})  # type: ignore[no-untyped-call]


def _address(member: str) -> tuple[str, int]:
    parts = urlsplit(f"//{member}")
    if not parts.hostname:
        raise ValueError("expected the host of a Sentinel")
    return parts.hostname, parts.port or _SENTINEL_PORT
