"""What the generated files ask Prometheus, and what there is to ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Histogram

from deploy.generate import FOLDER
from deploy.rules import RECORDINGS
from service.metrics import Metrics, Shared, WorkerMetrics

DASHBOARDS: Mapping[str, dict[str, Any]] = {
    name: json.loads((FOLDER / "grafana" / f"{name}.json").read_text()) for name in ("backends", "service")
}
# What a scrape adds to every series.
SCRAPED = frozenset({"job", "instance"})


@dataclass(frozen=True)
class Asked:
    """An expression, and where it stands."""

    where: str
    expression: str
    legend: str = ""


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every panel but the rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def of_dashboards() -> Iterator[Asked]:
    """Every expression of every panel and annotation."""
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Asked(
                    f"{name}: {panel['title']}, {target['refId']}", target["expr"], target.get("legendFormat", "")
                )
        for annotation in dashboard.get("annotations", {}).get("list", []):
            yield Asked(f"{name}: annotation {annotation['name']}", annotation["expr"])


def of_variables() -> Iterator[tuple[str, str]]:
    """The metric and the label of every variable's `label_values(metric, label)`."""
    for dashboard in DASHBOARDS.values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
                assert found is not None, variable
                yield found[1], found[2]


def filled_in(expression: str) -> str:
    """An expression as Grafana sends it, with all tasks selected."""
    sent = expression.replace("$__rate_interval", "15s").replace("$task", ".*")
    # `$1` is a group of a label_replace.
    assert re.search(r"\$\D", sent) is None
    return sent


def existing() -> dict[str, frozenset[str]]:
    """Every series by name, with its labels."""
    found: dict[str, frozenset[str]] = {"up": SCRAPED}
    for instruments in (Shared(), Metrics(), WorkerMetrics()):
        for each in instruments.instruments:
            labels = frozenset(each._labelnames) | SCRAPED
            if isinstance(each, Counter):
                found[f"{each._name}_total"] = labels
            elif isinstance(each, Histogram):
                found |= {f"{each._name}_{part}": labels for part in ("sum", "count")}
                found[f"{each._name}_bucket"] = labels | {"le"}
            else:
                found[each._name] = labels
    for recording in RECORDINGS:
        level = recording.name.split(":")[0]
        kept = {label for label in _LABELS if re.search(rf"(^|_){label}(_|$)", level)}
        found[recording.name] = frozenset(kept)
    return found


_LABELS = ("task", "backend", "outcome", "call", "qubit", "values")
_SERIES = re.compile(r"(?<![\w:])((?:[a-z_]+:)?qd_[a-z_]+(?::\w+)?|up)(?![\w:(])(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"')


def series(expression: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Every series that an expression reads, with the labels by which it selects."""
    outside_strings = re.sub(r'"[^"]*"', '""', expression)
    for name, selector in _SERIES.findall(outside_strings):
        yield name, frozenset(_MATCHER.findall(selector))
