"""Waiting for jobs to change: one subscription for all that wait in this process."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

_RECONNECT_SECONDS = 1.0


class JobWatch:
    """Wakes those who wait for a job when it changes; an async context manager that owns the subscription.

    A wake-up says that something may have changed, and nothing of what: whoever is woken reads the job. While Redis
    is away everyone is woken once a second, so nobody waits for a message that was lost.

    Args:
        redis: For this subscription alone.
        channel: Where ids of changed jobs are published.
    """

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="job watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # More than once: a read that times out in the same step swallows the cancellation.
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_RECONNECT_SECONDS)

    @asynccontextmanager
    async def on(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever the job may have changed; whoever waits for it clears it before reading."""
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _run(self) -> None:
        while True:
            try:
                # A cluster's client takes the node from what it knows of them, which is nothing before this.
                await self._redis.initialize()
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    while True:
                        message = await subscription.get_message(timeout=None)
                        if message is not None and message["type"] == "subscribe":
                            # What was published before is lost. The client also subscribes again by itself, and
                            # raises nothing, when it gets a new connection at once.
                            self._wake_all()
                        elif message is not None:
                            for event in self._waiting.get(message["data"], ()):
                                event.set()
            except RedisError as exc:
                logger.warning("no job events", extra={"fields": {"detail": str(exc)}})
                with suppress(RedisError):
                    await self._redis.aclose()  # the next time it asks anew where a cluster's nodes are
            self._wake_all()
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, and no longer than some seconds."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
