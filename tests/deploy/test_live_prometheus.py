"""A real Prometheus that watches a live service under traffic: every expression of the repository finds something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic, sleep, time

import pytest
from expressions import Asked, existing, filled_in, of_dashboards, of_variables
from needs import needs_mindquantum, needs_prometheus
from observing import TASKS, Prometheus, Traffic, prometheus, watched

from deploy.rules import ALERTS, RECORDINGS

pytestmark = [needs_prometheus, needs_mindquantum]

# Until every expression has found something; under traffic that takes some twenty seconds.
_PATIENCE_SECONDS = 90.0

PANELS = list(of_dashboards())
RECORDED = [Asked(rule.name, rule.name) for rule in RECORDINGS]
EVALUATED = [Asked(f"{rule.name}, anew", rule.expression) for rule in RECORDINGS]
# A healthy site meets no alert's conditions, but each must have something to compare.
SIDES = [
    Asked(f"{alert.name}, {number}", condition.expression)
    for alert in ALERTS
    for number, condition in enumerate(alert.conditions)
]
ALL = [*PANELS, *RECORDED, *EVALUATED, *SIDES]


@dataclass(frozen=True)
class Seen:
    """What a Prometheus found.

    Attributes:
        empty: Where expressions stand that found nothing in all the time.
        errors: Likewise those that it could not evaluate, and why.
        prometheus: It goes on.
        traffic: What was asked of the service; it goes on too.
    """

    empty: list[str]
    errors: dict[str, str]
    prometheus: Prometheus
    traffic: Traffic


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("watched")
    with watched(folder) as service:
        targets = {"qd-service": f"{service.url}/metrics", "qd-worker": service.worker_metrics}
        with prometheus(folder, targets) as watching, Traffic(service) as traffic:
            waiting, errors = list(ALL), {}
            deadline = monotonic() + _PATIENCE_SECONDS
            # Some of what is asked for comes only every few rounds.
            while (waiting or traffic.n_rounds < 10) and monotonic() < deadline and traffic.failure is None:
                sleep(1)
                waiting, errors = _without_those_found(watching, waiting)
            yield Seen([asked.where for asked in waiting], errors, watching, traffic)


def _without_those_found(watching: Prometheus, asked: list[Asked]) -> tuple[list[Asked], dict[str, str]]:
    waiting, errors = [], {}
    for each in asked:
        try:
            if watching.values(filled_in(each.expression)):
                continue
        except RuntimeError as exc:
            errors[each.where] = str(exc)
        waiting.append(each)
    return waiting, errors


def test_every_expression_of_every_panel_annotation_and_rule_finds_numbers(seen: Seen) -> None:
    assert seen.traffic.failure is None
    assert seen.errors == {}
    assert seen.empty == []


def test_traffic_was_of_every_kind(seen: Seen) -> None:
    expected = {
        ("switch", 200),
        ("simulator", 200),
        ("cached", 200),
        ("hardware", 202),
        ("cancel", 200),
        ("invalid", 422),
        ("unknown", 404),
        ("reload", 200),
        ("broken", 409),
        ("denied", 401),
        ("faults", 200),
    }
    assert seen.traffic.answers.keys() >= expected


def test_prometheus_has_seen_every_metric_that_there_is(seen: Seen) -> None:
    # A sum that is 0 where its metric is absent would hide that nobody counts.
    assert existing().keys() - set(seen.prometheus.get("label/__name__/values")) == set()


@pytest.mark.parametrize("metric_and_label", sorted(set(of_variables())), ids=":".join)
def test_variable_offers_every_task(seen: Seen, metric_and_label: tuple[str, str]) -> None:
    metric, label = metric_and_label
    assert set(seen.prometheus.get(f"label/{label}/values", **{"match[]": metric})) >= set(TASKS)


def test_prometheus_evaluates_every_rule_without_an_error(seen: Seen) -> None:
    rules = [rule for group in seen.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule.name for rule in (*RECORDINGS, *ALERTS)}
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_only_the_rejected_reload_fires(seen: Seen) -> None:
    deadline = monotonic() + 10  # it is scraped, then evaluated
    while not (firing := _firing(seen.prometheus)) and monotonic() < deadline:
        sleep(0.2)
    assert firing == {"QdReloadRejected"}


def _firing(watching: Prometheus) -> set[str]:
    alerts = watching.get("alerts")["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@pytest.mark.parametrize("asked", [asked for asked in PANELS if "{{" in asked.legend], ids=lambda asked: asked.where)
def test_legend_names_labels_that_its_series_have(seen: Seen, asked: Asked) -> None:
    named = set(re.findall(r"{{(\w+)}}", asked.legend))
    found = seen.prometheus.get("query", query=filled_in(asked.expression))["result"]
    assert found
    for each in found:
        assert named <= each["metric"].keys()
    # Two lines of one name could not be told apart.
    assert len({tuple(each["metric"][label] for label in sorted(named)) for each in found}) == len(found)


def test_annotation_is_at_a_time_of_today_in_milliseconds(seen: Seen) -> None:
    (annotation,) = [asked for asked in PANELS if "annotation" in asked.where]
    (at,) = seen.prometheus.values(annotation.expression)
    assert time() - 3600 < at / 1000 <= time()


def test_prometheus_counts_what_was_answered(seen: Seen) -> None:
    seen.traffic.stop()
    answered = seen.traffic.answers["invalid", 422]
    invalid = f'sum (qd_requests_total{{task="{TASKS[0]}", outcome="invalid"}})'
    deadline = monotonic() + 10
    while seen.prometheus.values(invalid) != [answered] and monotonic() < deadline:
        sleep(0.2)
    assert seen.prometheus.values(invalid) == [answered]
