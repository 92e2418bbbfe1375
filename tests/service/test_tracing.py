"""Traces, at a collector that reads what OpenTelemetry's exporter sends over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from fakes import FakeEmbedder, FakeStudent, fake_bundle
from fastapi import FastAPI
from hardware import FakeProvider
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace import Tracer
from pydantic import SecretStr
from serving import client_of, parts_of

from service.app import create_app
from service.embedded import embedded_redis
from service.hardware.execution import Executor
from service.hardware.facts import FactFinder
from service.hardware.readout import ReadoutSchedule
from service.jobs import run_worker
from service.logs import JsonFormatter
from service.metrics import WorkerMetrics
from service.providers.observed import ObservedProvider
from service.registry import Snapshot
from service.settings import Settings
from service.tracing import OFF, exemplar, traceparent, tracing

pytestmark = pytest.mark.anyio

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
PARTS = ["tokenise", "batch wait", "encoder", "circuit"]


class Collector:
    """Keeps every span that it is sent.

    Attributes:
        bodies: As they came.
        status: What it answers.
    """

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if collector.status == 200:
                    collector.bodies.append(body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> list[tuple[str, Span]]:
        """Each with the name of its process, in order of their beginning."""
        found = []
        for body in self.bodies:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                process = attributes(group.resource)["service.name"]
                found += [(process, span) for scope in group.scope_spans for span in scope.spans]
        return sorted(found, key=lambda each: each[1].start_time_unix_nano)


def attributes(of: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        collector.server.server_close()
        thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@asynccontextmanager
async def traced(settings: Settings, endpoint: str, **changes: Any) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """An app and its client; what was recorded has been sent once this is left."""
    settings = settings.model_copy(update={"otlp_endpoint": endpoint, **changes})
    with tracing(settings, "qd-service") as tracer:
        app = create_app(settings, tracer)
        async with app.router.lifespan_context(app), client_of(app) as client:
            yield app, client


async def test_request_is_one_trace_with_its_parts(settings: Settings, collector: Collector) -> None:
    async with traced(settings, collector.url + "/") as (_, client):
        headers = SAMPLED | {"X-Request-ID": "id-1"}
        response = await client.post("/classify/emotion", json={"inputs": ["a secret", "and so on"]}, headers=headers)
        assert response.status_code == 200
        assert "traceparent" not in response.headers
    (process, server), *rest = collector.spans
    assert process == "qd-service"
    assert server.name == "POST /classify/{task}"
    assert server.kind == Span.SPAN_KIND_SERVER
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, CALLER)
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/classify/{task}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "qd.request": "id-1",
        "qd.task": "emotion",
        "qd.backend": "simulator",
        "qd.texts": 2,
    }
    parts = [span for _, span in rest]
    assert [span.name for span in parts] == PARTS
    times = [server.start_time_unix_nano]
    for span in parts:
        assert (span.trace_id, span.parent_span_id) == (server.trace_id, server.span_id)
        times += [span.start_time_unix_nano, span.end_time_unix_nano]
    # A microsecond of grace, which is lost where the clocks are converted.
    assert all(earlier <= later + 1000 for earlier, later in itertools.pairwise(times))
    assert times[-1] <= server.end_time_unix_nano + 1000
    assert attributes(parts[2]) == {"qd.texts": 2, "qd.batch_texts": 2}
    assert not any(b"secret" in body for body in collector.bodies)


async def test_requests_of_one_batch_have_its_parts_in_their_own_traces(
    settings: Settings, collector: Collector
) -> None:
    embedder = FakeEmbedder()
    async with traced(settings, collector.url) as (app, client):
        parts_of(app).snapshot = Snapshot(MappingProxyType({"fake": fake_bundle("fake", embedder)}))
        first = asyncio.create_task(client.post("/classify/fake", json={"inputs": "first"}))
        await asyncio.to_thread(embedder.begun.get, timeout=30)
        others = [asyncio.create_task(client.post("/classify/fake", json={"inputs": "other"})) for _ in range(2)]
        async with asyncio.timeout(30):
            while parts_of(app).metrics.registry.get_sample_value("qd_tokenise_seconds_count") != 3:
                await asyncio.sleep(0)
        embedder.free_run()
        for task in (first, *others):
            assert (await task).status_code == 200
    spans = [span for _, span in collector.spans]
    assert len({span.trace_id for span in spans}) == 3
    together = [span for span in spans if span.name == "encoder" and attributes(span)["qd.batch_texts"] == 2]
    assert len({span.trace_id for span in together}) == 2
    assert len({span.start_time_unix_nano // 1000 for span in together}) <= 2
    for trace in {span.trace_id for span in spans}:
        assert sorted(span.name for span in spans if span.trace_id == trace) == sorted(
            ["POST /classify/{task}", *PARTS]
        )


async def test_exemplars_lead_from_histograms_to_the_trace(settings: Settings, collector: Collector) -> None:
    openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with traced(settings, collector.url) as (_, client):
        await client.post("/classify/emotion", json={"inputs": "a"}, headers=SAMPLED)
        found = (await client.get("/metrics", headers=openmetrics)).text
        plain = (await client.get("/metrics")).text
    lines = [line for line in found.splitlines() if f'# {{trace_id="{TRACE}"}}' in line]
    names = {line.partition("_bucket")[0] for line in lines}
    expected = ("request", "tokenise", "batch_wait", "encoder", "circuit")
    assert names == {f"qd_{name}_seconds" for name in expected}
    assert TRACE not in plain


async def test_log_lines_of_a_traced_request_name_its_trace(
    settings: Settings, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, Any]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    handler, logger = Lines(), logging.getLogger("service.middleware")
    logger.addHandler(handler)
    with caplog.at_level(logging.INFO, "service"):
        async with traced(settings, collector.url) as (_, client):
            for headers in (SAMPLED, UNSAMPLED):
                await client.get("/tasks", headers=headers)
            await client.get("/livez", headers=SAMPLED)
    logger.removeHandler(handler)
    assert [line.get("trace_id") for line in lines if line["message"] == "request"] == [TRACE, None, None]


async def test_what_machines_ask_and_what_is_not_sampled_is_no_trace(settings: Settings, collector: Collector) -> None:
    async with traced(settings, collector.url) as (_, client):
        for path in ("/metrics", "/livez", "/readyz"):
            await client.get(path, headers=SAMPLED)
        await client.post("/classify/emotion", json={"inputs": "a"}, headers=UNSAMPLED)
        text = (await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})).text
    async with traced(settings, collector.url, trace_ratio=0.0) as (_, client):
        await client.post("/classify/emotion", json={"inputs": "a"})
    assert collector.bodies == []
    assert "trace_id" not in text


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{CALLER}-01", "ff" * 400])
async def test_caller_without_a_usable_traceparent_begins_a_trace(
    settings: Settings, collector: Collector, header: str
) -> None:
    async with traced(settings, collector.url) as (_, client):
        await client.get("/tasks", headers={"traceparent": header})
    ((_, server),) = collector.spans
    assert server.name == "GET /tasks"
    assert server.parent_span_id == b""
    assert any(server.trace_id)


async def test_fault_is_an_error_of_its_span_and_says_nothing_of_the_text(
    settings: Settings, collector: Collector
) -> None:
    embedder = FakeEmbedder()
    embedder.free_run()
    broken = fake_bundle("broken", embedder, FakeStudent(error=ZeroDivisionError("cannot read 'a secret'")))
    async with traced(settings, collector.url) as (app, client):
        parts_of(app).snapshot = Snapshot(MappingProxyType({"broken": broken}))
        assert (await client.post("/classify/broken", json={"inputs": "a secret"})).status_code == 500
        assert (await client.get("/a-secret-path?of=a-secret")).status_code == 404
        assert (await client.request("SECRET", "/tasks")).status_code == 405
    spans = [span for _, span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert [span.name for span in spans] == ["POST /classify/{task}", "GET", "HTTP /tasks"]
    assert [span.status.code for span in spans] == [Status.STATUS_CODE_ERROR, *[Status.STATUS_CODE_UNSET] * 2]
    assert attributes(spans[0])["http.response.status_code"] == 500
    assert attributes(spans[0])["error.type"] == "ZeroDivisionError"
    assert "http.route" not in attributes(spans[1])
    assert attributes(spans[2])["http.request.method"] == "_OTHER"
    assert not any(b"secret" in body.lower() for body in collector.bodies)


async def test_client_that_leaves_ends_its_span(settings: Settings, collector: Collector) -> None:
    embedder = FakeEmbedder()
    async with traced(settings, collector.url) as (app, client):
        parts_of(app).snapshot = Snapshot(MappingProxyType({"fake": fake_bundle("fake", embedder)}))
        request = asyncio.create_task(client.post("/classify/fake", json={"inputs": "leaves"}))
        await asyncio.to_thread(embedder.begun.get, timeout=30)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        embedder.free_run()
    spans = [span for _, span in collector.spans]
    assert [span.name for span in spans] == ["POST /classify/{task}", "tokenise"]
    assert attributes(spans[0])["http.response.status_code"] == 499


async def test_one_trace_goes_from_the_request_through_its_job_to_the_provider(
    settings: Settings, collector: Collector, tmp_path: Any
) -> None:
    async with embedded_redis(tmp_path) as redis_url:
        changes = {"redis_url": SecretStr(redis_url), "quafu_url": "http://127.0.0.1:1"}
        async with traced(settings, collector.url, **changes) as (app, client):
            with tracing(parts_of(app).settings, "qd-worker") as tracer:
                async with working(redis_url, app, tracer):
                    path = "/classify/emotion?backend=baihua"
                    accepted = await client.post(path, json={"inputs": "a secret"}, headers=SAMPLED)
                    assert accepted.status_code == 202
                    job = await ended(client, accepted.headers["Location"])
                    assert job["status"] == "done"
    spans = [(process, span) for process, span in collector.spans if span.trace_id.hex() == TRACE]
    by_id = {span.span_id: span for _, span in spans}
    (server,) = [span for _, span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert attributes(server)["qd.job"] == job["id"]
    of_worker = [span for process, span in spans if process == "qd-worker"]
    steps = [span for span in of_worker if span.name.startswith("batch.")]
    calls = [span for span in of_worker if span.name.startswith("provider.")]
    assert {span.name for span in steps} == {"batch.send", "batch.follow"}
    assert {span.name for span in calls} >= {"provider.submit", "provider.status", "provider.result"}
    # The queue's library makes no spans, nor does anything else.
    assert len(of_worker) == len(steps) + len(calls)
    assert {span.parent_span_id for span in steps} == {server.span_id}
    assert {by_id[span.parent_span_id].name for span in calls} <= {"batch.send", "batch.follow"}
    others = {span.name for _, span in collector.spans} - {span.name for _, span in spans}
    assert others <= {"GET /jobs/{job_id}"}
    assert not any(b"secret" in body for body in collector.bodies)


@asynccontextmanager
async def working(redis_url: str, app: FastAPI, tracer: Tracer) -> AsyncIterator[None]:
    """A worker of the app's jobs, through the queue."""
    hardware = parts_of(app).hardware
    assert hardware is not None
    metrics, stopping = WorkerMetrics(), asyncio.Event()
    provider = ObservedProvider(FakeProvider(), metrics, tracer)
    store = hardware.store
    work = run_worker(
        redis_url,
        store.target,
        Executor(store, hardware.cache, provider, metrics, tracer, deadline_seconds=3600, shots=10_240),
        ReadoutSchedule(store, provider, layout="chain", interval_seconds=0, shots=10_240),
        FactFinder(store, provider),
        metrics,
        concurrency=4,
        lease_seconds=2,
        micro_batch_seconds=0.05,
        stopping=stopping,
    )
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        stopping.set()
        await task


async def ended(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (job := (await client.get(path)).json())["status"] not in ("done", "failed"):
            await asyncio.sleep(0.05)
    return dict(job)


@pytest.mark.parametrize("answers", ["refuses", "is silent", "fails"])
async def test_collector_that_is_away_costs_one_log_line(
    settings: Settings, collector: Collector, caplog: pytest.LogCaptureFixture, answers: str
) -> None:
    collector.status = 503
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        closed = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        urls = {
            "refuses": f"http://127.0.0.1:{closed.getsockname()[1]}",
            "is silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "fails": collector.url,
        }
        closed.close()
        with caplog.at_level(logging.WARNING):
            exporting = stack.enter_context(ExitStack())
            changed = settings.model_copy(update={"otlp_endpoint": urls[answers]})
            tracer = exporting.enter_context(tracing(changed, "qd-service"))
            app = create_app(changed, tracer)
            async with app.router.lifespan_context(app), client_of(app) as client:
                for _ in range(3):
                    assert (await client.post("/classify/emotion", json={"inputs": "a"})).status_code == 200
            # Far from the half minute that the SDK would take, and far enough for a busy machine.
            async with asyncio.timeout(15):
                await asyncio.to_thread(exporting.close)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in warned] == ["service.exporting"]
    assert "QD_OTLP_ENDPOINT" in warned[0].getMessage()


async def test_tracing_is_off_without_an_endpoint(settings: Settings, client: httpx.AsyncClient) -> None:
    with tracing(settings, "qd-service") as tracer:
        assert tracer is OFF
        with tracer.start_as_current_span("nothing"):
            assert exemplar() is None
            assert traceparent() is None
    await client.post("/classify/emotion", json={"inputs": "a"}, headers=SAMPLED)
    text = (await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})).text
    assert TRACE not in text


def test_nothing_that_records_or_sends_is_loaded_and_no_thread_begun_without_an_endpoint() -> None:
    # The SDK's metrics are there: Redis's client loads them wherever they are installed.
    code = """
import sys, threading
from service.app import create_app
from service.settings import Settings
from service.tracing import tracing
settings = Settings(redis_url="redis://127.0.0.1:1")
with tracing(settings, "qd-service") as tracer:
    create_app(settings, tracer)
    print([thread.name for thread in threading.enumerate()])
unwanted = "opentelemetry.sdk.trace", "opentelemetry.exporter", "google"
print([name for name in sys.modules if name.startswith(unwanted)])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines() == ["['MainThread']", "[]"], run.stderr
