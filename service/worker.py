"""`qdserve worker`: takes circuits from the queue to the provider, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

from service.errors import SettingsError
from service.hardware.cache import Cache
from service.hardware.connection import connect
from service.hardware.execution import Executor
from service.hardware.facts import FactFinder
from service.hardware.placing import layout
from service.hardware.readout import ReadoutSchedule
from service.hardware.store import open_store
from service.jobs import run_worker
from service.metrics import WorkerMetrics
from service.providers.make import make_provider
from service.providers.observed import ObservedProvider
from service.settings import Settings
from service.tracing import tracing
from service.worker_http import answering

_PROCESS = "qd-worker"


async def work(settings: Settings) -> None:
    """Work until SIGINT or SIGTERM, then finish the steps under way.

    Raises:
        SettingsError: If Redis or a token is not set, or the provider cannot be reached at such an address.
        AddressError: If the address of the metrics cannot be used.
    """
    if settings.redis_url is None:
        raise SettingsError("QD_REDIS_URL is unset, expected the Redis that the service uses")
    redis_url = settings.redis_url.get_secret_value()
    metrics = WorkerMetrics()
    async with AsyncExitStack() as stack:
        tracer = stack.enter_context(tracing(settings, _PROCESS))
        provider = ObservedProvider(
            make_provider(settings.quafu_provider, settings.quafu_url, settings.token(), settings.quafu_device),
            metrics,
            tracer,
        )
        stack.push_async_callback(provider.close)
        redis = connect(redis_url)
        stack.push_async_callback(redis.aclose)
        await stack.enter_async_context(answering(metrics, settings.worker_metrics_host, settings.worker_metrics_port))
        store = open_store(redis, settings)
        executor = Executor(
            store,
            Cache(redis, settings.cache_ttl_seconds),
            provider,
            metrics,
            tracer,
            deadline_seconds=settings.job_deadline_seconds,
            shots=settings.shots,
        )
        readouts = ReadoutSchedule(
            store,
            provider,
            layout=layout(settings.quafu_compiler, settings.chain),
            interval_seconds=settings.readout_seconds,
            shots=settings.shots,
        )
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopping.set)
        await run_worker(
            redis_url,
            store.target,
            executor,
            readouts,
            FactFinder(store, provider),
            metrics,
            concurrency=settings.worker_concurrency,
            lease_seconds=settings.worker_lease_seconds,
            micro_batch_seconds=settings.micro_batch_seconds,
            stopping=stopping,
        )
