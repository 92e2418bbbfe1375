"""What workers note about a target for all to see: that they are at work, what they measured, what they were told."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from time import time

from redis.asyncio import Redis

from service.hardware import scripts
from service.hardware.fields import record_of, time_of
from service.hardware.records import Job, ProviderFacts, Readout, Status, Survey
from service.hardware.target import Target

_HISTORY = 100
_HEARTBEAT_SECONDS = 30


class Noticeboard:
    """Facts about a target that are no job's.

    Args:
        redis: Decodes its answers.
        target: What they are about.
        job_ttl_seconds: How long a job is kept once it has ended.
        readout_ttl_seconds: How long readout errors are kept for the counts of their calibration.
    """

    def __init__(self, redis: Redis, target: Target, *, job_ttl_seconds: int, readout_ttl_seconds: int) -> None:
        self._redis = redis
        self._prefix = target.prefix
        self._job_ttl = job_ttl_seconds
        self._readout_ttl = readout_ttl_seconds
        self._survey = redis.register_script(scripts.SURVEY)

    async def beat(self) -> None:
        """Note that a worker is at work."""
        await self._redis.set(f"{self._prefix}heartbeat", repr(time()), ex=_HEARTBEAT_SECONDS)

    async def has_worker(self) -> bool:
        """Whether a worker was at work within the last half minute."""
        return bool(await self._redis.exists(f"{self._prefix}heartbeat"))

    async def remember_duration(self, seconds: float) -> None:
        """Add how long a run took, from queue to counts, to the history that estimates are made of."""
        key = f"{self._prefix}history"
        await self._redis.lpush(key, repr(seconds))
        await self._redis.ltrim(key, 0, _HISTORY - 1)

    async def durations(self) -> list[float]:
        """How long the last runs took, in seconds, sorted."""
        return sorted(float(value) for value in await self._redis.lrange(f"{self._prefix}history", 0, -1))

    async def keep_readout(self, readout: Readout) -> None:
        """Store measured readout errors as those of their calibration, and as the newest."""
        value = readout.model_dump_json()
        await self._redis.set(self._readout_key(readout.calibration_id), value, ex=self._readout_ttl)
        await self._redis.set(f"{self._prefix}readout", value)

    async def readout(self, calibration_id: str | None) -> Readout | None:
        """The readout errors measured under a calibration; None if none were."""
        return record_of(Readout, await self._redis.get(self._readout_key(calibration_id)))

    async def newest_readout(self) -> Readout | None:
        """The readout errors measured last; None if none ever were."""
        return record_of(Readout, await self._redis.get(f"{self._prefix}readout"))

    async def readout_job(self) -> str | None:
        """Id of the last measurement of readout errors; None if there was none. Its job may be gone."""
        job_id = await self._redis.get(f"{self._prefix}readout:job")
        return None if job_id is None else str(job_id)

    async def note_readout_job(self, job_id: str) -> None:
        """Remember the measurement that is about to be created."""
        await self._redis.set(f"{self._prefix}readout:job", job_id)

    async def note_calibration(self, calibration_id: str | None) -> None:
        """Remember the device's current calibration, and when it was first seen."""
        keys = f"{self._prefix}calibration", f"{self._prefix}calibration:at"
        name = calibration_id or ""
        known, known_at = await self._redis.mget(keys)
        if name != known or known_at is None:
            await self._redis.mset({keys[0]: name, keys[1]: repr(time()) if name else ""})

    async def calibration(self) -> str:
        """The device's current calibration as a worker last saw it; empty if there is none."""
        return str(await self._redis.get(f"{self._prefix}calibration") or "")

    async def keep_provider_facts(self, facts: ProviderFacts) -> None:
        """Remember what the provider said of itself."""
        await self._redis.set(f"{self._prefix}provider", facts.model_dump_json())

    async def survey(self) -> Survey:
        """What there is to see of the target now, read in one go."""
        # The time as text: the script's JSON has fourteen digits.
        payload = {"now": repr(time()), "ttl": self._job_ttl}
        found = json.loads(await self._survey(keys=[self._prefix], args=[json.dumps(payload)]))
        readout = record_of(Readout, found["readout"])
        return Survey(
            n_pending=found["n_pending"],
            oldest_circuit_at=time_of(found["oldest_circuit_at"]),
            jobs={status: int(found["jobs"][status]) for status in Status},
            oldest_job_at=time_of(found["oldest_job_at"]),
            has_worker=found["has_worker"],
            provider=record_of(ProviderFacts, found["provider"]),
            calibration_at=time_of(found["calibration_at"]),
            readout_at=readout.executed_at if readout else None,
        )

    def _readout_key(self, calibration_id: str | None) -> str:
        return f"{self._prefix}readout:{calibration_id or ''}"


def eta(job: Job, durations: Sequence[float]) -> float | None:
    """When a job will probably be done: the median of past runs, or their ninetieth percentile if that has passed.

    Args:
        durations: Of past runs, in seconds, sorted.

    Returns:
        None without a history, or if the job takes longer than nearly all before it.
    """
    if job.status.is_final or not durations:
        return None
    for expected in (statistics.median(durations), durations[int(0.9 * (len(durations) - 1))]):
        if job.created_at + expected > time():
            return job.created_at + expected
    return None
