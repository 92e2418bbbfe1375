"""OpenTelemetry traces, off unless `QD_OTLP_ENDPOINT` is set: one trace from a request through its job to the provider.

The tracer is passed to whoever makes spans and is never made the process's global one: the queue's library would then
record every look at Redis. Which span is current is the business of OpenTelemetry's context, which follows tasks.

Neither texts nor keys are put into a span, nor messages of exceptions, which may quote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter_ns, time_ns
from typing import Final, NamedTuple

from opentelemetry import context, trace
from opentelemetry.trace import NoOpTracer, Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from service.settings import Settings

OFF: Final[Tracer] = NoOpTracer()
"""The tracer that records nothing."""

_PROPAGATOR = TraceContextTextMapPropagator()
_HEADER = "traceparent"


class Period(NamedTuple):
    """When something began and ended, in seconds of `time.perf_counter`."""

    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@contextmanager
def tracing(settings: Settings, process: str) -> Iterator[Tracer]:
    """A tracer that exports to the endpoint of the settings, or does nothing without one.

    What was recorded is sent when the context ends, which takes three seconds at most.

    Args:
        settings: Endpoint and the share of traces that is recorded.
        process: `service.name` of its spans.
    """
    if settings.otlp_endpoint is None:
        yield OFF
        return
    from service.exporting import exporting

    say_why = settings.log_level == "debug"
    with exporting(settings.otlp_endpoint, settings.trace_ratio, process, say_why=say_why) as tracer:
        yield tracer


def exemplar(span: Span | None = None) -> dict[str, str] | None:
    """The exemplar of what is observed: the id of the trace that is being recorded, if one is.

    Args:
        span: What it belongs to; the current span without it.
    """
    found = (span or trace.get_current_span()).get_span_context()
    return {"trace_id": trace.format_trace_id(found.trace_id)} if found.is_valid and found.trace_flags.sampled else None


def record(
    tracer: Tracer, name: str, parent: Span, period: Period, attributes: Mapping[str, AttributeValue] | None = None
) -> None:
    """Record as a span what is over already, on whatever thread it ran; nothing if its parent is not recorded."""
    if not parent.is_recording():
        return
    epoch = time_ns() - perf_counter_ns()
    within = trace.set_span_in_context(parent, context.Context())
    span = tracer.start_span(name, within, attributes=attributes, start_time=epoch + int(period.begun * 1e9))
    span.end(epoch + int(period.ended * 1e9))


def traceparent() -> str | None:
    """The current span as a `traceparent` header (W3C Trace Context), to be stored; None if no trace is recorded."""
    if exemplar() is None:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(_HEADER)


def context_of(header: str | None) -> context.Context:
    """The context in which a span continues the trace of a `traceparent`; the empty one without it."""
    return _PROPAGATOR.extract({_HEADER: header} if header else {}, context.Context())
