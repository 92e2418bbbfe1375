"""The emulator as the unmodified quafu-sdk sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
import quafu
from emulating import PAIR, QUICK, Running, emulator, ended, qasm, until
from quafu import _limits

NAME = "Baihua"


@pytest.fixture
def running() -> Iterator[Running]:
    with emulator() as running:
        yield running


def physical(*statements: str, measured: tuple[int, ...] = PAIR) -> str:
    lines = ["OPENQASM 2.0;", 'include "qelib1.inc";', "qreg q[156];", f"creg c[{len(measured)}];", *statements]
    lines += [f"measure q[{qubit}] -> c[{bit}];" for bit, qubit in enumerate(measured)]
    return "\n".join(lines)


def test_job_runs_and_its_result_holds_every_shot(running: Running) -> None:
    job = running.client().submit(qasm([1]), NAME, shots=2048, name="first")
    assert ended(job) == "Finished"
    result = job.result()
    assert result.ok
    assert result.shots_requested == result.shots_returned == 2048
    assert result.n_clbits == 3
    assert result.target == result.backend == NAME
    assert result.executed_qasm.startswith("OPENQASM")
    assert result.raw["emulated"] is True


def test_classical_bit_0_is_rightmost_on_the_wire(running: Running) -> None:
    job = running.client().submit(qasm([0]), NAME)
    ended(job)
    result = job.result()
    assert result.bit_order == "c0_rightmost"
    assert result.counts == {"001": 1024}
    assert result.reorder("c0_leftmost") == {"100": 1024}
    assert result.counts_by_qubit([100, 102]) == {"10": 1024}


def test_many_circuits_travel_in_one_job_and_come_back_in_order(running: Running) -> None:
    job = running.client().submit([qasm([0]), {"qasm": qasm([2]), "shots": 3072, "name": "third"}], NAME)
    assert ended(job) == "Finished"
    first, second = job.results()
    assert (first.counts, second.counts) == ({"001": 1024}, {"100": 3072})
    assert second.name == "third"
    table = job.table()
    assert table.counts == [first.counts, second.counts]
    assert table.complete
    assert table.bit_order == "c0_rightmost"


def test_one_circuit_runs_at_a_time_in_order(running: Running) -> None:
    running.sampler.released.clear()
    client = running.client()
    first, second = client.submit([qasm([0]), qasm([1])], NAME), client.submit(qasm([2]), NAME)
    until(lambda: first.status() == "Running")
    assert second.status() == "Queued"
    assert client.device(NAME).queue == 3
    assert len(running.sampler.works) == 1
    running.sampler.released.set()
    assert ended(second) == "Finished"
    assert [work.qasm for work in running.sampler.works] == [qasm([0]), qasm([1]), qasm([2])]


def test_job_waits_in_the_queue_before_it_starts() -> None:
    with emulator(queue_seconds=3600.0) as running:
        job = running.client().submit(qasm(), NAME)
        assert job.status() == "Queued"
        running.clock.ahead = 3601.0
        assert ended(job) == "Finished"


def test_a_repeated_submission_is_the_first_job(running: Running) -> None:
    body = {"mode": "single", "target": NAME, "shots": 1024, "circuits": [{"qasm": qasm([0])}], "client_ref": "one"}
    headers = {"Authorization": running.client().credential.authorization()}
    answers = [httpx.post(f"{running.url}/api/v1/jobs", json=body, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    ended(running.client().job(answers[0].json()["job_id"]))
    (entry,) = running.ledger()
    assert (entry["client_ref"], entry["replays"]) == ("one", 2)
    assert len(running.sampler.works) == 1


def test_ledger_lists_every_circuit_that_was_accepted(running: Running) -> None:
    client = running.client()
    jobs = [client.submit([qasm([0]), qasm([1])], NAME, shots=2048), client.submit(qasm(), NAME)]
    entries = running.ledger()
    assert [entry["job_id"] for entry in entries] == [job.id for job in jobs]
    circuits = [(circuit["sha256"], circuit["shots"]) for entry in entries for circuit in entry["circuits"]]
    expected = [(qasm([0]), 2048), (qasm([1]), 2048), (qasm(), 1024)]
    assert circuits == [(sha256(text.encode()).hexdigest(), shots) for text, shots in expected]


def test_cancelled_job_runs_nothing_and_a_second_cancel_is_harmless() -> None:
    with emulator(queue_seconds=3600.0) as running:
        job = running.client().submit([qasm(), qasm([0])], NAME)
        assert job.cancel()["cancelled_now"] == 2
        assert job.cancel()["cancelled_now"] == 0
        assert job.status() == "Cancelled"
        with pytest.raises(ValueError, match="2"):
            job.result()
        assert [result.status for result in job.results()] == ["Cancelled", "Cancelled"]
        running.clock.ahead = 3601.0
        later = running.client().submit(qasm([1]), NAME)
        running.clock.ahead = 7202.0
        ended(later)
        assert [work.qasm for work in running.sampler.works] == [qasm([1])]


def test_circuit_cancelled_while_it_runs_gives_nothing(running: Running) -> None:
    running.sampler.released.clear()
    job = running.client().submit(qasm(), NAME)
    until(lambda: job.status() == "Running")
    assert job.cancel()["cancel_requested"] == 1
    running.sampler.released.set()
    ended(running.client().submit(qasm([0]), NAME))
    with pytest.raises(quafu.JobCancelled):
        job.result()


def test_limits_are_published_and_the_client_refuses_by_them(running: Running) -> None:
    client = running.client()
    limits = client.metadata(NAME)["limits"]
    assert limits["qubit_count"] == "active"
    assert (limits["min_shots"], limits["max_shots"], limits["shots_step"]) == (1024, 8192, 1024)
    with pytest.raises(quafu.PrecheckError) as refused:
        client.submit(qasm(), NAME, shots=10240)
    assert refused.value.vars["local"] is True
    assert running.ledger() == []


@pytest.mark.parametrize(
    ("shots", "category"), [(10240, "precheck.shotsOutOfRange"), (1500, "precheck.shotsGranularity")]
)
def test_shots_that_the_device_does_not_take_are_refused(
    running: Running, shots: int, category: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client would not even send them.
    monkeypatch.setattr(_limits, "check", lambda *args, **kwargs: None)
    with pytest.raises(quafu.PrecheckError) as refused:
        running.client().submit([qasm(), {"qasm": qasm(), "shots": shots}], NAME)
    assert refused.value.category == category
    assert refused.value.vars["task_index"] == 1
    assert refused.value.status == 422
    assert running.ledger() == []


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("qreg q[1];", "precheck.circuitInvalid"),
        (qasm().replace("measure", "nonsense q[0];\nmeasure", 1), "precheck.circuitInvalid"),
        (qasm() + "rx(1.0) q[0];", "precheck.circuitInvalid"),
        ("OPENQASM 2.0;\nqreg q[2];\ncreg c[2];\nmeasure q[0] -> c[0];", "precheck.measurement"),
        ("OPENQASM 2.0;\nqreg q[2];\ncreg c[2];\nmeasure q[1] -> c[1];\nmeasure q[0] -> c[0];", "precheck.measurement"),
    ],
    ids=["no measurement", "unknown gate", "gate after measurement", "bit unmeasured", "bits out of order"],
)
def test_circuit_that_no_device_runs_is_refused(running: Running, text: str, category: str) -> None:
    with pytest.raises(quafu.PrecheckError) as refused:
        running.client().submit(text, NAME)
    assert refused.value.category == category


def test_circuit_of_too_many_qubits_is_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "check", lambda *args, **kwargs: None)
    with pytest.raises(quafu.PrecheckError) as refused:
        running.client().submit(qasm(n_qubits=17), NAME)
    assert (refused.value.vars["n_qubits"], refused.value.vars["limit_qubits"]) == (17, 16)


@pytest.mark.parametrize(
    ("statement", "category"),
    [
        ("cx q[124],q[125];", "precheck.nonNativeGate"),
        ("cz q[124],q[0];", "precheck.uncoupledQubits"),
    ],
)
def test_physical_circuit_must_fit_the_chip(running: Running, statement: str, category: str) -> None:
    with pytest.raises(quafu.PrecheckError) as refused:
        running.client().submit(physical(statement), NAME, compiler="none")
    assert refused.value.category == category


def test_physical_circuit_that_fits_is_run_where_it_is(running: Running) -> None:
    text = physical("rx(3.141592653590) q[125];", measured=PAIR)
    job = running.client().submit(text, NAME, compiler="none")
    ended(job)
    assert job.result().counts == {"10": 1024}
    assert running.sampler.works[0].physical


def test_job_of_too_many_circuits_is_refused() -> None:
    with emulator(max_tasks_per_job=2) as running, pytest.raises(quafu.QuotaError) as refused:
        running.client().submit([qasm()] * 3, NAME)
    assert refused.value.code == "job_too_large"
    assert refused.value.vars["max"] == 2


def test_unknown_device_and_job_are_refused(running: Running) -> None:
    client = running.client()
    with pytest.raises(quafu.BadRequest) as refused:
        client.device("Dongling")
    assert refused.value.code == "unknown_device"
    with pytest.raises(quafu.BadRequest):
        client.submit(qasm(), "Dongling")
    for job_id in ("nonsense", "emulated-000001", "1"):
        with pytest.raises(quafu.JobNotFound):
            client.job(job_id)


def test_sweep_is_refused_with_what_is_taken(running: Running) -> None:
    with pytest.raises(quafu.BadRequest, match="collection"):
        running.client().sweep("OPENQASM 2.0;", [("theta", "rad")], [0.1], NAME)


def test_wrong_token_is_refused_and_public_data_needs_none(running: Running) -> None:
    stranger = running.client("qf_0another")
    with pytest.raises(quafu.LoginRevoked) as refused:
        stranger.submit(qasm(), NAME)
    assert refused.value.code == "invalid_api_key"
    (row,) = stranger.devices()
    assert (row["name"], row["kind"], row["status"], row["n_qubits"]) == (NAME, "real", "online", 156)
    assert stranger.metadata(NAME)["emulated"] is True
    assert running.client().whoami()["public_id"] == "emulator"


def test_quota_is_counted_refused_and_reset() -> None:
    with emulator(daily_quota=3) as running:
        client = running.client()
        client.submit([qasm(), qasm([0])], NAME)
        quota = client.stats()["quota"]["real"]
        assert (quota["used"], quota["remaining"], quota["hard_limit"]) == (2, 1, 3)
        with pytest.raises(quafu.QuotaError) as refused:
            client.submit([qasm(), qasm()], NAME)
        assert refused.value.code == "runtime.quotaExhausted"
        assert refused.value.resets_at == quota["resets_at"]
        assert quota["resets_at"].endswith("T23:00:00+08:00")
        assert 0 < refused.value.retry_after <= 24 * 3600
        running.clock.ahead += refused.value.retry_after + 1
        client.submit([qasm(), qasm()], NAME)
        assert client.stats()["quota"]["real"]["used"] == 2


def test_quota_gives_back_what_was_cancelled_in_the_queue() -> None:
    with emulator(queue_seconds=3600.0) as running:
        running.client().submit(qasm(), NAME).cancel()
        assert running.client().stats()["quota"]["real"]["used"] == 0


def test_failed_circuit_says_why(running: Running) -> None:
    running.sampler.broken = True
    job = running.client().submit(qasm(), NAME)
    assert ended(job) == "Failed"
    with pytest.raises(quafu.JobFailed, match="broken by hand") as failed:
        job.result()
    assert (failed.value.error_stage, failed.value.retryable) == ("hardware", False)


def test_calibration_changes_and_old_ones_stay() -> None:
    with emulator(recalibrate_seconds=100.0) as running:
        client = running.client()
        first = client.device(NAME).calibration()
        job = client.submit(qasm(), NAME)
        ended(job)
        assert job.result().calibration_id == first.id == client.device(NAME).calibration_id
        running.clock.ahead = 101.0
        second = client.device(NAME).calibration()
        assert second.id != first.id
        a, b = PAIR
        assert second.coupler(a, b)["cz_fidelity"] != first.coupler(a, b)["cz_fidelity"]
        assert client.calibration(first.id).raw == first.raw
        later = client.submit(qasm(), NAME)
        ended(later)
        assert later.result().calibration_id == second.id
        assert running.sampler.works[-1].device.calibration_id == second.id
        with pytest.raises(quafu.BadRequest):
            client.calibration("unknown")


def test_jobs_survive_a_restart_from_the_state_file(tmp_path: Path) -> None:
    config = replace(QUICK, state=tmp_path / "state.sqlite3")
    with emulator(config, recalibrate_seconds=1e9) as running:
        client = running.client()
        done = client.submit(qasm([0]), NAME)
        ended(done)
        before = done.result()
    with emulator(config, queue_seconds=3600.0) as running:
        waiting = running.client().submit(qasm([1]), NAME)
    with emulator(config) as running:
        client = running.client()
        assert client.job(done.id).result().raw == before.raw
        again = client.job(waiting.id)
        assert ended(again) == "Finished"
        assert again.result().counts == {"010": 1024}
        assert [entry["job_id"] for entry in running.ledger()] == [done.id, waiting.id]
        assert len(running.sampler.works) == 1
