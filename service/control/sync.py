"""One look at Redis a second: keys, switches and bundles as operators want them, the same in every replica.

While Redis is away the keys stay as they were last known, so that nobody is locked out and nobody let in; the
switches fall back to the settings, as hardware cannot be used then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis

from service.control import keyspace
from service.control.audit import Entry, Ledger
from service.control.keys import KeyRing, parse_keys
from service.control.limits import Limits
from service.control.switches import Switch, Switches, parse_switches
from service.metrics import Metrics

logger = logging.getLogger(__name__)

_PERIOD_SECONDS = 1.0
# With the period, how old what a replica does can be; a Redis that is slower counts as away.
_PATIENCE_SECONDS = 0.9


@dataclass(frozen=True)
class Governed:
    """What follows the data in Redis.

    Attributes:
        tasks: The tasks that are served now.
        load: Loads the bundles anew for a generation; logs its errors.
    """

    keys: KeyRing
    limits: Limits
    switches: Switches
    metrics: Metrics
    tasks: Callable[[], Iterable[str]]
    load: Callable[[int], Awaitable[None]]


class Control:
    """Keeps this replica at what is in Redis; an async context manager that owns the loop.

    It has looked once when it is entered, if Redis answered within a second.

    Args:
        redis: Decodes its answers.
        governed: What is kept.

    Attributes:
        generation: Of the bundles that are served; None until it is known.
    """

    def __init__(self, redis: Redis, governed: Governed) -> None:
        self.generation: int | None = None
        self._redis = redis
        self._governed = governed
        self._ledger = Ledger(redis)
        self._is_away: bool | None = None
        self._unreadable: set[str] = set()
        self._n_changes = 0
        self._loading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._look(follow=False)
        self._task = asyncio.create_task(self._run(), name="control")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._task, self._loading):
            # More than once: a read that times out in the same step swallows the cancellation.
            while task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=_PERIOD_SECONDS)

    async def switch(self, task: str, switch: Switch, entry: Entry) -> None:
        """Set a task's switch everywhere, here at once; nothing is changed if Redis does not answer.

        Raises:
            RedisError: If it does not.
        """
        await self._ledger.switch(task, switch, entry)
        # What is being read now may have been read before.
        self._n_changes += 1
        self._governed.switches.set(task, switch)
        self._show()

    async def publish(self, entry: Entry) -> int:
        """Let the other replicas load their bundles as this one has; returns the generation.

        Raises:
            RedisError: If Redis does not answer.
        """
        generation = await self._ledger.publish(entry)
        # Otherwise another replica was first, and what it has loaded may be newer than what was loaded here.
        if generation - 1 == self.generation:
            self.generation = generation
        return generation

    async def entries(self, limit: int) -> list[Entry]:
        """The last changes, the newest first.

        Raises:
            RedisError: If Redis does not answer.
        """
        return await self._ledger.entries(limit)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_SECONDS)
            await self._look(follow=True)

    async def _look(self, *, follow: bool) -> None:
        """Read what is in Redis and let it be in effect; raises nothing, as nobody would look again."""
        n_changes = self._n_changes
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                keys, backends, generation = await self._read()
        except Exception as exc:
            self._note(is_away=True, detail=f"{type(exc).__name__}: {exc}")
            self._governed.switches.replace({})
            self._show()
            return
        try:
            self._note(is_away=False)
            self._governed.keys.replace(parse_keys(keys))
            if n_changes == self._n_changes:
                self._govern(backends)
            self._show()
            self._note_generation(int(generation), follow=follow)
        except Exception:
            logger.exception("what is in redis cannot be followed")

    async def _read(self) -> tuple[dict[str, str], dict[str, str], str]:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hgetall(keyspace.KEYS)
        pipeline.hgetall(keyspace.BACKENDS)
        pipeline.get(keyspace.BUNDLES)
        found: list[Any] = await pipeline.execute()
        keys, backends, generation = found
        return keys, backends, str(generation or "0")

    def _govern(self, backends: dict[str, str]) -> None:
        switches = parse_switches(backends)
        unreadable = backends.keys() - switches.keys()
        if unreadable - self._unreadable:
            fields = {"tasks": sorted(unreadable)}
            logger.warning("switches of another version are not followed", extra={"fields": fields})
        self._unreadable = unreadable
        self._governed.switches.replace(switches)

    def _note(self, *, is_away: bool, detail: str = "") -> None:
        if is_away and self._is_away is not True:
            fields = {"detail": detail}
            logger.warning("redis is away; default backends are those of the settings", extra={"fields": fields})
        elif self._is_away and not is_away:
            logger.info("redis is back")
        self._is_away = is_away
        self._governed.metrics.redis_up.set(not is_away)
        self._governed.limits.redis_is_away = is_away

    def _show(self) -> None:
        self._governed.switches.show(self._governed.metrics, self._governed.tasks())

    def _note_generation(self, generation: int, *, follow: bool) -> None:
        if not follow:
            self.generation = generation
        elif generation != self.generation and (self._loading is None or self._loading.done()):
            # Beside this loop, as keys and switches must not wait for it.
            self._loading = asyncio.create_task(self._follow(generation), name="bundles")

    async def _follow(self, generation: int) -> None:
        try:
            await self._governed.load(generation)
        except Exception:
            logger.exception("bundles were not loaded")
        # Also after an error: until the next generation nothing would be different.
        self.generation = generation
