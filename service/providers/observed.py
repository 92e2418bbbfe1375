"""A provider whose every call is counted, timed and, where a trace is being recorded, made a span of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from opentelemetry.trace import SpanKind, StatusCode, Tracer, get_current_span

from models.device import Device
from service.metrics import WorkerMetrics
from service.providers.base import Health, JobState, Limits, Outcome, Program, Provider, ProviderError
from service.tracing import exemplar


class ObservedProvider:
    """Passes every call on, and what comes of it back.

    Args:
        provider: Who answers.
        metrics: Where calls are counted and timed.
        tracer: Makes the spans. A call that belongs to no trace gets none: it would be a trace of its own.
    """

    def __init__(self, provider: Provider, metrics: WorkerMetrics, tracer: Tracer) -> None:
        self.repeatable = provider.repeatable
        self.submit_seconds = provider.submit_seconds
        self._provider = provider
        self._metrics = metrics
        self._tracer = tracer

    async def limits(self) -> Limits:
        with self._call("limits"):
            return await self._provider.limits()

    async def device(self) -> Device | None:
        with self._call("device"):
            return await self._provider.device()

    async def health(self) -> Health:
        with self._call("health"):
            return await self._provider.health()

    async def submit(self, programs: Sequence[Program], token: str) -> str:
        with self._call("submit"):
            return await self._provider.submit(programs, token)

    async def status(self, job_id: str) -> JobState:
        with self._call("status"):
            return await self._provider.status(job_id)

    async def result(self, job_id: str, programs: Sequence[Program]) -> list[Outcome]:
        with self._call("result"):
            return await self._provider.result(job_id, programs)

    async def cancel(self, job_id: str) -> None:
        with self._call("cancel"):
            await self._provider.cancel(job_id)

    async def close(self) -> None:
        await self._provider.close()

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        if not get_current_span().get_span_context().is_valid:
            with self._observed(name):
                yield
            return
        with self._tracer.start_as_current_span(
            f"provider.{name}",
            kind=SpanKind.CLIENT,
            # What the provider says may quote a circuit's author; its kind is said below.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                with self._observed(name):
                    yield
            except Exception as exc:
                span.set_attribute("error.type", outcome_of(exc))
                span.set_status(StatusCode.ERROR)
                raise

    @contextmanager
    def _observed(self, name: str) -> Iterator[None]:
        begun = perf_counter()
        outcome = "cancelled"  # of a call whose worker is stopped, which raises what is no Exception
        try:
            yield
            outcome = "ok"
        except Exception as exc:
            outcome = outcome_of(exc)
            raise
        finally:
            self._metrics.provider_call_seconds.labels(name).observe(perf_counter() - begun, exemplar())
            self._metrics.provider_calls.labels(name, outcome).inc()


def outcome_of(error: Exception) -> str:
    """What came of a call that raised: the reason of a provider's error, `error` for what nobody foresaw."""
    return error.reason if isinstance(error, ProviderError) else "error"
