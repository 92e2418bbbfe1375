"""What a worker counts, and the trace it continues: once each, and the truth, whoever does the work."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable
from time import time

import httpx
import pytest
from hardware import FakeProvider, World, exact
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from processes import COMMAND, ROOT
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from redis.asyncio import Redis

from service.errors import AddressError
from service.hardware.delivery import Delivery
from service.hardware.facts import FactFinder
from service.hardware.records import Batch, Exact, Job, Readout, Status
from service.metrics import WorkerMetrics
from service.providers.base import (
    DeviceOfflineError,
    LostJobError,
    MalformedAnswerError,
    OperatorNeededError,
    QuotaExhaustedError,
    RejectedError,
    UncertainSubmitError,
    UnreachableError,
)
from service.providers.observed import ObservedProvider
from service.tracing import traceparent
from service.worker_http import answering

pytestmark = pytest.mark.anyio

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def world(redis: Redis, provider: FakeProvider) -> World:
    return World(redis, provider)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> trace.Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("test")


def counted(world: World) -> dict[str, float]:
    """Every sample of the counters and of the histograms' counts, apart from the calls to the provider."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in world.metrics.registry.collect()
        for sample in family.samples
        if sample.name.endswith(("_total", "_count")) and "provider_call" not in sample.name and sample.value
    }


def doubting(angle: float) -> Exact:
    """An exact value that the device will not agree with."""
    return Exact(label="yes", expvals=[0.25, 0.5, -1.0])


async def sent(world: World) -> str:
    """Send the only batch there is."""
    (token,) = await world.worker().dispatch()
    await world.worker().advance(token)
    return token


async def earlier(world: World, key: str, field: str, seconds: float) -> None:
    """Let something stored have happened earlier."""
    name = f"{world.store.target.prefix}{key}"
    at = await world.redis.hget(name, field)
    assert at is not None
    await world.redis.hset(name, field, repr(float(at) - seconds))


async def test_job_that_is_done_is_counted_with_its_circuits_and_calls(world: World) -> None:
    await world.submit(0.2, 3.0)
    await world.finish()
    for name in ("qd_dispatch_wait_seconds", "qd_hardware_queue_seconds", "qd_hardware_execution_seconds"):
        assert world.sample(f"{name}_count") == 2, name
    assert world.sample("qd_circuits_ended_total", status="done") == 2
    assert world.sample("qd_job_seconds_count", task="emotion", status="done") == 1
    assert world.sample("qd_comparisons_total", task="emotion", result="agree", cached="false") == 2
    for call in ("limits", "device", "submit", "status", "result"):
        calls = world.sample("qd_provider_calls_total", call=call, outcome="ok")
        assert calls == world.provider.calls.count(call) > 0, call
        assert world.sample("qd_provider_call_seconds_count", call=call) == calls


async def test_times_are_told_apart_although_a_different_worker_sees_each_of_them(world: World) -> None:
    job = await world.submit(0.2)
    (run_id,) = job.runs.values()
    await earlier(world, f"run:{run_id}", "created_at", 1000.0)
    await earlier(world, f"job:{job.id}", "created_at", 1000.0)
    token = await sent(world)
    await earlier(world, f"batch:{token}", "submitted_at", 200.0)
    await world.worker().advance(token)
    await world.worker().advance(token)
    await earlier(world, f"run:{run_id}", "at:running", 30.0)
    await world.finish()
    assert world.sample("qd_dispatch_wait_seconds_sum") == pytest.approx(1000.0, abs=20.0)
    assert world.sample("qd_hardware_queue_seconds_sum") == pytest.approx(200.0, abs=20.0)
    assert world.sample("qd_hardware_execution_seconds_sum") == pytest.approx(30.0, abs=20.0)
    assert world.sample("qd_job_seconds_sum", task="emotion", status="done") == pytest.approx(1000.0, abs=20.0)


async def test_device_that_was_never_seen_at_work_only_kept_the_circuit_waiting(world: World) -> None:
    await world.submit(0.2)
    token = await sent(world)
    await earlier(world, f"batch:{token}", "submitted_at", 200.0)
    world.provider.looks[f"job-{token}"] = 2
    await world.finish()
    assert world.sample("qd_hardware_execution_seconds_count") == 0
    assert world.sample("qd_hardware_queue_seconds_sum") == pytest.approx(200.0, abs=20.0)


async def test_step_that_is_repeated_counts_nothing_twice(world: World) -> None:
    await world.submit(0.2, 3.0, expected=doubting)
    close = world.store.close
    batches: list[Batch] = []

    async def killed(batch: Batch) -> None:
        batches.append(batch)
        raise KeyboardInterrupt  # as if the worker had ended right before it

    world.store.close = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        await world.finish()
    once = counted(world)
    world.store.close = close  # type: ignore[method-assign]
    await world.finish()
    assert len(batches) == 1
    assert counted(world) == once
    assert world.sample("qd_job_seconds_count", task="emotion", status="done") == 1


async def test_worker_that_is_behind_another_counts_nothing(world: World) -> None:
    job = await world.submit(0.2)
    token = await sent(world)
    batch = await world.store.batch(token)
    assert batch is not None
    (run,) = await world.store.runs(batch.runs)
    await world.finish()
    once = counted(world)
    # As it read the job before the other one ended it.
    before = (await world.read(job)).model_copy(update={"status": Status.RUNNING})

    async def stale(job_id: str) -> Job:
        return before

    world.store.job = stale  # type: ignore[method-assign]
    delivery = Delivery(world.store, world.cache, world.metrics)
    await delivery.mark(batch, [run], Status.SUBMITTED)
    await delivery.mark(batch, [run], Status.RUNNING)
    await delivery.finish(run, token, Status.DONE, submitted_at=time())
    assert counted(world) == once


async def test_answer_of_redis_that_is_lost_loses_no_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job, cancelled = await world.submit(0.2), await world.submit(0.3)
    monkeypatch.setattr("service.hardware.store.time", lambda: 2e9)  # the same call again has the same time
    first, again = [await world.store.cancel(cancelled.id) for _ in range(2)]
    assert first == again
    assert first is not None
    assert first.n_circuits == 1
    token = await world.store.claim(5)
    assert token is not None
    (run,) = await world.store.runs(job.runs.values())
    for _ in range(2):
        assert await world.store.mark_runs([run], Status.SUBMITTED, "job") == {run.id}
    for _ in range(2):
        assert await world.store.finish_run(run, token, Status.DONE) == (True, [job.id])
    for _ in range(2):
        assert await world.store.move(job.id, Status.DONE)
    monkeypatch.setattr("service.hardware.store.time", lambda: 2e9 + 1)
    assert await world.store.mark_runs([run], Status.SUBMITTED, "job") == set()
    assert await world.store.finish_run(run, token, Status.DONE) == (False, [job.id])
    assert not await world.store.move(job.id, Status.DONE)
    assert await world.store.cancel(cancelled.id) is None


async def test_disagreement_and_every_qubits_error_are_counted(world: World) -> None:
    await world.submit(0.0, expected=doubting)
    await world.finish()
    assert world.sample("qd_comparisons_total", task="emotion", result="disagree", cached="false") == 1
    assert world.sample("qd_comparisons_total", task="emotion", result="agree", cached="false") == 0
    errors = [world.sample("qd_expval_error_sum", qubit=str(qubit), values="raw") for qubit in range(3)]
    assert errors == pytest.approx([0.75, 0.5, 2.0])
    assert world.sample("qd_expval_error_count", qubit="0", values="corrected") == 0
    assert world.sample("qd_mitigation_shift_count") == 0


async def test_correction_is_compared_with_the_raw_and_the_exact_values(world: World) -> None:
    flips = dict.fromkeys(range(12), (0.1, 0.1))
    readout = Readout(calibration_id="cal-1", executed_at=time(), shots=1024, flips=flips)
    await world.store.noticeboard.keep_readout(readout)
    await world.submit(1.0)
    await world.finish()
    raw, corrected = (world.sample("qd_expval_error_sum", qubit="0", values=values) for values in ("raw", "corrected"))
    assert raw == pytest.approx(0.0, abs=1e-3)
    assert corrected == pytest.approx(exact(1.0).expvals[0] * (1 / 0.8 - 1), abs=1e-3)
    assert world.sample("qd_mitigation_shift_count") == 1
    # The other two qubits read 1 already, beyond which no expectation value is.
    assert world.sample("qd_mitigation_shift_sum") == pytest.approx(corrected / 3, abs=1e-3)


async def test_circuit_that_several_wait_for_is_compared_for_each_and_measured_once(world: World) -> None:
    for _ in range(3):
        await world.submit(0.2)
    await world.finish()
    assert world.sample("qd_comparisons_total", task="emotion", result="agree", cached="false") == 3
    assert world.sample("qd_job_seconds_count", task="emotion", status="done") == 3
    assert world.sample("qd_expval_error_count", qubit="0", values="raw") == 1
    assert world.sample("qd_circuits_ended_total", status="done") == 1


async def test_counts_that_came_before_the_circuit_was_sent_are_no_drift_of_today(world: World) -> None:
    await world.submit(0.2)
    await world.finish()
    before = world.sample("qd_expval_error_count", qubit="0", values="raw")
    await world.submit(0.2)
    await world.finish()
    assert world.sample("qd_comparisons_total", task="emotion", result="agree", cached="false") == 2
    assert world.sample("qd_expval_error_count", qubit="0", values="raw") == before == 1
    assert world.sample("qd_hardware_execution_seconds_count") == 1


async def test_measurement_of_readout_errors_is_a_job_and_no_comparison(world: World) -> None:
    await world.readouts().keep_up()
    await world.finish()
    assert world.sample("qd_job_seconds_count", task="readout", status="done") == 1
    assert not any("comparisons" in name or "expval_error" in name for name in counted(world))


async def test_refused_circuit_is_a_failed_job(world: World) -> None:
    world.provider.fail("submit", RejectedError("too wide"))
    await world.submit(0.2)
    await world.finish()
    assert world.sample("qd_job_seconds_count", task="emotion", status="failed") == 1
    assert world.sample("qd_circuits_ended_total", status="failed") == 1
    assert world.sample("qd_provider_calls_total", call="submit", outcome="rejected") == 1
    assert world.sample("qd_dispatch_wait_seconds_count") == 0


async def test_circuit_that_nobody_waits_for_any_more_ends_cancelled(world: World) -> None:
    job = await world.submit(0.2)
    (token,) = await world.worker().dispatch()
    await world.store.cancel(job.id)
    await world.worker().advance(token)
    assert world.sample("qd_circuits_ended_total", status="cancelled") == 1


async def test_pause_is_counted_with_its_reason(world: World) -> None:
    world.provider.fail("submit", QuotaExhaustedError("used up"), DeviceOfflineError("calibrating"))
    await world.submit(0.2)
    await world.finish()
    assert world.sample("qd_holds_total", reason="quota-exhausted") == 1
    assert world.sample("qd_holds_total", reason="device-offline") == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UnreachableError("no connection to job-6f1f8e9a"), "provider-unreachable"),
        (QuotaExhaustedError("used up"), "quota-exhausted"),
        (DeviceOfflineError("calibrating"), "device-offline"),
        (OperatorNeededError("token"), "operator-needed"),
        (MalformedAnswerError("<html>"), "malformed-answer"),
        (RejectedError("too wide"), "rejected"),
        (LostJobError("no such job"), "lost-by-provider"),
        (UncertainSubmitError("answer lost"), "submission-uncertain"),
        (KeyError("surprise"), "error"),
    ],
)
async def test_call_that_fails_is_counted_by_the_kind_of_its_error_alone(
    world: World, error: Exception, outcome: str
) -> None:
    observed = ObservedProvider(world.provider, world.metrics, world.tracer)
    world.provider.fail("health", error)
    with pytest.raises(type(error)):
        await observed.health()
    assert world.sample("qd_provider_calls_total", call="health", outcome=outcome) == 1
    assert world.sample("qd_provider_call_seconds_count", call="health") == 1


async def test_observed_provider_passes_everything_on(world: World) -> None:
    world.provider.repeatable = False
    world.provider.submit_seconds = 7.0
    observed = ObservedProvider(world.provider, world.metrics, world.tracer)
    assert (observed.repeatable, observed.submit_seconds) == (False, 7.0)
    assert await observed.limits() == await world.provider.limits()
    assert await observed.device() == await world.provider.device()
    assert await observed.health() == await world.provider.health()
    await observed.cancel("job-x")
    await observed.close()
    assert world.provider.cancelled == ["job-x"]
    assert world.provider.calls[-1] == "close"


# --- traces -------------------------------------------------------------------------------------------------------


def named(spans: InMemorySpanExporter) -> Callable[[str], list[ReadableSpan]]:
    finished = spans.get_finished_spans()
    return lambda name: [span for span in finished if span.name == name]


async def asked(world: World, tracer: trace.Tracer, angle: float) -> tuple[Job, int, int]:
    """A job that a span asked for, and the ids of its trace and of itself."""
    with tracer.start_as_current_span("request") as span:
        job = await world.submit(angle, traceparent=traceparent())
    context = span.get_span_context()
    return job, context.trace_id, context.span_id


async def test_one_trace_goes_from_the_request_through_its_job_to_the_provider(
    redis: Redis, provider: FakeProvider, tracer: trace.Tracer, spans: InMemorySpanExporter
) -> None:
    world = World(redis, provider, tracer)
    _, trace_id, span_id = await asked(world, tracer, 0.2)
    await world.finish()
    by_name = named(spans)
    (send,) = by_name("batch.send")
    assert send.parent is not None
    assert send.parent.span_id == span_id
    (submit,) = by_name("provider.submit")
    assert submit.parent is not None
    assert send.context is not None
    assert submit.parent.span_id == send.context.span_id
    assert submit.kind is trace.SpanKind.CLIENT
    assert len(by_name("batch.follow")) == len(by_name("provider.status")) == 3
    assert len(by_name("provider.result")) == 1
    assert {span.context.trace_id for span in spans.get_finished_spans() if span.context} == {trace_id}


async def test_batch_of_several_traces_is_in_the_first_and_linked_to_the_others(
    redis: Redis, provider: FakeProvider, tracer: trace.Tracer, spans: InMemorySpanExporter
) -> None:
    world = World(redis, provider, tracer)
    first = await asked(world, tracer, 0.2)
    others = [await asked(world, tracer, angle) for angle in (0.2, 0.4)]
    await world.submit(0.6)
    await world.finish()
    (send,) = named(spans)("batch.send")
    assert send.context is not None
    assert send.context.trace_id == first[1]
    assert [link.context.span_id for link in send.links] == [span_id for _, _, span_id in others]


@pytest.mark.parametrize("header", [None, "00-" + "a" * 32 + "-" + "b" * 16 + "-00", "no header"])
async def test_job_that_no_trace_is_recorded_for_gets_no_spans(
    redis: Redis, provider: FakeProvider, tracer: trace.Tracer, spans: InMemorySpanExporter, header: str | None
) -> None:
    world = World(redis, provider, tracer)
    await world.submit(0.2, traceparent=header)
    await world.finish()
    assert spans.get_finished_spans() == ()
    assert world.sample("qd_provider_calls_total", call="submit", outcome="ok") == 1


async def test_span_of_a_call_that_fails_says_its_kind_and_not_its_message(
    redis: Redis, provider: FakeProvider, tracer: trace.Tracer, spans: InMemorySpanExporter
) -> None:
    world = World(redis, provider, tracer)
    await asked(world, tracer, 0.2)
    provider.fail("submit", UnreachableError("no connection to a secret place"))
    await world.finish()
    failed, _ = named(spans)("provider.submit")
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "provider-unreachable"
    assert "secret" not in "".join(span.to_json() for span in spans.get_finished_spans())


async def test_histograms_keep_the_trace_as_exemplar(
    redis: Redis, provider: FakeProvider, tracer: trace.Tracer
) -> None:
    world = World(redis, provider, tracer)
    _, trace_id, _ = await asked(world, tracer, 0.2)
    await world.finish()
    content, _ = world.metrics.exposition(OPENMETRICS["Accept"])
    found = {
        family.name
        for family in text_string_to_metric_families(content.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar and sample.exemplar.labels == {"trace_id": trace.format_trace_id(trace_id)}
    }
    assert found == {
        "qd_dispatch_wait_seconds",
        "qd_hardware_queue_seconds",
        "qd_hardware_execution_seconds",
        "qd_job_seconds",
        "qd_provider_call_seconds",
        "qd_expval_error",
    }


# --- HTTP ---------------------------------------------------------------------------------------------------------


async def test_worker_answers_its_metrics_in_both_formats_until_it_ends() -> None:
    metrics = WorkerMetrics()
    metrics.holds.labels("quota-exhausted").inc()
    async with answering(metrics, "127.0.0.1", 0) as url, httpx.AsyncClient(trust_env=False) as client:
        plain = await client.get(url)
        assert plain.headers["content-type"].startswith("text/plain")
        assert 'qd_holds_total{reason="quota-exhausted"} 1.0' in plain.text
        open_metrics = await client.get(url, headers=OPENMETRICS)
        assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
        assert open_metrics.text.endswith("# EOF\n")
        assert (await client.get(url.replace("/metrics", "/livez"))).json() == {"status": "alive"}
        assert (await client.get(url.replace("/metrics", "/"))).status_code == 404
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


async def test_port_in_use_is_one_line_that_names_its_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=f"^QD_WORKER_METRICS_PORT: cannot listen on 127.0.0.1 port {port}"):
            async with answering(WorkerMetrics(), "127.0.0.1", port):
                pass


def test_worker_whose_port_is_in_use_does_not_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = {
            "QD_REDIS_URL": "redis://127.0.0.1:1",
            "QD_QUAFU_TOKEN": "qf_test",
            "QD_WORKER_METRICS_PORT": str(taken.getsockname()[1]),
        }
        run = subprocess.run(
            [*COMMAND, "worker"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
        )
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if not line.startswith("{")]
    assert re.match("qdserve: QD_WORKER_METRICS_PORT: cannot listen on 127.0.0.1", line)


async def test_facts_stay_when_the_provider_falls_silent_and_say_how_old_they_are(world: World) -> None:
    facts = FactFinder(world.store, world.provider)
    await facts.keep_up()
    before = (await world.store.noticeboard.survey()).provider
    world.provider.fail("health", UnreachableError("no connection"))
    await facts.keep_up()
    assert before is not None
    assert (await world.store.noticeboard.survey()).provider == before
    await facts.keep_up()
    now = (await world.store.noticeboard.survey()).provider
    assert now is not None
    assert now.seen_at > before.seen_at
