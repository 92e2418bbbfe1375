"""The rules that Prometheus evaluates: what it keeps for dashboards and alerts, and the alerts.

The name of a recording is what it is kept by (`all` if nothing is), the metric, and what was done to it:
`backend:qd_requests:rate5m`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.alerts import HARDWARE_ALERTS, SERVICE_ALERTS, Alert
from deploy.queries import WORST, mean, quantile, rate, ratio


@dataclass(frozen=True)
class Recording:
    """An expression that is evaluated again and again, and kept under a name."""

    name: str
    expression: str

    def rule(self) -> dict[str, Any]:
        return {"record": self.name, "expr": self.expression}


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated one after another."""

    name: str
    interval: str
    rules: Sequence[Recording | Alert]


# Not the service's own measurements of readout errors.
_OF_CALLERS = 'task!="readout"'

_REQUESTS = (
    Recording(
        "task_backend_outcome:qd_requests:rate5m", rate("qd_requests_total", "task, backend, outcome", window="5m")
    ),
    Recording("backend:qd_requests:rate5m", "sum by (backend) (task_backend_outcome:qd_requests:rate5m)"),
    Recording(
        "backend:qd_request_failures:ratio_rate5m",
        ratio("qd_requests_total", f'outcome=~"{WORST}"', "backend", window="5m"),
    ),
    Recording(
        "backend:qd_request_overloads:ratio_rate5m",
        ratio("qd_requests_total", 'outcome="overloaded"', "backend", window="5m"),
    ),
    Recording(
        "backend:qd_request_seconds:p95_rate5m",
        quantile(0.95, "qd_request_seconds", "backend", where='outcome="ok"', window="5m"),
    ),
    Recording(
        "task:qd_shadow_losses:ratio_rate15m",
        ratio("qd_shadows_total", 'outcome=~"dropped|failed"', "task", window="15m"),
    ),
    Recording("task:qd_shadows:rate15m", rate("qd_shadows_total", "task", window="15m")),
)
_HARDWARE = (
    Recording("task:qd_cache_hits:ratio_rate1h", ratio("qd_cache_lookups_total", 'result="hit"', "task", window="1h")),
    Recording(
        "call:qd_provider_failures:ratio_rate5m",
        ratio("qd_provider_calls_total", 'outcome!="ok"', "call", window="5m"),
    ),
    Recording("call:qd_provider_calls:rate5m", rate("qd_provider_calls_total", "call", window="5m")),
    Recording(
        "all:qd_jobs_failed:ratio_rate1h",
        ratio("qd_job_seconds_count", 'status="failed"', where='task!="readout"', window="1h"),
    ),
    Recording("all:qd_jobs_ended:increase1h", f"sum (increase(qd_job_seconds_count{{{_OF_CALLERS}}}[1h]))"),
    Recording(
        "task:qd_disagreements:ratio_rate1h",
        ratio("qd_comparisons_total", 'result="disagree"', "task", window="1h"),
    ),
    Recording("task:qd_comparisons:increase1h", "sum by (task) (increase(qd_comparisons_total[1h]))"),
    Recording("qubit_values:qd_expval_error:mean1h", mean("qd_expval_error", "qubit, values", window="1h")),
    Recording(
        "qubit_values:qd_expval_error:increase1h", "sum by (qubit, values) (increase(qd_expval_error_count[1h]))"
    ),
    Recording("all:qd_mitigation_shift:mean1h", mean("qd_mitigation_shift", window="1h")),
)
_LONG_RUN = (
    Recording(
        "task:qd_disagreements:ratio_rate7d",
        ratio("qd_comparisons_total", 'result="disagree"', "task", window="7d"),
    ),
    Recording("qubit_values:qd_expval_error:mean7d", mean("qd_expval_error", "qubit, values", window="7d")),
)

GROUPS = (
    Group("qd-requests", "15s", _REQUESTS),
    Group("qd-hardware", "15s", _HARDWARE),
    # A week of samples is read each time.
    Group("qd-long-run", "5m", _LONG_RUN),
    Group("qd-service-alerts", "15s", SERVICE_ALERTS),
    Group("qd-hardware-alerts", "15s", HARDWARE_ALERTS),
)
RECORDINGS = tuple(rule for group in GROUPS for rule in group.rules if isinstance(rule, Recording))
ALERTS = tuple(rule for group in GROUPS for rule in group.rules if isinstance(rule, Alert))


def rules_file() -> dict[str, Any]:
    """What Prometheus reads, as data."""
    return {
        "groups": [
            {"name": group.name, "interval": group.interval, "rules": [rule.rule() for rule in group.rules]}
            for group in GROUPS
        ]
    }
