"""The HTTP protocol of Quafu-SQC against a loopback platform."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from providing import UUID, Reply, Stub, platform, program

from models.qasm import to_qasm2
from service.errors import SettingsError
from service.providers.base import (
    Health,
    JobState,
    Limits,
    LostJobError,
    MalformedAnswerError,
    Measured,
    NotMeasured,
    OperatorNeededError,
    Outcome,
    ProviderError,
    ProviderName,
    QuotaExhaustedError,
    RejectedError,
    UncertainSubmitError,
    UnreachableError,
)
from service.providers.make import make_provider
from service.providers.quafu import QuafuProvider
from service.providers.quafu_sqc import QuafuSqcProvider

pytestmark = pytest.mark.anyio

TOKEN = "SecretOfTheTests/=123"
# Qubit 0 is nearly always 1, qubit 2 never; c[0] is rightmost on the wire.
RESULT = {"count": {"001": 900, "011": 100, "000": 24}, "corrected": {}, "status": "Finished", "tid": 77, "error": ""}


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A platform where all is well."""
    with platform() as stub:
        stub.set("POST", "/task/run/", Reply(body=77))
        stub.set("GET", "/task/status/77", Reply(body="Finished"))
        stub.set("GET", "/task/result/77", Reply(body=RESULT))
        stub.set("GET", "/task/cancel/77", Reply(body="ok"))
        stub.set("GET", "/task/status/0", Reply(body={"Baihua": 3, "Miaofeng": "Offline"}))
        stub.set("GET", "/task/verify", Reply(body="ok"))
        yield stub


@pytest.fixture
async def provider(stub: Stub) -> Any:
    provider = QuafuSqcProvider(stub.url, TOKEN, "Baihua", timeout_seconds=0.3)
    yield provider
    await provider.close()


# --- submissions ----------------------------------------------------------------------------------------------


async def test_a_submission_is_raw_json_with_its_shots_in_the_query(stub: Stub, provider: QuafuSqcProvider) -> None:
    one = program(shots=10_240)
    assert await provider.submit([one], UUID) == "77"
    [request] = stub.received
    assert request.query == {"name": [f"qd-{UUID}"], "chip": ["Baihua"], "shots": ["10240"]}
    assert request.headers["token"] == TOKEN
    assert "content-type" not in request.headers
    assert request.json == {
        "circuit": to_qasm2(one.circuit),
        "compile": True,
        "options": {"compiler": "quarkcircuit", "correct": False, "open_dd": None, "target_qubits": []},
    }


async def test_a_chain_is_where_the_platform_is_to_put_the_circuit(stub: Stub, provider: QuafuSqcProvider) -> None:
    await provider.submit([program(chain=(124, 125, 126))], UUID)
    assert stub.received[0].json["options"]["target_qubits"] == [124, 125, 126]


async def test_two_programs_do_not_travel_in_one_task(stub: Stub, provider: QuafuSqcProvider) -> None:
    with pytest.raises(RejectedError, match="2 programs in one job, expected 1"):
        await provider.submit([program(), program()], UUID)
    assert stub.received == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(body="shots must be a multiple of 1024"), RejectedError),
        (Reply(body="unexpected token ';'"), RejectedError),
        (Reply(body={"error": "chip not found"}), RejectedError),
        (Reply(body=0), RejectedError),
        (Reply(body=-1), RejectedError),
        (Reply(body=True), RejectedError),
        (Reply(body=7.0), RejectedError),
        (Reply(body="77"), RejectedError),
        (Reply(body=None), RejectedError),
        (Reply(body=b"<html>"), RejectedError),
        (Reply(404, 404), RejectedError),
        (Reply(body="invalid token"), OperatorNeededError),
        (Reply(body={"detail": "the token has expired"}), OperatorNeededError),
        (Reply(401, "no"), OperatorNeededError),
        (Reply(429, "later"), QuotaExhaustedError),
        (Reply(500, {"error": "?"}), UncertainSubmitError),
        (Reply(502, b"<html>bad gateway</html>"), UncertainSubmitError),
        (Reply(500, 77), UncertainSubmitError),
        (Reply(hang=True), UncertainSubmitError),
        (Reply(drop=True), UncertainSubmitError),
        (Reply(body=77, headers={"Content-Length": "9"}), UncertainSubmitError),
    ],
)
async def test_every_answer_to_a_submission_that_is_no_id_has_its_class(
    stub: Stub, provider: QuafuSqcProvider, reply: Reply, expected: type[ProviderError]
) -> None:
    stub.set("POST", "/task/run/", reply)
    with pytest.raises(ProviderError) as caught:
        await provider.submit([program()], UUID)
    assert type(caught.value) is expected
    # Never a second time: it would be paid for twice.
    assert len(stub.received) == 1


async def test_a_refusal_quotes_the_platform(stub: Stub, provider: QuafuSqcProvider) -> None:
    stub.set("POST", "/task/run/", Reply(body="shots must be a multiple of 1024"))
    with pytest.raises(RejectedError, match="shots must be a multiple of 1024"):
        await provider.submit([program()], UUID)


async def test_a_connection_that_never_opened_is_only_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    provider = QuafuSqcProvider(url, TOKEN, "Baihua")
    with pytest.raises(UnreachableError):
        await provider.submit([program()], UUID)
    await provider.close()


# --- states and results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "result", "state"),
    [
        ("Pending", {}, JobState.QUEUED),
        ("Queued", {}, JobState.QUEUED),
        ("Running", {}, JobState.RUNNING),
        ("Finished", RESULT, JobState.ENDED),
        ("Finished", {}, JobState.RUNNING),
        ("Finished", {"status": "Running", "tid": 77}, JobState.RUNNING),
        ("Finished", {"count": {}, "status": "Failed", "error": "?"}, JobState.ENDED),
        ("Failed", {}, JobState.ENDED),
        ("Cancelled", {}, JobState.ENDED),
    ],
)
async def test_a_task_has_ended_when_its_counts_are_there(
    stub: Stub, provider: QuafuSqcProvider, word: str, result: Any, state: JobState
) -> None:
    stub.set("GET", "/task/status/77", Reply(body=word))
    stub.set("GET", "/task/result/77", Reply(body=result))
    assert await provider.status("77") is state


@pytest.mark.parametrize("word", ["Resting", None, 3, ["Running"], {"status": "Running"}])
async def test_an_unknown_status_is_malformed(stub: Stub, provider: QuafuSqcProvider, word: Any) -> None:
    stub.set("GET", "/task/status/77", Reply(body=word))
    with pytest.raises(MalformedAnswerError, match="expected one of"):
        await provider.status("77")


async def test_counts_come_back_with_qubit_0_leftmost(stub: Stub, provider: QuafuSqcProvider) -> None:
    assert await provider.result("77", [program()]) == [
        Measured({"100": 900, "110": 100, "000": 24}, None, None, emulated=False)
    ]


async def test_a_result_knows_its_chain_and_whether_it_is_emulated(stub: Stub, provider: QuafuSqcProvider) -> None:
    stub.set("GET", "/task/result/77", Reply(body=RESULT | {"emulated": True, "calibration_id": "cal-7"}))
    [outcome] = await provider.result("77", [program(chain=(4, 5, 6))])
    assert isinstance(outcome, Measured)
    assert (outcome.physical_qubits, outcome.calibration_id, outcome.emulated) == ((4, 5, 6), "cal-7", True)


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ({"count": {}, "status": "Failed", "error": "the fridge is warm"}, NotMeasured("the fridge is warm")),
        ({"count": {}, "status": "Failed", "error": "cancelled"}, NotMeasured("cancelled", cancelled=True)),
        ({"status": "Cancelled"}, NotMeasured("the provider gives no reason", cancelled=True)),
        ({}, NotMeasured("the provider gives no reason")),
    ],
)
async def test_a_task_without_counts_says_why(
    stub: Stub, provider: QuafuSqcProvider, result: Any, outcome: Outcome
) -> None:
    stub.set("GET", "/task/status/77", Reply(body="Failed"))
    stub.set("GET", "/task/result/77", Reply(body=result))
    assert await provider.result("77", [program()]) == [outcome]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (RESULT | {"count": {"01": 1024}}, "'01', expected 3 bits"),
        (RESULT | {"count": {"0 1": 1024}}, "'0 1', expected 3 bits"),
        (RESULT | {"count": {"001": -1, "000": 2}}, "counted -1 times"),
        (RESULT | {"count": {"001": 1.5}}, "counted 1.5 times"),
        (RESULT | {"count": {"001": 0}}, "no shots"),
        (RESULT | {"count": [1]}, "the counts are"),
        (RESULT | {"count": None}, "has no count"),
        ({}, "has no count"),
        ([], "the result is"),
        (b"<html>", "expected JSON"),
        (b"", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
    ],
)
async def test_a_result_that_is_not_what_the_protocol_says_is_malformed(
    stub: Stub, provider: QuafuSqcProvider, answer: Any, message: str
) -> None:
    stub.set("GET", "/task/result/77", Reply(body=answer))
    with pytest.raises(MalformedAnswerError, match=message):
        await provider.result("77", [program()])


@pytest.mark.parametrize("reply", [Reply(body="there is no task 77"), Reply(404, {"detail": "Not Found"})])
async def test_a_task_that_the_platform_does_not_know_is_lost(
    stub: Stub, provider: QuafuSqcProvider, reply: Reply
) -> None:
    stub.set("GET", "/task/status/77", reply)
    stub.set("GET", "/task/result/77", reply)
    for call in (provider.status("77"), provider.result("77", [program()])):
        with pytest.raises(LostJobError):
            await call


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(500, "?"), UnreachableError),
        (Reply(503, b"<html>"), UnreachableError),
        (Reply(hang=True), UnreachableError),
        (Reply(drop=True), UnreachableError),
        (Reply(body="invalid token"), OperatorNeededError),
        (Reply(401, {"detail": "?"}), OperatorNeededError),
    ],
)
async def test_every_error_of_a_question_has_its_class(
    stub: Stub, provider: QuafuSqcProvider, reply: Reply, expected: type[ProviderError]
) -> None:
    for path in ("status/77", "result/77", "cancel/77", "status/0"):
        stub.set("GET", f"/task/{path}", reply)
    for call in (provider.status("77"), provider.result("77", [program()]), provider.cancel("77"), provider.health()):
        with pytest.raises(ProviderError) as caught:
            await call
        assert type(caught.value) is expected


async def test_too_many_requests_say_when_to_try_again(stub: Stub, provider: QuafuSqcProvider) -> None:
    stub.set("GET", "/task/status/77", Reply(429, "later", {"Retry-After": "90"}))
    with pytest.raises(QuotaExhaustedError) as caught:
        await provider.status("77")
    assert caught.value.retry_after_seconds == 90


async def test_cancelling_asks_for_it_and_a_second_time_is_harmless(stub: Stub, provider: QuafuSqcProvider) -> None:
    stub.set("GET", "/task/cancel/77", Reply(body="ok"), Reply(body={"error": "already finished"}))
    await provider.cancel("77")
    await provider.cancel("77")
    assert len(stub.received) == 2


# --- limits, device, health -----------------------------------------------------------------------------------


async def test_limits_are_the_documented_ones_and_no_calibration_is_published(provider: QuafuSqcProvider) -> None:
    assert await provider.limits() == Limits(1024, None, 1024, None, 1)
    assert await provider.device() is None


@pytest.mark.parametrize(
    ("queues", "word", "length"),
    [
        ({"Baihua": 3}, "online", 3),
        ({"Baihua": 0}, "online", 0),
        ({"Baihua": "Offline"}, "offline", None),
        ({"Dongling": 3}, "offline", None),
    ],
)
async def test_health_is_read_from_the_queues(
    stub: Stub, provider: QuafuSqcProvider, queues: Any, word: str, length: int | None
) -> None:
    stub.set("GET", "/task/status/0", Reply(body=queues))
    assert await provider.health() == Health(None, word, length, None, None, emulated=False)


async def test_health_names_the_account_and_an_emulator(stub: Stub, provider: QuafuSqcProvider) -> None:
    stub.set("GET", "/task/verify", Reply(body={"user": "Ada", "emulated": True}))
    assert await provider.health() == Health("Ada", "online", 3, None, None, emulated=True)


@pytest.mark.parametrize("queues", [[], "busy", {"Baihua": -1}, {"Baihua": None}, {"Baihua": True}])
async def test_queues_that_cannot_be_are_malformed(stub: Stub, provider: QuafuSqcProvider, queues: Any) -> None:
    stub.set("GET", "/task/status/0", Reply(body=queues))
    with pytest.raises(MalformedAnswerError):
        await provider.health()


async def test_a_token_that_is_not_verified_needs_an_operator(stub: Stub, provider: QuafuSqcProvider) -> None:
    stub.set("GET", "/task/verify", Reply(body=False))
    with pytest.raises(OperatorNeededError):
        await provider.health()


# --- settings and secrets -------------------------------------------------------------------------------------


async def test_no_proxy_of_the_environment_is_heeded(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    provider = QuafuSqcProvider(stub.url, TOKEN, "Baihua", timeout_seconds=0.3)
    assert await provider.status("77") is JobState.ENDED
    await provider.close()


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("ftp://quafu.example", TOKEN, "QD_QUAFU_URL"),
        ("quafu.example", TOKEN, "QD_QUAFU_URL"),
        ("https://me:secret@quafu.example", TOKEN, "QD_QUAFU_URL"),
        ("https://quafu.example:port", TOKEN, "QD_QUAFU_URL"),
        (None, "", "QD_QUAFU_TOKEN"),
        (None, " \n", "QD_QUAFU_TOKEN"),
        (None, "SecretOfTheTests\r\nX: y", "QD_QUAFU_TOKEN"),
        (None, "SecretOfTheTests—", "QD_QUAFU_TOKEN"),
    ],
)
def test_an_impossible_url_or_token_is_refused_by_its_variable(url: str | None, token: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        QuafuSqcProvider(url, token, "Baihua")
    assert "SecretOfTheTests" not in str(caught.value)


async def test_each_name_makes_its_provider() -> None:
    made = [make_provider(name, None, "qf_abc", "Baihua") for name in ProviderName]
    assert [(type(provider), provider.repeatable) for provider in made] == [
        (QuafuProvider, True),
        (QuafuSqcProvider, False),
    ]
    for provider in made:
        await provider.close()


ECHO = f"the key {TOKEN} is an invalid token"


@pytest.mark.parametrize(
    "call",
    [
        lambda provider: provider.submit([program()], UUID),
        lambda provider: provider.status("77"),
        lambda provider: provider.result("77", [program()]),
        lambda provider: provider.cancel("77"),
        lambda provider: provider.health(),
    ],
    ids=["submit", "status", "result", "cancel", "health"],
)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, ECHO),
        Reply(200, f"welcome {TOKEN}"),
        Reply(401, {"detail": ECHO}),
        Reply(500, ECHO.encode()),
        Reply(200, ECHO.encode()),
        Reply(200, {"count": {TOKEN: 1}, "Baihua": [TOKEN]}),
        Reply(200, f'"welcome {TOKEN}"'.replace("/", r"\/").encode()),
        Reply(drop=True),
    ],
    ids=["complaint", "word", "401", "500", "text", "json", "escaped", "drop"],
)
async def test_no_error_and_no_log_holds_the_token_even_if_the_platform_quotes_it(
    stub: Stub,
    provider: QuafuSqcProvider,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[QuafuSqcProvider], Any],
    reply: Reply,
) -> None:
    caplog.set_level(logging.DEBUG)
    for path in ("status/77", "result/77", "cancel/77", "status/0", "verify"):
        stub.set("GET", f"/task/{path}", reply)
    stub.set("POST", "/task/run/", reply)
    error = None
    try:
        await call(provider)
    except ProviderError as exc:
        error = exc
    assert error is None or TOKEN not in "".join(traceback.format_exception(error))
    assert stub.received
    assert TOKEN not in caplog.text
