"""Sending spans to a collector. Imported only where there is one: the SDK takes long to load."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from time import monotonic

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

# A collector that does not answer holds the thread that sends for so long, and the end of the process little longer.
_EXPORT_SECONDS = 2.0
_LAST_SECONDS = 0.5

logger = logging.getLogger(__name__)


@contextmanager
def exporting(endpoint: str, ratio: float, process: str, *, say_why: bool = False) -> Iterator[Tracer]:
    """A tracer whose spans are sent by a thread of its own, the last ones when the context ends.

    While the collector is away spans are dropped, and nothing waits for it.

    Args:
        endpoint: Address of the collector, without the path.
        ratio: Share of traces that is recorded; who continues a trace does as its parent.
        process: `service.name` of the spans.
        say_why: Whether each attempt that fails is logged, and not only that they have begun to.
    """
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource.create({"service.name": process, "service.version": version("qd-students")}),
        shutdown_on_exit=False,
    )
    logging.getLogger("opentelemetry.exporter").setLevel(logging.DEBUG if say_why else logging.CRITICAL)
    exporter = _Exporter(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider.get_tracer("qd-students")
    finally:
        exporter.stop_in(_LAST_SECONDS)
        provider.shutdown()


class _Exporter(SpanExporter):
    """Says once that the collector has gone, and once that it is back."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._stops_at = float("inf")
        self._works = True

    def stop_in(self, seconds: float) -> None:
        """Begin to send nothing more after so many seconds."""
        self._stops_at = monotonic() + seconds

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if monotonic() > self._stops_at:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        works = result is SpanExportResult.SUCCESS
        if works and not self._works:
            logger.info("traces are sent again")
        elif self._works and not works:
            # The address may hold a password, so it is not said.
            logger.warning("traces are lost: the collector at QD_OTLP_ENDPOINT does not take them")
        self._works = works
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
