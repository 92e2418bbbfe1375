"""The queue: which step runs when, by docket on Redis. Nothing else imports docket.

Where jobs and batches stand is in the store; docket only knows which batch is due when, and sees to it that a step
whose worker has died is taken by another once its lease is over. Between two steps of a batch no worker holds it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta
from time import monotonic

from docket import Docket, Perpetual, Worker
from redis.exceptions import RedisClusterException, RedisError

from service.hardware.execution import Executor
from service.hardware.facts import FactFinder
from service.hardware.readout import ReadoutSchedule
from service.hardware.target import Target
from service.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

# docket looks for work as often as this; its own 250 ms are felt in every step.
_CHECK = timedelta(milliseconds=50)
_RECONNECT = timedelta(seconds=1)
_SWEEP_SECONDS = 5.0
_BEAT_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_CALIBRATE = timedelta(seconds=30)
# A step that failed for a reason that nobody foresaw is repeated, but not at once.
_AFTER_FAILURE = timedelta(seconds=5)


async def run_worker(
    redis_url: str,
    target: Target,
    executor: Executor,
    readouts: ReadoutSchedule,
    facts: FactFinder,
    metrics: WorkerMetrics,
    *,
    concurrency: int,
    lease_seconds: int,
    micro_batch_seconds: float,
    stopping: asyncio.Event,
) -> None:
    """Take steps until `stopping` is set; then finish those under way.

    Args:
        redis_url: Where the queue is.
        target: What the circuits run on; workers of another target do not see them.
        executor: Takes the steps.
        readouts: Queues measurements of readout errors.
        facts: Asks the provider for device, queue and quota.
        metrics: Told which steps are under way.
        concurrency: Most steps under way at once.
        lease_seconds: How long the step of a worker that has died is left alone.
        micro_batch_seconds: How long circuits are gathered for one job.
    """
    # Every step that goes well is an info line of docket's, several a second.
    logging.getLogger("docket").setLevel(logging.WARNING)

    async def take_steps() -> None:
        while not stopping.is_set():
            try:
                async with Docket(name=f"qd-{target.id}", url=redis_url) as docket:
                    _register(docket, executor, readouts, facts, metrics, micro_batch_seconds)
                    await _run(docket, concurrency, lease_seconds, stopping)
            # docket waits for a Redis that goes away, but not for one that is not there yet.
            except (RedisError, RedisClusterException) as exc:
                logger.warning("redis does not answer", extra={"fields": {"detail": str(exc)}})
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), _RECONNECT.total_seconds())

    beating = asyncio.create_task(_beat(executor), name="beat")
    working = asyncio.create_task(take_steps(), name="work")
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait((working, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    while not working.done():
        await asyncio.wait((working,), timeout=_LOOK_SECONDS)
        if not working.done() and not await _answers(executor):
            # docket would wait for Redis without end. No step can be stored without it, and another worker takes those
            # that were under way.
            logger.warning("stopped while redis does not answer")
            working.cancel()
    beating.cancel()
    await asyncio.gather(working, return_exceptions=stopping.is_set())


async def _answers(executor: Executor) -> bool:
    try:
        await executor.beat()
    except (RedisError, RedisClusterException):
        return False
    return True


async def _beat(executor: Executor) -> None:
    """Say again and again that a worker is at work, whatever its steps wait for."""
    while True:
        with suppress(RedisError):
            await executor.beat()
        await asyncio.sleep(_BEAT_SECONDS)


def _register(
    docket: Docket,
    executor: Executor,
    readouts: ReadoutSchedule,
    facts: FactFinder,
    metrics: WorkerMetrics,
    micro_batch_seconds: float,
) -> None:
    """Tell docket what the steps are; it finds them by name, whichever worker scheduled them."""
    swept = -_SWEEP_SECONDS

    async def dispatch(
        perpetual: Perpetual = Perpetual(every=timedelta(seconds=micro_batch_seconds), automatic=True),
    ) -> None:
        nonlocal swept
        with metrics.worker_steps.track_inprogress():
            tokens = await executor.dispatch()
            if monotonic() - swept > _SWEEP_SECONDS:
                # A worker may have stopped between storing a batch and scheduling it.
                tokens = await executor.open_batches()
                swept = monotonic()
            for token in tokens:
                # The key makes it harmless to add one that is scheduled already.
                await docket.add(advance, key=f"batch:{token}")(token)

    async def advance(token: str, perpetual: Perpetual = Perpetual(every=_AFTER_FAILURE)) -> None:
        with metrics.worker_steps.track_inprogress():
            seconds = await executor.advance(token)
        if seconds is None:
            perpetual.cancel()
        else:
            perpetual.after(timedelta(seconds=seconds))

    async def calibrate(perpetual: Perpetual = Perpetual(every=_CALIBRATE, automatic=True)) -> None:
        with metrics.worker_steps.track_inprogress():
            await readouts.keep_up()
            await facts.keep_up()

    for task in (dispatch, advance, calibrate):
        docket.register(task)


async def _run(docket: Docket, concurrency: int, lease_seconds: int, stopping: asyncio.Event) -> None:
    async with Worker(
        docket,
        concurrency=concurrency,
        redelivery_timeout=timedelta(seconds=lease_seconds),
        reconnection_delay=_RECONNECT,
        minimum_check_interval=_CHECK,
        scheduling_resolution=_CHECK,
    ) as worker:
        logger.info("at work", extra={"fields": {"queue": docket.name}})
        steps = asyncio.create_task(worker.run_forever(), name="worker")
        told = asyncio.create_task(stopping.wait())
        await asyncio.wait((steps, told), return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not steps.done():
            steps.cancel()  # it finishes the steps under way
        await asyncio.gather(steps, return_exceptions=stopping.is_set())
