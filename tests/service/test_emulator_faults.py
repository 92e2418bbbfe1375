"""Each fault of the emulator as the real clients see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import quafu
from emulating import TOKEN, Running, emulator, ended, qasm, until

NAME = "Baihua"


@pytest.fixture
def running() -> Iterator[Running]:
    with emulator() as running:
        yield running


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not wait between its tries."""
    monkeypatch.setattr(quafu.client.BaseClient, "_backoff", lambda *args: None)


def submitted(running: Running) -> Any:
    with running.http() as http:
        return http.post(f"/task/run/?name=n&chip={NAME}&shots=1024", content=json.dumps({"circuit": qasm()}))


def test_500_on_submit_is_retried_and_runs_once(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "http_500", "times": 2})
    job = running.client().submit(qasm(), NAME)
    assert ended(job) == "Finished"
    assert [entry["replays"] for entry in running.ledger()] == [0]
    assert httpx.get(f"{running.url}/emulator/faults").json() == []


def test_500_that_stays_is_an_unavailable_server(running: Running) -> None:
    running.set_faults({"on": "any", "fault": "http_500"})
    with pytest.raises(quafu.ServerUnavailable) as failed:
        running.client().submit(qasm(), NAME)
    assert failed.value.status == 500
    assert submitted(running).status_code == 500
    assert running.ledger() == []


def test_429_carries_the_time_of_the_reset(running: Running) -> None:
    resets_at = "2026-09-01T23:00:00+08:00"
    running.set_faults({"on": "submit", "fault": "quota_429", "retry_after": 5, "resets_at": resets_at})
    with pytest.raises(quafu.QuotaError) as refused:
        running.client().submit(qasm(), NAME)
    assert (refused.value.retry_after, refused.value.resets_at) == (5, resets_at)
    answer = submitted(running)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
    assert isinstance(answer.json(), str)


def test_device_that_is_offline_refuses_jobs_and_says_so(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "offline_409"}, {"on": "device", "fault": "offline_409"})
    with pytest.raises(quafu.DeviceUnavailable):
        running.client().submit(qasm(), NAME)
    assert running.client().device(NAME).status == "offline"
    with running.http() as http:
        assert http.get("/task/status/0").json() == {NAME: "Offline"}
    assert submitted(running).status_code == 409


def test_dropped_connection_is_seen_before_the_job_is_made(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "drop"})
    with pytest.raises(quafu.ServerUnavailable) as failed:
        running.client().submit(qasm(), NAME)
    assert failed.value.status is None
    assert failed.value.sent
    with pytest.raises(httpx.RemoteProtocolError):
        submitted(running)
    assert running.ledger() == []


def test_lost_answer_to_a_submission_is_found_again_by_its_reference(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "drop_after", "times": 1})
    job = running.client().submit(qasm(), NAME)
    assert ended(job) == "Finished"
    (entry,) = running.ledger()
    assert (entry["job_id"], entry["replays"]) == (job.id, 1)
    assert len(running.sampler.works) == 1


def test_lost_answer_without_a_reference_leaves_the_task_running(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "drop_after", "times": 1})
    with pytest.raises(httpx.RemoteProtocolError):
        submitted(running)
    (entry,) = running.ledger()
    assert entry["protocol"] == "sqc"


def test_hanging_request_outlasts_the_client_and_is_carried_out(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "hang", "seconds": 0.3})
    body = {"mode": "single", "target": NAME, "shots": 1024, "circuits": [{"qasm": qasm()}], "client_ref": "ref"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.url}/api/v1/jobs", json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=0.05)
    assert running.ledger() == []
    # Others are answered meanwhile.
    assert running.client().device(NAME).status == "online"
    until(lambda: [entry["client_ref"] for entry in running.ledger()] == ["ref"])


def test_page_of_html_is_a_protocol_error(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "not_json"})
    with pytest.raises(quafu.ProtocolError):
        running.client().submit(qasm(), NAME)
    assert running.ledger() == []


@pytest.mark.parametrize(("form", "counts"), [("wrong_width", {"01": 1024}), ("no_counts", None)])
def test_malformed_result_has_the_form_asked_for(running: Running, form: str, counts: dict[str, int] | None) -> None:
    client = running.client()
    job = client.submit(qasm([0]), NAME)
    ended(job)
    running.set_faults({"on": "result", "fault": "malformed", "form": form, "times": 1})
    result = client.job(job.id).results()[0]
    assert (result.status, result.counts, result.n_clbits) == ("Finished", counts, 3)
    assert client.job(job.id).results()[0].counts == {"001": 1024}
    with running.http() as http:
        tid = submitted(running).json()
        until(lambda: http.get(f"/task/result/{tid}").json() != {})
        running.set_faults({"on": "result", "fault": "malformed", "form": form, "times": 1})
        result = http.get(f"/task/result/{tid}").json()
    assert result["status"] == "Finished"
    assert result.get("count") == (counts and {"00": 1024})


def test_fault_of_a_result_waits_for_one_that_is_ready(running: Running) -> None:
    running.sampler.released.clear()
    running.set_faults({"on": "result", "fault": "malformed", "times": 1})
    with running.http() as http:
        tid = submitted(running).json()
        assert http.get(f"/task/result/{tid}").json() == {}
        running.sampler.released.set()
        until(lambda: http.get(f"/task/status/{tid}").json() == "Finished")
        assert list(http.get(f"/task/result/{tid}").json()["count"]) == ["00"]
        assert list(http.get(f"/task/result/{tid}").json()["count"]) == ["000"]


def test_partial_result_has_fewer_shots(running: Running) -> None:
    running.set_faults({"on": "result", "fault": "partial_result"})
    job = running.client().submit(qasm([0]), NAME)
    ended(job)
    result = job.result()
    assert result.shots_returned == sum(result.counts.values()) < result.shots_requested == 1024


def test_failed_job_fails_every_task_and_only_the_next_job(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "fail_job", "times": 1})
    client = running.client()
    job, next_job = client.submit([qasm(), qasm([0])], NAME), client.submit(qasm(), NAME)
    assert ended(job) == "Failed"
    assert [result.error["retryable"] for result in job.results()] == [True, True]
    assert ended(next_job) == "Finished"


def test_partly_failed_job_keeps_what_finished(running: Running) -> None:
    running.set_faults({"on": "submit", "fault": "partial_job"})
    job = running.client().submit([qasm([0]), qasm([1]), qasm([2])], NAME)
    assert ended(job) == "PartiallyFinished"
    results = job.results()
    assert [result.counts for result in results] == [{"001": 1024}, {"010": 1024}, None]
    assert results[-1].error["category"] == "runtime.hardwareFailure"


@pytest.mark.parametrize(
    ("rules", "where"),
    [
        ([{"on": "submit", "fault": "explode"}], "0.fault"),
        ([{"on": "lunch", "fault": "drop"}], "0.on"),
        ([{"on": "submit", "fault": "drop", "often": 3}], "0.often"),
        ([{"on": "submit", "fault": "drop"}, {"on": "any", "fault": "malformed"}], "1"),
        ([{"on": "submit", "fault": "drop", "times": 0}], "0.times"),
        ({"on": "submit", "fault": "drop"}, "body"),
    ],
)
def test_unknown_rule_is_refused_with_what_is_expected(running: Running, rules: Any, where: str) -> None:
    running.set_faults({"on": "result", "fault": "hang", "seconds": 1})
    answer = httpx.put(f"{running.url}/emulator/faults", json=rules)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(f"{where}: ")
    assert {"submit", "any"} <= set(answer.json()["expected"]["on"])
    assert "drop_after" in answer.json()["expected"]["fault"]
    # What was in force still is.
    assert httpx.get(f"{running.url}/emulator/faults").json() == [{"on": "result", "fault": "hang", "seconds": 1}]


def test_deleted_rules_are_gone(running: Running) -> None:
    running.set_faults({"on": "any", "fault": "drop"})
    assert httpx.delete(f"{running.url}/emulator/faults").json() == []
    assert ended(running.client().submit(qasm(), NAME)) == "Finished"
