"""A provider whose answers a test decides, and stores on a real Valkey."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from opentelemetry.trace import Tracer
from redis.asyncio import Redis

from models.circuit import Circuit, Gate
from models.device import Device, Qubit
from service.hardware.cache import Cache
from service.hardware.execution import Executor
from service.hardware.readout import ReadoutSchedule
from service.hardware.records import Exact, Head, Item, Job, JobSpec
from service.hardware.store import Draft, Store
from service.hardware.target import Target, fingerprint
from service.metrics import WorkerMetrics
from service.providers.base import Health, JobState, Limits, LostJobError, Measured, Outcome, Program, ProviderName
from service.providers.observed import ObservedProvider
from service.tracing import OFF

SHOTS = 10_240
N_QUBITS = 3
HEAD = Head(labels=["no", "yes"], weight=[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], bias=[0.0, 0.0])
# A line of twelve qubits, so that there is a chain of eleven.
DEVICE = Device(
    name="Baihua",
    calibration_id="cal-1",
    qubits={index: Qubit(readout_0=0.97, readout_1=0.9) for index in range(12)},
    couplers={(index, index + 1): 0.98 for index in range(11)},
)
HEALTH = Health("someone", "online", 0, None, "cal-1", True)

_targets = itertools.count()


def new_target() -> Target:
    """A target that no other test uses, so that all can share one Valkey."""
    return Target(ProviderName.QUAFU, "test", f"device-{next(_targets)}")


def circuit(angle: float) -> Circuit:
    """A circuit that no other angle gives."""
    return Circuit(N_QUBITS, (Gate("rx", (0,), angle), Gate("cz", (0, 1)), Gate("cz", (1, 2))))


def exact(angle: float) -> Exact:
    """What the simulator would find for `circuit(angle)` and `HEAD`."""
    first = math.cos(angle)
    return Exact(label="no" if first >= 0 else "yes", expvals=[first, 1.0, 1.0])


def draft(
    target: Target,
    angles: Sequence[float],
    shots: int = SHOTS,
    layout: str = "chain",
    traceparent: str | None = None,
    expected: Callable[[float], Exact | None] = exact,
) -> Draft:
    """A job with one text for each angle; equal angles are equal circuits."""
    circuits = {fingerprint(circuit(a), shots, target, layout): circuit(a) for a in angles}
    shas = [fingerprint(circuit(a), shots, target, layout) for a in angles]
    items = [Item(sha=sha, truncated=False, exact=expected(a)) for sha, a in zip(shas, angles, strict=True)]
    spec = JobSpec(head=HEAD, traceparent=traceparent, top_k=None, shots=shots, items=items)
    return Draft(
        "emotion", "emotion@00000000", spec, layout, {sha: json.dumps(one.to_json()) for sha, one in circuits.items()}
    )


def store_for(redis: Redis, target: Target | None = None, **overrides: int) -> Store:
    values = {"job_ttl_seconds": 3600, "deadline_seconds": 3600, "max_pending": 1000} | overrides
    return Store(redis, target or new_target(), **values)


@dataclass
class FakeProvider:
    """Runs programs at once: a job is queued, then running, then ended, a step for each time that it is asked.

    Attributes:
        errors: Raised by the next calls of a method, in order; None lets one call pass.
        submissions: Programs of every job that was accepted, by token.
        calls: Names of the methods called.
    """

    repeatable: bool = True
    submit_seconds: float = 0.0
    max_programs: int = 50
    max_shots: int | None = 8192
    device_now: Device | None = DEVICE
    emulated: bool = True
    errors: dict[str, deque[Exception | None]] = field(default_factory=dict)
    submissions: dict[str, list[Program]] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    health_now: Health = HEALTH

    def fail(self, method: str, *errors: Exception | None) -> None:
        self.errors.setdefault(method, deque()).extend(errors)

    def _called(self, method: str) -> None:
        self.calls.append(method)
        waiting = self.errors.get(method)
        if waiting and (error := waiting.popleft()) is not None:
            raise error

    async def limits(self) -> Limits:
        self._called("limits")
        return Limits(1024, self.max_shots, 1024, 16, self.max_programs)

    async def device(self) -> Device | None:
        self._called("device")
        return self.device_now

    async def health(self) -> Health:
        self._called("health")
        return self.health_now

    async def submit(self, programs: Sequence[Program], token: str) -> str:
        self._called("submit")
        if not (self.repeatable and token in self.submissions):
            assert token not in self.submissions, "paid for twice"
            self.submissions[token] = list(programs)
        self._called("submitted")
        return f"job-{token}"

    async def status(self, job_id: str) -> JobState:
        self._called("status")
        if job_id.removeprefix("job-") not in self.submissions:
            raise LostJobError(f"no job {job_id}")
        if job_id in self.cancelled:
            return JobState.ENDED
        self.looks[job_id] = self.looks.get(job_id, 0) + 1
        return {1: JobState.QUEUED, 2: JobState.RUNNING}.get(self.looks[job_id], JobState.ENDED)

    async def result(self, job_id: str, programs: Sequence[Program]) -> list[Outcome]:
        self._called("result")
        assert list(programs) == self.submissions[job_id.removeprefix("job-")]
        if job_id in self.outcomes:
            return self.outcomes[job_id]
        return [self._measured(program) for program in programs]

    async def cancel(self, job_id: str) -> None:
        self._called("cancel")
        self.cancelled.append(job_id)

    async def close(self) -> None:
        self._called("close")

    def _measured(self, program: Program) -> Measured:
        """As R_X on qubit 0 alone gives it, rounded to whole shots."""
        n = program.circuit.n_qubits
        probability = 0.0
        first = program.circuit.gates[0] if program.circuit.gates else None
        if first is not None and isinstance(first.angle, float):
            probability = float(np.sin(first.angle / 2) ** 2)
        ones = round(program.shots * probability)
        counts = {"1" + "0" * (n - 1): ones, "0" * n: program.shots - ones}
        found = {bits: count for bits, count in counts.items() if count}
        return Measured(found, program.chain, "cal-1", self.emulated)

    @property
    def circuits(self) -> list[str]:
        """Every circuit that was paid for, pieces of one counted once."""
        seen = []
        for programs in self.submissions.values():
            seen += list(dict.fromkeys(repr(program.circuit) for program in programs))
        return seen


class World:
    """One target with its store, cache and provider, and the metrics that its workers share."""

    def __init__(self, redis: Redis, provider: FakeProvider, tracer: Tracer = OFF, **overrides: Any) -> None:
        self.redis = redis
        self.provider = provider
        self.tracer = tracer
        self.store = store_for(redis, new_target(), **overrides)
        self.cache = Cache(redis, 3600)
        self.metrics = WorkerMetrics()

    def worker(self, **overrides: Any) -> Executor:
        values: dict[str, Any] = {"deadline_seconds": 3600, "shots": SHOTS}
        provider = ObservedProvider(self.provider, self.metrics, self.tracer)
        return Executor(self.store, self.cache, provider, self.metrics, self.tracer, **values | overrides)

    def readouts(self) -> ReadoutSchedule:
        return ReadoutSchedule(self.store, self.provider, layout="chain", interval_seconds=3600, shots=SHOTS)

    async def submit(self, *angles: float, shots: int = SHOTS, **kwargs: Any) -> Job:
        job = await self.store.create(draft(self.store.target, angles, shots, **kwargs))
        assert job is not None
        return job

    async def read(self, job: Job) -> Job:
        found = await self.store.job(job.id)
        assert found is not None
        return found

    async def finish(self, worker: Executor | None = None, most: int = 60) -> None:
        """Take steps until nothing is left to do, as if no time passed between them."""
        worker = worker or self.worker()
        for _ in range(most):
            await worker.dispatch()
            batches = await worker.open_batches()
            if not batches and not await self.store.n_pending():
                return
            for token in batches:
                await worker.advance(token)
        raise AssertionError("there is no end to the steps")

    def sample(self, name: str, **labels: str) -> float:
        """The value of a metric's sample; 0 where it has none."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0
