"""Alerts, each as data, so that a test can ask for each of its sides alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deploy.queries import REPLICAS, or_zero, rate, shared

RUNBOOK = "docs/runbook.md"
"""Where the annotation `runbook` points to, in the project; a section is named after its alert."""
# Of events a second: fewer than one a minute make no ratio that is worth waking somebody for.
_SOME_TRAFFIC = 1 / 60


class Severity(StrEnum):
    """How soon somebody is wanted."""

    CRITICAL = "critical"
    """Now: requests fail."""
    WARNING = "warning"
    """Today: they will, or hardware's answers are worse than they should be."""


@dataclass(frozen=True)
class Condition:
    """What is compared with what; `expression` has a value whenever there is something to compare."""

    expression: str
    comparison: str
    threshold: float

    def __str__(self) -> str:
        return f"({self.expression}) {self.comparison} {self.threshold:.6g}"


@dataclass(frozen=True)
class Alert:
    """Fires once every condition has held for a while.

    Attributes:
        name: CamelCase; in small letters the anchor in the run book.
        conditions: The first one's labels and value are the alert's.
        lasting: How long they must hold.
        severity: How soon somebody is wanted.
        summary: One line, with what `$value` and `$labels` say.
        description: What it means for those who use the service.
        on: Labels by which the conditions belong together.
    """

    name: str
    conditions: tuple[Condition, ...]
    lasting: str
    severity: Severity
    summary: str
    description: str
    on: str = ""

    @property
    def expression(self) -> str:
        return f" and on ({self.on}) ".join(map(str, self.conditions))

    @property
    def anchor(self) -> str:
        return self.name.lower()

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.lasting,
            "labels": {"severity": self.severity.value},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook": f"{RUNBOOK}#{self.anchor}",
            },
        }


SERVICE_ALERTS = (
    Alert(
        "QdServiceDown",
        (Condition(f"{REPLICAS} or vector(0)", "<", 1),),
        "1m",
        Severity.CRITICAL,
        "No replica of the service answers Prometheus.",
        "Nobody's text is classified, or Prometheus cannot reach the replicas.",
    ),
    Alert(
        "QdTargetDown",
        (Condition('min by (job, instance) (up{job=~"qd-.*"})', "<", 1),),
        "5m",
        Severity.WARNING,
        "{{ $labels.instance }} ({{ $labels.job }}) does not answer Prometheus.",
        "A replica or a worker is gone or hangs; the others carry its load.",
    ),
    Alert(
        "QdErrorRatioHigh",
        (
            Condition("backend:qd_request_failures:ratio_rate5m", ">", 0.02),
            Condition("backend:qd_requests:rate5m", ">", _SOME_TRAFFIC),
        ),
        "5m",
        Severity.CRITICAL,
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.backend }} fail.",
        "Callers get 5xx answers; those that they cause themselves are not counted.",
        on="backend",
    ),
    Alert(
        "QdLatencyHigh",
        (
            Condition('backend:qd_request_seconds:p95_rate5m{backend="simulator"}', ">", 1.0),
            Condition("backend:qd_requests:rate5m", ">", _SOME_TRAFFIC),
        ),
        "10m",
        Severity.WARNING,
        "One in twenty requests to the simulator takes longer than {{ $value | humanizeDuration }}.",
        "The simulator answers a text in milliseconds, so requests wait for the encoder.",
        on="backend",
    ),
    Alert(
        "QdOverloaded",
        (
            Condition("backend:qd_request_overloads:ratio_rate5m", ">", 0.01),
            Condition("backend:qd_requests:rate5m", ">", _SOME_TRAFFIC),
        ),
        "5m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.backend }} are answered 429.",
        "More texts or circuits arrive than are worked off. Keys beyond their own limits do not count.",
        on="backend",
    ),
    Alert(
        "QdKeysRefused",
        (
            Condition(
                or_zero(rate("qd_denied_total", where='reason=~"unknown|expired|revoked"', window="5m")), ">", 0.2
            ),
        ),
        "5m",
        Severity.WARNING,
        "{{ $value | humanize }} requests a second come with a key that is unknown, expired or revoked.",
        "A client was not told of its new key, or somebody guesses keys.",
    ),
    Alert(
        "QdReloadRejected",
        (Condition('sum (increase(qd_reloads_total{outcome="rejected"}[15m]))', ">", 0),),
        "0m",
        Severity.WARNING,
        "Bundles could not be loaded; the old ones are still served.",
        "A replica that starts anew would not come up with these bundles.",
    ),
    Alert(
        "QdReplicasDiffer",
        (
            Condition(
                "max by (task, backend) (qd_default_backend) - min by (task, backend) (qd_default_backend)", ">", 0
            ),
        ),
        "1m",
        Severity.WARNING,
        "Replicas do not agree on whether {{ $labels.task }} runs on {{ $labels.backend }}.",
        "They read the switch from Redis once a second; one of them does not.",
    ),
    Alert(
        "QdShadowsLost",
        (
            Condition("task:qd_shadow_losses:ratio_rate15m", ">", 0.05),
            Condition("task:qd_shadows:rate15m", ">", _SOME_TRAFFIC),
        ),
        "15m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the shadow requests of {{ $labels.task }} never reach hardware.",
        "Callers notice nothing, but what hardware would have said is known of fewer texts than was asked for.",
        on="task",
    ),
)
HARDWARE_ALERTS = (
    Alert(
        "QdRedisAway",
        (
            Condition("min (qd_redis_up)", "<", 1),
            # A site without a Redis has never seen one.
            Condition("max (max_over_time(qd_redis_up[1d]))", ">", 0),
        ),
        "1m",
        Severity.CRITICAL,
        "A replica gets no answer from Redis.",
        "The simulator goes on; hardware, jobs, new keys and switches do not.",
    ),
    Alert(
        "QdNoWorker",
        (
            Condition(shared("qd_worker_up"), "<", 1),
            # A site of the simulator alone has none, and no job that waits.
            Condition(shared("qd_job_oldest_seconds"), ">", 0),
        ),
        "2m",
        Severity.CRITICAL,
        "No worker is at work, and jobs wait.",
        "Jobs are taken and stay queued; none is lost.",
    ),
    Alert(
        "QdProviderSilent",
        (Condition(f"time() - {shared('qd_provider_seen_timestamp_seconds')}", ">", 600),),
        "5m",
        Severity.WARNING,
        "The provider was last heard of {{ $value | humanizeDuration }} ago.",
        "Workers ask it every half minute. Jobs are held and go on by themselves once it answers.",
    ),
    Alert(
        "QdProviderCallsFail",
        (
            Condition("call:qd_provider_failures:ratio_rate5m", ">", 0.2),
            Condition("call:qd_provider_calls:rate5m", ">", _SOME_TRAFFIC / 2),
        ),
        "10m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the provider's answers to {{ $labels.call }} are no good.",
        "Calls are repeated with longer and longer pauses, so jobs take longer.",
        on="call",
    ),
    Alert(
        "QdDeviceOffline",
        (Condition(shared("qd_device_online"), "<", 1),),
        "30m",
        Severity.WARNING,
        "The device takes no jobs.",
        "Jobs are held until it does. Maintenance takes hours, as a rule.",
    ),
    Alert(
        "QdQuotaLow",
        (
            Condition(shared("qd_provider_quota_left"), "<", 20),
            Condition(shared("qd_provider_quota_left"), ">=", 1),
        ),
        "0m",
        Severity.WARNING,
        "The account may run {{ $value }} more programs before its quota's reset.",
        "Then jobs wait for the reset, at 23:00 Beijing time.",
    ),
    Alert(
        "QdQuotaSpent",
        (Condition(shared("qd_provider_quota_left"), "<", 1),),
        "0m",
        Severity.WARNING,
        "The account's quota is spent.",
        "Texts whose counts are kept are still answered; other jobs wait for the reset, at 23:00 Beijing time.",
    ),
    Alert(
        "QdQueueOld",
        (Condition(shared("qd_queue_oldest_seconds"), ">", 900),),
        "5m",
        Severity.WARNING,
        "A circuit has waited {{ $value | humanizeDuration }} to be sent to the provider.",
        "Circuits are sent within a second, unless they are held or no worker has room.",
    ),
    Alert(
        "QdQueueDeep",
        (Condition(shared("qd_queue_circuits"), ">", 5000),),
        "5m",
        Severity.WARNING,
        "{{ $value }} circuits wait to be sent.",
        "At QD_MAX_QUEUED_CIRCUITS (10000) requests for hardware are answered 429.",
    ),
    Alert(
        "QdJobOld",
        (Condition(shared("qd_job_oldest_seconds"), ">", 43_200),),
        "0m",
        Severity.WARNING,
        "A job has not ended for {{ $value | humanizeDuration }}.",
        "At QD_JOB_DEADLINE_SECONDS (a day) its circuits fail.",
    ),
    Alert(
        "QdJobsFail",
        (
            Condition("all:qd_jobs_failed:ratio_rate1h", ">", 0.05),
            Condition("all:qd_jobs_ended:increase1h", ">", 10),
        ),
        "5m",
        Severity.WARNING,
        "{{ $value | humanizePercentage }} of the jobs of the last hour failed.",
        "Those who wait for them are told why.",
    ),
    Alert(
        "QdReadoutStale",
        (Condition(f"time() - {shared('(qd_readout_timestamp_seconds > 0)')}", ">", 14_400),),
        "10m",
        Severity.WARNING,
        "Readout errors were measured {{ $value | humanizeDuration }} ago.",
        "Hardware's answers are corrected by what may no longer be so.",
    ),
    Alert(
        "QdDisagreementHigh",
        (
            Condition("task:qd_disagreements:ratio_rate1h - task:qd_disagreements:ratio_rate7d", ">", 0.1),
            Condition("task:qd_comparisons:increase1h", ">", 50),
        ),
        "15m",
        Severity.WARNING,
        "Hardware gives {{ $labels.task }} another label than the simulator more often than it did this week, by "
        "{{ $value | humanizePercentage }}.",
        "The chip, its calibration or the readout correction got worse.",
        on="task",
    ),
    Alert(
        "QdQubitDrift",
        (
            Condition("qubit_values:qd_expval_error:mean1h - qubit_values:qd_expval_error:mean7d", ">", 0.1),
            Condition("qubit_values:qd_expval_error:increase1h", ">", 50),
        ),
        "15m",
        Severity.WARNING,
        "<Z> of qubit {{ $labels.qubit }} ({{ $labels.values }}) is further off than it was this week, by "
        '{{ $value | printf "%.2f" }}.',
        "A qubit of the chain got worse; a new calibration may leave it out.",
        on="qubit, values",
    ),
)
