"""The jobs, runs and batches of one target in Redis.

Whatever may be repeated by a worker that comes back from a crash is safe to repeat here. Redis that does not answer
raises `redis.exceptions.RedisError`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any

from redis.asyncio import Redis

from service.hardware import scripts
from service.hardware.budget import Budget, OverBudgetError
from service.hardware.fields import batch_of, fields_of, job_of, run_of, text_of
from service.hardware.noticeboard import Noticeboard
from service.hardware.records import Batch, BatchStage, Hold, Job, JobSpec, Run, Status
from service.hardware.target import Target, target
from service.schemas import HardwareResult
from service.settings import Settings

_NO_ROOM, _NO_BUDGET = -1, -2
_ENDED_BEFORE = -1
_NAMES = ("CREATE", "CLAIM", "SPLIT", "SEND", "UPDATE", "MARK", "FINISH", "MOVE", "CANCEL")


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

    Attributes:
        target: What they run on.
        noticeboard: Facts about it that are no job's.
        max_pending: Most runs that wait for a batch.

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
        run_ttl = job_ttl_seconds + deadline_seconds
        self.target = target
        self.noticeboard = Noticeboard(redis, target, job_ttl_seconds=job_ttl_seconds, readout_ttl_seconds=run_ttl)
        self.max_pending = max_pending
        self._redis = redis
        self._prefix = target.prefix
        self._job_ttl = job_ttl_seconds
        self._run_ttl = run_ttl
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
            budget=draft.budget.today() if draft.budget else None,
        )
        if created == _NO_BUDGET:
            raise OverBudgetError
        return None if created == _NO_ROOM else await self.job(job_id)

    async def job(self, job_id: str) -> Job | None:
        """A job as it is now; None if there is none of this id, or no longer."""
        fields = text_of(await self._redis.hgetall(self._key("job", job_id)))
        if not fields:
            return None
        runs: dict[str, str] = json.loads(fields["runs"])
        provider_jobs = await self._provider_jobs(runs.values())
        return job_of(fields, runs, provider_jobs)

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
        return [run_of(fields) for fields in await pipeline.execute() if fields]

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
        fields = text_of(await self._redis.hgetall(self._key("batch", token)))
        return batch_of(fields) if fields else None

    async def is_open(self, token: str) -> bool:
        """Whether somebody has to move a batch on."""
        return await self._redis.zscore(f"{self._prefix}batches", token) is not None

    async def begin_sending(self, batch: Batch, sender: str) -> bool:
        """Take a batch from `intent` to `sending` as it is here; False if another worker has.

        Args:
            sender: Names this attempt and no other.
        """
        return bool(await self._run("SEND", token=batch.token, sender=sender, fields=fields_of(batch)))

    async def update(self, batch: Batch) -> None:
        """Store what has changed of a batch, if it is still there."""
        # Whoever goes back to the intent is no longer its sender.
        stage = {"stage": batch.stage.value} | ({"sender": ""} if batch.stage is BatchStage.INTENT else {})
        await self._run("UPDATE", token=batch.token, fields=fields_of(batch) | stage)

    async def close(self, batch: Batch) -> None:
        """Forget an open batch; every run of it has ended or is queued again."""
        await self._redis.zrem(f"{self._prefix}batches", batch.token)
        await self._redis.expire(self._key("batch", batch.token), self._run_ttl)

    # --- inside -----------------------------------------------------------------------------------------------

    async def _run(self, name: str, **arguments: Any) -> Any:
        # Numbers that must stay exact go as text: the scripts' JSON has fourteen digits.
        payload = {"now": repr(time()), "ttl": self._job_ttl, "run_ttl": self._run_ttl, **arguments}
        return await self._scripts[name](keys=[self._prefix], args=[json.dumps(payload)])

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}:{name}"

    def _jobs_key(self, status: Status) -> str:
        return f"{self._prefix}jobs:{status.value}"

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
