"""Every Prometheus instrument, in a registry of its own for each app.

Labels come from bounded sets: `task` is a loaded task or `none`, `backend` a known backend or `none` (the request was
refused before one was chosen), `route` a path template or `none`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from service.registry import LoadedBundle

NONE = "none"
Outcome = Literal["ok", "invalid", "overloaded", "cancelled", "unavailable", "error"]

_REQUEST_LABELS = ("task", "backend", "outcome")
_MICROSECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)
_MILLISECONDS = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0)
_SECONDS = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The instruments of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("qd_requests", "Classify requests answered.", _REQUEST_LABELS, registry=r)
        self.request_seconds = Histogram(
            "qd_request_seconds",
            "Time from a classify request's first byte to its answer.",
            _REQUEST_LABELS,
            buckets=_SECONDS,
            registry=r,
        )
        self.texts = Counter("qd_texts", "Texts classified.", ("task", "backend"), registry=r)
        self.http_responses = Counter(
            "qd_http_responses", "Answers on every path, by path template and status.", ("route", "status"), registry=r
        )
        self.requests_in_flight = Gauge(
            "qd_requests_in_flight", "Requests being answered, the one that reads this among them.", registry=r
        )
        self.queued_texts = Gauge("qd_queued_texts", "Texts that wait for the encoder.", registry=r)
        self.tokenise_seconds = Histogram(
            "qd_tokenise_seconds", "Tokenisation of one request's texts.", buckets=_MICROSECONDS, registry=r
        )
        self.batch_wait_seconds = Histogram(
            "qd_batch_wait_seconds",
            "Time that a tokenised request waits until the encoder starts on it.",
            buckets=_MILLISECONDS,
            registry=r,
        )
        self.batch_texts = Histogram("qd_batch_texts", "Texts in one forward pass.", buckets=_TEXTS, registry=r)
        self.encoder_seconds = Histogram(
            "qd_encoder_seconds", "One forward pass of the encoder.", buckets=_MILLISECONDS, registry=r
        )
        self.circuit_seconds = Histogram(
            "qd_circuit_seconds",
            "Reducer, circuit and head for one task's texts of a batch.",
            ("task",),
            buckets=_MICROSECONDS,
            registry=r,
        )
        self.bundle_info = Gauge(
            "qd_bundle_info", "1 for each bundle served.", ("task", "bundle", "embedder", "engine"), registry=r
        )

    def show_bundles(self, bundles: Iterable[LoadedBundle]) -> None:
        """Make `bundle_info` list these bundles and no others."""
        self.bundle_info.clear()
        for bundle in bundles:
            self.bundle_info.labels(bundle.task, bundle.id, bundle.embedder.name, bundle.student.engine.name).set(1)

    def observe_request(self, task: str, backend: str, outcome: Outcome, seconds: float, n_texts: int) -> None:
        """Count one classify request; `n_texts` is counted where it was answered."""
        self.requests.labels(task, backend, outcome).inc()
        self.request_seconds.labels(task, backend, outcome).observe(seconds)
        if outcome == "ok":
            self.texts.labels(task, backend).inc(n_texts)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Every sample in the format that an Accept header asks for, and that format's content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def outcome_of(status: int) -> Outcome:
    """The outcome label of an HTTP status."""
    exact: dict[int, Outcome] = {429: "overloaded", 499: "cancelled", 501: "unavailable", 503: "unavailable"}
    if status in exact:
        return exact[status]
    if status >= 500:
        return "error"
    return "invalid" if status >= 400 else "ok"
