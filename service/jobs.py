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
from redis.exceptions import RedisError

from service.hardware.execution import Executor
from service.hardware.readout import ReadoutSchedule
from service.hardware.target import Target

logger = logging.getLogger(__name__)

# docket looks for work as often as this; its own 250 ms are felt in every step.
_CHECK = timedelta(milliseconds=50)
_RECONNECT = timedelta(seconds=1)
_SWEEP_SECONDS = 5.0
_BEAT_SECONDS = 5.0
_CALIBRATE = timedelta(seconds=30)
# A step that failed for a reason that nobody foresaw is repeated, but not at once.
_AFTER_FAILURE = timedelta(seconds=5)


async def run_worker(
    redis_url: str,
    target: Target,
    executor: Executor,
    readouts: ReadoutSchedule,
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
        concurrency: Most steps under way at once.
        lease_seconds: How long the step of a worker that has died is left alone.
        micro_batch_seconds: How long circuits are gathered for one job.
    """
    # Every step that goes well is an info line of docket's, several a second.
    logging.getLogger("docket").setLevel(logging.WARNING)
    beating = asyncio.create_task(_beat(executor), name="beat")
    while not stopping.is_set():
        try:
            async with Docket(name=f"qd-{target.id}", url=redis_url) as docket:
                _register(docket, executor, readouts, micro_batch_seconds)
                await _run(docket, concurrency, lease_seconds, stopping)
        except RedisError as exc:  # docket waits for a Redis that goes away, but not for one that is not there yet
            logger.warning("redis does not answer", extra={"fields": {"detail": str(exc)}})
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _RECONNECT.total_seconds())
    beating.cancel()


async def _beat(executor: Executor) -> None:
    """Say again and again that a worker is at work, whatever its steps wait for."""
    while True:
        with suppress(RedisError):
            await executor.beat()
        await asyncio.sleep(_BEAT_SECONDS)


def _register(docket: Docket, executor: Executor, readouts: ReadoutSchedule, micro_batch_seconds: float) -> None:
    """Tell docket what the steps are; it finds them by name, whichever worker scheduled them."""
    swept = -_SWEEP_SECONDS

    async def dispatch(
        perpetual: Perpetual = Perpetual(every=timedelta(seconds=micro_batch_seconds), automatic=True),
    ) -> None:
        nonlocal swept
        tokens = await executor.dispatch()
        if monotonic() - swept > _SWEEP_SECONDS:
            # A worker may have stopped between storing a batch and scheduling it.
            tokens = await executor.open_batches()
            swept = monotonic()
        for token in tokens:
            # The key makes it harmless to add one that is scheduled already.
            await docket.add(advance, key=f"batch:{token}")(token)

    async def advance(token: str, perpetual: Perpetual = Perpetual(every=_AFTER_FAILURE)) -> None:
        seconds = await executor.advance(token)
        if seconds is None:
            perpetual.cancel()
        else:
            perpetual.after(timedelta(seconds=seconds))

    async def calibrate(perpetual: Perpetual = Perpetual(every=_CALIBRATE, automatic=True)) -> None:
        await readouts.keep_up()

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
