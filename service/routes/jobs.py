"""`/jobs`: what became of requests on hardware."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from time import monotonic, time
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from redis.exceptions import RedisError

from service.control.keys import Scope
from service.errors import (
    BackendNotConfiguredError,
    InvalidRequestError,
    UnknownJobError,
)
from service.guard import DENIALS, require
from service.hardware.noticeboard import eta
from service.hardware.records import Hold, Job, Status
from service.hardware.store import Store
from service.hardware.watch import wait_for
from service.openapi import problems
from service.schemas import Change, Held, JobBody, JobList, JobQuery, JobsQuery
from service.settings import BackendName
from service.state import AppState, Hardware, State

router = APIRouter(prefix="/jobs", tags=["jobs"])

_DEFAULT_RETRY_SECONDS = 5
_RETRY_SECONDS = (1, 60)
# A service that is told to stop is noticed this soon by those who wait.
_LOOK_SECONDS = 1.0


def hardware(state: State) -> Hardware:
    """What jobs live in.

    Raises:
        BackendNotConfiguredError: If this service runs no hardware backend.
    """
    if state.hardware is None:
        raise BackendNotConfiguredError(
            f"the backend {BackendName.BAIHUA.value} is not configured here, so there are no jobs",
            backends=[BackendName.SIMULATOR.value],
        )
    return state.hardware


Parts = Annotated[Hardware, Depends(hardware)]


async def known_job(job_id: Annotated[str, Path(description="Id of a job.")], parts: Parts) -> Job:
    """The job in the path.

    Raises:
        UnknownJobError: If there is none of this id, or no longer.
    """
    return await _read(parts.store, job_id)


KnownJob = Annotated[Job, Depends(known_job)]

_MAY_READ = [Depends(require(Scope.CLASSIFY))]
_MAY_CANCEL = [Depends(require(Scope.HARDWARE))]
_JOB_PROBLEMS = problems(*DENIALS, UnknownJobError, InvalidRequestError, BackendNotConfiguredError)


@router.get(
    "",
    summary="Jobs, the newest first",
    dependencies=_MAY_READ,
    responses=problems(*DENIALS, InvalidRequestError, BackendNotConfiguredError),
)
async def list_jobs(query: Annotated[JobsQuery, Query()], parts: Parts) -> JobList:
    """Filtered by state and task, without results; `next` is the path of the next page.

    Every key sees every job of the deployment, whoever asked for it.
    """
    status = Status(query.status) if query.status else None
    jobs = await parts.store.jobs(status, query.task, query.limit + 1, query.before)
    more = None
    if len(jobs) > query.limit:
        jobs = jobs[:-1]
        asked = {"status": query.status, "task": query.task, "limit": query.limit, "before": jobs[-1].created_at}
        more = "/jobs?" + urlencode({name: value for name, value in asked.items() if value is not None})
    durations = await parts.store.noticeboard.durations()
    bodies = [job_body(job, eta(job, durations)).model_copy(update={"results": None}) for job in jobs]
    return JobList(jobs=bodies, next=more)


@router.get("/{job_id}", summary="State and results of a job", dependencies=_MAY_READ, responses=_JOB_PROBLEMS)
async def read_job(
    job: KnownJob, query: Annotated[JobQuery, Query()], parts: Parts, state: State, response: Response
) -> JobBody:
    """Results once it has ended; `wait` holds the answer until then, and no longer than it says."""
    job = await wait_for_end(state, parts, job, query.wait)
    expected = eta(job, await parts.store.noticeboard.durations())
    if not job.status.is_final:
        response.headers["Retry-After"] = str(retry_after(expected))
    return job_body(job, expected)


@router.delete("/{job_id}", summary="Cancel a job", dependencies=_MAY_CANCEL, responses=_JOB_PROBLEMS)
async def cancel_job(job: KnownJob, parts: Parts, state: State) -> JobBody:
    """Circuits that no other job waits for leave the queue. At the provider a job is cancelled while it waits there,
    if nobody waits for any circuit that travels in it.

    A job that has ended stays as it is, so that cancelling twice is harmless.
    """
    cancelled = await parts.store.cancel(job.id)
    if cancelled:
        state.metrics.observe_cancellation(job.task, time() - job.created_at, cancelled.n_circuits)
    job = await _read(parts.store, job.id)
    return job_body(job, None)


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=EventSourceResponse,
    dependencies=_MAY_READ,
    responses=_JOB_PROBLEMS,
)
async def job_events(
    job: KnownJob,
    parts: Parts,
    state: State,
    last_event_id: Annotated[str, Header(description="Of the last event that arrived.")] = "",
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: each is the job as it is now, named by its state; the last is its end.

    An event's id is the number of states passed so far. After a lost connection, `Last-Event-ID` leaves out those
    that have arrived.
    """
    sent = int(last_event_id) if last_event_id.isdecimal() and len(last_event_id) < 10 else 0
    hold = None
    async with _following(state, parts, job) as changed:
        while not state.draining:
            changed.clear()
            try:
                now, durations = await parts.store.job(job.id), await parts.store.noticeboard.durations()
            except RedisError:
                await wait_for(changed, _LOOK_SECONDS)  # it may come back, and the answer has begun
                continue
            if now is None:
                return  # the store was emptied
            job = now
            if len(job.changes) > sent or job.hold != hold:
                sent, hold = len(job.changes), job.hold
                body = job_body(job, eta(job, durations))
                yield ServerSentEvent(raw_data=body.model_dump_json(), event=job.status.value, id=str(sent))
            if job.status.is_final:
                return
            await wait_for(changed, _LOOK_SECONDS)


async def wait_for_end(state: AppState, parts: Hardware, job: Job, seconds: float) -> Job:
    """The job once it has ended, or as it was last known after some seconds."""
    deadline = monotonic() + seconds
    async with _following(state, parts, job) as changed:
        while not job.status.is_final and not state.draining and (left := deadline - monotonic()) > 0:
            await wait_for(changed, min(left, _LOOK_SECONDS))
            changed.clear()
            # Redis may come back while there is time; the watch wakes us every second meanwhile.
            with suppress(RedisError):
                job = await _read(parts.store, job.id)
    return job


@asynccontextmanager
async def _following(state: AppState, parts: Hardware, job: Job) -> AsyncIterator[asyncio.Event]:
    """An event that is set whenever the job may have changed; whoever waits for it is counted for so long."""
    with state.metrics.job_followers.track_inprogress():
        async with parts.watch.on(job.id) as changed:
            yield changed


def job_body(job: Job, expected: float | None) -> JobBody:
    """A job as callers see it.

    Args:
        expected: When it will probably be done.
    """
    has_results = job.status.is_final and job.spec.head is not None
    return JobBody(
        id=job.id,
        task=job.task,
        backend=BackendName.BAIHUA.value,
        bundle=job.bundle,
        status=job.status.value,
        created_at=_at(job.created_at),
        changes=[Change(status=status.value, at=_at(at)) for status, at in job.changes.items()],
        eta=None if expected is None else _at(expected),
        held=None if job.status.is_final else _held(job.hold),
        shots=job.spec.shots,
        n_texts=len(job.spec.items),
        provider_jobs=job.provider_jobs,
        results=job.ordered_results if has_results else None,
        error=job_error(job),
    )


def _held(hold: Hold | None) -> Held | None:
    return None if hold is None else Held(reason=hold.reason, detail=hold.detail, until=_at(hold.until))


def job_error(job: Job) -> dict[str, object] | None:
    """The problem document of a job that has failed: that of its first text without counts."""
    if job.status is not Status.FAILED or not job.errors:
        return None
    return job.errors[min(job.errors)]


def retry_after(expected: float | None) -> int:
    """Seconds after which it makes sense to ask again."""
    least, most = _RETRY_SECONDS
    if expected is None:
        return _DEFAULT_RETRY_SECONDS
    return min(max(math.ceil(expected - time()), least), most)


async def _read(store: Store, job_id: str) -> Job:
    # Anything that uuid4().hex cannot be would only make a strange key.
    job = await store.job(job_id) if len(job_id) <= 64 and job_id.isalnum() else None
    if job is None:
        raise UnknownJobError(f"no job {job_id[:64]!r}; jobs are kept for some days after they end")
    return job


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
