"""What `qdserve check --provider` looks at: account, device, limits, calibration, and a circuit run on the device.

The circuit flips a pattern of qubits that differs from its mirror image everywhere but in the middle, so that a bit
order taken the wrong way round is seen.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import numpy as np

from models.circuit import Circuit, Gate
from models.device import best_chain
from models.errors import StudentError
from models.observables import expvals_from_counts
from service.hardware.shots import split_shots
from service.providers.base import (
    Health,
    HoldError,
    JobState,
    Limits,
    Measured,
    NotMeasured,
    Program,
    Provider,
    ProviderError,
    RejectedError,
)

T = TypeVar("T")

_BACKOFF = 1.5
_MOST_POLL_SECONDS = 15.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        ok: Whether jobs can run with it as it is.
        found: For people.
    """

    what: str
    ok: bool
    found: str


async def check(
    provider: Provider,
    *,
    shots: int,
    chain_length: int = 11,
    chain: tuple[int, ...] | None = None,
    timeout_seconds: float = 600.0,
    poll_seconds: float = 1.0,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Finding]:
    """Look at everything that a job needs; if all is well, run a circuit with the fewest shots that the device takes.

    Args:
        provider: Is left open.
        shots: Of a job's circuits.
        chain_length: Qubits of a job's circuits.
        chain: Physical qubits to use instead of the best chain; at least as many.
        timeout_seconds: How long to wait for the circuit before it is cancelled.
        poll_seconds: Until the first look at it; the next ones come more and more rarely.
        progress: Told what is being done, a line each.
    """
    findings: list[Finding] = []

    async def asked(what: str, answer: Awaitable[T]) -> T | None:
        try:
            return await answer
        except ProviderError as exc:
            findings.append(Finding(what, False, str(exc)))
            return None

    progress("asking for the account and the device")
    health = await asked("account", provider.health())
    if health is not None:
        findings += _of_health(health)
    progress("asking for the limits and the calibration")
    limits = await asked("limits", provider.limits())
    if limits is not None:
        findings += _of_limits(limits, shots, chain_length)
    calibration = await asked("calibration", _calibration(provider, chain_length, chain))
    used = None
    if calibration is not None:
        finding, used = calibration
        findings.append(finding)
    if limits is None or not all(finding.ok for finding in findings):
        return [*findings, Finding("circuit", False, "not run, for what is wrong above")]
    program = Program(asymmetric_circuit(chain_length), least_shots(limits), used)
    measured = await asked("circuit", _run(provider, program, timeout_seconds, poll_seconds, progress))
    if measured is not None:
        findings += _of_run(program, measured)
    return findings


def table(findings: list[Finding]) -> str:
    """Findings as lines for a terminal."""
    width = max((len(finding.what) for finding in findings), default=0)
    return "\n".join(
        f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what:<{width}}  {finding.found}" for finding in findings
    )


def pattern(n_qubits: int) -> str:
    """Bits, qubit 0 leftmost, of which each differs from its mirror image but for one in the middle.

    The left half is the Thue-Morse sequence, which seldom repeats: a shift by a few qubits is seen as well.
    """
    left = [q.bit_count() % 2 for q in range(n_qubits // 2)]
    middle = [1] * (n_qubits % 2)
    return "".join(str(bit) for bit in [*left, *middle, *(1 - bit for bit in reversed(left))])


def asymmetric_circuit(n_qubits: int) -> Circuit:
    """Prepares `pattern`: R_X(pi) on every qubit whose bit is 1."""
    return Circuit(n_qubits, tuple(Gate("rx", (q,), math.pi) for q, bit in enumerate(pattern(n_qubits)) if bit == "1"))


def least_shots(limits: Limits) -> int:
    """The fewest shots that the device takes."""
    return math.ceil(limits.min_shots / limits.shots_step) * limits.shots_step


def _of_health(health: Health) -> list[Finding]:
    quota = health.quota
    left = quota is None or quota.limit is None or quota.used < quota.limit
    return [
        Finding("account", True, health.account or "the token is accepted"),
        Finding("device", health.device_status == "online", health.device_status),
        Finding("runs on", True, "an emulator" if health.emulated else "a chip, as far as the provider says"),
        Finding(
            "queue", True, "not told" if health.queue_length is None else f"{health.queue_length} jobs before a new one"
        ),
        Finding("quota", left, "not told" if quota is None else _quota(quota.used, quota.limit, quota.resets_at)),
    ]


def _quota(used: int, limit: int | None, resets_at: str | None) -> str:
    of = "no limit" if limit is None else f"{limit:,}"
    return f"{used:,} circuits used of {of}" + (f", reset at {resets_at}" if resets_at else "")


def _of_limits(limits: Limits, shots: int, n_qubits: int) -> list[Finding]:
    most = "and more" if limits.max_shots is None else f"to {limits.max_shots:,}"
    device = f"the device takes {limits.min_shots:,} {most} in steps of {limits.shots_step:,}"
    try:
        parts = split_shots(shots, limits)
    except RejectedError as exc:
        fit = Finding("shots", False, str(exc))
    else:
        pieces = "in one piece" if len(parts) == 1 else "as " + " + ".join(f"{part:,}" for part in parts)
        fit = Finding("shots", True, f"{shots:,} {pieces}; {device}")
    most_qubits = limits.max_qubits or n_qubits
    return [
        fit,
        Finding("qubits", most_qubits >= n_qubits, f"at most {limits.max_qubits or 'all'}, a job needs {n_qubits}"),
        Finding("circuits", True, f"at most {limits.max_programs:,} in one job"),
    ]


async def _calibration(
    provider: Provider, chain_length: int, chain: tuple[int, ...] | None
) -> tuple[Finding, tuple[int, ...] | None]:
    device = await provider.device()
    if chain is not None:
        unknown = [] if device is None else [qubit for qubit in chain if qubit not in device.qubits]
        if unknown:
            return Finding("calibration", False, f"QD_QUAFU_CHAIN: {_list(tuple(unknown))} are no qubits there"), None
        calibration = "none is published" if device is None else device.calibration_id
        return Finding("calibration", True, f"{calibration}, chain as set {_list(chain)}"), chain[:chain_length]
    if device is None:
        return Finding("calibration", True, "none is published; the provider places the circuits"), None
    try:
        chain = best_chain(device, chain_length)
    except StudentError as exc:
        return Finding("calibration", False, f"{device.calibration_id}: {exc}"), None
    return Finding("calibration", True, f"{device.calibration_id}, best chain {_list(chain)}"), chain


async def _run(
    provider: Provider,
    program: Program,
    timeout_seconds: float,
    poll_seconds: float,
    progress: Callable[[str], None],
) -> Measured | NotMeasured:
    """Submit one program and wait for its outcome.

    Raises:
        HoldError: If it did not run in time; it was cancelled.
    """
    job_id = await provider.submit([program], str(uuid.uuid4()))
    progress(f"submitted {program.shots:,} shots as job {job_id}")
    until = monotonic() + timeout_seconds
    while monotonic() < until:
        await asyncio.sleep(min(poll_seconds, max(0.0, until - monotonic())))
        poll_seconds = min(_BACKOFF * poll_seconds, _MOST_POLL_SECONDS)
        try:
            state = await provider.status(job_id)
            progress(f"job {job_id} is {state.value}")
            if state is JobState.ENDED:
                [outcome] = await provider.result(job_id, [program])
                return outcome
        except HoldError as exc:
            progress(f"job {job_id}: {exc}")
    await provider.cancel(job_id)
    raise HoldError(f"job {job_id} did not end within {timeout_seconds:g} s and was cancelled")


def _of_run(program: Program, outcome: Measured | NotMeasured) -> list[Finding]:
    if isinstance(outcome, NotMeasured):
        return [Finding("circuit", False, outcome.detail)]
    n = program.circuit.n_qubits
    expvals = expvals_from_counts(outcome.counts, n)
    expected = np.array([1.0 if bit == "0" else -1.0 for bit in pattern(n)])
    facts = [
        f"{sum(outcome.counts.values()):,} shots on the qubits {_list(outcome.physical_qubits or ['not told'])}",
        f"calibration {outcome.calibration_id or 'not told'}",
        "emulated" if outcome.emulated else "on a chip",
    ]
    return [Finding("circuit", True, ", ".join(facts)), _bit_order(expvals, expected)]


def _bit_order(expvals: np.ndarray, expected: np.ndarray) -> Finding:
    margins = expvals * expected
    if (margins > 0).all():
        worst = int(margins.argmin())
        return Finding("bit order", True, f"as expected; |<Z>| is least on qubit {worst}, {margins[worst]:.3f}")
    if (expvals[::-1] * expected > 0).all():
        return Finding("bit order", False, "the bit order is reversed")
    wrong = _list(np.flatnonzero(margins <= 0).tolist())
    return Finding("bit order", False, f"<Z> of the qubits {wrong} has the wrong sign")


def _list(items: Iterable[object]) -> str:
    return ",".join(str(item) for item in items)
