"""Counts, refusals and angles by what they are of, for every target alike."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from pydantic import ValidationError
from redis.asyncio import Redis

from service.hardware.records import CountsRecord, Record, Refusal
from service.hardware.target import angles_key, counts_key, refusal_key

_JITTER = 0.1
# A text's angles must outlive the counts that they lead to, which may take a day to come.
_ANGLES_TTL_FACTOR = 2
_ANGLES_TTL_SECONDS = 2 * 86_400
# Long enough to spare the provider a caller that repeats at once, short enough that nobody waits for it to pass.
_REFUSAL_SECONDS = 45

R = TypeVar("R", bound=Record)


class Cache:
    """What was measured, kept for about `ttl_seconds`.

    Args:
        redis: Decodes its answers.
        ttl_seconds: How long counts are kept, give or take a tenth, so that what was stored together does not expire
            together.
    """

    def __init__(self, redis: Redis, ttl_seconds: int) -> None:
        self._redis = redis
        self._ttl = ttl_seconds
        self._angles_ttl = _ANGLES_TTL_FACTOR * ttl_seconds + _ANGLES_TTL_SECONDS

    async def settle_angles(self, bundle: str, texts: Sequence[str], angles: np.ndarray) -> np.ndarray:
        """The angles that stand for texts from now on: those stored first, in whatever process.

        A text's angles differ in the seventh decimal with the batch it was embedded in, which would make another
        circuit of it each time.

        Args:
            bundle: Id of the bundle.
            texts: As they were sent; only their hash is stored.
            angles: Shape (n_texts, n_qubits), radians.

        Returns:
            Same shape.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for text, row in zip(texts, angles, strict=True):
            key = angles_key(bundle, text)
            pipeline.set(key, json.dumps(row.tolist()), nx=True, get=True, ex=self._angles_ttl)
            pipeline.expire(key, self._angles_ttl)
        stored = (await pipeline.execute())[::2]
        rows = [row if old is None else json.loads(old) for row, old in zip(angles, stored, strict=True)]
        return np.array(rows, dtype=np.float64)

    async def counts(self, shas: Iterable[str]) -> dict[str, CountsRecord]:
        """The counts that are there, by fingerprint."""
        return await self._many(CountsRecord, {sha: counts_key(sha) for sha in shas})

    async def refusals(self, shas: Iterable[str]) -> dict[str, Refusal]:
        """The refusals that are remembered, by fingerprint."""
        return await self._many(Refusal, {sha: refusal_key(sha) for sha in shas})

    async def keep_counts(self, sha: str, record: CountsRecord) -> None:
        """Store a circuit's counts."""
        ttl = max(1, round(self._ttl * random.uniform(1 - _JITTER, 1 + _JITTER)))
        await self._redis.set(counts_key(sha), record.model_dump_json(), ex=ttl)

    async def keep_refusal(self, sha: str, refusal: Refusal) -> None:
        """Remember for less than a minute that the provider refuses a circuit."""
        await self._redis.set(refusal_key(sha), refusal.model_dump_json(), ex=_REFUSAL_SECONDS)

    async def _many(self, kind: type[R], keys: dict[str, str]) -> dict[str, R]:
        # One GET a key and not MGET: in a cluster the keys are in different slots.
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys.values():
            pipeline.get(key)
        found: dict[str, R] = {}
        for sha, value in zip(keys, await pipeline.execute() if keys else [], strict=True):
            if value is None:
                continue
            try:
                found[sha] = kind.model_validate_json(value)
            except ValidationError:
                continue  # of another schema version: absent, and overwritten when it is measured again
        return found
