"""How many requests a minute each API key makes, counted over all replicas."""

from __future__ import annotations

import asyncio
import logging
import math
from time import time
from typing import Any, cast

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.control.keys import Caller
from service.errors import RateLimitedError
from service.hardware.connection import connect
from service.hardware.target import APP, SCHEMA_VERSION
from service.logs import request_facts

_WINDOW_SECONDS = 60
_PATIENCE_SECONDS = 0.5
_PREFIX = f"{APP}:v{SCHEMA_VERSION}:rate"

logger = logging.getLogger(__name__)


class Limits:
    """Counts requests in a sliding window of a minute, in Redis or, while that is away, in this process.

    Args:
        redis_url: Where all replicas count; None for a replica that counts alone.

    Attributes:
        redis_is_away: While it is, nothing waits for Redis. Set when it fails here, too; whoever finds it back clears
            it.
    """

    def __init__(self, redis_url: str | None) -> None:
        self.redis_is_away = False
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._redis = None if redis_url is None else connect(redis_url)
        self._shared = None
        if self._redis is not None:
            self._shared = SlidingWindowCounterRateLimiter(_Storage(self._redis))

    async def hit(self, caller: Caller) -> None:
        """Count a request of a caller, and note in its answer's headers what is left.

        Raises:
            RateLimitedError: If it is one too many; that one does not count.
        """
        if caller.key is None or not caller.requests_per_minute:
            return
        limit = RateLimitItemPerMinute(caller.requests_per_minute)
        fits, left, seconds = await self._count(limit, caller.key)
        facts = request_facts.get()
        if facts is not None:
            facts.headers |= rate_headers(limit.amount, left, seconds)
        if not fits:
            raise RateLimitedError(
                f"the key {caller.key} has made its {limit.amount} requests of this minute",
                max(1, seconds),
                limit=limit.amount,
            )

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._redis is not None:
            await self._redis.aclose()

    async def _count(self, limit: RateLimitItemPerMinute, key: str) -> tuple[bool, int, int]:
        if self._shared is not None and not self.redis_is_away:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    return await _hit(self._shared, limit, key)
            except (RedisError, TimeoutError) as exc:
                self.redis_is_away = True
                logger.warning("rates are counted here alone", extra={"fields": {"detail": str(exc)}})
        return await _hit(self._alone, limit, key)


class _Storage(RedisStorage):
    """Counts with our own client: the library's would know neither its time-outs nor every kind of address."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        super().__init__("async+redis://", implementation="redispy", key_prefix=_PREFIX)

    def configure_bridge(self) -> None:
        cast(RedispyBridge, self.bridge).connection_getter = lambda _: cast(Any, self._redis)


def rate_headers(limit: int, left: int, seconds: int) -> dict[str, str]:
    """The headers of draft-ietf-httpapi-ratelimit-headers, which are lists of structured fields (RFC 9651).

    Args:
        limit: Requests in a minute.
        left: Those that are left.
        seconds: Until there are more.
    """
    return {
        "RateLimit-Policy": f'"requests";q={limit};w={_WINDOW_SECONDS}',
        "RateLimit": f'"requests";r={left};t={seconds}',
    }


async def _hit(
    limiter: SlidingWindowCounterRateLimiter, limit: RateLimitItemPerMinute, key: str
) -> tuple[bool, int, int]:
    """Whether a request fits, how many more do, and seconds until there are more."""
    fits = await limiter.hit(limit, key)
    stats = await limiter.get_window_stats(limit, key)
    seconds = max(0, math.ceil(stats.reset_time - time()))
    # Of a window that begins with this request the library says that it is over.
    if fits and not seconds and stats.remaining == limit.amount - 1:
        seconds = _WINDOW_SECONDS
    return fits, stats.remaining if fits else 0, seconds
