"""The app: what it is made of and how the parts are connected."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from opentelemetry.trace import Tracer
from redis.asyncio import Redis
from starlette.middleware import Middleware

from service.backends.baihua import Baihua
from service.backends.base import Backend, Backends
from service.backends.shadow import Shadow
from service.backends.simulator import Simulator
from service.batching import Batcher
from service.control.keys import KeyRing, is_exposed
from service.control.limits import Limits
from service.control.switches import Switches
from service.control.sync import Control, Governed
from service.handlers import add_handlers
from service.hardware.cache import Cache
from service.hardware.connection import connect
from service.hardware.store import open_store
from service.hardware.watch import JobWatch
from service.metrics import Metrics
from service.middleware import BodyLimitMiddleware, RequestMiddleware
from service.openapi import ANY_PROBLEM
from service.reload import follow, load_first
from service.routes import admin, classify, console, docs, health, jobs, tasks
from service.settings import BackendName, Settings
from service.state import AppState, Hardware
from service.tracing import OFF


def create_app(settings: Settings, tracer: Tracer = OFF) -> FastAPI:
    """The app for some settings. Bundles are loaded when its lifespan begins, which raises if one must not be served.

    Raises:
        BackendNotConfiguredError: If the default backend is not one that this service runs.
    """
    redis_url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    metrics = Metrics()
    batcher = Batcher(
        metrics,
        max_batch_texts=settings.max_batch_texts,
        max_queued_texts=settings.max_queued_texts,
        tracer=tracer,
    )
    configured: dict[BackendName, Backend] = {BackendName.SIMULATOR: Simulator(batcher)}
    hardware = shadow = None
    if redis_url is None:
        metrics.redis_up.set(math.nan)  # 0 would be an alert that never ends
    else:
        hardware = _hardware(settings, redis_url)
        baihua = Baihua(batcher, hardware.store, hardware.cache, settings, metrics)
        configured[BackendName.BAIHUA] = baihua
        shadow = Shadow(baihua, metrics, random.Random())
    switches = Switches(settings.default_backend)
    state = AppState(
        settings,
        metrics,
        batcher,
        Backends(configured, settings.default_backend, switches),
        KeyRing(exposed=is_exposed(settings.host), allow_anonymous=settings.allow_anonymous),
        Limits(redis_url),
        switches,
        tracer,
        hardware,
        shadow,
    )
    if hardware is not None:
        state.control = _control(state, hardware.clients[0])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(state.limits.close)
            if hardware is not None:
                await stack.enter_async_context(hardware.watch)
                stack.push_async_callback(hardware.close)
            if state.control is None:
                state.keys.replace([])
            else:
                await stack.enter_async_context(state.control)
            await load_first(state)
            if shadow is not None:
                await stack.enter_async_context(shadow)
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
    for module in (classify, jobs, tasks, admin, health, docs, console):
        app.include_router(module.router)
    app.mount(docs.ASSETS_PATH, docs.assets())
    return app


def _control(state: AppState, redis: Redis) -> Control:
    governed = Governed(
        keys=state.keys,
        limits=state.limits,
        switches=state.switches,
        metrics=state.metrics,
        tasks=lambda: state.snapshot.bundles,
        load=lambda generation: follow(state, generation),
    )
    return Control(redis, governed)


def _hardware(settings: Settings, redis_url: str) -> Hardware:
    redis = connect(redis_url)
    store = open_store(redis, settings)
    # A subscription waits for messages without end, which the other client's time-outs would not let it.
    listener = connect(redis_url, socket_timeout=None)
    watch = JobWatch(listener, store.events_channel)
    return Hardware(store, Cache(redis, settings.cache_ttl_seconds), watch, (redis, listener))
