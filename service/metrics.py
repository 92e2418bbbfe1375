"""Every Prometheus instrument, in a registry of its own for each process.

A replica of the service holds `Metrics`, a worker `WorkerMetrics`; each answers on a port of its own, so that
nothing is shared between processes but what is in Redis. What is in Redis is the same for all: every replica reads it
when it is asked for metrics (`Shared`), and a query takes `max` of it and not `sum`.

Labels come from bounded sets: `task` is a loaded task, `none`, or `readout` for measurements of readout errors;
`backend` a known backend or `none` (the request was refused before one was chosen); `route` a path template or `none`;
`qubit` an index into the circuit.

Where a trace is being recorded, histograms keep its id as the exemplar of the bucket; it is shown in the OpenMetrics
format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Literal, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from service.hardware.records import Exact, Status, Survey
from service.registry import LoadedBundle
from service.schemas import HardwareResult
from service.tracing import exemplar

NONE = "none"
Outcome = Literal["ok", "accepted", "invalid", "denied", "overloaded", "cancelled", "unavailable", "error"]

_REQUEST_LABELS = ("task", "backend", "outcome")
_MICROSECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)
_MILLISECONDS = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0)
_SECONDS = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_CALL_SECONDS = (1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
# A chip answers in seconds when nobody is before us, and in hours when many are.
_HOURS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 14_400.0, 86_400.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_EXPVAL = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class _Registered:
    """Instruments in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def exposition(self, accept: str, *others: _Registered) -> tuple[bytes, str]:
        """Every sample in the format that an Accept header asks for, and that format's content type.

        Args:
            others: Whose samples follow, in the same document.
        """
        encode, content_type = choose_encoder(accept)
        # Only its samples are asked for.
        return encode(_Together([self, *others])), content_type  # type: ignore[arg-type]

    def collect(self) -> Iterable[Metric]:
        """Every metric with its samples."""
        return self.registry.collect()

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, help_text, labels, buckets=buckets, registry=self.registry)

    @property
    def instruments(self) -> list[MetricWrapperBase]:
        """Every instrument, by name."""
        found = {each for each in vars(self).values() if isinstance(each, MetricWrapperBase)}
        return sorted(found, key=lambda each: each._name)


class _Together:
    """Several registries as one."""

    def __init__(self, parts: Sequence[_Registered]) -> None:
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        return (metric for part in self._parts for metric in part.collect())


class _Hardware(_Registered):
    """What a replica of the service and a worker both see of hardware, each its own part; a query takes the `sum`."""

    def __init__(self) -> None:
        super().__init__()
        self.comparisons = self._counter(
            "qd_comparisons",
            "Results from hardware whose label is (`agree`) or is not (`disagree`) the exact one.",
            "task",
            "result",
            "cached",
        )
        self.job_seconds = self._histogram(
            "qd_job_seconds", "Time from a job's creation to its end, by how it ended.", _HOURS, "task", "status"
        )
        self.circuits_ended = self._counter(
            "qd_circuits_ended", "Circuits that are over: `done`, `failed` or `cancelled`.", "status"
        )

    def observe_comparison(self, task: str, result: HardwareResult, exact: Exact, *, cached: bool) -> None:
        """Count whether a label from hardware is the exact one.

        Args:
            cached: Whether its counts were there before it was asked for.
        """
        agrees = "agree" if result.label == exact.label else "disagree"
        self.comparisons.labels(task, agrees, "true" if cached else "false").inc()

    def observe_job_end(self, task: str, status: Status, seconds: float) -> None:
        """Count a job that has just ended."""
        self.job_seconds.labels(task, status.value).observe(seconds, exemplar())


class Shared(_Registered):
    """What is the same for every replica, as it is in Redis when it is asked for; absent while Redis is away."""

    def __init__(self) -> None:
        super().__init__()
        self.queue_circuits = self._gauge("qd_queue_circuits", "Circuits that wait to be sent to the provider.")
        self.queue_oldest_seconds = self._gauge(
            "qd_queue_oldest_seconds", "Age of the oldest circuit that waits to be sent; 0 if none does."
        )
        self.jobs = self._gauge("qd_jobs", "Jobs kept, by state.", "status")
        self.job_oldest_seconds = self._gauge(
            "qd_job_oldest_seconds", "Age of the oldest job that has not ended; 0 if all have."
        )
        self.worker_up = self._gauge("qd_worker_up", "1 if a worker was at work in the last half minute.")
        self.device_online = self._gauge("qd_device_online", "1 if the device took jobs when a worker last asked.")
        self.device_queue_jobs = self._gauge("qd_device_queue_jobs", "Jobs in the provider's own queue for the device.")
        self.quota_left = self._gauge(
            "qd_provider_quota_left", "Programs that the account may still run before the quota's next reset."
        )
        self.provider_seen_timestamp = self._gauge(
            "qd_provider_seen_timestamp_seconds", "When the provider last told a worker of itself."
        )
        self.calibration_timestamp = self._gauge(
            "qd_calibration_timestamp_seconds", "When the device's current calibration was first seen."
        )
        self.readout_timestamp = self._gauge(
            "qd_readout_timestamp_seconds", "When the readout errors in use were measured."
        )

    @classmethod
    def of(cls, survey: Survey, now: float) -> Self:
        """The gauges of what was found in Redis; those of what is not known are left out."""
        shared = cls()
        for status, n_jobs in survey.jobs.items():
            shared.jobs.labels(status.value).set(n_jobs)
        provider = survey.provider
        values: dict[Gauge, float | None] = {
            shared.queue_circuits: survey.n_pending,
            shared.queue_oldest_seconds: _age(survey.oldest_circuit_at, now),
            shared.job_oldest_seconds: _age(survey.oldest_job_at, now),
            shared.worker_up: survey.has_worker,
            shared.device_online: provider.device_online if provider else None,
            shared.device_queue_jobs: provider.queue_length if provider else None,
            shared.quota_left: provider.quota_left if provider else None,
            shared.provider_seen_timestamp: provider.seen_at if provider else None,
            shared.calibration_timestamp: survey.calibration_at,
            shared.readout_timestamp: survey.readout_at,
        }
        for gauge, value in values.items():
            if value is None:
                shared.registry.unregister(gauge)
            else:
                gauge.set(value)
        return shared


class Metrics(_Hardware):
    """The instruments of one replica of the service."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = self._counter("qd_requests", "Classify requests answered.", *_REQUEST_LABELS)
        self.request_seconds = self._histogram(
            "qd_request_seconds", "Time from a classify request's first byte to its answer.", _SECONDS, *_REQUEST_LABELS
        )
        self.texts = self._counter("qd_texts", "Texts classified.", "task", "backend")
        self.http_responses = self._counter(
            "qd_http_responses", "Answers on every path, by path template and status.", "route", "status"
        )
        self.requests_in_flight = self._gauge(
            "qd_requests_in_flight", "Requests being answered, the one that reads this among them."
        )
        self.job_followers = self._gauge("qd_job_followers", "Clients that wait for a job or follow its events.")
        self.queued_texts = self._gauge("qd_queued_texts", "Texts that wait for the encoder.")
        self.tokenise_seconds = self._histogram(
            "qd_tokenise_seconds", "Tokenisation of one request's texts.", _MICROSECONDS
        )
        self.batch_wait_seconds = self._histogram(
            "qd_batch_wait_seconds",
            "Time that a tokenised request waits until the encoder starts on it.",
            _MILLISECONDS,
        )
        self.batch_texts = self._histogram("qd_batch_texts", "Texts in one forward pass.", _TEXTS)
        self.encoder_seconds = self._histogram("qd_encoder_seconds", "One forward pass of the encoder.", _MILLISECONDS)
        self.circuit_seconds = self._histogram(
            "qd_circuit_seconds", "Reducer, circuit and head for one task's texts of a batch.", _MICROSECONDS, "task"
        )
        self.cache_lookups = self._counter(
            "qd_cache_lookups",
            "Circuits looked up for hardware: `hit` had counts, `coalesced` were under way, `miss` were queued.",
            "task",
            "result",
        )
        self.shadows = self._counter(
            "qd_shadows",
            "Requests answered by the simulator that were to run on hardware too: `cached`, `queued`, `dropped` (too "
            "many at once) or `failed`.",
            "task",
            "outcome",
        )
        self.denied = self._counter(
            "qd_denied",
            "Requests refused for their key: `missing`, `unknown`, `expired`, `revoked`, `scope`, `rate` or `budget`.",
            "reason",
        )
        self.reloads = self._counter("qd_reloads", "Attempts to load bundles anew: `ok` or `rejected`.", "outcome")
        for outcome in ("ok", "rejected"):
            self.reloads.labels(outcome)  # told from 0 on: the first rejection is an increase too
        self.default_backend = self._gauge(
            "qd_default_backend", "1 for the backend of requests that name none.", "task", "backend"
        )
        self.shadow_ratio = self._gauge(
            "qd_shadow_ratio", "Share of the simulator's requests that run on hardware too, 0 to 1.", "task"
        )
        self.redis_up = self._gauge(
            "qd_redis_up", "1 if Redis answered when it was last asked; NaN if there is none to ask."
        )
        self.bundle_info = self._gauge(
            "qd_bundle_info", "1 for each bundle served.", "task", "bundle", "embedder", "engine"
        )

    def show_bundles(self, bundles: Iterable[LoadedBundle]) -> None:
        """Make `bundle_info` list these bundles and no others."""
        self.bundle_info.clear()
        for bundle in bundles:
            self.bundle_info.labels(bundle.task, bundle.id, bundle.embedder.name, bundle.student.engine.name).set(1)

    def observe_cancellation(self, task: str, seconds: float, n_circuits: int) -> None:
        """Count a job that a caller has just cancelled, and the circuits that ended with it before they were sent."""
        self.observe_job_end(task, Status.CANCELLED, seconds)
        self.circuits_ended.labels(Status.CANCELLED.value).inc(n_circuits)

    def observe_request(self, task: str, backend: str, outcome: Outcome, seconds: float, n_texts: int) -> None:
        """Count one classify request; `n_texts` is counted where it was answered."""
        self.requests.labels(task, backend, outcome).inc()
        self.request_seconds.labels(task, backend, outcome).observe(seconds, exemplar())
        if outcome == "ok":
            self.texts.labels(task, backend).inc(n_texts)


class WorkerMetrics(_Hardware):
    """The instruments of one worker."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatch_wait_seconds = self._histogram(
            "qd_dispatch_wait_seconds", "Time that a circuit waits here until it is sent to the provider.", _HOURS
        )
        self.hardware_queue_seconds = self._histogram(
            "qd_hardware_queue_seconds", "Time that a circuit waits at the provider until the device takes it.", _HOURS
        )
        self.hardware_execution_seconds = self._histogram(
            "qd_hardware_execution_seconds", "Time from the device taking a circuit to its counts being here.", _HOURS
        )
        self.provider_calls = self._counter(
            "qd_provider_calls", "Calls to the provider: `ok`, or why not.", "call", "outcome"
        )
        self.provider_call_seconds = self._histogram(
            "qd_provider_call_seconds", "Time of a call to the provider.", _CALL_SECONDS, "call"
        )
        self.holds = self._counter("qd_holds", "Times that a batch had to wait, by reason.", "reason")
        self.expval_error = self._histogram(
            "qd_expval_error",
            "|<Z> on hardware - exact <Z>| of one qubit, `raw` and `corrected` for readout errors.",
            _EXPVAL,
            "qubit",
            "values",
        )
        self.mitigation_shift = self._histogram(
            "qd_mitigation_shift", "Mean over the qubits of |corrected <Z> - raw <Z>| of one circuit.", _EXPVAL
        )
        self.worker_steps = self._gauge("qd_worker_steps", "Steps that this worker has under way.")

    def observe_drift(self, result: HardwareResult, exact: Exact) -> None:
        """Compare what the device has just measured with the exact expectation values, qubit by qubit."""
        measured = {"raw": result.expvals_raw}
        if result.mitigated:
            measured["corrected"] = result.expvals
            shifts = [abs(after - before) for after, before in zip(result.expvals, result.expvals_raw, strict=True)]
            self.mitigation_shift.observe(fmean(shifts), exemplar())
        for values, expvals in measured.items():
            for qubit, (found, expected) in enumerate(zip(expvals, exact.expvals, strict=True)):
                self.expval_error.labels(str(qubit), values).observe(abs(found - expected), exemplar())


def metrics_table() -> str:
    """Every instrument as a Markdown table: name, type, unit, labels, meaning, and who has it."""
    owners = {"service": Metrics(), "worker": WorkerMetrics(), "service, the same from every replica": Shared()}
    found: dict[str, tuple[MetricWrapperBase, list[str]]] = {}
    for owner, part in owners.items():
        for instrument in part.instruments:
            found.setdefault(instrument._name, (instrument, []))[1].append(owner)
    rows = ["| Name | Type | Unit | Labels | Meaning | Process |", "|---|---|---|---|---|---|"]
    for name, (instrument, where) in sorted(found.items()):
        shown = f"{name}_total" if isinstance(instrument, Counter) else name
        labels = ", ".join(f"`{label}`" for label in instrument._labelnames)
        meaning = re.sub(r"[|<]", r"\\\g<0>", instrument._documentation)
        unit = _unit(name)
        rows.append(f"| `{shown}` | {instrument._type} | {unit} | {labels} | {meaning} | {', '.join(where)} |")
    return "\n".join(rows)


def _unit(name: str) -> str:
    if name.endswith("_timestamp_seconds"):
        return "seconds since 1970"
    last = name.rpartition("_")[2]
    return last if last in ("seconds", "ratio", "texts", "circuits", "jobs") else ""


def _age(since: float | None, now: float) -> float:
    return 0.0 if since is None else max(0.0, now - since)


def outcome_of(status: int) -> Outcome:
    """The outcome label of an HTTP status."""
    exact: dict[int, Outcome] = {
        202: "accepted",
        401: "denied",
        403: "denied",
        429: "overloaded",
        499: "cancelled",
        501: "invalid",  # asked for what is not configured here, which no operator can mend at night
        503: "unavailable",
    }
    if status in exact:
        return exact[status]
    if status >= 500:
        return "error"
    return "invalid" if status >= 400 else "ok"
