"""`backend=baihua` by real processes: services, workers, emulators and Valkeys, of which any may be killed."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import numpy as np
import pytest
from needs import needs_mindquantum
from processes import Process, Site, Valkey, refused, runs, serving, site, submissions_by_circuit, until

from models.bundle import SHIPPED, load_bundle
from models.embedder import Embedder, find_embedder

pytestmark = needs_mindquantum

SHOTS = 10_240
SUBMIT_500 = {"on": "submit", "fault": "http_500", "times": 5}


@dataclass(frozen=True)
class Case:
    """Faults, and what is expected of a job that meets them.

    Attributes:
        rules: Of the emulator. quafu-sdk itself makes up to five attempts where there is no answer or a 5xx.
        reasons: Why the job was held, each time that it was.
        problem: Why it failed; None if it is done.
    """

    rules: list[dict[str, Any]]
    reasons: list[str]
    problem: str | None = None


QUICK = {
    "500 a few times": Case([{"on": "any", "fault": "http_500", "times": 3}], []),
    "500 at a submission": Case([SUBMIT_500], ["provider-unreachable"]),
    "quota": Case([{"on": "submit", "fault": "quota_429", "times": 1, "retry_after": 2}], ["quota-exhausted"]),
    "offline": Case([{"on": "submit", "fault": "offline_409", "times": 1}], ["device-offline"]),
    "connection dropped before": Case([{"on": "submit", "fault": "drop", "times": 2}], []),
    "connection dropped after": Case([{"on": "submit", "fault": "drop_after", "times": 2}], []),
    "page of HTML": Case([{"on": "submit", "fault": "not_json", "times": 2}], ["malformed-answer"] * 2),
    # A circuit travels in two pieces, whose results are asked for one by one.
    "result malformed": Case([{"on": "result", "fault": "malformed", "times": 2}], ["malformed-answer"]),
    "job fails": Case([{"on": "submit", "fault": "fail_job", "times": 1}], [], "circuit-failed"),
}
SLOW = {
    # Longer than the client waits for an answer.
    "hang": Case([{"on": "status", "fault": "hang", "times": 1, "seconds": 60}], ["provider-unreachable"]),
    "500 at everything": Case(
        [SUBMIT_500, SUBMIT_500 | {"on": "status"}, SUBMIT_500 | {"on": "result"}], ["provider-unreachable"] * 3
    ),
    "result stays malformed": Case(
        [{"on": "result", "fault": "malformed", "form": "no_counts"}], ["malformed-answer"] * 4, "malformed-result"
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        events: The job after each of its changes.
        held: The lines that the worker logged when it held it.
        submissions: What the emulator accepted meanwhile.
    """

    events: list[dict[str, Any]]
    held: list[dict[str, Any]]
    submissions: list[dict[str, Any]]

    @property
    def job(self) -> dict[str, Any]:
        return self.events[-1]


def play(on: Site, inputs: Any, *rules: dict[str, Any]) -> Outcome:
    """A job under rules, from the request to its end."""
    (worker,) = on.workers_at_work()
    n_held, n_submitted = len(worker.lines("held")), len(on.ledger())
    on.set_faults(*rules)
    answer = on.classify(inputs)
    assert answer.status_code == 202, answer.text
    events = on.events(answer.json()["id"])
    on.set_faults()
    return Outcome(events, worker.lines("held")[n_held:], on.ledger()[n_submitted:])


def check(outcome: Outcome, case: Case) -> None:
    """That a job ended as expected, was held as told, with pauses that grow, and was submitted once."""
    job = outcome.job
    assert job["status"] == ("failed" if case.problem else "done")
    if case.problem:
        assert job["error"]["type"] == f"urn:qd:problem:{case.problem}"
        assert job["error"]["status"] == 502
    else:
        assert "error" not in job
        assert [result["shots"] for result in job["results"]] == [SHOTS]
    shown = {event["held"]["until"]: event["held"] for event in outcome.events if "held" in event}
    assert [held["reason"] for held in shown.values()] == case.reasons
    assert [line["reason"] for line in outcome.held] == case.reasons
    waits = [rule.get("retry_after", 0) for rule in case.rules]
    for line in outcome.held:
        # 1, 2, 4... seconds, of which up to a half is left out at random; logged with one decimal.
        longest = 2.0 ** (line["attempts"] - 1)
        assert max(longest / 2, *waits) - 0.05 <= line["next_seconds"] <= max(longest, *waits) + 0.05
    assert {line["attempts"] for line in outcome.held} <= set(range(1, len(outcome.held) + 1))
    (submission,) = outcome.submissions
    assert job["provider_jobs"] == [submission["job_id"]]
    assert len(submission["circuits"]) == 2


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    valkey = Valkey(tmp_path_factory.mktemp("valkey"))
    try:
        valkey.start()
        yield valkey.url
    finally:
        valkey.kill()


@pytest.fixture(scope="module", autouse=True)
def slow(
    tmp_path_factory: pytest.TempPathFactory, bundles_dir: Path, redis_url: str
) -> Iterator[dict[str, Future[Outcome]]]:
    """Outcomes of the slow cases, which are played beside the other tests."""
    with ThreadPoolExecutor(1) as player, site(tmp_path_factory.mktemp("slow"), bundles_dir, redis_url) as own:
        yield {name: player.submit(play, own, f"a text for {name}", *case.rules) for name, case in SLOW.items()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, bundles_dir: Path, redis_url: str) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("shared"), bundles_dir, redis_url) as found:
        yield found


# --- processes that are killed ------------------------------------------------------------------------------------


def test_killed_workers_lose_no_job_and_pay_for_no_circuit_twice(
    tmp_path: Path, bundles_dir: Path, redis_url: str
) -> None:
    rng = random.Random(20)
    texts = [f"text number {number}" for number in range(100)] * 2
    rng.shuffle(texts)
    n_kills = 0
    with site(tmp_path, bundles_dir, redis_url, n_workers=3) as own:
        # The first circuit arrives at the provider, but nobody lives to record it.
        own.set_faults({"on": "submit", "fault": "hang", "seconds": 2, "times": 1})
        answers = [own.classify(texts[0])]
        until(lambda: not own.faults())
        for worker in list(own.workers):
            own.kill_worker(worker)
            n_kills += 1
        assert own.job(answers[0].json()["id"])["status"] == "queued"
        until(own.ledger)
        for _ in range(3):
            own.start_worker()
        for number, text in enumerate(texts[1:], 1):
            answers.append(own.classify(text))
            sleep(rng.uniform(0.0, 0.05))
            if number % 20 == 0:
                own.kill_worker(rng.choice(own.workers_at_work()))
                own.start_worker()
                n_kills += 1
        assert {answer.status_code for answer in answers} <= {200, 202}
        jobs = [own.ended(answer.json()["id"]) for answer in answers if answer.status_code == 202]
        ledger = own.ledger()
    assert n_kills >= 8
    assert [job["status"] for job in jobs] == ["done"] * len(jobs)
    results = [result for job in jobs for result in job["results"]]
    results += [result for answer in answers if answer.status_code == 200 for result in answer.json()["results"]]
    assert [result["shots"] for result in results] == [SHOTS] * 200
    submitted = submissions_by_circuit(ledger)
    assert len(submitted) == 100
    assert [sha for sha, submissions in submitted.items() if len(submissions) > 1] == []
    assert sum(len(submission["circuits"]) for submission in ledger) == 2 * 100
    # It was accepted a first time, and asked for again by who did not know.
    assert ledger[0]["replays"] >= 1


def test_redis_killed_and_restarted_in_mid_run_loses_nothing(tmp_path: Path, bundles_dir: Path) -> None:
    valkey = Valkey(tmp_path)
    valkey.start()
    try:
        with site(tmp_path / "site", bundles_dir, valkey.url, QD_EMULATOR_QUEUE_SECONDS="2") as own:
            done = own.ended(own.classify("done before").json()["id"])
            submitted = own.classify("submitted before").json()["id"]
            until(lambda: own.job(submitted)["status"] == "submitted")
            own.set_faults({"on": "submit", "fault": "hang", "seconds": 2, "times": 1})
            unrecorded = own.classify("submitted, but not recorded").json()["id"]
            until(lambda: not own.faults())
            own.set_faults({"on": "submit", "fault": "offline_409"})
            queued = own.classify(["queued", "and more"]).json()["id"]
            until(lambda: own.job(queued).get("held", {}).get("reason") == "device-offline")
            n_before = len(own.ledger())

            valkey.kill()
            for answer in (own.classify("while it is down"), own.http.get(f"/jobs/{queued}")):
                assert answer.status_code == 503
                assert answer.json()["type"] == "urn:qd:problem:store-unavailable"
                assert int(answer.headers["Retry-After"]) >= 1
            assert own.classify("while it is down", backend="simulator").status_code == 200
            assert own.http.get("/livez").status_code == 200
            ready = own.http.get("/readyz")
            assert ready.status_code == 200
            assert ready.json()["status"] == "degraded"
            assert ready.json()["parts"]["redis"].startswith("degraded")
            # Both are over by now, and there is nowhere to write it down.
            until(lambda: [s["circuits"][0]["status"] for s in own.ledger()[:n_before]] == ["Finished"] * n_before)

            valkey.start()
            until(lambda: own.http.get("/readyz").json()["status"] == "ready")
            own.set_faults()
            assert own.ended(done["id"]) == done
            for job_id in (submitted, unrecorded, queued):
                job = own.ended(job_id)
                assert job["status"] == "done"
                assert [result["shots"] for result in job["results"]] == [SHOTS] * job["n_texts"]
            listed = {job["id"] for job in own.http.get("/jobs").json()["jobs"]}
            assert listed == {done["id"], submitted, unrecorded, queued}
            assert own.classify("done before").status_code == 200
            ledger = own.ledger()
            assert all(worker.runs for worker in own.workers)
    finally:
        valkey.kill()
    by_circuit = submissions_by_circuit(ledger)
    assert len(by_circuit) == 5
    assert all(len(submissions) == 1 for submissions in by_circuit.values())


# --- the embedded default -----------------------------------------------------------------------------------------


def children(service: Process) -> dict[str, int]:
    """Process ids of what a service started beside itself."""
    return {line["child"]: line["pid"] for line in service.lines("child started")}


def cached_result(http: httpx.Client) -> dict[str, Any]:
    answer = http.post("/classify/emotion?backend=baihua", json={"inputs": "what a lovely day"})
    assert answer.status_code == 200
    (result,) = answer.json()["results"]
    assert result["cached"]
    return dict(result)


def states_of_jobs(http: httpx.Client) -> dict[str, str]:
    return {job["id"]: job["status"] for job in http.get("/jobs").json()["jobs"]}


def test_worker_that_is_told_to_stop_while_redis_is_away_stops(tmp_path: Path, bundles_dir: Path) -> None:
    valkey = Valkey(tmp_path)
    valkey.start()
    try:
        with site(tmp_path / "site", bundles_dir, valkey.url) as here:
            (worker,) = here.workers
            valkey.kill()
            worker.popen.send_signal(signal.SIGTERM)
            assert worker.popen.wait(timeout=30) == 0
    finally:
        valkey.kill()


def test_service_alone_brings_valkey_worker_and_emulator_which_end_with_it(tmp_path: Path, bundles_dir: Path) -> None:
    default = {"QD_EMBEDDED": ""}  # as it is when nobody sets it
    with serving(bundles_dir, tmp_path, **default) as (service, url), httpx.Client(base_url=url, timeout=60) as http:
        assert refused(bundles_dir, tmp_path, **default).startswith("qdserve: QD_STATE_DIR: ")
        until(lambda: http.get("/readyz").json()["status"] == "ready")
        assert http.get("/readyz").json()["parts"].keys() >= {"redis", "worker"}
        wait = "/classify/emotion?backend=baihua&wait=30"
        while (answer := http.post(wait, json={"inputs": "what a lovely day"})).status_code == 202:
            pass  # on a busy machine the noise takes longer
        assert answer.status_code == 200
        (result,) = answer.json()["results"]
        assert result["emulated"]
        assert result["shots"] == SHOTS
        # Readout errors are measured after the start, and correct what was measured before them too.
        until(lambda: cached_result(http)["mitigated"])
        cached = cached_result(http)
        assert cached["expvals"] != cached["expvals_raw"] == result["expvals_raw"]
        until(lambda: set(states_of_jobs(http).values()) == {"done"})
        jobs = states_of_jobs(http)
        pids = children(service)
        assert pids.keys() == {"valkey", "worker", "emulator"}
        service.popen.send_signal(signal.SIGTERM)
        assert service.popen.wait(60) == 0
        assert not any(runs(pid) for pid in pids.values())
    with serving(bundles_dir, tmp_path, **default) as (service, url), httpx.Client(base_url=url, timeout=60) as http:
        assert cached_result(http) == cached
        assert states_of_jobs(http).items() >= jobs.items()
        pids = children(service)
        assert all(runs(pid) for pid in pids.values())
        service.kill()
        if sys.platform == "linux":  # nothing else tells a child that its parent has ended
            until(lambda: not any(runs(pid) for pid in pids.values()))


# --- a provider that fails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_fault_leads_to_the_documented_state_and_to_no_second_submission(shared: Site, name: str) -> None:
    outcome = play(shared, f"a text for {name}", *QUICK[name].rules)
    check(outcome, QUICK[name])
    if QUICK[name].problem == "circuit-failed":
        assert "fault injected: the chip failed" in outcome.job["error"]["detail"]
        assert outcome.job["results"] == [None]
    replays = [submission["replays"] for submission in outcome.submissions]
    assert replays == ([2] if name == "connection dropped after" else [0])


def test_quota_is_waited_for_until_the_time_that_the_provider_names(shared: Site) -> None:
    resets_at = datetime.now(UTC) + timedelta(seconds=4)
    rule = {"on": "submit", "fault": "quota_429", "times": 1, "resets_at": resets_at.isoformat()}
    outcome = play(shared, "a text for the next day", rule)
    (held,) = {event["held"]["until"]: event["held"] for event in outcome.events if "held" in event}.values()
    assert held["reason"] == "quota-exhausted"
    assert datetime.fromisoformat(held["until"]) >= resets_at
    assert outcome.job["status"] == "done"
    assert len(outcome.submissions) == 1


def test_circuit_that_fails_in_a_batch_leaves_the_others_their_results(shared: Site) -> None:
    outcome = play(shared, ["one", "two", "three"], {"on": "submit", "fault": "partial_job", "times": 1})
    assert outcome.job["status"] == "failed"
    assert outcome.job["error"]["type"] == "urn:qd:problem:circuit-failed"
    *good, bad = outcome.job["results"]
    assert [result["shots"] for result in good] == [SHOTS, SHOTS]
    assert bad is None
    assert shared.classify(["two", "one"]).status_code == 200
    assert len(outcome.submissions) == 1


def test_result_with_fewer_shots_says_so(shared: Site) -> None:
    outcome = play(shared, "a text for half a result", {"on": "result", "fault": "partial_result", "times": 1})
    assert outcome.job["status"] == "done"
    (result,) = outcome.job["results"]
    assert SHOTS // 2 < result["shots"] < SHOTS
    assert len(outcome.submissions) == 1


# --- physics ------------------------------------------------------------------------------------------------------


def test_noise_free_emulator_agrees_with_the_simulator_on_every_shipped_bundle(shared: Site, tmp_path: Path) -> None:
    texts = [
        "I am so happy for you",
        "this is the worst service I have ever had",
        "the committee meets on Thursday",
        "turn left at the church, then ask again",
        "they took what was ours and nobody says a word",
    ]
    bundles = [load_bundle(path) for path in sorted(SHIPPED.iterdir()) if path.is_dir()]
    assert len(bundles) >= 3
    # What its workers do not know is which bundle a circuit comes from.
    settings = {name: value for name, value in shared.env.items() if name.startswith("QD_")}
    settings |= {"QD_BUNDLES_DIR": str(SHIPPED), "QD_STATE_DIR": str(tmp_path)}
    with serving(SHIPPED, tmp_path, **settings) as (_, url), httpx.Client(base_url=url, timeout=60) as http:
        for bundle in bundles:
            student = bundle.student()
            embedder = Embedder(find_embedder(bundle.manifest.embedder["name"]), 1)
            exact = student.expvals(student.angles(embedder.embed(texts, bundle.features)))
            path = f"/classify/{bundle.manifest.task}?backend=baihua&wait=30"
            answer = http.post(path, json={"inputs": texts})
            while answer.status_code == 202:
                answer = http.post(path, json={"inputs": texts})
            results = answer.json()["results"]
            measured = np.array([result["expvals_raw"] for result in results])
            assert measured.shape == (5, 11)
            assert {(result["shots"], result["mitigated"], result["emulated"]) for result in results} == {
                (SHOTS, False, True)
            }
            sigma = np.sqrt((1.0 - exact**2) / SHOTS)
            np.testing.assert_array_less(np.abs(measured - exact), 5.0 * sigma + 1e-9)


# --- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["quafu", "quafu_sqc"])
def test_token_is_in_no_log_and_in_no_answer(tmp_path: Path, bundles_dir: Path, redis_url: str, provider: str) -> None:
    right, wrong = "qf_SecretOfTheRightAccount", "qf_SecretOfTheWrongAccount"
    settings = {"QD_QUAFU_TOKEN": right, "QD_QUAFU_PROVIDER": provider, "QD_LOG_LEVEL": "debug"}
    answers: list[httpx.Response] = []
    with site(tmp_path, bundles_dir, redis_url, n_workers=0, **settings) as own:
        own.http.event_hooks["response"].append(answers.append)
        worker = own.start_worker(QD_QUAFU_TOKEN=wrong)
        job_id = own.classify("a text for somebody else's account").json()["id"]
        until(lambda: own.job(job_id).get("held", {}).get("reason") == "operator-needed")
        assert own.ledger() == []
        worker.popen.send_signal(signal.SIGTERM)
        assert worker.popen.wait(60) == 0
        own.start_worker()
        assert own.ended(job_id)["status"] == "done"
        for path in (f"/jobs/{job_id}/events", "/jobs", "/readyz", "/metrics", "/tasks", "/openapi.json"):
            assert own.http.get(path).status_code == 200
        said = [answer.text + repr(answer.headers) for answer in answers]
        written = [path.read_text() for process in own.processes for path in (process.stdout, process.stderr)]
    assert any('"operator-needed"' in text for text in said)
    assert any('"operator-needed"' in text for text in written)
    assert [text for text in said + written if "qf_Secret" in text] == []


# --- slow faults, played from the start ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLOW)
def test_slow_fault_leads_to_the_documented_state_and_to_no_second_submission(
    slow: dict[str, Future[Outcome]], name: str
) -> None:
    check(slow[name].result(timeout=180), SLOW[name])
