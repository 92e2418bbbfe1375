"""`POST /classify/{task}`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import perf_counter
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Query, Request

from service.backends.base import Classification
from service.errors import (
    BackendNotConfiguredError,
    BodyTooLargeError,
    ClientGoneError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    OverloadedError,
    ShuttingDownError,
    TooManyTextsError,
    UnknownBackendError,
    UnknownTaskError,
    UnsupportedMediaTypeError,
)
from service.logs import request_facts
from service.middleware import CLASSIFY_ROUTE
from service.openapi import problems
from service.schemas import ClassifyQuery, ClassifyRequest, ClassifyResponse, Result, Score, Timing
from service.state import KnownTask, State

router = APIRouter(tags=["classify"])

T = TypeVar("T")


def require_json(request: Request) -> None:
    """Refuse a body that is not declared as JSON.

    Raises:
        UnsupportedMediaTypeError: If it is declared as something else, or not at all.
    """
    found = request.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaTypeError(f"Content-Type is {found[:64]!r}, expected application/json")


@router.post(
    CLASSIFY_ROUTE,
    summary="Classify a text or a batch of texts",
    dependencies=[Depends(require_json)],
    responses=problems(
        MalformedBodyError,
        UnknownTaskError,
        BodyTooLargeError,
        UnsupportedMediaTypeError,
        InvalidRequestError,
        TooManyTextsError,
        UnknownBackendError,
        OverloadedError,
        InternalError,
        BackendNotConfiguredError,
        ShuttingDownError,
    ),
)
async def classify(
    bundle: KnownTask,
    body: ClassifyRequest,
    query: Annotated[ClassifyQuery, Query()],
    request: Request,
    state: State,
) -> ClassifyResponse:
    """Results come in the order of `inputs`. A text that is too long for the embedder is cut and says `truncated`."""
    facts = request_facts.get()
    assert facts is not None
    facts.n_texts = len(body.inputs)
    name = state.backends.resolve(query.backend)
    facts.backend = name.value
    limit = state.settings.max_texts
    if len(body.inputs) > limit:
        raise TooManyTextsError(
            f"inputs holds {len(body.inputs)} texts, expected at most {limit}", limit=limit, found=len(body.inputs)
        )
    backend = state.backends.get(name)
    answer = await unless_client_leaves(request, backend.classify(bundle, body.inputs))
    return ClassifyResponse(
        task=bundle.task,
        backend=name.value,
        bundle=bundle.id,
        results=results(answer, bundle.labels, body.top_k),
        timing=Timing(
            embed_ms=_milliseconds(answer.embed_seconds),
            circuit_ms=_milliseconds(answer.circuit_seconds),
            total_ms=_milliseconds(perf_counter() - request.state.arrived_at),
        ),
    )


def results(answer: Classification, labels: list[str], top_k: int | None) -> list[Result]:
    """One result a text, labels best first; equal probabilities keep the order of the labels."""
    order = np.argsort(-answer.probs, axis=1, kind="stable")
    found = []
    for probs, best, truncated in zip(answer.probs.tolist(), order.tolist(), answer.truncated, strict=True):
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
