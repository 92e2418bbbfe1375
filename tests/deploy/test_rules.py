"""Recording and alert rules: of metrics that there are, used, tested with promtool and explained in the run book."""

from __future__ import annotations

import re
import subprocess

import pytest
from expressions import existing, of_dashboards, series
from needs import needs_promtool

from deploy.alerts import RUNBOOK, Alert, Severity
from deploy.generate import FOLDER
from deploy.rules import ALERTS, RECORDINGS
from deploy.scenarios import FIRING

each_alert = pytest.mark.parametrize("alert", ALERTS, ids=[alert.name for alert in ALERTS])
each_rule = pytest.mark.parametrize("rule", [*RECORDINGS, *ALERTS], ids=[rule.name for rule in (*RECORDINGS, *ALERTS)])
SECTIONS = dict(
    re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (FOLDER.parent / RUNBOOK).read_text(), re.MULTILINE | re.DOTALL)
)


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")],
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    run = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER / "prometheus", capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_scenario_of_its_own_and_every_name_is_used_once() -> None:
    names = [rule.name for rule in (*RECORDINGS, *ALERTS)]
    assert len(set(names)) == len(names)
    assert FIRING.keys() == {alert.name for alert in ALERTS}


@each_alert
def test_run_book_says_of_every_alert_what_it_means_and_what_to_do(alert: Alert) -> None:
    section = SECTIONS[alert.name]
    for part in ("**Means.**", "**See.**", "**Do.**", "**Ignore when.**"):
        assert part in section
    assert alert.rule()["annotations"]["runbook"].endswith(f"#{alert.name.lower()}")
    assert alert.severity in Severity


def test_run_book_explains_no_alert_that_there_is_not() -> None:
    assert {name for name in SECTIONS if name.startswith("Qd")} == {alert.name for alert in ALERTS}


@each_rule
def test_rule_reads_metrics_that_there_are_by_labels_that_they_have(rule) -> None:
    known = existing()
    read = list(series(rule.expression))
    assert read
    for name, labels in read:
        assert name in known
        assert labels <= known[name]


def test_recordings_are_named_after_the_labels_that_they_keep_and_are_all_used() -> None:
    used = {name for asked in of_dashboards() for name, _ in series(asked.expression)}
    used |= {name for rule in (*RECORDINGS, *ALERTS) for name, _ in series(rule.expression)}
    for recording in RECORDINGS:
        level, metric, operation = recording.name.split(":")
        assert metric.startswith("qd_")
        assert re.fullmatch(r"(rate|ratio_rate|mean|increase|p95_rate)\d+[mhd]", operation)
        (kept, *_) = re.findall(r"by \(([^)]*)\)", recording.expression) or ["all"]
        assert level == kept.removeprefix("le, ").replace(", ", "_")
        assert recording.name in used
