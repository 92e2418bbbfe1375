"""The page that looks into the service."""

from __future__ import annotations

from typing import Any

from deploy.panels import (
    ANSWERED,
    BACKENDS,
    SERVICE,
    TASK,
    THIRD,
    UP_OR_DOWN,
    Levels,
    Query,
    dashboard,
    figure,
    graph,
    laid_out,
    listing,
    percentiles,
)
from deploy.queries import REPLICAS, WORKERS, WORST, mean, or_zero, quantile, rate, ratio, shared


def service() -> Any:
    """Where a request's time goes, what is refused, and which parts are up."""
    page = dashboard(*SERVICE, "Where a request's time goes, what is refused, and which parts are up.", BACKENDS)
    rows = {
        "At a glance": _parts(),
        "Requests": _requests(),
        "Where the time goes": _times(),
        "Batching": _batching(),
        "Keys and bundles": _control(),
    }
    return laid_out(page, rows)


def _parts() -> list[Any]:
    return [
        figure(
            "Replicas",
            "Replicas of the service that answer Prometheus.",
            "short",
            Query(f"{REPLICAS} or vector(0)", "replicas"),
            levels=Levels(1, 0.5),
        ),
        figure(
            "Workers",
            "Workers that answer Prometheus.",
            "short",
            Query(f"{WORKERS} or vector(0)", "workers"),
            levels=Levels(1, 0.5),
        ),
        figure(
            "Redis",
            "Whether Redis answers every replica.",
            "short",
            Query("min (qd_redis_up)", "Redis"),
            names=UP_OR_DOWN,
        ),
        figure(
            "Worker at work",
            "Whether a worker said so in the last half minute; no value while Redis is away.",
            "short",
            Query(shared("qd_worker_up"), "worker"),
            names=UP_OR_DOWN,
        ),
        figure(
            "In flight",
            "Requests being answered, the one that reads this among them.",
            "short",
            Query("sum (qd_requests_in_flight)", "requests"),
        ),
        figure(
            "Failed",
            "Share of all classify requests answered 5xx, in the last 5 minutes.",
            "percentunit",
            Query(ratio("qd_requests_total", f'outcome=~"{WORST}"', where=TASK, window="5m"), "all backends"),
            levels=Levels(0.005, 0.02),
        ),
    ]


def _requests() -> list[Any]:
    return [
        graph(
            "Classify requests by outcome",
            "`accepted` became jobs, `invalid` are the caller's fault, `denied` have no key that may, "
            "`overloaded` were answered 429, `cancelled` left, `unavailable` and `error` are ours.",
            "reqps",
            Query(or_zero(rate("qd_requests_total", "outcome", where=TASK), "outcome", "ok"), "{{outcome}}"),
        ),
        graph(
            "Answers by path",
            "Answers a second on every path, by its template.",
            "reqps",
            Query(rate("qd_http_responses_total", "route"), "{{route}}"),
        ),
        graph(
            "Answers by status",
            "Answers a second on every path, by status.",
            "reqps",
            Query(rate("qd_http_responses_total", "status"), "{{status}}"),
        ),
        graph(
            "p95 by task",
            "What 19 of 20 answers of the simulator stay below.",
            "s",
            Query(
                quantile(0.95, "qd_request_seconds", "task", where=f'backend="simulator", {ANSWERED}'), "{{task}}", True
            ),
            logarithmic=True,
        ),
        graph(
            "Requests by task",
            "Classify requests a second; `none` named a task that is not served.",
            "reqps",
            Query(or_zero(rate("qd_requests_total", "task", where=TASK), "task", "none"), "{{task}}"),
        ),
        graph(
            "In flight",
            "Requests being answered and clients that wait for a job or follow it, by replica.",
            "short",
            Query("qd_requests_in_flight", "requests, {{instance}}"),
            Query("qd_job_followers", "followers, {{instance}}"),
        ),
    ]


def _times() -> list[Any]:
    return [
        graph(
            "Tokenisation",
            "One request's texts.",
            "s",
            *percentiles("qd_tokenise_seconds"),
            span=6,
            logarithmic=True,
        ),
        graph(
            "Wait for the encoder",
            "A tokenised request, until the encoder starts on it.",
            "s",
            *percentiles("qd_batch_wait_seconds"),
            span=6,
            logarithmic=True,
        ),
        graph("Encoder", "One forward pass.", "s", *percentiles("qd_encoder_seconds"), span=6, logarithmic=True),
        graph(
            "Circuit, p95",
            "Reducer, circuit and head for one task's texts of a batch.",
            "s",
            Query(quantile(0.95, "qd_circuit_seconds", "task", where=TASK), "{{task}}", True),
            span=6,
            logarithmic=True,
        ),
    ]


def _batching() -> list[Any]:
    return [
        graph(
            "Texts in a forward pass",
            "At most QD_MAX_BATCH_TEXTS; more when requests come faster than the encoder works.",
            "short",
            Query(mean("qd_batch_texts"), "mean"),
            Query(quantile(0.95, "qd_batch_texts"), "p95"),
        ),
        graph(
            "Texts that wait for the encoder",
            "By replica; at QD_MAX_QUEUED_TEXTS requests are answered 429.",
            "short",
            Query("qd_queued_texts", "{{instance}}"),
            levels=Levels(512, 1024),
        ),
        graph(
            "Steps under way at the workers",
            "At most QD_WORKER_CONCURRENCY each.",
            "short",
            Query("qd_worker_steps", "{{instance}}"),
            levels=Levels(15, 20),
        ),
    ]


def _control() -> list[Any]:
    return [
        graph(
            "Refused for their key",
            "Requests a second with no key, an unknown, expired or revoked one, or without its scope or limit.",
            "reqps",
            Query(or_zero(rate("qd_denied_total", "reason"), "reason", "none"), "{{reason}}"),
        ),
        graph(
            "Bundles loaded anew, by each replica",
            "Attempts in the last 15 minutes; at `rejected` the old bundles stay.",
            "short",
            Query("sum by (outcome) (increase(qd_reloads_total[15m]))", "{{outcome}}"),
        ),
        listing(
            "Bundles served",
            "By every replica; two of one task are a pinned version, or a reload that has not reached all.",
            Query("count by (task, bundle, embedder, engine) (qd_bundle_info)", ""),
            {"task": "Task", "bundle": "Bundle", "embedder": "Embedder", "engine": "Engine", "Value": "Replicas"},
            span=THIRD,
        ),
    ]
