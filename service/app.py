"""The app: what it is made of and how the parts are connected."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware

from service.backends.baihua import Baihua
from service.backends.base import Backend, Backends
from service.backends.simulator import Simulator
from service.batching import Batcher
from service.handlers import add_handlers
from service.hardware.cache import Cache
from service.hardware.connection import connect
from service.hardware.store import open_store
from service.hardware.watch import JobWatch
from service.metrics import Metrics
from service.middleware import BodyLimitMiddleware, RequestMiddleware
from service.openapi import ANY_PROBLEM
from service.registry import load_snapshot
from service.routes import classify, docs, health, jobs, tasks
from service.settings import BackendName, Settings
from service.state import AppState, Hardware

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The app for some settings. Bundles are loaded when its lifespan begins, which raises if one must not be served.

    Raises:
        BackendNotConfiguredError: If the default backend is not one that this service runs.
    """
    metrics = Metrics()
    batcher = Batcher(metrics, max_batch_texts=settings.max_batch_texts, max_queued_texts=settings.max_queued_texts)
    configured: dict[BackendName, Backend] = {BackendName.SIMULATOR: Simulator(batcher)}
    hardware = None
    if settings.redis_url is not None:
        hardware = _hardware(settings, settings.redis_url.get_secret_value())
        configured[BackendName.BAIHUA] = Baihua(batcher, hardware.store, hardware.cache, settings)
    backends = Backends(configured, settings.default_backend)
    state = AppState(settings, metrics, batcher, backends, hardware)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state.snapshot = load_snapshot(
            settings.bundles_dir, engine=settings.engine, precision=settings.precision, threads=settings.threads
        )
        metrics.show_bundles(state.snapshot.bundles.values())
        bundles = sorted(bundle.id for bundle in state.snapshot.bundles.values())
        logger.info("bundles loaded", extra={"fields": {"bundles": bundles}})
        async with AsyncExitStack() as stack:
            if hardware is not None:
                await stack.enter_async_context(hardware.watch)
                stack.push_async_callback(hardware.close)
            await stack.enter_async_context(batcher)
            yield

    app = FastAPI(
        title="qd-students",
        summary="Language models distilled into quantum students.",
        version=version("qd-students"),
        lifespan=lifespan,
        middleware=[
            Middleware(RequestMiddleware, state=state),
            Middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes),
        ],
        responses=ANY_PROBLEM,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.parts = state
    add_handlers(app)
    for module in (classify, jobs, tasks, health, docs):
        app.include_router(module.router)
    app.mount(docs.ASSETS_PATH, docs.assets())
    return app


def _hardware(settings: Settings, redis_url: str) -> Hardware:
    redis = connect(redis_url)
    store = open_store(redis, settings)
    # A subscription waits for messages without end, which the other client's time-outs would not let it.
    listener = connect(redis_url, socket_timeout=None)
    watch = JobWatch(listener, store.events_channel)
    return Hardware(store, Cache(redis, settings.cache_ttl_seconds), watch, (redis, listener))
