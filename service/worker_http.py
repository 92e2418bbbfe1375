"""A worker's own HTTP: `/metrics` for Prometheus, and `/livez` for whoever starts it anew when it hangs.

Both are answered by the event loop that takes the steps, so that they fall silent with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.listening import listen, refused, url_of
from service.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 1


@asynccontextmanager
async def answering(metrics: WorkerMetrics, host: str, port: int) -> AsyncIterator[str]:
    """Answer on an address, 0 for a free port, until the context is left; yields the URL of the metrics.

    Raises:
        AddressError: If the address cannot be used; names its variables.
    """
    with refused(f"QD_WORKER_METRICS_PORT: cannot listen on {host} port {port} (QD_WORKER_METRICS_HOST)"):
        listener = listen(host, port)
    with listener:
        server = _Server(
            uvicorn.Config(
                worker_app(metrics),
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )
        url = f"{url_of(host, listener.getsockname()[1])}/metrics"
        serving = asyncio.create_task(server.serve([listener]), name="worker-http")
        logger.info("metrics", extra={"fields": {"url": url}})
        try:
            yield url
        finally:
            server.should_exit = True
            await serving


def worker_app(metrics: WorkerMetrics) -> Starlette:
    """What a worker answers."""

    async def show(request: Request) -> Response:
        content, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    return Starlette(routes=[Route("/metrics", show), Route("/livez", alive)])


class _Server(uvicorn.Server):
    """Leaves signals to the worker, which finishes its steps first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
