"""What quafu-sdk hands on of the platform's answers, read into our terms, and its errors turned into ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import quafu
from pydantic import AliasChoices, BeforeValidator, Field
from quafu import bits
from quafu import errors as sdk

from models.device import Device, Qubit
from service.providers.answers import Answer, checked_counts, read, shown
from service.providers.base import (
    DeviceOfflineError,
    Health,
    JobState,
    Limits,
    LostJobError,
    MalformedAnswerError,
    Measured,
    NotMeasured,
    OperatorNeededError,
    Outcome,
    Program,
    ProviderError,
    Quota,
    QuotaExhaustedError,
    RejectedError,
    UnreachableError,
)

_STATES: Mapping[object, JobState] = {
    "Queued": JobState.QUEUED,
    "Running": JobState.RUNNING,
    "Finished": JobState.ENDED,
    "PartiallyFinished": JobState.ENDED,
    "Failed": JobState.ENDED,
    "Cancelled": JobState.ENDED,
}
# The platform's times are Beijing's where they name no zone.
_BEIJING = timezone(timedelta(hours=8))


def _within(low: float, high: float) -> BeforeValidator:
    """Reads a number outside [low, high] as one that was not measured: it must not cost the whole calibration."""

    def number(value: Any) -> float | None:
        good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        return float(value) if good else None

    return BeforeValidator(number)


_Fraction = Annotated[float | None, _within(0.0, 1.0)]
_Microseconds = Annotated[float | None, _within(1e-3, 1e9)]
_Positive = Annotated[int, Field(ge=1)]


class _Limits(Answer):
    min_shots: _Positive | None = None
    max_shots: _Positive | None = None
    shots_step: _Positive | None = None
    max_qubits: _Positive | None = None
    max_tasks_per_job: _Positive | None = None


class _Metadata(Answer):
    limits: _Limits | None = None


class _Account(Answer):
    name: str | None = None
    public_id: str | None = None


class _Device(Answer):
    status: str
    queue: Annotated[int, Field(ge=0)] | None = None
    calibration_id: str | None = None
    emulated: bool = False


class _Quota(Answer):
    used: int
    # Beyond `limit` the platform only puts a job last; it refuses beyond `hard_limit`.
    limit: int | None = Field(default=None, validation_alias=AliasChoices("hard_limit", "limit"))
    resets_at: str | None = None


class _Quotas(Answer):
    real: _Quota | None = None


class _Stats(Answer):
    quota: _Quotas | None = None


class _CalibrationId(Answer):
    id: str | None = None


class _Measurement(Answer):
    cbit: int
    physical_qubit: int | None = None


class _Circuit(Answer):
    measurements: list[_Measurement] | None = None


class _Execution(Answer):
    finished_at: str | None = None


class _Task(Answer):
    calibration: _CalibrationId | None = None
    circuit: _Circuit | None = None
    emulated: bool = False
    execution: _Execution | None = None


class _Qubit(Answer):
    index: Annotated[int, Field(ge=0)]
    t1_us: _Microseconds = None
    t2_us: _Microseconds = None
    gate_fidelity: _Fraction = None
    readout_fidelity_0: _Fraction = None
    readout_fidelity_1: _Fraction = None


class _Coupler(Answer):
    qubits: list[int]
    cz_fidelity: _Fraction = None


class _Overlay(Answer):
    """What the platform measured itself, beside what the chip's makers published."""

    qubits: list[_Qubit] | None = None


class _Calibration(Answer):
    id: str | None = None
    qubits: list[_Qubit] | None = None
    couplers: list[_Coupler] | None = None
    measured: _Overlay | None = None


def error_of(exc: Any) -> ProviderError:
    """An error of the SDK as one of ours, with what the platform said."""
    said = _said(exc)
    if isinstance(exc, quafu.QuotaError):
        return _quota_error(exc, said)
    if isinstance(exc, quafu.DeviceUnavailable):
        return DeviceOfflineError(f"the device takes no jobs now ({said})")
    if isinstance(exc, quafu.AuthError):
        return OperatorNeededError(f"the platform refuses the token ({said})")
    if isinstance(exc, quafu.ClientOutdated):
        return OperatorNeededError(f"the platform wants a newer quafu-sdk than {quafu.__version__} ({said})")
    if isinstance(exc, quafu.PrecheckError | quafu.BadRequest):
        return RejectedError(f"the platform refuses the request ({said})")
    if isinstance(exc, quafu.JobNotFound):
        return LostJobError(f"the platform does not know the job ({said})")
    if isinstance(exc, quafu.ServerUnavailable | quafu.Timeout):
        return UnreachableError(f"the platform does not answer ({said})")
    return MalformedAnswerError(f"the platform's answer is not what its protocol says ({said})")


def _said(exc: Any) -> str:
    """HTTP status, code, category and the platform's own words; without an answer, what the SDK found."""
    if exc.status is None:
        # The SDK's text on a lost connection advises settings that are not used here.
        return type(exc.__cause__).__name__ if isinstance(exc, sdk.ServerUnavailable) and exc.__cause__ else str(exc)
    if 300 <= exc.status < 400:
        return f"HTTP {exc.status}, a redirect"
    body = exc.body if isinstance(exc.body, dict) else {}
    names = dict.fromkeys([exc.code, getattr(exc, "category", None)])
    words = dict.fromkeys([body.get("error"), body.get("detail")])
    text = ": ".join(str(part)[:300] for part in (*names, *words) if part)
    return f"HTTP {exc.status}, {text or str(exc)[:300]}"


def _quota_error(exc: Any, said: str) -> ProviderError:
    facts = exc.vars if isinstance(exc.vars, dict) else {}
    # A null wait: the job alone is more than a day's quota.
    too_large = exc.code in ("job_too_large", "payload_too_large") or ("wait_s" in facts and facts["wait_s"] is None)
    paused = facts.get("hard_limit") == 0
    if too_large and not paused:
        return RejectedError(f"the job is too large ({said})")
    return QuotaExhaustedError(f"the account may not submit now ({said})", _wait(exc.retry_after, facts))


def _wait(retry_after: int | None, facts: Mapping[str, Any]) -> float | None:
    """Seconds until the quota is reset, as far as the platform says."""
    if retry_after is not None:
        return float(retry_after)
    resets_at = _time(facts.get("resets_at"))
    return None if resets_at is None else max(0.0, (resets_at - datetime.now(UTC)).total_seconds())


def _time(text: object) -> datetime | None:
    """A time that the platform says; None if it is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=_BEIJING)


def state_of(word: object) -> JobState:
    """How far a job is, by the platform's word for it."""
    try:
        return _STATES[word]
    except (KeyError, TypeError):
        raise MalformedAnswerError(f"the job's status is {shown(word)}, expected one of {list(_STATES)}") from None


def outcome_of(result: Any, program: Program, index: int) -> Outcome:
    """The outcome of a job's task, by the SDK's `Result` of it."""
    what = f"task {index}"
    if result.seq is not None and result.seq != index:
        raise MalformedAnswerError(f"{what}: its number is {shown(result.seq)}, expected {index}")
    if result.status == "Cancelled":
        return NotMeasured("cancelled at the provider", cancelled=True)
    if result.status == "Failed":
        error = result.error or {}
        words = [str(error[key])[:300] for key in ("category", "detail") if error.get(key)]
        return NotMeasured(": ".join(words) or "the provider gives no reason")
    if result.status != "Finished":
        raise MalformedAnswerError(f"{what}: its status is {shown(result.status)} in a job that has ended")
    n = program.circuit.n_qubits
    counts = checked_counts(result.counts, n, what)
    for name, found, expected in (
        ("bit_order", result.bit_order, bits.C0_RIGHTMOST),
        ("n_clbits", result.n_clbits, n),
        ("shots_returned", result.shots_returned, sum(counts.values())),
    ):
        if found != expected:
            raise MalformedAnswerError(f"{what}: {name} is {shown(found)}, expected {shown(expected)}")
    task = read(_Task, result.raw, what)
    executed_at = _time(task.execution.finished_at) if task.execution else None
    return Measured(
        counts=result.reorder("c0_leftmost"),
        physical_qubits=_physical_qubits(task.circuit.measurements if task.circuit else None, n, what),
        calibration_id=task.calibration.id if task.calibration else None,
        emulated=task.emulated,
        executed_at=executed_at.timestamp() if executed_at else None,
    )


def _physical_qubits(measurements: Sequence[_Measurement] | None, n: int, what: str) -> tuple[int, ...] | None:
    """The physical qubit that each classical bit was measured from."""
    if not measurements:
        return None
    bits_measured = sorted(measurement.cbit for measurement in measurements)
    if bits_measured != list(range(n)):
        raise MalformedAnswerError(f"{what}: the bits {bits_measured} are measured, expected 0 to {n - 1}")
    by_bit = sorted(measurements, key=lambda measurement: measurement.cbit)
    qubits = [m.physical_qubit for m in by_bit if m.physical_qubit is not None]
    if len(set(qubits)) != len(qubits):
        raise MalformedAnswerError(f"{what}: the physical qubits are {qubits}, expected different ones")
    return tuple(qubits) if len(qubits) == n else None


def limits_of(metadata: Any) -> Limits:
    """The limits of a device's metadata; one that is not given does not limit, but for the circuits in a job."""
    found = read(_Metadata, metadata, "the device's metadata").limits or _Limits()
    limits = Limits(
        min_shots=found.min_shots or 1,
        max_shots=found.max_shots,
        shots_step=found.shots_step or 1,
        max_qubits=found.max_qubits,
        max_programs=found.max_tasks_per_job or 1,
    )
    if limits.max_shots is not None and limits.max_shots < limits.min_shots:
        raise MalformedAnswerError(f"max_shots is {limits.max_shots}, expected at least {limits.min_shots}, min_shots")
    return limits


def health_of(who: Any, device: Any, stats: Any) -> Health:
    """What `whoami`, a device's row and the account's use tell together."""
    account = read(_Account, who, "the account")
    row = read(_Device, device, "the device")
    quotas = read(_Stats, stats, "the account's use").quota
    real = quotas.real if quotas else None
    return Health(
        account=account.name or account.public_id,
        device_status=row.status,
        queue_length=row.queue,
        quota=None if real is None else Quota(real.used, real.limit, real.resets_at),
        calibration_id=row.calibration_id,
        emulated=row.emulated,
    )


def device_of(name: str, payload: Any) -> Device | None:
    """A calibration; None if it has no id, by which another would be told from it."""
    found = read(_Calibration, payload, "the calibration")
    if found.id is None:
        return None
    readouts = {row.index: row for row in (found.measured.qubits or () if found.measured else ())}
    qubits = {}
    for row in found.qubits or ():
        readout = readouts.get(row.index, row)
        # The two come from fits of their own, whose errors can put T2 beyond its bound.
        t2_us = row.t2_us if row.t1_us is None or row.t2_us is None else min(row.t2_us, 2 * row.t1_us)
        qubits[row.index] = Qubit(
            t1_us=row.t1_us,
            t2_us=t2_us,
            gate_fidelity=row.gate_fidelity,
            readout_0=readout.readout_fidelity_0,
            readout_1=readout.readout_fidelity_1,
        )
    couplers = {
        (min(coupler.qubits), max(coupler.qubits)): coupler.cz_fidelity
        for coupler in found.couplers or ()
        if set(coupler.qubits) <= set(qubits) and len(set(coupler.qubits)) == 2
    }
    return Device(name, found.id, qubits, couplers)
