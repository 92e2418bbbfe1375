"""The shipped students are what the project says of them; read from their manifests, so that no text is needed."""

from __future__ import annotations

import pytest

from benchmarks.readme import README, TARGETS, target_cell
from models.bundle import SHIPPED, load_bundle
from models.embedder import Embedder, find_embedder

MAX_PARAMETERS = 9_275  # Table 3
TASKS = sorted(TARGETS)


def test_exactly_three_students_are_shipped() -> None:
    assert sorted(path.parent.name for path in SHIPPED.glob("*/manifest.json")) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_shipped_student_is_small_and_no_worse_than_the_control_on_its_features(task: str) -> None:
    bundle = load_bundle(SHIPPED / task)
    bundle.verify(Embedder(find_embedder(bundle.manifest.embedder["name"]), 1))
    assert bundle.manifest.task == task
    assert bundle.manifest.parameter_counts["total"] <= MAX_PARAMETERS
    assert bundle.manifest.teacher["model"] == "smollm2-135m"
    for split in ("validation", "test"):
        found = bundle.manifest.metrics[split]
        assert found["student"]["accuracy"] >= found["logistic_regression"]["accuracy"]


@pytest.mark.parametrize("task", TASKS)
def test_readme_says_whether_the_accuracy_that_was_aimed_at_was_reached(task: str) -> None:
    accuracy = load_bundle(SHIPPED / task).manifest.metrics["test"]["student"]["accuracy"]
    (line,) = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {task} |")]
    assert f"| {target_cell(task, accuracy)} |" in line
    assert ("**missed**" in line) == (accuracy < TARGETS[task])
