"""The emulator as a client of the Quafu-SQC protocol sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from emulating import PAIR, TOKEN, Running, emulator, ended, qasm, until

NAME = "Baihua"


@pytest.fixture
def running() -> Iterator[Running]:
    with emulator() as running:
        yield running


def submit(http: httpx.Client, circuit: str, shots: int | str = 10240, chip: str = NAME, **members: Any) -> Any:
    """What the platform answers; the body has no content type, as the vendor's client sends it."""
    body = json.dumps({"circuit": circuit, "compile": True, "options": {}} | members)
    return http.post("/task/run/", params={"name": "test", "chip": chip, "shots": shots}, content=body).json()


def finished(http: httpx.Client, tid: int) -> dict[str, Any]:
    until(lambda: http.get(f"/task/result/{tid}").json() != {})
    result: dict[str, Any] = http.get(f"/task/result/{tid}").json()
    return result


def test_10240_shots_run_in_one_task(running: Running) -> None:
    with running.http() as http:
        tid = submit(http, qasm([0]))
        assert isinstance(tid, int)
        result = finished(http, tid)
        assert http.get(f"/task/status/{tid}").json() == "Finished"
    # Classical bit 0 is rightmost.
    assert result["count"] == {"001": 10240}
    assert (result["status"], result["tid"], result["error"], result["corrected"]) == ("Finished", tid, "", {})
    assert result["emulated"] is True
    assert result["calibration_id"] == running.client().device(NAME).calibration_id


def test_task_that_waits_has_no_result_and_counts_in_the_queue(running: Running) -> None:
    running.sampler.released.clear()
    with running.http() as http:
        tids = [submit(http, qasm()), submit(http, qasm())]
        assert [http.get(f"/task/result/{tid}").json() for tid in tids] == [{}, {}]
        assert [http.get(f"/task/status/{tid}").json() for tid in tids] == ["Running", "Running"]
        assert http.get("/task/status/0").json() == {NAME: 2}


def test_a_repeated_submission_runs_again(running: Running) -> None:
    with running.http() as http:
        tids = [submit(http, qasm()), submit(http, qasm())]
        assert len(set(tids)) == 2
        for tid in tids:
            finished(http, tid)
    assert len(running.sampler.works) == 2
    assert [entry["job_id"] for entry in running.ledger()] == tids


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shots": 1500}, "multiple of 1024"),
        ({"shots": 0}, "multiple of 1024"),
        ({"shots": "many"}, "multiple of 1024"),
        ({"chip": "Dongling"}, "Dongling"),
        ({"circuit": "nonsense"}, "nonsense"),
        ({"options": {"target_qubits": [124, 125, 999]}}, "target_qubits"),
        ({"options": {"target_qubits": "124"}}, "target_qubits"),
    ],
)
def test_what_cannot_run_is_refused_in_prose(running: Running, changes: dict[str, Any], reason: str) -> None:
    with running.http() as http:
        refusal = submit(http, **({"circuit": qasm()} | changes))
    assert isinstance(refusal, str)
    assert reason in refusal
    assert running.ledger() == []


def test_used_up_quota_is_refused_in_prose() -> None:
    with emulator(daily_quota=1) as running, running.http() as http:
        assert isinstance(submit(http, qasm()), int)
        assert "1 of 1" in submit(http, qasm())
        answer = http.post(f"/task/run/?chip={NAME}&shots=1024", content=json.dumps({"circuit": qasm()}))
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 24 * 3600


@pytest.mark.parametrize("headers", [{}, {"token": "qf_0another"}, {"Authorization": f"Bearer {TOKEN}"}])
def test_missing_or_wrong_token_is_refused(running: Running, headers: dict[str, str]) -> None:
    for path in ("/task/status/0", "/task/verify", "/task/result/1"):
        assert httpx.get(running.url + path, headers=headers).status_code == 401


def test_target_qubits_choose_the_chain(running: Running) -> None:
    with running.http() as http:
        finished(http, submit(http, qasm(n_qubits=2), options={"target_qubits": list(PAIR)}))
    assert running.sampler.works[0].target_qubits == PAIR
    assert not running.sampler.works[0].physical


def test_circuit_that_is_not_to_be_compiled_must_be_physical(running: Running) -> None:
    text = qasm(n_qubits=2).replace("measure", "cx q[0],q[1];\nmeasure", 1)
    with running.http() as http:
        assert "native" in submit(http, text, compile=False)


def test_cancelled_task_has_failed_and_a_second_cancel_is_harmless() -> None:
    with emulator(queue_seconds=3600.0) as running, running.http() as http:
        tid = submit(http, qasm())
        answers = [http.get(f"/task/cancel/{tid}") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert http.get(f"/task/status/{tid}").json() == "Failed"
        result = http.get(f"/task/result/{tid}").json()
    assert (result["count"], result["error"]) == ({}, "cancelled")


def test_failed_task_says_why(running: Running) -> None:
    running.sampler.broken = True
    with running.http() as http:
        result = finished(http, submit(http, qasm()))
    assert (result["status"], result["count"], result["error"]) == ("Failed", {}, "broken by hand")


def test_both_protocols_share_one_chip_and_keep_their_jobs_apart(running: Running) -> None:
    running.sampler.released.clear()
    with running.http() as http:
        tid = submit(http, qasm([0]))
        job = running.client().submit(qasm([1]), NAME)
        assert http.get("/task/status/0").json() == {NAME: 2}
        assert "no task" in http.get("/task/status/2").json()
        running.sampler.released.set()
        assert ended(job) == "Finished"
        assert finished(http, tid)["count"] == {"001": 10240}
    assert [work.qasm for work in running.sampler.works] == [qasm([0]), qasm([1])]
