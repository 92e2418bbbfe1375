"""quafu-sdk itself against a loopback platform."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from providing import JOB, UUID, Reply, Stub, platform, program
from quafu import _limits

from models.circuit import Circuit, Gate
from models.device import Qubit
from models.native import to_native
from models.qasm import to_qasm2
from service.errors import SettingsError
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
from service.providers.quafu import QuafuProvider

pytestmark = pytest.mark.anyio

TOKEN = "qf_SecretOfTheTests123"
API = "/api/v1"
LIMITS = {
    "min_shots": 1024,
    "max_shots": 8192,
    "shots_step": 1024,
    "max_qubits": 156,
    "qubit_count": "declared",
    "max_tasks_per_job": 50,
    "max_depth": None,
}
ROW = {"name": "Baihua", "status": "online", "n_qubits": 156, "queue": 3, "calibration_id": "cal-7"}
# Qubit 0 is nearly always 1, qubit 2 never; c[0] is rightmost on the wire.
COUNTS = {"001": 900, "011": 100, "000": 24}
TASK: dict[str, Any] = {
    "task_id": f"{JOB}-0",
    "status": "Finished",
    "kind": "real",
    "result": {"counts": COUNTS, "bit_order": "c0_rightmost", "n_clbits": 3, "shots_returned": 1024},
    "circuit": {
        "measurements": [
            {"cbit": 2, "physical_qubit": 126, "virtual_qubit": 2},
            {"cbit": 0, "physical_qubit": 124, "virtual_qubit": 0},
            {"cbit": 1, "physical_qubit": 125, "virtual_qubit": 1},
        ]
    },
    "execution": {"shots_requested": 1024},
    "calibration": {"id": "cal-7"},
    "job": {"seq": 0},
}


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A platform where all is well."""
    # The SDK keeps limits by address, and addresses come back.
    _limits.clear_cache()
    with platform() as stub:
        stub.set("GET", f"{API}/backends/Baihua/metadata", Reply(body={"limits": LIMITS}))
        stub.set("POST", f"{API}/jobs", Reply(201, {"job_id": JOB, "task_ids": [f"{JOB}-0"], "status": "Queued"}))
        stub.set("GET", f"{API}/jobs/{JOB}/status", Reply(body=status("Finished")))
        stub.set("GET", f"{API}/jobs/{JOB}/tasks/0", Reply(body=TASK))
        stub.set("POST", f"{API}/jobs/{JOB}/cancel", Reply(body={"status": "Cancelled"}))
        stub.set("GET", f"{API}/devices/Baihua", Reply(body=ROW))
        stub.set("GET", f"{API}/auth/me", Reply(body={"user": {"public_id": "u1", "name": "Ada"}}))
        stub.set("GET", f"{API}/stats/me", Reply(body={"quota": {"real": None}}))
        yield stub


@pytest.fixture
async def provider(stub: Stub) -> Any:
    provider = QuafuProvider(stub.url, TOKEN, "Baihua", timeout_seconds=0.3, submit_timeout_seconds=0.3)
    yield provider
    await provider.close()


def status(word: Any, total: Any = 1) -> dict[str, Any]:
    return {"status": word, "open": False, "counts": {"total": total}}


def task(**members: Any) -> dict[str, Any]:
    return TASK | members


def result(**members: Any) -> dict[str, Any]:
    return task(result=TASK["result"] | members)


# --- submissions ----------------------------------------------------------------------------------------------


async def test_a_submission_carries_its_token_as_the_name_the_platform_knows_it_by(
    stub: Stub, provider: QuafuProvider
) -> None:
    assert await provider.submit([program()], UUID) == JOB
    assert await provider.submit([program()], UUID) == JOB
    first, second = stub.sent_to("POST", f"{API}/jobs")
    assert first.json["client_ref"] == UUID
    assert second.json == first.json


async def test_the_repetitions_of_the_sdk_carry_it_too(stub: Stub) -> None:
    provider = QuafuProvider(stub.url, TOKEN, "Baihua", submit_timeout_seconds=10)
    stub.set("POST", f"{API}/jobs", Reply(500, {"error": "?"}), Reply(201, {"job_id": JOB}))
    assert await provider.submit([program()], UUID) == JOB
    assert [request.json["client_ref"] for request in stub.sent_to("POST", f"{API}/jobs")] == [UUID, UUID]
    await provider.close()


async def test_submissions_at_once_keep_their_own_tokens(stub: Stub, provider: QuafuProvider) -> None:
    tokens = [f"token-{number}" for number in range(12)]
    programs = [program(shots=1024 * (1 + number % 8)) for number in range(12)]
    await asyncio.gather(*(provider.submit([p], token) for p, token in zip(programs, tokens, strict=True)))
    sent = {r.json["client_ref"]: r.json["circuits"][0]["shots"] for r in stub.sent_to("POST", f"{API}/jobs")}
    assert sent == {token: p.shots for p, token in zip(programs, tokens, strict=True)}


async def test_programs_without_chains_are_compiled_by_the_platform(stub: Stub, provider: QuafuProvider) -> None:
    programs = [program(shots=5120), program(2, shots=1024, chain=(4, 5))]
    await provider.submit(programs, UUID)
    [request] = stub.sent_to("POST", f"{API}/jobs")
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.json == {
        "mode": "collection",
        "target": "Baihua",
        "shots": 5120,
        "circuit_level": "logical",
        "circuits": [{"qasm": to_qasm2(p.circuit), "shots": p.shots} for p in programs],
        "name": f"qd-{UUID}",
        "client_ref": UUID,
    }


async def test_programs_on_chains_are_sent_in_the_chips_gates_on_its_qubits_and_not_compiled(
    stub: Stub, provider: QuafuProvider
) -> None:
    chain = (125, 124, 7)
    gates = (Gate("rx", (0,), 0.5), Gate("ry", (2,), 1e-7), Gate("cx", (0, 1)), Gate("rx", (1,), 0.25))
    circuit = Circuit(3, gates)
    await provider.submit([Program(circuit, 1024, chain)], UUID)
    [request] = stub.sent_to("POST", f"{API}/jobs")
    assert request.json["circuit_level"] == "physical"
    lines = request.json["circuits"][0]["qasm"].splitlines()
    assert lines[:4] == ["OPENQASM 2.0;", 'include "qelib1.inc";', "qreg q[126];", "creg c[3];"]
    assert lines[-3:] == ["measure q[125] -> c[0];", "measure q[124] -> c[1];", "measure q[7] -> c[2];"]
    assert "cz q[125],q[124];" in lines
    assert "ry(0.000000100000) q[7];" in lines
    sent = [re.fullmatch(r"(\w+)(?:\((.+)\))? (.+);", line) for line in lines[4:-3]]
    expected = [
        (gate.name, None if gate.angle is None else f"{gate.angle:.12f}", [f"q[{chain[q]}]" for q in gate.qubits])
        for gate in to_native(circuit).gates
    ]
    assert [(gate[1], gate[2], gate[3].split(",")) for gate in sent if gate] == expected


async def test_a_job_id_that_cannot_be_one_is_malformed(stub: Stub, provider: QuafuProvider) -> None:
    stub.set("POST", f"{API}/jobs", Reply(201, {"job_id": {"id": 1}}))
    with pytest.raises(MalformedAnswerError, match="expected letters and digits"):
        await provider.submit([program()], UUID)


# --- states and results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("Queued", JobState.QUEUED),
        ("Running", JobState.RUNNING),
        ("Finished", JobState.ENDED),
        ("PartiallyFinished", JobState.ENDED),
        ("Failed", JobState.ENDED),
        ("Cancelled", JobState.ENDED),
    ],
)
async def test_every_status_of_the_platform_has_its_state(
    stub: Stub, provider: QuafuProvider, word: str, state: JobState
) -> None:
    stub.set("GET", f"{API}/jobs/{JOB}/status", Reply(body=status(word)))
    assert await provider.status(JOB) is state


@pytest.mark.parametrize("word", ["Resting", None, ["Running"], {}])
async def test_an_unknown_status_is_malformed(stub: Stub, provider: QuafuProvider, word: Any) -> None:
    stub.set("GET", f"{API}/jobs/{JOB}/status", Reply(body=status(word)))
    with pytest.raises(MalformedAnswerError, match="expected one of"):
        await provider.status(JOB)


async def test_counts_come_back_with_qubit_0_leftmost_and_physical_qubits_in_its_order(
    stub: Stub, provider: QuafuProvider
) -> None:
    assert await provider.result(JOB, [program()]) == [
        Measured({"100": 900, "110": 100, "000": 24}, (124, 125, 126), "cal-7", emulated=False)
    ]


async def test_outcomes_are_in_the_order_of_the_programs(stub: Stub, provider: QuafuProvider) -> None:
    outcomes = await _outcomes(
        stub,
        provider,
        task(),
        task(status="Failed", error={"category": "runtime.hardware", "detail": "the fridge is warm"}, result=None),
        task(status="Cancelled", result=None),
        result(counts={"111": 1000}, shots_returned=1000),
    )
    assert [type(outcome) for outcome in outcomes] == [Measured, NotMeasured, NotMeasured, Measured]
    assert outcomes[1] == NotMeasured("runtime.hardware: the fridge is warm")
    assert outcomes[2] == NotMeasured("cancelled at the provider", cancelled=True)
    assert isinstance(outcomes[3], Measured)
    assert outcomes[3].counts == {"111": 1000}


async def test_what_the_platform_does_not_say_is_none_and_what_is_emulated_says_so(
    stub: Stub, provider: QuafuProvider
) -> None:
    [outcome] = await _outcomes(stub, provider, task(circuit=None, calibration=None, emulated=True))
    assert isinstance(outcome, Measured)
    assert (outcome.physical_qubits, outcome.calibration_id, outcome.emulated) == (None, None, True)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (result(counts={"01": 1024}), "'01', expected 3 bits"),
        (result(counts={"0x1": 1024}), "'0x1', expected 3 bits"),
        (result(counts={"001": -1, "000": 1025}), "001 was counted -1 times"),
        (result(counts={"001": 1024.0}), "001 was counted 1024.0 times"),
        (result(counts={"001": "1024"}), "001 was counted '1024' times"),
        (result(counts={"001": True}), "001 was counted True times"),
        (result(counts={}), "no shots"),
        (result(counts={"000": 0}, shots_returned=0), "no shots"),
        (result(counts=None), "the counts are None, expected an object"),
        (result(counts=[1, 2]), "the counts are None, expected an object"),
        (result(shots_returned=1023), "shots_returned is 1023, expected 1024"),
        (result(shots_returned="many"), "shots_returned is 'many', expected 1024"),
        (result(bit_order="c0_leftmost"), "bit_order is 'c0_leftmost', expected 'c0_rightmost'"),
        (result(bit_order=None), "bit_order is None"),
        (result(n_clbits=11), "n_clbits is 11, expected 3"),
        (task(result=None), "the counts are None"),
        (task(result=[1]), "cannot read the platform's answer"),
        (task(status="Running"), "its status is 'Running' in a job that has ended"),
        (task(status=None), "its status is None"),
        (task(job={"seq": 4}), "its number is 4, expected 0"),
        (task(job="first"), "cannot read the platform's answer"),
        (task(calibration={"id": 7}), "calibration.id is 7"),
        (task(emulated="no"), "emulated is 'no'"),
        (task(circuit={"measurements": [{"cbit": 0, "physical_qubit": 1}]}), r"bits \[0\] are measured, expected 0"),
        (
            task(circuit={"measurements": [{"cbit": bit, "physical_qubit": 1} for bit in range(3)]}),
            "expected different ones",
        ),
        ([task()], "not what its protocol says"),
        (b"<html>", "not what its protocol says"),
        (b"", "not what its protocol says"),
        (b"[" * 100_000, "cannot read the platform's answer"),
    ],
)
async def test_a_result_that_is_not_what_the_protocol_says_is_malformed(
    stub: Stub, provider: QuafuProvider, answer: Any, message: str
) -> None:
    with pytest.raises(MalformedAnswerError, match=message):
        await _outcomes(stub, provider, answer)


@pytest.mark.parametrize("total", [2, 0, None, "1", 10**9])
async def test_a_job_with_another_number_of_tasks_is_malformed(stub: Stub, provider: QuafuProvider, total: Any) -> None:
    stub.set("GET", f"{API}/jobs/{JOB}/status", Reply(body=status("Finished", total)))
    with pytest.raises(MalformedAnswerError, match="tasks, expected 1"):
        await provider.result(JOB, [program()])


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(401, {"code": "invalid_api_key", "error": "?"}), OperatorNeededError),
        (Reply(403, {"code": "forbidden", "error": "no chips for you"}), OperatorNeededError),
        (Reply(426, {"code": "client_outdated", "error": "?"}), OperatorNeededError),
        (Reply(429, {"code": "runtime.quotaExhausted", "error": "?"}), QuotaExhaustedError),
        (Reply(429, {"code": "too_many_jobs", "error": "?"}), QuotaExhaustedError),
        (
            Reply(429, {"code": "runtime.quotaExhausted", "vars": {"hard_limit": 0, "wait_s": None}}),
            QuotaExhaustedError,
        ),
        (Reply(429, {"code": "runtime.quotaExhausted", "vars": {"hard_limit": 9, "wait_s": None}}), RejectedError),
        (Reply(413, {"code": "job_too_large", "error": "?"}), RejectedError),
        (Reply(413, b"<html>"), RejectedError),
        (Reply(409, {"code": "runtime.deviceUnavailable", "error": "calibrating"}), DeviceOfflineError),
        (Reply(422, {"code": "precheck.shotsOutOfRange", "error": "?"}), RejectedError),
        (Reply(400, {"code": "invalid_request", "error": "?"}), RejectedError),
        (Reply(404, {"code": "unknown_device", "error": "?"}), RejectedError),
        (Reply(500, {"error": "?"}), UnreachableError),
        (Reply(502, b"<html>bad gateway</html>"), UnreachableError),
        (Reply(hang=True), UnreachableError),
        (Reply(drop=True), UnreachableError),
        (Reply(302, b"", {"Location": "http://elsewhere"}), MalformedAnswerError),
        (Reply(404, {"error": "no such path"}), MalformedAnswerError),
        (Reply(201, {"task_ids": []}), MalformedAnswerError),
        (Reply(201, b"{"), MalformedAnswerError),
        (Reply(201, [JOB]), MalformedAnswerError),
    ],
)
async def test_every_error_of_a_submission_has_its_class(
    stub: Stub, provider: QuafuProvider, reply: Reply, expected: type[ProviderError]
) -> None:
    stub.set("POST", f"{API}/jobs", reply)
    with pytest.raises(ProviderError) as caught:
        await provider.submit([program()], UUID)
    assert type(caught.value) is expected
    assert str(caught.value).isascii()


async def test_an_error_says_what_the_platform_said(stub: Stub, provider: QuafuProvider) -> None:
    said = {"code": "precheck.depth", "error_category": "precheck.depth", "error": "太深", "detail": "depth 900 > 800"}
    stub.set("POST", f"{API}/jobs", Reply(422, said))
    with pytest.raises(RejectedError, match=r"\(HTTP 422, precheck.depth: 太深: depth 900 > 800\)"):
        await provider.submit([program()], UUID)


async def test_a_job_that_the_platform_does_not_know_is_lost(stub: Stub, provider: QuafuProvider) -> None:
    unknown = Reply(404, {"code": "not_found", "error": "?"})
    stub.set("GET", f"{API}/jobs/{JOB}/status", unknown)
    stub.set("POST", f"{API}/jobs/{JOB}/cancel", unknown)
    for call in (provider.status(JOB), provider.result(JOB, [program()]), provider.cancel(JOB)):
        with pytest.raises(LostJobError):
            await call


async def test_a_task_that_is_missing_from_its_job_is_malformed(stub: Stub, provider: QuafuProvider) -> None:
    stub.set("GET", f"{API}/jobs/{JOB}/tasks/0", Reply(404, {"code": "not_found", "error": "?"}))
    with pytest.raises(MalformedAnswerError):
        await provider.result(JOB, [program()])


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "90"}, {}, 90),
        ({}, {"retry_after": 30}, 30),
        ({}, {"vars": {"resets_at": (datetime.now(UTC) + timedelta(hours=5)).isoformat()}}, 5 * 3600),
        # Without a zone, it is Beijing's time.
        ({}, {"vars": {"resets_at": f"{datetime.now(UTC) + timedelta(hours=13):%Y-%m-%dT%H:%M:%S}"}}, 5 * 3600),
        ({}, {"vars": {"resets_at": "2020-01-01T23:00:00+08:00"}}, 0),
    ],
)
async def test_a_quota_error_says_when_to_try_again(
    stub: Stub, provider: QuafuProvider, headers: dict[str, str], body: dict[str, Any], seconds: float
) -> None:
    stub.set("POST", f"{API}/jobs", Reply(429, {"code": "runtime.quotaExhausted", **body}, headers))
    with pytest.raises(QuotaExhaustedError) as caught:
        await provider.submit([program()], UUID)
    # The times above were made when the tests were collected, which may be a while ago; a zone would be hours off.
    assert caught.value.retry_after_seconds == pytest.approx(seconds, abs=1800 if seconds > 3600 else 0)


@pytest.mark.parametrize("body", [{}, {"vars": {"resets_at": "soon"}}, {"vars": {"resets_at": 5}}, {"vars": ["x"]}])
async def test_a_quota_error_without_a_time_names_none(stub: Stub, provider: QuafuProvider, body: Any) -> None:
    stub.set("POST", f"{API}/jobs", Reply(429, {"code": "runtime.quotaExhausted", **body}))
    with pytest.raises((QuotaExhaustedError, MalformedAnswerError)) as caught:
        await provider.submit([program()], UUID)
    assert getattr(caught.value, "retry_after_seconds", None) is None


async def test_a_platform_that_is_not_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    provider = QuafuProvider(url, TOKEN, "Baihua", timeout_seconds=0.3)
    with pytest.raises(UnreachableError, match="does not answer"):
        await provider.status(JOB)
    await provider.close()


async def test_a_short_fault_is_bridged_by_the_sdk(stub: Stub) -> None:
    provider = QuafuProvider(stub.url, TOKEN, "Baihua", timeout_seconds=10)
    stub.set("GET", f"{API}/jobs/{JOB}/status", Reply(drop=True), Reply(503, b""), Reply(body=status("Running")))
    assert await provider.status(JOB) is JobState.RUNNING
    await provider.close()


async def test_a_closed_provider_sends_nothing_more(stub: Stub) -> None:
    provider = QuafuProvider(stub.url, TOKEN, "Baihua", timeout_seconds=10)
    stub.set("GET", f"{API}/jobs/{JOB}/status", Reply(drop=True))
    asking = asyncio.create_task(provider.status(JOB))
    while not stub.received:
        await asyncio.sleep(0.01)
    await provider.close()
    with pytest.raises(UnreachableError):
        await asking
    assert len(stub.received) == 1


# --- limits, device, health -----------------------------------------------------------------------------------


async def test_limits_are_the_devices_own_and_asked_for_once(stub: Stub, provider: QuafuProvider) -> None:
    assert await provider.limits() == Limits(1024, 8192, 1024, 156, 50)
    assert await provider.limits() == Limits(1024, 8192, 1024, 156, 50)
    assert len(stub.sent_to("GET", f"{API}/backends/Baihua/metadata")) == 1


async def test_a_refused_submission_makes_the_limits_be_read_anew(stub: Stub, provider: QuafuProvider) -> None:
    await provider.limits()
    stub.set("GET", f"{API}/backends/Baihua/metadata", Reply(body={"limits": LIMITS | {"max_shots": 4096}}))
    with pytest.raises(RejectedError, match="5120"):
        await provider.submit([program(shots=5120)], UUID)
    assert stub.sent_to("POST", f"{API}/jobs") == []
    assert (await provider.limits()).max_shots == 4096


@pytest.mark.parametrize("metadata", [{"limits": None}, {"limits": {}}, {}])
async def test_limits_that_are_not_given_do_not_limit(stub: Stub, provider: QuafuProvider, metadata: Any) -> None:
    stub.set("GET", f"{API}/backends/Baihua/metadata", Reply(body=metadata))
    assert await provider.limits() == Limits(1, None, 1, None, 1)


@pytest.mark.parametrize(
    "limits", [{"min_shots": 0}, {"shots_step": "1024"}, {"max_shots": True}, [], {"min_shots": 9, "max_shots": 8}]
)
async def test_limits_that_cannot_be_are_malformed(stub: Stub, provider: QuafuProvider, limits: Any) -> None:
    stub.set("GET", f"{API}/backends/Baihua/metadata", Reply(body={"limits": limits}))
    with pytest.raises(MalformedAnswerError):
        await provider.limits()


CALIBRATION = {
    "id": "cal-7",
    "chip": "Baihua",
    "qubits": [
        {"index": 0, "t1_us": 70, "t2_us": 300.0, "gate_fidelity": 0.999},
        {"index": 1, "t1_us": None, "t2_us": 20.0, "gate_fidelity": 1.7},
        {"index": 2},
    ],
    "couplers": [{"qubits": [1, 0], "cz_fidelity": 0.98}, {"qubits": [1, 2]}, {"qubits": [2, 9], "cz_fidelity": 0.9}],
    "measured": {"qubits": [{"index": 0, "readout_fidelity_0": 0.97, "readout_fidelity_1": 0.9}]},
}


async def test_a_calibration_becomes_a_device_and_what_is_not_measured_is_none(
    stub: Stub, provider: QuafuProvider
) -> None:
    stub.set("GET", f"{API}/devices/Baihua/calibration", Reply(body=CALIBRATION))
    device = await provider.device()
    assert device is not None
    assert (device.name, device.calibration_id) == ("Baihua", "cal-7")
    assert device.qubits == {
        0: Qubit(70.0, 140.0, 0.999, 0.97, 0.9),  # T2 is at most 2 T1
        1: Qubit(None, 20.0, None, None, None),
        2: Qubit(),
    }
    assert device.couplers == {(0, 1): 0.98, (1, 2): None}


async def test_a_calibration_is_fetched_again_only_when_it_has_changed(stub: Stub, provider: QuafuProvider) -> None:
    path = f"{API}/devices/Baihua/calibration"
    stub.set("GET", path, Reply(body=CALIBRATION), Reply(body=CALIBRATION | {"id": "cal-8"}))
    for _ in range(3):
        await provider.device()
    assert len(stub.sent_to("GET", path)) == 1
    stub.set("GET", f"{API}/devices/Baihua", Reply(body=ROW | {"calibration_id": "cal-8"}))
    device = await provider.device()
    assert device is not None
    assert device.calibration_id == "cal-8"


@pytest.mark.parametrize(
    "reply", [Reply(404, {"code": "not_found", "error": "no calibration"}), Reply(body={"id": None, "qubits": []})]
)
async def test_a_device_without_a_calibration_is_none(stub: Stub, provider: QuafuProvider, reply: Reply) -> None:
    stub.set("GET", f"{API}/devices/Baihua/calibration", reply)
    assert await provider.device() is None


@pytest.mark.parametrize("payload", [{"id": "c", "qubits": {}}, {"id": 3}, {"id": "c", "qubits": [{"index": "0"}]}])
async def test_a_calibration_of_another_form_is_malformed(stub: Stub, provider: QuafuProvider, payload: Any) -> None:
    stub.set("GET", f"{API}/devices/Baihua/calibration", Reply(body=payload))
    with pytest.raises(MalformedAnswerError):
        await provider.device()


async def test_health_is_account_device_queue_and_quota(stub: Stub, provider: QuafuProvider) -> None:
    real = {"used": 5, "limit": 100, "hard_limit": 300, "resets_at": "2030-01-01T23:00:00+08:00"}
    stub.set("GET", f"{API}/stats/me", Reply(body={"quota": {"real": real}}))
    expected = Health("Ada", "online", 3, Quota(5, 300, "2030-01-01T23:00:00+08:00"), "cal-7", emulated=False)
    assert await provider.health() == expected
    stub.set("GET", f"{API}/stats/me", Reply(body={"quota": None}))
    stub.set("GET", f"{API}/devices/Baihua", Reply(body={"status": "calibrating", "emulated": True}))
    assert await provider.health() == replace(
        expected, device_status="calibrating", queue_length=None, quota=None, calibration_id=None, emulated=True
    )


async def test_health_of_an_account_that_is_none_is_malformed(stub: Stub, provider: QuafuProvider) -> None:
    stub.set("GET", f"{API}/auth/me", Reply(body={"user": ["Ada"]}))
    with pytest.raises(MalformedAnswerError):
        await provider.health()


# --- cancelling -----------------------------------------------------------------------------------------------


async def test_cancelling_asks_for_it(stub: Stub, provider: QuafuProvider) -> None:
    await provider.cancel(JOB)
    assert len(stub.sent_to("POST", f"{API}/jobs/{JOB}/cancel")) == 1


async def test_cancelling_what_has_run_is_harmless(stub: Stub, provider: QuafuProvider) -> None:
    over = {"code": "not_cancellable", "error": "?", "vars": {"stage": "finished"}}
    stub.set("POST", f"{API}/jobs/{JOB}/cancel", Reply(409, over))
    await provider.cancel(JOB)


# --- settings and secrets -------------------------------------------------------------------------------------


async def test_nothing_of_the_sdks_environment_is_heeded(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name, value in {
        "QUAFU_API_KEY": "qf_another",
        "QUAFU_BASE_URL": "https://elsewhere.invalid",
        "QUAFU_PROXY": "socks5://nowhere",
        "QUAFU_CA_BUNDLE": "/no/such/file",
        "QUAFU_CONFIG_DIR": str(tmp_path),
        "QUAFU_LANG": "zh",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "credentials.json").write_text("not JSON")
    provider = QuafuProvider(stub.url, TOKEN, "Baihua", timeout_seconds=0.3)
    assert (await provider.health()).account == "Ada"
    assert {request.headers.get("authorization", f"Bearer {TOKEN}") for request in stub.received} == {f"Bearer {TOKEN}"}
    stub.set("POST", f"{API}/jobs", Reply(429, {"code": "too_many_jobs"}))
    with pytest.raises(QuotaExhaustedError) as caught:
        await provider.submit([program()], UUID)
    assert str(caught.value).isascii()
    await provider.close()


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("http://quafu.example", TOKEN, "QD_QUAFU_URL: .*https"),
        ("https://quafu.example/api/v1", TOKEN, "QD_QUAFU_URL: .*path"),
        ("quafu.example", TOKEN, "QD_QUAFU_URL"),
        ("https://quafu.example:port", TOKEN, "QD_QUAFU_URL"),
        (None, "", "QD_QUAFU_TOKEN: .*empty"),
        (None, "  ", "QD_QUAFU_TOKEN: .*empty"),
        (None, "SecretOfTheTests123", "QD_QUAFU_TOKEN: .*qf_"),
        (None, "qf_SecretOfTheTests123\r\nX: y", "QD_QUAFU_TOKEN: .*letters and digits"),
    ],
)
def test_an_impossible_url_or_token_is_refused_by_its_variable(url: str | None, token: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        QuafuProvider(url, token, "Baihua")
    assert "SecretOfTheTests123" not in "".join(traceback.format_exception(caught.value))


ECHO = f"the key {TOKEN} is not welcome"


@pytest.mark.parametrize(
    "call",
    [
        lambda provider: provider.submit([program()], UUID),
        lambda provider: provider.status(JOB),
        lambda provider: provider.result(JOB, [program()]),
        lambda provider: provider.cancel(JOB),
        lambda provider: provider.limits(),
        lambda provider: provider.device(),
        lambda provider: provider.health(),
    ],
    ids=["submit", "status", "result", "cancel", "limits", "device", "health"],
)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(401, {"code": "invalid_api_key", "error": ECHO}),
        Reply(422, {"code": "precheck.other", "error": ECHO, "detail": ECHO}),
        Reply(500, ECHO.encode()),
        Reply(302, b"", {"Location": f"http://elsewhere/?key={TOKEN}"}),
        Reply(200, ECHO.encode()),
        Reply(200, {"status": ECHO, "job_id": ECHO, "limits": ECHO, "user": ECHO, "id": {"x": ECHO}}),
        Reply(drop=True),
    ],
    ids=["401", "422", "500", "302", "text", "json", "drop"],
)
async def test_no_error_and_no_log_holds_the_token_even_if_the_platform_quotes_it(
    stub: Stub,
    provider: QuafuProvider,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[QuafuProvider], Any],
    reply: Reply,
) -> None:
    caplog.set_level(logging.DEBUG)
    for method, path in [
        ("POST", "jobs"),
        ("GET", f"jobs/{JOB}/status"),
        ("POST", f"jobs/{JOB}/cancel"),
        ("GET", "backends/Baihua/metadata"),
        ("GET", "devices/Baihua"),
        ("GET", "auth/me"),
    ]:
        stub.set(method, f"{API}/{path}", reply)
    error = None
    try:
        await call(provider)
    except ProviderError as exc:
        error = exc
    assert error is None or TOKEN not in "".join(traceback.format_exception(error))
    assert stub.received
    assert TOKEN not in caplog.text


async def _outcomes(stub: Stub, provider: QuafuProvider, *answers: Any) -> list[Outcome]:
    stub.set("GET", f"{API}/jobs/{JOB}/status", Reply(body=status("PartiallyFinished", len(answers))))
    for number, answer in enumerate(answers):
        if isinstance(answer, dict) and answer.get("job") == {"seq": 0}:
            answer = answer | {"job": {"seq": number}}
        stub.set("GET", f"{API}/jobs/{JOB}/tasks/{number}", Reply(body=answer))
    return await provider.result(JOB, [program()] * len(answers))
