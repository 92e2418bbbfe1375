"""Runs on hardware, in the background, some of what the simulator has answered."""

from __future__ import annotations

import asyncio
import logging
import random
from types import TracebackType
from typing import Protocol, Self

from service.backends.base import Measurement, Pending, Work
from service.batching import Evaluation
from service.metrics import Metrics
from service.registry import LoadedBundle

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 64
_GRACE_SECONDS = 2.0


class Measures(Protocol):
    """Runs the circuits of texts that have been evaluated."""

    async def measure(self, bundle: LoadedBundle, work: Work, evaluation: Evaluation) -> Measurement | Pending:
        """Their results, or the job that will bring them."""


class Shadow:
    """Takes requests that have been answered; an async context manager that owns the tasks.

    None of them is delayed or fails for it, and nobody's budget pays. The comparison itself is counted where the
    counts are found: here if they were cached, in a worker otherwise.

    Args:
        hardware: Where they run.
        metrics: Where their outcomes are counted.
        rng: Decides which requests are taken.
        grace_seconds: How long those under way may take once it ends.
    """

    def __init__(
        self, hardware: Measures, metrics: Metrics, rng: random.Random, *, grace_seconds: float = _GRACE_SECONDS
    ) -> None:
        self._hardware = hardware
        self._metrics = metrics
        self._rng = rng
        self._grace_seconds = grace_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def offer(self, percent: float, bundle: LoadedBundle, work: Work, evaluation: Evaluation) -> None:
        """Take a request with a chance of some percent, or drop it if too many are under way."""
        if self._rng.random() * 100 >= percent:
            return
        if len(self._tasks) >= _MOST_AT_ONCE:
            self._metrics.shadows.labels(bundle.task, "dropped").inc()
            return
        # As a request with no wishes of its own would run.
        task = asyncio.create_task(self._run(bundle, Work(work.texts), evaluation), name="shadow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, bundle: LoadedBundle, work: Work, evaluation: Evaluation) -> None:
        outcome = "failed"  # also where it is cancelled
        try:
            answer = await self._hardware.measure(bundle, work, evaluation)
            outcome = "cached" if isinstance(answer, Measurement) else "queued"
        except Exception as exc:
            fields = {"task": bundle.task, "detail": f"{type(exc).__name__}: {exc}"}
            logger.warning("a request was not shadowed", extra={"fields": fields})
        finally:
            self._metrics.shadows.labels(bundle.task, outcome).inc()
