"""`/livez`, `/readyz` and `/metrics`: what an orchestrator and a monitor ask."""

from __future__ import annotations

import asyncio
from time import time

from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError

from service.errors import NotReadyError
from service.hardware.store import Store
from service.metrics import Shared
from service.openapi import problems
from service.schemas import Alive, Ready
from service.state import AppState, State

router = APIRouter(tags=["operations"])

_READY = "ready"
# A monitor is answered in time with what this process knows, whatever has become of Redis.
_SURVEY_SECONDS = 1.0


@router.get("/livez", summary="Does the process answer?")
async def livez() -> Alive:
    """Depends on nothing but the process itself."""
    return Alive()


@router.get("/readyz", summary="Should it get traffic?", responses=problems(NotReadyError))
async def readyz(state: State) -> Ready:
    """The state of every part; 503 if one is not ready that every request needs.

    Redis and workers are needed by `baihua` alone: without them the service is `degraded` and goes on. Only where other
    machines reach it, the keys must have been read from Redis once.
    """
    parts = readiness(state)
    waiting = [name for name, found in parts.items() if found != _READY]
    optional = await hardware_readiness(state)
    if waiting:
        raise NotReadyError(f"not ready: {', '.join(waiting)}", 1, parts=parts | optional)
    degraded = any(found != _READY for found in optional.values())
    return Ready(status="degraded" if degraded else _READY, parts=parts | optional)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request, state: State) -> Response:
    """Every instrument, in the text format or, where the scraper accepts it, OpenMetrics.

    What is kept in Redis is left out while Redis does not answer.
    """
    shared = []
    if state.hardware is not None:
        found = await shared_metrics(state.hardware.store)
        state.metrics.redis_up.set(found is not None)
        shared = [] if found is None else [found]
    content, content_type = state.metrics.exposition(request.headers.get("accept", ""), *shared)
    return Response(content, headers={"Content-Type": content_type})


async def shared_metrics(store: Store) -> Shared | None:
    """What every replica shows alike; None if Redis does not answer soon."""
    try:
        async with asyncio.timeout(_SURVEY_SECONDS):
            return Shared.of(await store.noticeboard.survey(), time())
    except (RedisError, TimeoutError):
        return None


def readiness(state: AppState) -> dict[str, str]:
    """Each part's name and `ready`, or what it is instead."""
    return {
        "bundles": _READY if state.snapshot.bundles else "none loaded",
        "batching": _READY if state.batcher.is_running else "stopped",
        "keys": _READY if state.keys.is_ready else "not read yet: redis does not answer",
        "shutdown": "draining" if state.draining else _READY,
    }


async def hardware_readiness(state: AppState) -> dict[str, str]:
    """Likewise the parts that only hardware needs; none where it is not configured."""
    if state.hardware is None:
        return {}
    try:
        at_work = await state.hardware.store.noticeboard.has_worker()
    except RedisError:
        return {"redis": "degraded: does not answer", "worker": "degraded: unknown without redis"}
    return {"redis": _READY, "worker": _READY if at_work else "degraded: none was at work in the last half minute"}
