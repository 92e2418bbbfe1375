"""The protocol between a worker and whoever runs its circuits, and every error a provider may raise.

ProviderError
├── HoldError                   nothing is lost: the same call may succeed later
│   ├── UnreachableError            no connection, a time-out, a 5xx
│   ├── QuotaExhaustedError         the account may not submit until `retry_after_seconds` have passed
│   ├── DeviceOfflineError          the device takes no jobs now
│   └── OperatorNeededError         the token or the client is refused; somebody has to act
├── MalformedAnswerError        the provider answered, but not with what its protocol says
└── RefusalError                the same call will fail again
    ├── RejectedError               the circuit, the shots or the device are refused
    ├── LostJobError                the provider does not know the job
    └── UncertainSubmitError        the job may or may not have been submitted, and this provider cannot tell

A provider turns its vendor's errors into these at its own edge, `raise ... from exc`; no message holds the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from models.circuit import Circuit
from models.device import Device


class ProviderName(StrEnum):
    """Every provider that `QD_QUAFU_PROVIDER` may name."""

    QUAFU = "quafu"
    """quafu.com.cn, by quafu-sdk."""
    QUAFU_SQC = "quafu_sqc"
    """quafu-sqc.baqis.ac.cn, over HTTP."""


class ProviderError(Exception):
    """Base of every error that a provider raises on purpose.

    Attributes:
        reason: Its kind in a word or two: what a job is told that waits because of it, and what metrics count it as.
    """

    reason: ClassVar[str]


class HoldError(ProviderError):
    """The same call may succeed later.

    Args:
        detail: What the provider said, for the caller of the service.
        retry_after_seconds: When to try again, if the provider said so.
    """

    def __init__(self, detail: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class UnreachableError(HoldError):
    """No connection, a time-out or a 5xx."""

    reason = "provider-unreachable"


class QuotaExhaustedError(HoldError):
    """The account may not submit now."""

    reason = "quota-exhausted"


class DeviceOfflineError(HoldError):
    """The device takes no jobs now."""

    reason = "device-offline"


class OperatorNeededError(HoldError):
    """The token or the client is refused."""

    reason = "operator-needed"


class MalformedAnswerError(ProviderError):
    """The provider answered, but not with what its protocol says."""

    reason = "malformed-answer"


class RefusalError(ProviderError):
    """The same call will fail again."""


class RejectedError(RefusalError):
    """The circuit, the shots or the device are refused."""

    reason = "rejected"


class LostJobError(RefusalError):
    """The provider does not know the job."""

    reason = "lost-by-provider"


class UncertainSubmitError(RefusalError):
    """The job may or may not have been submitted."""

    reason = "submission-uncertain"


@dataclass(frozen=True)
class Limits:
    """What the device takes, read live.

    Attributes:
        min_shots: Least shots of one program.
        max_shots: Most shots of one program; None if none is known.
        shots_step: Shots are a multiple of it.
        max_qubits: Most qubits of a circuit; None if none is known.
        max_programs: Most programs in one job.
    """

    min_shots: int
    max_shots: int | None
    shots_step: int
    max_qubits: int | None
    max_programs: int


@dataclass(frozen=True)
class Program:
    """One circuit to run.

    Attributes:
        circuit: Bound.
        shots: As the device takes them in one piece.
        chain: Physical qubit of each qubit of the circuit, neighbours coupled; None lets the provider place it.
    """

    circuit: Circuit
    shots: int
    chain: tuple[int, ...] | None


class JobState(StrEnum):
    """How far a provider's job is."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    """Every program has its outcome, good or not."""


@dataclass(frozen=True)
class Measured:
    """What a program gave.

    Attributes:
        counts: Bitstring, qubit 0 of the circuit leftmost, to number of shots.
        physical_qubits: Physical qubit of each qubit of the circuit; None if the provider does not say.
        calibration_id: The device's calibration it ran under; None if the provider does not say.
        emulated: Whether an emulator and no chip gave it, as the answer itself says.
        executed_at: When it ran, in seconds since the epoch; None if the provider does not say.
    """

    counts: Mapping[str, int]
    physical_qubits: tuple[int, ...] | None
    calibration_id: str | None
    emulated: bool
    executed_at: float | None = None


@dataclass(frozen=True)
class NotMeasured:
    """Why a program gave nothing.

    Attributes:
        detail: What the provider said.
        cancelled: Whether it was cancelled, and did not fail.
    """

    detail: str
    cancelled: bool = False


Outcome = Measured | NotMeasured


@dataclass(frozen=True)
class Quota:
    """What the account may still run.

    Attributes:
        used: Programs submitted since the last reset.
        limit: Most between two resets; None if there is none.
        resets_at: ISO 8601; None if the provider does not say.
    """

    used: int
    limit: int | None
    resets_at: str | None


@dataclass(frozen=True)
class Health:
    """What the provider says of itself, the account and the device.

    Attributes:
        account: Whom the token belongs to; None if the provider does not say.
        device_status: In the provider's word, `online` where it takes jobs.
        queue_length: Jobs before a new one; None if unknown.
        quota: None if the provider does not say.
        calibration_id: The device's current calibration; None if the provider has none.
        emulated: Whether it is an emulator.
    """

    account: str | None
    device_status: str
    queue_length: int | None
    quota: Quota | None
    calibration_id: str | None
    emulated: bool


class Provider(Protocol):
    """Runs programs on one device. Every method may raise `ProviderError`, and nothing else on purpose.

    Attributes:
        repeatable: Whether a `submit` with the token of an earlier one finds that job and pays for no second one.
        submit_seconds: The longest that a `submit` can last.
    """

    repeatable: bool
    submit_seconds: float

    async def limits(self) -> Limits:
        """What the device takes now; may be a few minutes old."""

    async def device(self) -> Device | None:
        """The device's current calibration; None if the provider has none to give."""

    async def health(self) -> Health:
        """Account, device, queue and quota, asked anew."""

    async def submit(self, programs: Sequence[Program], token: str) -> str:
        """Submit programs, at least one, as one job, and return the provider's id of it.

        Args:
            programs: Within `limits`.
            token: A UUID that names this submission and no other.

        Raises:
            UncertainSubmitError: If the answer was lost and the provider is not `repeatable`.
        """

    async def status(self, job_id: str) -> JobState:
        """How far a job is."""

    async def result(self, job_id: str, programs: Sequence[Program]) -> list[Outcome]:
        """The outcome of every program of a job that has ended, in their order.

        Args:
            job_id: As `submit` returned it.
            programs: As they were submitted.

        Raises:
            MalformedAnswerError: If an outcome is not what the protocol says, such as counts that are not counts.
        """

    async def cancel(self, job_id: str) -> None:
        """Cancel what has not run yet; harmless if all has."""

    async def close(self) -> None:
        """Give up connections and threads."""
