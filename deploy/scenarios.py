"""What the alert rules are tested with: series of a healthy site, and for each alert the ones that differ.

Values are in promtool's notation, a sample a minute from time 0 on: `0+60x400` grows by one a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.rules import ALERTS, GROUPS

_EVALUATED = "6h"
_N = 400


def _steady(value: float) -> str:
    return f"{value:g}x{_N}"


def _growing(per_minute: float) -> str:
    return f"0+{per_minute:g}x{_N}"


def _growing_faster(per_minute: float, in_the_last_hour: float) -> str:
    return f"0+{per_minute:g}x299 {300 * per_minute:g}+{in_the_last_hour:g}x{_N - 300}"


_REQUESTS = 'qd_requests_total{task="emotion", backend="%s", outcome="%s", instance="a"}'
_SECONDS = 'qd_request_seconds_bucket{task="emotion", backend="simulator", outcome="ok", instance="a", le="%s"}'
_DEFAULT = 'qd_default_backend{task="emotion", backend="baihua", instance="%s"}'
_COMPARISONS = 'qd_comparisons_total{task="emotion", result="%s", cached="false", instance="w"}'
_EXPVAL = 'qd_expval_error_%s{qubit="3", values="raw", instance="w"}'
_JOBS = 'qd_job_seconds_count{task="emotion", status="%s", instance="w"}'
_CALLS = 'qd_provider_calls_total{call="submit", outcome="%s", instance="w"}'
_SHADOWS = 'qd_shadows_total{task="emotion", outcome="%s", instance="a"}'
_UP = 'up{job="qd-%s", instance="%s"}'

HEALTHY: Mapping[str, str] = {
    _UP % ("service", "a"): _steady(1),
    _UP % ("service", "b"): _steady(1),
    _UP % ("worker", "w"): _steady(1),
    'qd_redis_up{instance="a"}': _steady(1),
    'qd_redis_up{instance="b"}': _steady(1),
    _REQUESTS % ("simulator", "ok"): _growing(600),
    _REQUESTS % ("simulator", "error"): _growing(1),
    _REQUESTS % ("simulator", "invalid"): _growing(99),
    _REQUESTS % ("simulator", "overloaded"): _growing(1),
    _REQUESTS % ("baihua", "accepted"): _growing(60),
    # A key beyond its rate is nobody's alarm.
    _REQUESTS % ("none", "denied"): _growing(600),
    _SECONDS % "0.02": _growing(500),
    _SECONDS % "0.5": _growing(590),
    _SECONDS % "5": _growing(600),
    _SECONDS % "+Inf": _growing(600),
    'qd_denied_total{reason="unknown", instance="a"}': _growing(1),
    'qd_reloads_total{outcome="rejected", instance="a"}': _steady(0),
    _DEFAULT % "a": _steady(1),
    _DEFAULT % "b": _steady(1),
    _SHADOWS % "queued": _growing(60),
    _SHADOWS % "dropped": _growing(1),
    'qd_worker_up{instance="a"}': _steady(1),
    'qd_device_online{instance="a"}': _steady(1),
    # As the clock of the tests begins at 0, these are of now.
    'qd_provider_seen_timestamp_seconds{instance="a"}': _growing(60),
    'qd_readout_timestamp_seconds{instance="a"}': _growing(60),
    'qd_provider_quota_left{instance="a"}': _steady(500),
    'qd_queue_circuits{instance="a"}': _steady(3),
    'qd_queue_oldest_seconds{instance="a"}': _steady(1),
    # Hardware may take hours.
    'qd_job_oldest_seconds{instance="a"}': _steady(20_000),
    _CALLS % "ok": _growing(100),
    _CALLS % "unreachable": _growing(1),
    _JOBS % "done": _growing(60),
    _JOBS % "failed": _growing(1),
    _COMPARISONS % "agree": _growing(95),
    _COMPARISONS % "disagree": _growing(5),
    _EXPVAL % "count": _growing(100),
    _EXPVAL % "sum": _growing(5),
}


@dataclass(frozen=True)
class Scenario:
    """Where one alert fires.

    Attributes:
        series: What differs from the healthy site; None is absent.
        summary: What the alert says.
        labels: What it has besides its name and severity.
        besides: Other alerts that fire with it, as they must.
    """

    series: Mapping[str, str | None]
    summary: str
    labels: Mapping[str, str] = field(default_factory=dict)
    besides: frozenset[str] = frozenset()


FIRING: Mapping[str, Scenario] = {
    "QdServiceDown": Scenario(
        {'qd_redis_up{instance="a"}': None, 'qd_redis_up{instance="b"}': None},
        "No replica of the service answers Prometheus.",
    ),
    "QdTargetDown": Scenario(
        {_UP % ("service", "b"): _steady(0)},
        "b (qd-service) does not answer Prometheus.",
        {"job": "qd-service", "instance": "b"},
    ),
    "QdErrorRatioHigh": Scenario(
        {_REQUESTS % ("simulator", "error"): _growing(100)},
        "12.5% of the requests for simulator fail.",
        {"backend": "simulator"},
    ),
    "QdLatencyHigh": Scenario(
        {_SECONDS % "0.5": _growing(540)},
        "One in twenty requests to the simulator takes longer than 2.75s.",
        {"backend": "simulator"},
    ),
    "QdOverloaded": Scenario(
        {_REQUESTS % ("simulator", "overloaded"): _growing(100)},
        "12.5% of the requests for simulator are answered 429.",
        {"backend": "simulator"},
    ),
    "QdKeysRefused": Scenario(
        {'qd_denied_total{reason="unknown", instance="a"}': _growing(60)},
        "1 requests a second come with a key that is unknown, expired or revoked.",
    ),
    "QdReloadRejected": Scenario(
        {'qd_reloads_total{outcome="rejected", instance="a"}': f"0x350 {_steady(1)}"},
        "Bundles could not be loaded; the old ones are still served.",
    ),
    "QdReplicasDiffer": Scenario(
        {_DEFAULT % "b": _steady(0)},
        "Replicas do not agree on whether emotion runs on baihua.",
        {"task": "emotion", "backend": "baihua"},
    ),
    "QdShadowsLost": Scenario(
        {_SHADOWS % "dropped": _growing(20)},
        "25% of the shadow requests of emotion never reach hardware.",
        {"task": "emotion"},
    ),
    "QdRedisAway": Scenario(
        # What is in Redis is absent then.
        {'qd_redis_up{instance="b"}': _steady(0)},
        "A replica gets no answer from Redis.",
    ),
    "QdNoWorker": Scenario({'qd_worker_up{instance="a"}': _steady(0)}, "No worker is at work, and jobs wait."),
    "QdProviderSilent": Scenario(
        {'qd_provider_seen_timestamp_seconds{instance="a"}': _steady(18_000)},
        "The provider was last heard of 1h 0m 0s ago.",
    ),
    "QdProviderCallsFail": Scenario(
        {_CALLS % "unreachable": _growing(100)},
        "50% of the provider's answers to submit are no good.",
        {"call": "submit"},
    ),
    "QdDeviceOffline": Scenario({'qd_device_online{instance="a"}': _steady(0)}, "The device takes no jobs."),
    "QdQuotaLow": Scenario(
        {'qd_provider_quota_left{instance="a"}': _steady(7)},
        "The account may run 7 more programs before its quota's reset.",
    ),
    "QdQuotaSpent": Scenario({'qd_provider_quota_left{instance="a"}': _steady(0)}, "The account's quota is spent."),
    "QdQueueOld": Scenario(
        {'qd_queue_oldest_seconds{instance="a"}': _steady(1800)},
        "A circuit has waited 30m 0s to be sent to the provider.",
    ),
    "QdQueueDeep": Scenario({'qd_queue_circuits{instance="a"}': _steady(6000)}, "6000 circuits wait to be sent."),
    "QdJobOld": Scenario(
        {'qd_job_oldest_seconds{instance="a"}': _steady(50_400)}, "A job has not ended for 14h 0m 0s."
    ),
    "QdJobsFail": Scenario({_JOBS % "failed": _growing(20)}, "25% of the jobs of the last hour failed."),
    "QdReadoutStale": Scenario(
        {'qd_readout_timestamp_seconds{instance="a"}': _steady(3600)},
        "Readout errors were measured 5h 0m 0s ago.",
    ),
    "QdDisagreementHigh": Scenario(
        {_COMPARISONS % "disagree": _growing_faster(5, 95)},
        "Hardware gives emotion another label than the simulator more often than it did this week, by 32.61%.",
        {"task": "emotion"},
    ),
    "QdQubitDrift": Scenario(
        {_EXPVAL % "sum": _growing_faster(5, 59)},
        "<Z> of qubit 3 (raw) is further off than it was this week, by 0.45.",
        {"qubit": "3", "values": "raw"},
    ),
}


def tests_file() -> dict[str, Any]:
    """What `promtool test rules` reads, as data: the healthy site, then one site for each alert."""
    healthy = {"name": "healthy", **_test(HEALTHY, frozenset())}
    return {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "5m",
        # Otherwise an alert would compare what was recorded an interval ago, or now, as it happens.
        "group_eval_order": [group.name for group in GROUPS],
        "tests": [healthy, *(_firing(name, scenario) for name, scenario in FIRING.items())],
    }


def _firing(name: str, scenario: Scenario) -> dict[str, Any]:
    rule = next(alert for alert in ALERTS if alert.name == name).rule()
    series = {name: values for name, values in ({**HEALTHY, **scenario.series}).items() if values is not None}
    expected = {
        "exp_labels": {**rule["labels"], **scenario.labels},
        "exp_annotations": {**rule["annotations"], "summary": scenario.summary},
    }
    return {
        "name": name,
        **_test(series, frozenset({name}) | scenario.besides),
        "alert_rule_test": [{"eval_time": _EVALUATED, "alertname": name, "exp_alerts": [expected]}],
    }


def _test(series: Mapping[str, str], alerts: frozenset[str]) -> dict[str, Any]:
    """That exactly these alerts fire."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'max by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": _EVALUATED,
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)],
            }
        ],
    }
