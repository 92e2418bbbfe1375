"""A Redis client that fails soon instead of hanging."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import SettingsError

_TIMEOUT_SECONDS = 0.5
_RETRIES = 2
_MAX_CONNECTIONS = 200


def connect(url: str, socket_timeout: float | None = _TIMEOUT_SECONDS) -> Redis:
    """A client of the Redis at a URL; nothing is sent yet.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        socket_timeout: Seconds that an answer may take; None for a client that waits for messages.

    Raises:
        SettingsError: If the URL is none that Redis has.
    """
    try:
        return Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=socket_timeout,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), _RETRIES),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            max_connections=_MAX_CONNECTIONS,
        )
    except ValueError:
        # The URL may hold a password, so it is not repeated; nor is the cause, which quotes a part of it.
        raise SettingsError("QD_REDIS_URL: expected redis://, rediss:// or unix://, found another address") from None
