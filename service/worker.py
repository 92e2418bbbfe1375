"""`qdserve worker`: takes circuits from the queue to the provider, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal

from service.errors import SettingsError
from service.hardware.cache import Cache
from service.hardware.connection import connect
from service.hardware.execution import Executor
from service.hardware.placing import layout
from service.hardware.readout import ReadoutSchedule
from service.hardware.store import open_store
from service.jobs import run_worker
from service.providers.make import make_provider
from service.settings import Settings


async def work(settings: Settings) -> None:
    """Work until SIGINT or SIGTERM, then finish the steps under way.

    Raises:
        SettingsError: If Redis or a token is not set, or the provider cannot be reached at such an address.
    """
    if settings.redis_url is None:
        raise SettingsError("QD_REDIS_URL is unset, expected the Redis that the service uses")
    redis_url = settings.redis_url.get_secret_value()
    provider = make_provider(settings.quafu_provider, settings.quafu_url, settings.token(), settings.quafu_device)
    redis = connect(redis_url)
    store = open_store(redis, settings)
    executor = Executor(
        store,
        Cache(redis, settings.cache_ttl_seconds),
        provider,
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
    try:
        await run_worker(
            redis_url,
            store.target,
            executor,
            readouts,
            concurrency=settings.worker_concurrency,
            lease_seconds=settings.worker_lease_seconds,
            micro_batch_seconds=settings.micro_batch_seconds,
            stopping=stopping,
        )
    finally:
        await provider.close()
        await redis.aclose()
