"""What the provider check finds, on providers that are as a test makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

import pytest

from models.device import Device, Qubit
from service.check import Finding, asymmetric_circuit, check, pattern, table
from service.providers.base import (
    DeviceOfflineError,
    Health,
    JobState,
    Limits,
    LostJobError,
    Measured,
    NotMeasured,
    OperatorNeededError,
    Outcome,
    Program,
    ProviderError,
    Quota,
    UnreachableError,
)

pytestmark = pytest.mark.anyio

T = TypeVar("T")

N = 11
HEALTH = Health("Ada", "online", 3, Quota(5, 300, "2030-01-01T23:00:00+08:00"), "cal-7", emulated=True)
LIMITS = Limits(1000, 8192, 1024, 156, 50)
LINE = Device(
    "Baihua",
    "cal-7",
    {number: Qubit(gate_fidelity=0.999, readout_0=0.97, readout_1=0.9) for number in range(20, 32)},
    {(number, number + 1): 0.99 for number in range(20, 31)},
)


@dataclass
class FakeProvider:
    """Answers what it is told; `ProviderError`s are raised.

    Attributes:
        states: One after the other, the last for ever.
    """

    healthy: Health | ProviderError = HEALTH
    limited: Limits | ProviderError = LIMITS
    calibrated: Device | ProviderError | None = LINE
    submitted: str | ProviderError = "job-1"
    states: list[JobState | ProviderError] = field(default_factory=lambda: [JobState.ENDED])
    outcome: Outcome = field(default_factory=lambda: measured(pattern(N)))
    programs: list[Program] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    repeatable: bool = True

    async def health(self) -> Health:
        return _given(self.healthy)

    async def limits(self) -> Limits:
        return _given(self.limited)

    async def device(self) -> Device | None:
        return _given(self.calibrated)

    async def submit(self, programs: Sequence[Program], token: str) -> str:
        assert str(UUID(token)) == token
        self.programs += programs
        return _given(self.submitted)

    async def status(self, job_id: str) -> JobState:
        return _given(self.states.pop(0) if len(self.states) > 1 else self.states[0])

    async def result(self, job_id: str, programs: Sequence[Program]) -> list[Outcome]:
        return [self.outcome]

    async def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    async def close(self) -> None:
        raise AssertionError("the check does not own the provider")


def _given(answer: T | ProviderError) -> T:
    if isinstance(answer, ProviderError):
        raise answer
    return answer


def measured(bits: str, noise: int = 100) -> Measured:
    """Mostly one bitstring; the rest flips every bit."""
    flipped = bits.translate(str.maketrans("01", "10"))
    return Measured({bits: 1024 - noise, flipped: noise}, tuple(range(20, 31)), "cal-7", emulated=True)


async def found(provider: FakeProvider, **options: float) -> dict[str, Finding]:
    findings = await check(provider, shots=10_240, **{"timeout_seconds": 5.0, "poll_seconds": 0.001, **options})
    by_name = {finding.what: finding for finding in findings}
    assert len(by_name) == len(findings)
    return by_name


def failed(findings: dict[str, Finding]) -> dict[str, str]:
    return {finding.what: finding.found for finding in findings.values() if not finding.ok}


# --- the circuit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_qubits", range(2, 17))
def test_the_pattern_differs_from_its_mirror_image_everywhere_but_in_the_middle(n_qubits: int) -> None:
    bits = pattern(n_qubits)
    assert len(bits) == n_qubits
    assert sum(a == b for a, b in zip(bits, reversed(bits), strict=True)) == n_qubits % 2


@pytest.mark.parametrize("n_qubits", range(5, 17))
def test_the_pattern_differs_from_itself_shifted_by_a_few_qubits(n_qubits: int) -> None:
    bits = pattern(n_qubits)
    assert all(bits[shift:] + bits[:shift] != bits for shift in (1, 2, 3, 4))


def test_the_circuit_prepares_the_pattern() -> None:
    circuit = asymmetric_circuit(N)
    assert {gate.qubits[0] for gate in circuit.gates} == {q for q, bit in enumerate(pattern(N)) if bit == "1"}
    assert {(gate.name, gate.angle) for gate in circuit.gates} == {("rx", math.pi)}


# --- all is well ----------------------------------------------------------------------------------------------


async def test_a_provider_that_works_passes_everything() -> None:
    provider = FakeProvider(states=[JobState.QUEUED, JobState.RUNNING, JobState.ENDED])
    findings = await found(provider)
    assert failed(findings) == {}
    assert {name: finding.found for name, finding in findings.items()} == {
        "account": "Ada",
        "device": "online",
        "runs on": "an emulator",
        "queue": "3 jobs before a new one",
        "quota": "5 circuits used of 300, reset at 2030-01-01T23:00:00+08:00",
        "shots": "10,240 as 5,120 + 5,120; the device takes 1,000 to 8,192 in steps of 1,024",
        "qubits": "at most 156, a job needs 11",
        "circuits": "at most 50 in one job",
        "calibration": findings["calibration"].found,
        "circuit": "1,024 shots on the qubits 20,21,22,23,24,25,26,27,28,29,30, calibration cal-7, emulated",
        "bit order": "as expected; |<Z>| is least on qubit 0, 0.805",
    }
    assert findings["calibration"].found.startswith("cal-7, best chain 2")
    assert provider.cancelled == []


async def test_the_circuit_has_the_fewest_shots_and_lies_on_the_best_chain() -> None:
    provider = FakeProvider()
    await found(provider)
    [program] = provider.programs
    assert program.circuit == asymmetric_circuit(N)
    assert program.shots == 1024  # the first multiple of the step that is not below the least
    assert program.chain is not None
    assert len(program.chain) == N
    assert all(abs(a - b) == 1 for a, b in zip(program.chain, program.chain[1:], strict=False))


async def test_without_a_calibration_the_provider_places_the_circuit() -> None:
    provider = FakeProvider(calibrated=None)
    assert failed(await found(provider)) == {}
    assert provider.programs[0].chain is None


async def test_what_a_provider_does_not_tell_is_no_failure() -> None:
    silent = Health(None, "online", None, None, None, emulated=False)
    outcome = replace(measured(pattern(N)), physical_qubits=None, calibration_id=None, emulated=False)
    provider = FakeProvider(silent, Limits(1024, None, 1024, None, 1), None, outcome=outcome)
    findings = await found(provider)
    assert failed(findings) == {}
    assert findings["shots"].found == "10,240 in one piece; the device takes 1,024 and more in steps of 1,024"


# --- what is wrong --------------------------------------------------------------------------------------------


async def test_a_reversed_bit_order_is_seen() -> None:
    assert failed(await found(FakeProvider(outcome=measured(pattern(N)[::-1])))) == {
        "bit order": "the bit order is reversed"
    }


async def test_qubits_that_read_wrong_are_named() -> None:
    bits = list(pattern(N))
    bits[3], bits[8] = (str(1 - int(bits[3])), str(1 - int(bits[8])))
    findings = await found(FakeProvider(outcome=measured("".join(bits))))
    assert failed(findings) == {"bit order": "<Z> of the qubits 3,8 has the wrong sign"}


async def test_a_bit_order_that_is_shifted_by_one_is_no_reversal() -> None:
    shifted = pattern(N)[1:] + pattern(N)[:1]
    assert "wrong sign" in failed(await found(FakeProvider(outcome=measured(shifted))))["bit order"]


NOT_RUN = "not run, for what is wrong above"


@pytest.mark.parametrize(
    ("change", "what", "message"),
    [
        ({"healthy": OperatorNeededError("the token is refused")}, "account", "the token is refused"),
        ({"healthy": replace(HEALTH, device_status="calibrating")}, "device", "calibrating"),
        ({"healthy": replace(HEALTH, quota=Quota(300, 300, None))}, "quota", "300 circuits used of 300"),
        ({"limited": UnreachableError("nobody there")}, "limits", "nobody there"),
        ({"limited": replace(LIMITS, shots_step=1000)}, "shots", "multiple of 1000"),
        ({"limited": replace(LIMITS, max_qubits=10)}, "qubits", "at most 10, a job needs 11"),
        ({"calibrated": UnreachableError("nobody there")}, "calibration", "nobody there"),
        ({"calibrated": Device("Baihua", "cal-7", {0: Qubit()}, {})}, "calibration", "cal-7"),
    ],
)
async def test_no_circuit_is_paid_for_while_something_is_wrong(change: dict[str, Any], what: str, message: str) -> None:
    provider = FakeProvider(**change)
    wrong = failed(await found(provider))
    assert set(wrong) == {what, "circuit"}
    assert message in wrong[what]
    assert wrong["circuit"] == NOT_RUN
    assert provider.programs == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"submitted": DeviceOfflineError("calibrating")}, "calibrating"),
        ({"states": [LostJobError("never heard of it")]}, "never heard of it"),
        ({"outcome": NotMeasured("the fridge is warm")}, "the fridge is warm"),
    ],
)
async def test_a_circuit_that_does_not_run_says_why(change: dict[str, Any], message: str) -> None:
    findings = await found(FakeProvider(**change))
    assert failed(findings) == {"circuit": message}
    assert "bit order" not in findings


async def test_a_status_that_cannot_be_had_is_asked_for_again() -> None:
    assert failed(await found(FakeProvider(states=[UnreachableError("a hiccup"), JobState.ENDED]))) == {}


async def test_a_circuit_that_does_not_end_in_time_is_cancelled() -> None:
    provider = FakeProvider(states=[JobState.QUEUED])
    wrong = failed(await found(provider, timeout_seconds=0.02))
    assert wrong == {"circuit": "job job-1 did not end within 0.02 s and was cancelled"}
    assert provider.cancelled == ["job-1"]


# --- for the terminal -----------------------------------------------------------------------------------------


async def test_progress_is_told_line_by_line() -> None:
    lines: list[str] = []
    provider = FakeProvider(states=[JobState.QUEUED, UnreachableError("a hiccup"), JobState.ENDED])
    await check(provider, shots=10_240, poll_seconds=0.001, progress=lines.append)
    assert lines == [
        "asking for the account and the device",
        "asking for the limits and the calibration",
        "submitted 1,024 shots as job job-1",
        "job job-1 is queued",
        "job job-1: a hiccup",
        "job job-1 is ended",
    ]


def test_a_table_has_a_line_for_each_finding() -> None:
    findings = [Finding("account", True, "Ada"), Finding("bit order", False, "the bit order is reversed")]
    assert table(findings) == "ok    account    Ada\nFAIL  bit order  the bit order is reversed"


async def test_chain_that_is_set_is_used_whatever_the_calibration_says() -> None:
    provider = FakeProvider()
    findings = await check(provider, shots=10_240, chain=tuple(range(31, 19, -1)))
    assert [program.chain for program in provider.programs] == [tuple(range(31, 20, -1))]
    (calibration,) = [finding for finding in findings if finding.what == "calibration"]
    assert "chain as set" in calibration.found


async def test_chain_of_qubits_that_the_device_does_not_have_fails_at_the_calibration() -> None:
    provider = FakeProvider()
    findings = await check(provider, shots=10_240, chain=tuple(range(40, 52)))
    (calibration,) = [finding for finding in findings if finding.what == "calibration"]
    assert not calibration.ok
    assert "QD_QUAFU_CHAIN" in calibration.found
    assert provider.programs == []
