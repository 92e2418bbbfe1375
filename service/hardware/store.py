"""The jobs, runs and batches of one target in Redis.

Whatever may be repeated by a worker that comes back from a crash is safe to repeat here. Redis that does not answer
raises `redis.exceptions.RedisError`.
"""

from __future__ import annotations

import json
import statistics
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any, TypeVar

from pydantic import ValidationError
from redis.asyncio import Redis

from service.hardware import scripts
from service.hardware.records import (
    Batch,
    BatchStage,
    Hold,
    Job,
    JobSpec,
    ProviderFacts,
    Readout,
    Record,
    Run,
    Status,
    Survey,
)
from service.hardware.target import Target, target
from service.schemas import HardwareResult
from service.settings import Settings

_HISTORY = 100
_HEARTBEAT_SECONDS = 30
_NO_ROOM, _NO_BUDGET = -1, -2
_BUDGET_TTL_SECONDS = 2 * 86_400
_ENDED_BEFORE = -1
_NAMES = ("CREATE", "CLAIM", "SPLIT", "SEND", "UPDATE", "MARK", "FINISH", "MOVE", "CANCEL", "SURVEY")

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Budget:
    """What an API key may spend.

    Attributes:
        key: Its id.
        shots_per_day: Most shots in a day (UTC) that it may bring into the queue.
    """

    key: str
    shots_per_day: int


class OverBudgetError(Exception):
    """A job's new circuits have more shots than its key has left today."""


@dataclass(frozen=True)
class Draft:
    """A job to be created.

    Attributes:
        layout: How its circuits are laid on the chip.
        circuits: JSON of the bound circuit of each fingerprint that must be run.
        budget: Who pays for those that are not under way already; None if nobody's budget does.
    """

    task: str
    bundle: str
    spec: JobSpec
    layout: str
    circuits: Mapping[str, str]
    budget: Budget | None = None


@dataclass(frozen=True)
class Cancelled:
    """What the cancellation of a job did.

    Attributes:
        n_circuits: Circuits that ended by it, as nobody waits for them any more and they were not sent yet.
    """

    n_circuits: int


class Store:
    """Jobs, runs and batches.

    Args:
        redis: Decodes its answers.
        target: What they run on.
        job_ttl_seconds: How long a job is kept once it has ended.
        deadline_seconds: How long a job may take. A run is kept for so much longer than a job, as it may end before
            the others of its job.
        max_pending: Most runs that wait for a batch.
    """

    def __init__(
        self, redis: Redis, target: Target, *, job_ttl_seconds: int, deadline_seconds: int, max_pending: int
    ) -> None:
        self.target = target
        self.max_pending = max_pending
        self._redis = redis
        self._prefix = target.prefix
        self._job_ttl = job_ttl_seconds
        self._run_ttl = job_ttl_seconds + deadline_seconds
        self._scripts = {name: redis.register_script(getattr(scripts, name)) for name in _NAMES}

    # --- jobs -------------------------------------------------------------------------------------------------

    async def create(self, draft: Draft, job_id: str | None = None) -> Job | None:
        """Store a job and queue its circuits, those that are under way already only once; None if the queue is full.

        Args:
            job_id: Its id; a new one without it.

        Raises:
            OverBudgetError: If whoever pays has not enough left; nothing is stored then.
        """
        job_id = job_id or uuid.uuid4().hex
        common = {"shots": draft.spec.shots, "layout": draft.layout}
        created = await self._run(
            "CREATE",
            id=job_id,
            job={"id": job_id, "task": draft.task, "bundle": draft.bundle, "spec": draft.spec.model_dump_json()},
            runs=[
                {"sha": sha, "id": uuid.uuid4().hex, "circuit": circuit} | common
                for sha, circuit in draft.circuits.items()
            ],
            traceparent=draft.spec.traceparent or "",
            max_pending=self.max_pending,
            budget=_budget(draft.budget),
        )
        if created == _NO_BUDGET:
            raise OverBudgetError
        return None if created == _NO_ROOM else await self.job(job_id)

    async def spent(self, key: str) -> int:
        """Shots that an API key has brought into the queue today (UTC)."""
        return int(await self._redis.get(f"{self._prefix}spent:{key}:{_today()}") or 0)

    async def job(self, job_id: str) -> Job | None:
        """A job as it is now; None if there is none of this id, or no longer."""
        fields = _text(await self._redis.hgetall(self._key("job", job_id)))
        if not fields:
            return None
        runs: dict[str, str] = json.loads(fields["runs"])
        provider_jobs = await self._provider_jobs(runs.values())
        return _job(fields, runs, provider_jobs)

    async def jobs(self, status: Status | None, task: str | None, limit: int, before: float | None) -> list[Job]:
        """Jobs, the newest first.

        Args:
            status: Only those in this state.
            task: Only those of this task.
            limit: Most of them.
            before: Only those created earlier.
        """
        newest = "+inf" if before is None else f"({before!r}"
        suffix = f":{task}" if task else ""
        found: list[tuple[float, str]] = []
        for one in [status] if status else list(Status):
            key = f"{self._jobs_key(one)}{suffix}"
            pairs: Any = await self._redis.zrange(
                key, newest, "-inf", desc=True, byscore=True, offset=0, num=limit, withscores=True
            )
            found += [(float(created_at), str(job_id)) for job_id, created_at in pairs]
        jobs = [await self.job(job_id) for _, job_id in sorted(found, reverse=True)[:limit]]
        return [job for job in jobs if job is not None]

    async def cancel(self, job_id: str) -> Cancelled | None:
        """Cancel a job; None if it had ended before."""
        n_circuits = int(await self._run("CANCEL", id=job_id))
        return None if n_circuits == _ENDED_BEFORE else Cancelled(n_circuits)

    async def move(self, job_id: str, status: Status) -> bool:
        """Move a job on to a later state; False if it is there or further already."""
        return bool(await self._run("MOVE", id=job_id, status=status))

    async def deliver(self, job: Job, index: int, outcome: HardwareResult | Mapping[str, Any]) -> bool:
        """Store what came of one text of a job: its result, or the problem document that stands for it.

        Returns:
            False if there was one already.
        """
        if isinstance(outcome, HardwareResult):
            field, value = f"result:{index}", outcome.model_dump_json()
        else:
            field, value = f"error:{index}", json.dumps(outcome)
        return bool(await self._redis.hset(self._key("job", job.id), field, value))

    async def hold(self, runs: Sequence[Run], hold: Hold) -> None:
        """Tell the jobs that wait for runs why they do not go on."""
        for job_id in await self.waiting_for(runs):
            job = self._key("job", job_id)
            # Only an existing job: HSET would make one of nothing but this.
            if await self._redis.hexists(job, "status"):
                await self._redis.hset(job, "hold", hold.model_dump_json())
                await self._redis.publish(self.events_channel, job_id)

    async def release(self, runs: Sequence[Run]) -> None:
        """Tell the jobs that wait for runs that they go on."""
        for job_id in await self.waiting_for(runs):
            if await self._redis.hdel(self._key("job", job_id), "hold"):
                await self._redis.publish(self.events_channel, job_id)

    @property
    def events_channel(self) -> str:
        """Where the id of every job that has changed is published."""
        return f"{self._prefix}events"

    # --- runs and batches -------------------------------------------------------------------------------------

    async def runs(self, ids: Iterable[str]) -> list[Run]:
        """Runs by id, in this order; those that are gone are left out."""
        pipeline = self._redis.pipeline(transaction=False)
        for run_id in ids:
            pipeline.hgetall(self._key("run", run_id))
        return [_run(fields) for fields in await pipeline.execute() if fields]

    async def statuses(self, ids: Iterable[str]) -> set[Status]:
        """The states that runs are in; those that are gone are left out."""
        pipeline = self._redis.pipeline(transaction=False)
        for run_id in ids:
            pipeline.hget(self._key("run", run_id), "status")
        return {Status(status) for status in await pipeline.execute() if status}

    async def waiting_for(self, runs: Sequence[Run]) -> set[str]:
        """The jobs that wait for any of some runs."""
        pipeline = self._redis.pipeline(transaction=False)
        for run in runs:
            pipeline.smembers(f"{self._key('run', run.id)}:jobs")
        return set().union(*await pipeline.execute()) if runs else set()

    async def mark_runs(self, runs: Sequence[Run], status: Status, provider_job: str) -> set[str]:
        """Note how far runs are at the provider; they never go back. Returns the ids of those that went on."""
        return set(await self._run("MARK", runs=[run.id for run in runs], status=status, provider_job=provider_job))

    async def finish_run(
        self, run: Run, token: str, status: Status, problem: Mapping[str, Any] | None = None
    ) -> tuple[bool, list[str]]:
        """End a run.

        Args:
            token: The batch that ends it; a run that is another's by now is left alone.
            problem: Why it failed, as a problem document.

        Returns:
            Whether it ended now, and the jobs that wait for it, also when it had ended before.
        """
        arguments = {"run": run.id, "batch": token, "status": status, "problem": json.dumps(problem)}
        ended, *jobs = await self._run("FINISH", **arguments)
        return bool(ended), jobs

    async def n_pending(self) -> int:
        """How many runs wait for a batch."""
        return int(await self._redis.llen(f"{self._prefix}pending"))

    async def claim(self, most: int) -> str | None:
        """Take up to `most` waiting runs into a new batch; returns its token, None if none waits."""
        token = str(uuid.uuid4())
        return token if await self._run("CLAIM", token=token, most=most) else None

    async def split(self, batch: Batch) -> None:
        """Break a batch into one for each of its runs."""
        await self._run("SPLIT", token=batch.token, tokens=[str(uuid.uuid4()) for _ in batch.runs])

    async def open_batches(self) -> list[str]:
        """Tokens of the batches that are not closed, oldest first."""
        return [str(token) for token in await self._redis.zrange(f"{self._prefix}batches", 0, -1)]

    async def batch(self, token: str) -> Batch | None:
        """A batch as it is now; None if there is none."""
        fields = _text(await self._redis.hgetall(self._key("batch", token)))
        return _batch(fields) if fields else None

    async def is_open(self, token: str) -> bool:
        """Whether somebody has to move a batch on."""
        return await self._redis.zscore(f"{self._prefix}batches", token) is not None

    async def begin_sending(self, batch: Batch, sender: str) -> bool:
        """Take a batch from `intent` to `sending` as it is here; False if another worker has.

        Args:
            sender: Names this attempt and no other.
        """
        return bool(await self._run("SEND", token=batch.token, sender=sender, fields=_fields(batch)))

    async def update(self, batch: Batch) -> None:
        """Store what has changed of a batch, if it is still there."""
        # Whoever goes back to the intent is no longer its sender.
        stage = {"stage": batch.stage.value} | ({"sender": ""} if batch.stage is BatchStage.INTENT else {})
        await self._run("UPDATE", token=batch.token, fields=_fields(batch) | stage)

    async def close(self, batch: Batch) -> None:
        """Forget an open batch; every run of it has ended or is queued again."""
        await self._redis.zrem(f"{self._prefix}batches", batch.token)
        await self._redis.expire(self._key("batch", batch.token), self._run_ttl)

    # --- facts about the target -------------------------------------------------------------------------------

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
        await self._redis.set(self._readout_key(readout.calibration_id), value, ex=self._run_ttl)
        await self._redis.set(f"{self._prefix}readout", value)

    async def readout(self, calibration_id: str | None) -> Readout | None:
        """The readout errors measured under a calibration; None if none were."""
        return _record(Readout, await self._redis.get(self._readout_key(calibration_id)))

    async def newest_readout(self) -> Readout | None:
        """The readout errors measured last; None if none ever were."""
        return _record(Readout, await self._redis.get(f"{self._prefix}readout"))

    async def readout_job(self) -> Job | None:
        """The last measurement of readout errors; None if there was none, or its job is gone."""
        job_id = await self._redis.get(f"{self._prefix}readout:job")
        return None if job_id is None else await self.job(str(job_id))

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
        found = json.loads(await self._run("SURVEY"))
        readout = _record(Readout, found["readout"])
        return Survey(
            n_pending=found["n_pending"],
            oldest_circuit_at=_time(found["oldest_circuit_at"]),
            jobs={status: int(found["jobs"][status]) for status in Status},
            oldest_job_at=_time(found["oldest_job_at"]),
            has_worker=found["has_worker"],
            provider=_record(ProviderFacts, found["provider"]),
            calibration_at=_time(found["calibration_at"]),
            readout_at=readout.executed_at if readout else None,
        )

    # --- inside -----------------------------------------------------------------------------------------------

    async def _run(self, name: str, **arguments: Any) -> Any:
        # Numbers that must stay exact go as text: the scripts' JSON has fourteen digits.
        payload = {"now": repr(time()), "ttl": self._job_ttl, "run_ttl": self._run_ttl, **arguments}
        return await self._scripts[name](keys=[self._prefix], args=[json.dumps(payload)])

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}:{name}"

    def _jobs_key(self, status: Status) -> str:
        return f"{self._prefix}jobs:{status.value}"

    def _readout_key(self, calibration_id: str | None) -> str:
        return f"{self._prefix}readout:{calibration_id or ''}"

    async def _provider_jobs(self, runs: Iterable[str]) -> list[str]:
        pipeline = self._redis.pipeline(transaction=False)
        for run_id in runs:
            pipeline.hget(self._key("run", run_id), "provider_job")
        return list(dict.fromkeys(job for job in await pipeline.execute() if job))


def open_store(redis: Redis, settings: Settings) -> Store:
    """The store that the settings mean, the same for the service and its workers."""
    return Store(
        redis,
        target(settings.quafu_provider, settings.quafu_url, settings.quafu_device),
        job_ttl_seconds=settings.job_ttl_seconds,
        deadline_seconds=settings.job_deadline_seconds,
        max_pending=settings.max_queued_circuits,
    )


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


def seconds_to_midnight() -> int:
    """Seconds until the budgets' next day (UTC) begins, at least 1."""
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    return max(1, int((midnight - now).total_seconds()))


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _budget(budget: Budget | None) -> dict[str, str | int] | None:
    if budget is None:
        return None
    return {"key": budget.key, "day": _today(), "limit": budget.shots_per_day, "ttl": _BUDGET_TTL_SECONDS}


def _fields(batch: Batch) -> dict[str, str]:
    """What may change of a batch, its stage apart."""
    return {
        "runs": json.dumps(batch.runs),
        "chain": json.dumps(batch.chain),
        "parts": json.dumps(batch.parts),
        "provider_job": batch.provider_job or "",
        "submitted_at": _seconds(batch.submitted_at),
        "attempts": str(batch.attempts),
        "unreadable": str(batch.unreadable),
        "lost_at": _seconds(batch.lost_at),
        "cancelled": "1" if batch.cancelled else "",
    }


def _seconds(value: float | None) -> str:
    return "" if value is None else repr(value)


def _text(fields: Mapping[Any, Any]) -> dict[str, str]:
    """A hash as the client decodes it; its types leave open whether it does."""
    return {str(name): str(value) for name, value in fields.items()}


def _job(fields: Mapping[str, str], runs: dict[str, str], provider_jobs: list[str]) -> Job:
    def indexed(kind: str) -> dict[int, str]:
        return {int(name.partition(":")[2]): value for name, value in fields.items() if name.startswith(f"{kind}:")}

    changes = {status: float(fields[f"at:{status}"]) for status in Status if f"at:{status}" in fields}
    return Job(
        id=fields["id"],
        task=fields["task"],
        bundle=fields["bundle"],
        created_at=float(fields["created_at"]),
        status=Status(fields["status"]),
        changes=changes,
        spec=JobSpec.model_validate_json(fields["spec"]),
        runs=runs,
        n_queued=int(fields.get("n_queued", len(runs))),
        results={i: HardwareResult.model_validate_json(value) for i, value in indexed("result").items()},
        errors={i: json.loads(value) for i, value in indexed("error").items()},
        hold=Hold.model_validate_json(fields["hold"]) if "hold" in fields else None,
        provider_jobs=provider_jobs,
    )


def _record(kind: type[R], value: Any) -> R | None:
    try:
        return kind.model_validate_json(value) if value else None
    except ValidationError:
        return None  # of another schema version: absent, and measured again


def _time(value: Any) -> float | None:
    return float(value) if value else None


def _run(fields: Mapping[str, str]) -> Run:
    return Run(
        id=fields["id"],
        sha=fields["sha"],
        status=Status(fields["status"]),
        circuit=fields["circuit"],
        layout=fields["layout"],
        shots=int(fields["shots"]),
        created_at=float(fields["created_at"]),
        batch=fields.get("batch"),
        running_at=_time(fields.get("at:running")),
        abandoned="abandoned" in fields,
        problem=json.loads(fields.get("problem", "null")),
        traceparents=tuple(fields.get("traceparents", "").split()),
    )


def _batch(fields: Mapping[str, str]) -> Batch:
    chain = json.loads(fields.get("chain", "null"))
    return Batch(
        token=fields["token"],
        runs=json.loads(fields["runs"]),
        stage=BatchStage(fields["stage"]),
        created_at=float(fields["created_at"]),
        sent_at=_time(fields.get("sent_at")),
        submitted_at=_time(fields.get("submitted_at")),
        chain=None if chain is None else tuple(chain),
        parts=json.loads(fields["parts"]),
        provider_job=fields.get("provider_job") or None,
        attempts=int(fields["attempts"]),
        unreadable=int(fields.get("unreadable", "0")),
        lost_at=_time(fields.get("lost_at")),
        cancelled=bool(fields.get("cancelled")),
    )
