"""The page that compares the simulator and Baihua."""

from __future__ import annotations

from typing import Any

from deploy.panels import (
    ANSWERED,
    BACKENDS,
    CALLERS,
    DATASOURCE,
    HALF,
    SERVICE,
    TASK,
    THIRD,
    UP_OR_DOWN,
    Levels,
    Query,
    bars,
    dashboard,
    figure,
    graph,
    laid_out,
    percentiles,
    states,
)
from deploy.queries import WORKERS, WORST, or_zero, quantile, rate, ratio, shared


def backends() -> Any:
    """What each backend costs in time and errors, and how far hardware is from the exact answer."""
    page = dashboard(
        *BACKENDS, "What each backend costs in time and errors, and how far hardware is from the exact answer.", SERVICE
    ).annotation(_Calibrations())
    rows = {
        "At a glance": _glance(),
        "Latency": _latency(),
        "Errors and throughput": _throughput(),
        "The way to hardware": _queue(),
        "Cache": _cache(),
        "Hardware against the exact answer": _drift(),
        "Provider": _provider(),
        "Switches": _switches(),
    }
    return laid_out(page, rows)


class _Calibrations:
    """Marks the time of each new calibration; the SDK's own query has no fields of Prometheus."""

    def build(self) -> _Calibrations:
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "name": "Calibrations",
            "datasource": DATASOURCE,
            "enable": True,
            "iconColor": "purple",
            # Grafana takes the value for milliseconds.
            "expr": f"{shared('qd_calibration_timestamp_seconds')} * 1000 > 0",
            "step": "60s",
            "titleFormat": "New calibration of the device",
            "useValueForTime": True,
        }


def _glance() -> list[Any]:
    failed = f'outcome=~"{WORST}"'
    return [
        figure(
            "Requests",
            "Classify requests a second by backend; `none` were refused before a backend was chosen.",
            "reqps",
            Query(or_zero(rate("qd_requests_total", "backend", where=TASK), "backend", "simulator"), "{{backend}}"),
        ),
        figure(
            "Failed",
            "Share of the requests answered 5xx, in the last 5 minutes.",
            "percentunit",
            Query(ratio("qd_requests_total", failed, "backend", where=TASK, window="5m"), "{{backend}}"),
            levels=Levels(0.005, 0.02),
        ),
        figure(
            "p95 of answers",
            "What 19 of 20 requests answered 200 stay below, in the last 5 minutes.",
            "s",
            Query(quantile(0.95, "qd_request_seconds", "backend", where=ANSWERED, window="5m"), "{{backend}}"),
        ),
        figure(
            "p95 of jobs",
            "Creation to end, of 19 of 20 jobs of the last hour that were done.",
            "s",
            Query(quantile(0.95, "qd_job_seconds", where=f'status="done", {CALLERS}', window="1h"), "job"),
        ),
        figure(
            "Other label than exact",
            "Share of hardware's results of the last hour whose label is not the exact one.",
            "percentunit",
            Query(f"task:qd_disagreements:ratio_rate1h{{{TASK}}}", "{{task}}"),
            levels=Levels(0.1, 0.2),
        ),
        figure(
            "Quota left",
            "Programs that the account may still run before 23:00 Beijing time.",
            "short",
            Query(shared("qd_provider_quota_left"), "programs"),
            levels=Levels(20, 1),
        ),
    ]


def _latency() -> list[Any]:
    return [
        graph(
            "Simulator",
            "Answers of the exact simulation: first byte of the request to the answer.",
            "s",
            *percentiles("qd_request_seconds", f'backend="simulator", {ANSWERED}'),
            levels=Levels(0.5, 1.0),
            logarithmic=True,
        ),
        graph(
            "Baihua, answered at once",
            "Requests for hardware answered 200: counts were kept, or came while the request waited.",
            "s",
            *percentiles("qd_request_seconds", f'backend="baihua", {ANSWERED}'),
            logarithmic=True,
        ),
        graph(
            "Baihua, jobs end to end",
            "A job's creation to its end, over the last hour; it ends when the slowest of its circuits has counts.",
            "s",
            *percentiles("qd_job_seconds", f'status="done", {CALLERS}', "1h"),
            logarithmic=True,
        ),
    ]


def _throughput() -> list[Any]:
    failed = f'outcome=~"{WORST}"'
    return [
        graph(
            "Failed requests",
            "Share answered 5xx by backend; no line where there were no requests.",
            "percentunit",
            Query(ratio("qd_requests_total", failed, "backend", where=TASK), "{{backend}}"),
            levels=Levels(0.005, 0.02),
        ),
        graph(
            "Requests",
            "Classify requests a second by backend; `none` were refused before a backend was chosen.",
            "reqps",
            Query(or_zero(rate("qd_requests_total", "backend", where=TASK), "backend", "simulator"), "{{backend}}"),
        ),
        graph(
            "Texts and circuits",
            "Texts answered a second by backend, and circuits that hardware is done with.",
            "ops",
            Query(or_zero(rate("qd_texts_total", "backend", where=TASK), "backend", "simulator"), "texts, {{backend}}"),
            Query(
                or_zero(rate("qd_circuits_ended_total", "status"), "status", "done", while_up=WORKERS),
                "circuits, {{status}}",
            ),
        ),
    ]


def _queue() -> list[Any]:
    stages = {
        "qd_dispatch_wait_seconds": "waits here",
        "qd_hardware_queue_seconds": "waits at the provider",
        "qd_hardware_execution_seconds": "runs",
    }
    return [
        graph(
            "Circuits that wait here",
            "To be sent to the provider; at QD_MAX_QUEUED_CIRCUITS requests are answered 429.",
            "short",
            Query(shared("qd_queue_circuits"), "circuits"),
            levels=Levels(1000, 5000),
        ),
        graph(
            "Jobs by state",
            "Jobs kept in Redis, those that have ended among them until QD_JOB_TTL_SECONDS.",
            "short",
            Query(shared("qd_jobs", "status"), "{{status}}"),
        ),
        graph(
            "Oldest",
            "Age of the oldest circuit that waits to be sent and of the oldest job that has not ended; 0 if none.",
            "s",
            Query(shared("qd_queue_oldest_seconds"), "circuit"),
            Query(shared("qd_job_oldest_seconds"), "job"),
        ),
        graph(
            "A circuit's time, median",
            "Over the last hour: until it is sent, until the device takes it, until its counts are here.",
            "s",
            *(Query(quantile(0.5, name, window="1h"), legend) for name, legend in stages.items()),
            span=HALF,
            logarithmic=True,
        ),
        graph(
            "A circuit's time, p95",
            "Likewise, of 19 of 20 circuits.",
            "s",
            *(Query(quantile(0.95, name, window="1h"), legend) for name, legend in stages.items()),
            span=HALF,
            logarithmic=True,
        ),
    ]


def _cache() -> list[Any]:
    return [
        graph(
            "Hit ratio",
            "Share of the circuits whose counts were kept, over the last hour: what hardware need not run again.",
            "percentunit",
            Query(f"task:qd_cache_hits:ratio_rate1h{{{TASK}}}", "{{task}}"),
            span=HALF,
            most=1,
        ),
        graph(
            "Look-ups",
            "Circuits a second: `hit` had counts, `coalesced` were under way already, `miss` went to the queue.",
            "ops",
            Query(or_zero(rate("qd_cache_lookups_total", "result", where=TASK), "result", "hit"), "{{result}}"),
            span=HALF,
        ),
    ]


def _drift() -> list[Any]:
    # Labels are sorted as text: 02 stands before 10, and 2 would not.
    by_qubit = 'label_replace(qubit_values:qd_expval_error:mean1h{values="%s"}, "qubit", "0$1", "qubit", "(.)")'
    off = Levels(0.1, 0.2)
    return [
        bars(
            "How far each qubit is off, raw",
            "Mean of |<Z> on hardware - exact <Z>| over the last hour, from the counts as they came.",
            "short",
            Query(by_qubit % "raw", "{{qubit}}"),
            levels=off,
            most=0.5,
        ),
        bars(
            "How far each qubit is off, corrected",
            "Likewise, after the correction for readout errors; qubits are numbered as in the circuit.",
            "short",
            Query(by_qubit % "corrected", "{{qubit}}"),
            levels=off,
            most=0.5,
        ),
        graph(
            "Drift of each qubit",
            "The corrected error of each qubit over time; calibrations are marked.",
            "short",
            Query(by_qubit % "corrected", "{{qubit}}"),
        ),
        graph(
            "Other label than exact",
            "Share of hardware's results whose label is not the exact one, in the last hour and in the last week.",
            "percentunit",
            Query(f"task:qd_disagreements:ratio_rate1h{{{TASK}}}", "{{task}}, hour"),
            Query(f"task:qd_disagreements:ratio_rate7d{{{TASK}}}", "{{task}}, week"),
            levels=Levels(0.1, 0.2),
        ),
        graph(
            "What the readout correction moves",
            "Mean over the qubits of |corrected <Z> - raw <Z>|, of the circuits of the last hour.",
            "short",
            Query("all:qd_mitigation_shift:mean1h", "mean"),
            Query(quantile(0.95, "qd_mitigation_shift", window="1h"), "p95"),
        ),
    ]


def _provider() -> list[Any]:
    return [
        graph(
            "Calls",
            "Calls to the provider a second, by outcome.",
            "reqps",
            Query(
                or_zero(rate("qd_provider_calls_total", "outcome"), "outcome", "ok", while_up=WORKERS), "{{outcome}}"
            ),
        ),
        graph(
            "Calls that fail",
            "Share of each kind of call that brings no good answer, in the last 5 minutes.",
            "percentunit",
            Query("call:qd_provider_failures:ratio_rate5m", "{{call}}"),
            levels=Levels(0.05, 0.2),
        ),
        graph(
            "Time of a call, p95",
            "What 19 of 20 calls of the last 5 minutes stay below.",
            "s",
            Query(quantile(0.95, "qd_provider_call_seconds", "call", window="5m"), "{{call}}"),
            logarithmic=True,
        ),
        graph(
            "Batches held",
            "Times a second that a batch had to wait, by reason; it goes on by itself.",
            "ops",
            Query(or_zero(rate("qd_holds_total", "reason"), "reason", "none", while_up=WORKERS), "{{reason}}"),
        ),
        graph(
            "Quota and the provider's queue",
            "Programs that the account may still run today, and jobs of everybody before the device.",
            "short",
            Query(shared("qd_provider_quota_left"), "quota left"),
            Query(shared("qd_device_queue_jobs"), "jobs in the device's queue"),
            levels=Levels(20, 1),
        ),
        states(
            "Device and workers",
            "Whether the device took jobs when a worker last asked, and whether a worker is at work.",
            UP_OR_DOWN,
            Query(shared("qd_device_online"), "device"),
            Query(shared("qd_worker_up"), "worker"),
            span=THIRD,
        ),
    ]


def _switches() -> list[Any]:
    shadowed = f"max by (task) (qd_shadow_ratio{{{TASK}}})"
    on_hardware = f'max by (task) (qd_default_backend{{backend="baihua", {TASK}}})'
    return [
        states(
            "Default backend",
            "What answers requests that name no backend: the simulator, the simulator with a share of them on hardware "
            "too, or hardware.",
            {0: ("simulator", "blue"), 1: ("simulator, shadow", "purple"), 2: ("baihua", "orange")},
            Query(f"2 * {on_hardware} + ({shadowed} > bool 0)", "{{task}}"),
            span=THIRD,
        ),
        graph(
            "Shadow share",
            "Share of the simulator's requests that run on hardware too.",
            "percentunit",
            Query(shadowed, "{{task}}"),
            most=1,
        ),
        graph(
            "Shadow requests",
            "`cached` had counts, `queued` went to hardware, `dropped` were too many at once, `failed` did not arrive.",
            "reqps",
            Query(or_zero(rate("qd_shadows_total", "outcome", where=TASK), "outcome", "queued"), "{{outcome}}"),
        ),
    ]
