"""Names, units and labels by Prometheus' conventions, documents that parsers take, and the table in the docs."""

from __future__ import annotations

import re
import subprocess
from time import time
from typing import Any

import pytest
from needs import needs_promtool
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.readme import TABLES, with_tables
from benchmarks.serving import ROOT
from service.hardware.records import Exact, ProviderFacts, Status, Survey
from service.metrics import Metrics, Shared, WorkerMetrics, metrics_table
from service.schemas import HardwareResult, Score

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SURVEY = Survey(
    n_pending=3,
    oldest_circuit_at=900.0,
    jobs=dict.fromkeys(Status, 2),
    oldest_job_at=800.0,
    has_worker=True,
    provider=ProviderFacts(device_online=True, queue_length=4, quota_left=5, seen_at=990.0),
    calibration_at=700.0,
    readout_at=600.0,
)
# Each of a bounded set; a job, a key, a text or a version has none.
LABELS = {"backend", "bundle", "cached", "call", "embedder", "engine", "outcome", "qubit", "reason", "result", "route"}
LABELS |= {"status", "task", "values"}
PARTS = {"service": Metrics, "worker": WorkerMetrics, "shared": Shared}


def instruments() -> list[Any]:
    return [
        pytest.param(instrument, id=f"{name}-{instrument._name}")
        for name, part in PARTS.items()
        for instrument in part().instruments
    ]


@pytest.mark.parametrize("instrument", instruments())
def test_instrument_keeps_to_the_conventions(instrument: MetricWrapperBase) -> None:
    name = instrument._name
    assert re.fullmatch(r"qd(_[a-z]+)+", name)
    assert not name.endswith(("_count", "_sum", "_bucket", "_info", "_total")) or name == "qd_bundle_info"
    assert not re.search(r"_(ms|milliseconds|minutes|hours|percent|kb|mb)(_|$)", name)
    assert instrument._documentation.endswith(".")
    assert set(instrument._labelnames) <= LABELS
    if isinstance(instrument, Counter):
        # The name that is shown ends in _total; it is not said twice, and a count has no unit of time.
        assert "seconds" not in name
    if isinstance(instrument, Histogram):
        assert instrument._upper_bounds == sorted(set(instrument._upper_bounds))
        assert re.search(r"_(seconds|texts|error|shift)$", name)


def test_instrument_of_two_processes_is_the_same_in_both() -> None:
    service, worker = ({each._name: each for each in part().instruments} for part in (Metrics, WorkerMetrics))
    both = service.keys() & worker.keys()
    assert both == {"qd_comparisons", "qd_job_seconds", "qd_circuits_ended"}
    for name in both:
        assert service[name]._labelnames == worker[name]._labelnames
    assert not {each._name for each in Shared().instruments} & (service.keys() | worker.keys())


def used_service() -> tuple[bytes, bytes]:
    metrics = Metrics()
    metrics.observe_request("emotion", "simulator", "ok", 0.01, 2)
    metrics.observe_cancellation("emotion", 3.0, 2)
    metrics.cache_lookups.labels("emotion", "hit").inc()
    shared = Shared.of(SURVEY, 1000.0)
    return metrics.exposition("", shared)[0], metrics.exposition(OPENMETRICS, shared)[0]


def used_worker() -> tuple[bytes, bytes]:
    metrics = WorkerMetrics()
    metrics.provider_calls.labels("submit", "ok").inc()
    metrics.provider_call_seconds.labels("submit").observe(0.2, {"trace_id": "0" * 32})
    result = HardwareResult(
        label="a",
        score=1.0,
        scores=[Score(label="a", score=1.0)],
        truncated=False,
        device="Baihua",
        emulated=True,
        shots=1024,
        cached=False,
        expvals=[0.5],
        expvals_raw=[0.4],
        mitigated=True,
        flip_probability=0.0,
        calibration_id=None,
        executed_at=time(),
    )
    metrics.observe_drift(result, Exact(label="a", expvals=[0.5]))
    return metrics.exposition("")[0], metrics.exposition(OPENMETRICS)[0]


@pytest.mark.parametrize("documents", [used_service(), used_worker()], ids=["service", "worker"])
def test_document_is_one_that_parsers_take(documents: tuple[bytes, bytes]) -> None:
    plain, open_metrics = (document.decode() for document in documents)
    names = [family.name for family in text_string_to_metric_families(plain)]
    assert len(names) == len(set(names))
    assert open_metrics.count("# EOF") == 1
    found = list(openmetrics.text_string_to_metric_families(open_metrics))  # type: ignore[no-untyped-call]
    assert {family.name for family in found} >= {name for name in names if not name.endswith("_created")}


@needs_promtool
@pytest.mark.parametrize("documents", [used_service(), used_worker()], ids=["service", "worker"])
def test_promtool_finds_nothing_to_say(documents: tuple[bytes, bytes]) -> None:
    run = subprocess.run(["promtool", "check", "metrics"], input=documents[0], capture_output=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


def test_every_shared_gauge_is_filled_from_what_is_in_redis() -> None:
    shared = Shared.of(SURVEY, 1000.0)

    def value(name: str) -> float | None:
        return shared.registry.get_sample_value(name)

    assert value("qd_queue_circuits") == 3
    assert value("qd_queue_oldest_seconds") == 100
    assert value("qd_job_oldest_seconds") == 200
    assert value("qd_provider_quota_left") == 5
    assert value("qd_calibration_timestamp_seconds") == 700
    # 0 would look like a gauge that nobody fills.
    assert all(sample.value > 0 for family in shared.collect() for sample in family.samples)
    assert len(list(shared.collect())) == len(Shared().instruments)


def test_table_in_the_docs_is_that_of_the_code() -> None:
    path = ROOT / "docs" / "metrics.md"
    text = path.read_text(encoding="utf-8")
    assert with_tables(path, text) == text
    assert path in TABLES
    shown = set(re.findall(r"^\| `(qd_\w+)`", text, re.MULTILINE))
    made = {
        f"{each._name}_total" if isinstance(each, Counter) else each._name
        for part in PARTS.values()
        for each in part().instruments
    }
    assert shown == made
    assert metrics_table().count("\n") == len(made) + 1
