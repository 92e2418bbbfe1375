"""What becomes of runs, told to the jobs that wait for them; every step may be repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from service.errors import InternalError, ProblemError, problem_document
from service.hardware.cache import Cache
from service.hardware.readout import readout_of
from service.hardware.records import Batch, Job, Run, Status
from service.hardware.results import hardware_result
from service.hardware.store import Store
from service.metrics import WorkerMetrics
from service.tracing import exemplar

logger = logging.getLogger(__name__)


class Delivery:
    """Ends runs and moves jobs to where their runs are.

    Args:
        store: Jobs and runs.
        cache: Counts.
        metrics: Told of what happens, by whoever makes it happen: a step that is repeated counts nothing twice.
    """

    def __init__(self, store: Store, cache: Cache, metrics: WorkerMetrics) -> None:
        self._store = store
        self._cache = cache
        self._metrics = metrics

    async def mark(self, batch: Batch, runs: Sequence[Run], status: Status) -> None:
        """Note how far runs of a batch are at the provider."""
        if not runs:
            return
        assert batch.provider_job is not None
        assert batch.submitted_at is not None
        moved = await self._store.mark_runs(runs, status, batch.provider_job)
        for run in runs:
            if run.id not in moved:
                continue
            if status is Status.SUBMITTED:
                self._metrics.dispatch_wait_seconds.observe(batch.submitted_at - run.created_at, exemplar())
            else:
                self._metrics.hardware_queue_seconds.observe(time() - batch.submitted_at, exemplar())
        for job_id in await self._store.waiting_for(runs):
            await self._progress(job_id)

    async def finish(
        self,
        run: Run,
        token: str,
        status: Status,
        problem: ProblemError | None = None,
        submitted_at: float | None = None,
    ) -> None:
        """End a run of a batch, then give every job that waits for it what came of it.

        Args:
            run: Its counts are in the cache if the status is `done`.
            token: The batch; a run that is another's by now is left alone.
            status: How it ends, if it has not ended before.
            problem: Why it failed.
            submitted_at: When the provider took it, if the device has just given the counts.
        """
        document = problem_document(problem) if problem else run.problem
        # First the end: a job that came to wait for the run after its outcome was handed out would get none.
        ended, job_ids = await self._store.finish_run(run, token, status, document)
        if ended:
            self._metrics.circuits_ended.labels(status.value).inc()
            if submitted_at is not None:
                self._observe_device(run, submitted_at)
        # The device's errors are those of a circuit, however many wait for it.
        drift_is_new = ended and submitted_at is not None
        for job_id in job_ids:
            job = await self._store.job(job_id)
            if job is not None and not job.status.is_final:
                compared = await self._hand_out(job, run, status, document, drift_is_new)
                drift_is_new = drift_is_new and not compared
                await self._progress(job_id)

    def _observe_device(self, run: Run, submitted_at: float) -> None:
        """Time the device; one that began and ended between two looks, which are close together, only queued."""
        if run.running_at is None:
            self._metrics.hardware_queue_seconds.observe(time() - submitted_at, exemplar())
        else:
            self._metrics.hardware_execution_seconds.observe(time() - run.running_at, exemplar())

    async def _hand_out(
        self, job: Job, run: Run, status: Status, document: Mapping[str, Any] | None, drift_is_new: bool
    ) -> bool:
        """Give a job what came of a run; returns whether that could be compared with the exact values."""
        compared = False
        indices = [index for index, item in enumerate(job.spec.items) if item.sha == run.sha]
        record = (await self._cache.counts([run.sha])).get(run.sha) if status is Status.DONE else None
        if status is Status.DONE and record is None:
            document = problem_document(InternalError("the counts left the cache before they were handed out"))
        if record is not None and job.spec.head is not None:
            readout = await self._store.noticeboard.readout(record.calibration_id)
            for index in indices:
                truncated = job.spec.items[index].truncated
                result = hardware_result(
                    record, job.spec.head, readout, top_k=job.spec.top_k, truncated=truncated, cached=False
                )
                exact = job.spec.items[index].exact
                if await self._store.deliver(job, index, result) and exact is not None:
                    self._metrics.observe_comparison(job.task, result, exact, cached=False)
                    if drift_is_new and not compared:
                        self._metrics.observe_drift(result, exact)
                    compared = True
        elif document is not None:
            for index in indices:
                await self._store.deliver(job, index, document)
        return compared

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
                await self._end(job, Status.FAILED if job.errors else Status.DONE)
        elif Status.RUNNING in statuses or any(status.is_final for status in statuses):
            await self._store.move(job_id, Status.RUNNING)
        elif Status.SUBMITTED in statuses:
            await self._store.move(job_id, Status.SUBMITTED)

    async def _end_readout(self, job: Job, statuses: set[Status]) -> None:
        if statuses != {Status.DONE}:
            await self._end(job, Status.FAILED)
            return
        readout = readout_of(job, await self._cache.counts(item.sha for item in job.spec.items))
        if readout is None:
            logger.warning("readout errors not kept: their two circuits did not run on the same, known qubits")
        else:
            await self._store.noticeboard.keep_readout(readout)
            logger.info("readout errors measured", extra={"fields": {"calibration": readout.calibration_id}})
        await self._end(job, Status.DONE)

    async def _end(self, job: Job, status: Status) -> None:
        if await self._store.move(job.id, status):
            self._metrics.observe_job_end(job.task, status, time() - job.created_at)
