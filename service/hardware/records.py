"""What is stored: counts, readout errors, jobs, runs and batches, and what the provider said of itself.

A *job* is what a caller asked for: some texts' circuits. A *run* is one circuit on the chip, however many jobs wait
for it. A *batch* is the runs that travel to the provider together. Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from models.student import StudentWeights
from service.schemas import HardwareResult


class Record(BaseModel):
    """A value in Redis: JSON of this schema version; another version reads as absent."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1


class Readout(Record):
    """Readout errors of some physical qubits, measured in one job.

    Attributes:
        calibration_id: The device's calibration they were measured under.
        flips: (P(read 1 | prepared 0), P(read 0 | prepared 1)) by physical qubit.
    """

    calibration_id: str | None
    executed_at: float
    shots: int
    flips: dict[int, tuple[float, float]]

    def of(self, qubits: tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray] | None:
        """p10 and p01 of some physical qubits, each of shape (n_qubits,); None if one was not measured."""
        if qubits is None or not set(qubits) <= set(self.flips):
            return None
        pairs = np.array([self.flips[qubit] for qubit in qubits])
        return pairs[:, 0], pairs[:, 1]


class CountsRecord(Record):
    """What one circuit gave.

    Attributes:
        counts: Bitstring, qubit 0 leftmost, to number of shots.
        readout: The readout errors of its calibration, if they were known when it ran.
    """

    counts: dict[str, int]
    n_qubits: int
    device: str
    emulated: bool
    physical_qubits: tuple[int, ...] | None
    calibration_id: str | None
    provider_jobs: list[str]
    executed_at: float
    readout: Readout | None

    @property
    def shots(self) -> int:
        return sum(self.counts.values())

    @model_validator(mode="after")
    def _counts_are_counts(self) -> Self:
        wrong = any(len(bits) != self.n_qubits or set(bits) - {"0", "1"} or n < 0 for bits, n in self.counts.items())
        if self.shots <= 0 or wrong:
            raise ValueError(f"expected counts of {self.n_qubits} bits, each 0 or 1")
        return self


class Refusal(Record):
    """That the provider refuses a circuit, and what it said."""

    detail: str


class Head(Record):
    """What turns a device's expvals into labels, kept with the job: the bundle may be gone when the counts come."""

    labels: list[str]
    weight: list[list[float]]
    bias: list[float]

    @classmethod
    def of(cls, weights: StudentWeights, labels: list[str]) -> Self:
        return cls(labels=labels, weight=weights.head_weight.tolist(), bias=weights.head_bias.tolist())


class Exact(Record):
    """What the simulator finds for a text, to compare the device with."""

    label: str
    expvals: list[float]


class Item(Record):
    """One text of a job.

    Attributes:
        sha: Its circuit's fingerprint.
        exact: None in a measurement of readout errors.
        result: Its result where the counts were cached.
    """

    sha: str
    truncated: bool
    exact: Exact | None = None
    result: HardwareResult | None = None


class JobSpec(Record):
    """What a job asks for, unchanged from its creation on.

    Attributes:
        head: None for a measurement of readout errors, whose two items are |0...0> and |1...1>.
        calibration_id: The device's calibration when such a measurement was asked for.
        traceparent: The span that asked for it (W3C Trace Context); None if no trace is recorded.
    """

    head: Head | None
    calibration_id: str | None = None
    traceparent: str | None = None
    top_k: int | None
    shots: int
    items: list[Item]


class Status(StrEnum):
    """The states of jobs and runs, in the order in which they are passed through."""

    QUEUED = "queued"
    """Waits here."""
    SUBMITTED = "submitted"
    """Waits at the provider."""
    RUNNING = "running"
    """On the device."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (Status.DONE, Status.FAILED, Status.CANCELLED)


class Hold(Record):
    """Why an unfinished job does not go on, and when it is tried again."""

    reason: str
    detail: str
    until: float


class Job(Record):
    """A job as it is now.

    Attributes:
        changes: When each state was entered, in that order.
        runs: The run of each fingerprint that was not cached.
        n_queued: How many of these it brought into the queue; the others were under way already.
        results: By index of the item, as far as they are there.
        errors: Problem documents, likewise.
        provider_jobs: The provider's ids of the jobs that its runs travelled in.
    """

    id: str
    task: str
    bundle: str
    created_at: float
    status: Status
    changes: dict[Status, float]
    spec: JobSpec
    runs: dict[str, str]
    n_queued: int
    results: dict[int, HardwareResult]
    errors: dict[int, dict[str, Any]]
    hold: Hold | None
    provider_jobs: list[str]

    @property
    def ordered_results(self) -> list[HardwareResult | None]:
        """One entry a text, in the caller's order; None where there is none."""
        return [item.result or self.results.get(index) for index, item in enumerate(self.spec.items)]

    @property
    def is_complete(self) -> bool:
        """Whether every text has its result or its error."""
        there = self.results.keys() | self.errors.keys()
        return all(item.result is not None or index in there for index, item in enumerate(self.spec.items))


class Run(Record):
    """One circuit on the chip.

    Attributes:
        circuit: Its JSON.
        layout: How it is laid on the chip; see `service.hardware.placing`.
        batch: Token of the batch it travels in.
        running_at: When the device was first seen to have it; None if it never was.
        abandoned: Whether every job that waited for it was cancelled.
        problem: Why it failed, as a problem document.
        traceparents: Of those who asked for it, the first first; some of them, if they are many.
    """

    id: str
    sha: str
    status: Status
    circuit: str
    layout: str
    shots: int
    created_at: float
    batch: str | None
    running_at: float | None
    abandoned: bool
    problem: dict[str, Any] | None
    traceparents: tuple[str, ...]


class BatchStage(StrEnum):
    """How far a batch is; each is stored before what follows it is done."""

    INTENT = "intent"
    """Nothing was sent."""
    SENDING = "sending"
    """The provider may or may not know it."""
    SUBMITTED = "submitted"
    """The provider's id is known."""


class Batch(Record):
    """Runs that travel to the provider as one job.

    Attributes:
        token: Names the submission to the provider; a UUID.
        sent_at: When the stage `sending` began.
        chain: The device's best chain then; None if there was none.
        parts: Shots of the pieces that each of its runs was split into.
        attempts: Calls that failed since the last one that did not.
        unreadable: How often its result could not be read.
        lost_at: Since when the provider has not known it; None if it does.
        cancelled: Whether this service asked the provider to cancel it.
    """

    token: str
    runs: list[str]
    stage: BatchStage
    created_at: float
    sent_at: float | None
    submitted_at: float | None
    chain: tuple[int, ...] | None
    parts: list[list[int]]
    provider_job: str | None
    attempts: int
    unreadable: int
    lost_at: float | None
    cancelled: bool


class ProviderFacts(Record):
    """What the provider last said of itself.

    Attributes:
        device_online: Whether the device takes jobs.
        queue_length: Jobs before a new one; None if the provider does not say.
        quota_left: Programs that the account may still run before the next reset; None if there is no limit, or the
            provider does not say.
        seen_at: When it said so.
    """

    device_online: bool
    queue_length: int | None
    quota_left: int | None
    seen_at: float


@dataclass(frozen=True)
class Survey:
    """What there is to see of a target at one moment.

    Attributes:
        n_pending: Circuits that wait for a batch.
        oldest_circuit_at: When the first of them came; None if none waits.
        jobs: How many are kept in each state.
        oldest_job_at: When the oldest job that has not ended was created; None if all have.
        has_worker: Whether a worker was at work within the last half minute.
        provider: None if no worker has heard from it yet.
        calibration_at: When the device's current calibration was first seen; None if it has none.
        readout_at: When readout errors were last measured; None if they never were.
    """

    n_pending: int
    oldest_circuit_at: float | None
    jobs: Mapping[Status, int]
    oldest_job_at: float | None
    has_worker: bool
    provider: ProviderFacts | None
    calibration_at: float | None
    readout_at: float | None
