"""OpenTelemetry traces, off unless `QD_OTLP_ENDPOINT` is set: one trace from a request through its job to the provider.

The tracer is passed to whoever makes spans and is never made the process's global one: the queue's library would then
record every look at Redis. Which span is current is the business of OpenTelemetry's context, which follows tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import context, trace
from opentelemetry.trace import NoOpTracer, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.settings import Settings

_PROPAGATOR = TraceContextTextMapPropagator()
_HEADER = "traceparent"


@contextmanager
def tracing(settings: Settings, process: str) -> Iterator[Tracer]:
    """A tracer that exports to the endpoint of the settings, or does nothing without one.

    What was recorded is sent when the context ends.

    Args:
        settings: Endpoint and the share of traces that is recorded.
        process: `service.name` of its spans.
    """
    if settings.otlp_endpoint is None:
        yield NoOpTracer()
        return
    # Imported here: they take longer to load than the rest of a worker, and most have no use for them.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.trace_ratio)),
        resource=Resource.create({"service.name": process, "service.version": version("qd-students")}),
    )
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider.get_tracer("qd-students")
    finally:
        provider.shutdown()


def exemplar() -> dict[str, str] | None:
    """The exemplar of what is observed now: the id of the trace that is being recorded, if one is."""
    span = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(span.trace_id)} if span.is_valid and span.trace_flags.sampled else None


def traceparent() -> str | None:
    """The current span as a `traceparent` header (W3C Trace Context), to be stored or sent; None without one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(_HEADER)


def context_of(header: str | None) -> context.Context:
    """The context in which a span continues the trace of a `traceparent`; the empty one without it."""
    return _PROPAGATOR.extract({_HEADER: header} if header else {}, context.Context())
