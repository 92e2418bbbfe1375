"""`POST /classify/{task}`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from opentelemetry.trace import get_current_span
from redis.exceptions import RedisError

from service.backends.base import Classification, Measurement, Pending, Work
from service.control.keys import Caller, Scope
from service.errors import (
    BackendNotConfiguredError,
    BodyTooLargeError,
    BudgetExhaustedError,
    CircuitFailedError,
    CircuitRejectedError,
    ClientGoneError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    OverloadedError,
    ShotsError,
    ShuttingDownError,
    TooManyTextsError,
    UnknownBackendError,
    UnknownProviderError,
    UnknownTaskError,
    UnknownVersionError,
    UnsupportedMediaTypeError,
    document_response,
)
from service.guard import DENIALS, require, require_json
from service.hardware.noticeboard import eta
from service.hardware.records import Job, Status
from service.hardware.store import Store
from service.logs import request_facts
from service.middleware import CLASSIFY_ROUTE
from service.openapi import problems
from service.routes.jobs import job_body, job_error, retry_after, wait_for_end
from service.schemas import (
    MAX_WAIT_SECONDS,
    ClassifyQuery,
    ClassifyRequest,
    ClassifyResponse,
    ExactResult,
    HardwareResponse,
    JobBody,
    Result,
    Score,
    Timing,
)
from service.state import KnownTask, State

router = APIRouter(tags=["classify"])

T = TypeVar("T")

_PREFER_WAIT = re.compile(r"\s*wait\s*=\s*(\d{1,9})\s*", re.IGNORECASE)
_JOB_HEADERS = {
    "Location": {"description": "Path of the job.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
}


# The caller is let in before anything else is looked at.
_MAY_CLASSIFY = require(Scope.CLASSIFY)


@router.post(
    CLASSIFY_ROUTE,
    summary="Classify a text or a batch of texts",
    dependencies=[Depends(_MAY_CLASSIFY), Depends(require_json)],
    responses=problems(
        *DENIALS,
        MalformedBodyError,
        UnknownTaskError,
        UnknownVersionError,
        BodyTooLargeError,
        UnsupportedMediaTypeError,
        InvalidRequestError,
        TooManyTextsError,
        UnknownBackendError,
        OverloadedError,
        InternalError,
        BackendNotConfiguredError,
        ShuttingDownError,
        UnknownProviderError,
        ShotsError,
        CircuitRejectedError,
        CircuitFailedError,
        DeadlineExceededError,
        BudgetExhaustedError,
    )
    | {202: {"model": JobBody, "description": "Counts are missing; the job will bring them.", "headers": _JOB_HEADERS}},
    response_model=ClassifyResponse | HardwareResponse,
)
async def classify(
    bundle: KnownTask,
    body: ClassifyRequest,
    query: Annotated[ClassifyQuery, Query()],
    request: Request,
    state: State,
    caller: Annotated[Caller, Depends(_MAY_CLASSIFY)],
    prefer: Annotated[str | None, Header(description="`wait=N` is the same as the parameter.")] = None,
) -> Any:
    """Results come in the order of `inputs`. A text that is too long for the embedder is cut and says `truncated`.

    On `baihua` the answer is 200 if all counts are there, and otherwise 202 with the job that will bring them.
    """
    facts = request_facts.get()
    assert facts is not None
    facts.n_texts = len(body.inputs)
    name = state.backends.resolve(query.backend, bundle.task, caller)
    facts.backend = name.value
    limit = state.settings.max_texts
    if len(body.inputs) > limit:
        raise TooManyTextsError(
            f"inputs holds {len(body.inputs)} texts, expected at most {limit}", limit=limit, found=len(body.inputs)
        )
    backend = state.backends.get(name)
    in_use = state.settings.quafu_provider.value
    if query.provider not in (None, in_use):
        raise UnknownProviderError(
            f"provider is {query.provider[:64]!r}, expected {in_use!r} (QD_QUAFU_PROVIDER)", providers=[in_use]
        )
    work = Work(body.inputs, body.top_k, query.shots, caller.budget)
    answer = await unless_client_leaves(request, backend.classify(bundle, work))
    if isinstance(answer, Pending):
        assert state.hardware is not None
        get_current_span().set_attribute("qd.job", answer.job.id)
        wait = query.wait if "wait" in query.model_fields_set else preferred_wait(prefer)
        begun = perf_counter()
        job = await unless_client_leaves(request, wait_for_end(state, state.hardware, answer.job, wait))
        measured = [result for result in job.ordered_results if result is not None]
        if job.status is not Status.DONE or len(measured) < len(body.inputs):
            return _unfinished(job, await _expected(state.hardware.store, job))
        answer = Measurement(measured, answer.embed_seconds, perf_counter() - begun)
    parts = answer.evaluation if isinstance(answer, Classification) else answer
    timing = Timing(
        embed_ms=_milliseconds(parts.embed_seconds),
        circuit_ms=_milliseconds(parts.circuit_seconds),
        total_ms=_milliseconds(perf_counter() - request.state.arrived_at),
    )
    common: dict[str, Any] = {"task": bundle.task, "backend": name.value, "bundle": bundle.id, "timing": timing}
    if isinstance(answer, Measurement):
        return HardwareResponse(results=list(answer.results), **common)
    if state.shadow is not None and query.backend is None:
        percent = state.switches.of(bundle.task).shadow_percent
        state.shadow.offer(percent, bundle, work, answer.evaluation)
    found = results(answer, bundle.labels, body.top_k)
    if query.expvals:
        exact = bundle.student.expvals(answer.evaluation.angles).tolist()
        found = [ExactResult(**one.model_dump(), expvals=row) for one, row in zip(found, exact, strict=True)]
    return ClassifyResponse(results=found, **common)


def _unfinished(job: Job, expected: float | None) -> Response:
    """202 with a job that brings the answer later; the problem that stands for one that has failed already."""
    location = {"Location": f"/jobs/{job.id}"}
    document = job_error(job)
    if document is not None:
        return document_response({**document, "job": job.id}, location)
    headers = location if job.status.is_final else {**location, "Retry-After": str(retry_after(expected))}
    return Response(job_body(job, expected).model_dump_json(), 202, headers=headers, media_type="application/json")


async def _expected(store: Store, job: Job) -> float | None:
    """When a job will probably be done; None if Redis has gone meanwhile: the job itself is safe there."""
    try:
        return eta(job, await store.noticeboard.durations())
    except RedisError:
        return None


def preferred_wait(prefer: str | None) -> int:
    """Seconds of `wait=N` in a Prefer header (RFC 7240), at most as many as a request may wait; 0 without it."""
    for preference in (prefer or "").split(","):
        found = _PREFER_WAIT.fullmatch(preference.partition(";")[0].strip())
        if found:
            return min(int(found[1]), MAX_WAIT_SECONDS)
    return 0


def results(answer: Classification, labels: list[str], top_k: int | None) -> Sequence[Result]:
    """One result a text, labels best first; equal probabilities keep the order of the labels."""
    order = np.argsort(-answer.probs, axis=1, kind="stable")
    found = []
    for probs, best, truncated in zip(answer.probs.tolist(), order.tolist(), answer.evaluation.truncated, strict=True):
        scores = [Score(label=labels[i], score=probs[i]) for i in best]
        found.append(Result(label=scores[0].label, score=scores[0].score, scores=scores[:top_k], truncated=truncated))
    return found


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it if the client closes the connection first.

    Raises:
        ClientGoneError: If it does.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError("the client closed the connection")
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
