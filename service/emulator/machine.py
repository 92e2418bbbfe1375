"""The emulated machine behind both protocols: it accepts jobs and runs their circuits one at a time, in order."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from service.emulator.calibration import Calibrations, from_payload
from service.emulator.config import EmulatorConfig
from service.emulator.faults import Faults
from service.emulator.precheck import check_circuit
from service.emulator.quota import last_reset, next_reset
from service.emulator.refusals import RefusedError
from service.emulator.sampling import Sampler, SamplingError, Work
from service.emulator.store import Job, Order, Protocol, Status, Store, Task

logger = logging.getLogger(__name__)

_ENDED = frozenset({Status.FINISHED, Status.FAILED, Status.CANCELLED})


class Machine:
    """Accepts jobs at any time; `run` works them off.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        config: EmulatorConfig,
        store: Store,
        calibrations: Calibrations,
        sampler: Sampler,
        faults: Faults,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.store = store
        self._calibrations = calibrations
        self._sampler = sampler
        self._faults = faults
        self._clock = clock
        self._wake = asyncio.Event()

    def calibration(self) -> dict[str, Any]:
        """The calibration in force, as the quafu-sdk protocol has it."""
        return self._calibrations.current(self._clock())

    def past_calibration(self, calibration_id: str) -> dict[str, Any] | None:
        return self._calibrations.get(calibration_id)

    def submit(
        self,
        protocol: Protocol,
        orders: Sequence[Order],
        *,
        client_ref: str | None = None,
        name: str | None = None,
        physical: bool = False,
        target_qubits: Sequence[int] = (),
    ) -> Job:
        """Accept a job.

        Raises:
            RefusedError: If a circuit or their number is not what the device takes, or the quota is used up.
        """
        limit = self.config.max_tasks_per_job
        if len(orders) > limit:
            raise RefusedError(
                "job_too_large", f"the job has {len(orders)} circuits, expected at most {limit}", max=limit
            )
        device = from_payload(self.calibration())
        for seq, order in enumerate(orders):
            try:
                check_circuit(order.qasm, device, physical, target_qubits, self.config.max_qubits)
            except RefusedError as exc:
                exc.variables.setdefault("task_index", seq)
                raise
        self._check_quota(len(orders))
        doomed = self._faults.doom(len(orders))
        job = self.store.add_job(
            protocol,
            [replace(order, doomed=doom) for order, doom in zip(orders, doomed, strict=True)],
            submitted_at=self._clock(),
            client_ref=client_ref,
            name=name,
            physical=physical,
            target_qubits=target_qubits,
        )
        self._wake.set()
        return job

    def cancel(self, job: Job) -> tuple[int, int]:
        """Cancel what has not ended; returns how many tasks were queued and how many were running."""
        return self.store.cancel(job.number, self._clock())

    def quota(self) -> dict[str, Any]:
        """Used, left and the next reset, in the platform's words."""
        now = self._clock()
        used = self.store.submitted_since(last_reset(now).timestamp())
        limit = self.config.daily_quota
        return {
            "used": used,
            "limit": limit,
            "hard_limit": limit,
            "remaining": max(0, limit - used),
            "degraded": False,
            "resets_at": next_reset(now).isoformat(),
        }

    def _check_quota(self, requested: int) -> None:
        quota = self.quota()
        if quota["used"] + requested > quota["hard_limit"]:
            now = self._clock()
            wait = None if requested > quota["hard_limit"] else math.ceil(next_reset(now).timestamp() - now)
            raise RefusedError(
                "runtime.quotaExhausted",
                f"{quota['used']} of {quota['hard_limit']} circuits of this day are used, {requested} more asked for",
                **quota,
                requested=requested,
                wait_s=wait,
            )

    async def run(self) -> None:
        """Work off the queue until cancelled."""
        while True:
            self._wake.clear()
            task = self.store.next_task()
            if task is None:
                await self._wake.wait()
                continue
            job = self.store.job(task.job)
            assert job is not None
            delay = job.submitted_at + self.config.queue_seconds - self._clock()
            if delay > 0:
                # It may be cancelled meanwhile, so the queue is looked at anew.
                await asyncio.sleep(min(delay, 1.0))
                continue
            await self._execute(job, task)

    async def _execute(self, job: Job, task: Task) -> None:
        calibration = self.calibration()
        self.store.begin(task, calibration["id"], self._clock())
        work = Work(
            qasm=task.qasm,
            physical=job.physical,
            target_qubits=job.target_qubits,
            shots=task.shots,
            seed=(self.config.seed, task.job, task.seq),
            exact=self.config.exact,
            device=from_payload(calibration),
        )
        try:
            if task.doomed:
                self.store.fail(task, _failure("hardwareFailure", "fault injected: the chip failed"), self._clock())
                return
            sample = await self._sampler.sample(work)
            await asyncio.sleep(self.config.execution_seconds)
            self.store.finish(task, sample, self._clock())
        except SamplingError as exc:
            self.store.fail(task, _failure("executionFailed", str(exc)), self._clock())
        except Exception as exc:
            # A fault of the emulator must not stop the queue.
            logger.exception("task %s of job %s failed", task.seq, task.job)
            self.store.fail(task, _failure("executionFailed", f"{type(exc).__name__}: {exc}"), self._clock())


def job_status(statuses: Sequence[Status]) -> Status:
    """The status of a job from those of its tasks, at least one."""
    kinds = set(statuses)
    if not kinds <= _ENDED:
        return Status.QUEUED if kinds == {Status.QUEUED} else Status.RUNNING
    if len(kinds) == 1:
        return kinds.pop()
    return Status.PARTIALLY_FINISHED if Status.FINISHED in kinds else Status.FAILED


def _failure(kind: str, detail: str) -> dict[str, Any]:
    # The same circuit fails again, the chip perhaps not.
    retryable = kind == "hardwareFailure"
    return {"category": f"runtime.{kind}", "stage": "hardware", "retryable": retryable, "detail": detail}
