"""What becomes of runs, told to the jobs that wait for them; every step may be repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import InternalError, ProblemError, problem_document
from service.hardware.cache import Cache
from service.hardware.readout import readout_of
from service.hardware.records import Job, Run, Status
from service.hardware.results import hardware_result
from service.hardware.store import Store

logger = logging.getLogger(__name__)


class Delivery:
    """Ends runs and moves jobs to where their runs are.

    Args:
        store: Jobs and runs.
        cache: Counts.
    """

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self._cache = cache

    async def mark(self, runs: Sequence[Run], status: Status, provider_job: str) -> None:
        """Note how far runs are at the provider."""
        if runs:
            await self._store.mark_runs(runs, status, provider_job)
            for job_id in await self._store.waiting_for(runs):
                await self._progress(job_id)

    async def finish(self, run: Run, token: str, status: Status, problem: ProblemError | None = None) -> None:
        """End a run of a batch, then give every job that waits for it what came of it.

        Args:
            run: Its counts are in the cache if the status is `done`.
            token: The batch; a run that is another's by now is left alone.
            status: How it ends, if it has not ended before.
            problem: Why it failed.
        """
        document = problem_document(problem) if problem else run.problem
        # First the end: a job that came to wait for the run after its outcome was handed out would get none.
        for job_id in await self._store.finish_run(run, token, status, document):
            job = await self._store.job(job_id)
            if job is not None and not job.status.is_final:
                await self._hand_out(job, run, status, document)
                await self._progress(job_id)

    async def _hand_out(self, job: Job, run: Run, status: Status, document: Mapping[str, Any] | None) -> None:
        indices = [index for index, item in enumerate(job.spec.items) if item.sha == run.sha]
        record = (await self._cache.counts([run.sha])).get(run.sha) if status is Status.DONE else None
        if status is Status.DONE and record is None:
            document = problem_document(InternalError("the counts left the cache before they were handed out"))
        if record is not None and job.spec.head is not None:
            readout = await self._store.readout(record.calibration_id)
            for index in indices:
                truncated = job.spec.items[index].truncated
                result = hardware_result(
                    record, job.spec.head, readout, top_k=job.spec.top_k, truncated=truncated, cached=False
                )
                await self._store.deliver(job, index, result)
        elif document is not None:
            for index in indices:
                await self._store.deliver(job, index, document)

    async def _progress(self, job_id: str) -> None:
        """Move a job to where its runs are."""
        job = await self._store.job(job_id)
        if job is None or job.status.is_final:
            return
        statuses = await self._store.statuses(job.runs.values())
        if all(status.is_final for status in statuses):
            # A run ends before its outcome is handed out, so that all have ended does not mean that all is there.
            if job.spec.head is None:
                await self._end_readout(job, statuses)
            elif job.is_complete:
                await self._store.move(job_id, Status.FAILED if job.errors else Status.DONE)
        elif Status.RUNNING in statuses or any(status.is_final for status in statuses):
            await self._store.move(job_id, Status.RUNNING)
        elif Status.SUBMITTED in statuses:
            await self._store.move(job_id, Status.SUBMITTED)

    async def _end_readout(self, job: Job, statuses: set[Status]) -> None:
        if statuses != {Status.DONE}:
            await self._store.move(job.id, Status.FAILED)
            return
        readout = readout_of(job, await self._cache.counts(item.sha for item in job.spec.items))
        if readout is None:
            logger.warning("readout errors not kept: their two circuits did not run on the same, known qubits")
        else:
            await self._store.keep_readout(readout)
            logger.info("readout errors measured", extra={"fields": {"calibration": readout.calibration_id}})
        await self._store.move(job.id, Status.DONE)
