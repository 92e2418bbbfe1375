"""The shipped students are what the project says of them; read from their manifests, so that no text is needed."""

from __future__ import annotations

import json

import pytest

from benchmarks.hardware import TARGET_POINTS
from benchmarks.readme import README, TARGETS, control_cell, target_cell
from benchmarks.serving import ROOT
from models.bundle import SHIPPED, load_bundle
from models.embedder import Embedder, find_embedder

MAX_PARAMETERS = 9_275  # Table 3
TASKS = sorted(TARGETS)


def test_exactly_three_students_are_shipped() -> None:
    assert sorted(path.parent.name for path in SHIPPED.glob("*/manifest.json")) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_shipped_student_is_small_and_no_worse_than_the_control_on_the_texts_that_chose_it(task: str) -> None:
    bundle = load_bundle(SHIPPED / task)
    bundle.verify(Embedder(find_embedder(bundle.manifest.embedder["name"]), 1))
    assert bundle.manifest.task == task
    assert bundle.manifest.parameter_counts["total"] <= MAX_PARAMETERS
    assert bundle.manifest.teacher["model"] == "smollm2-135m"
    found = bundle.manifest.metrics["validation"]
    assert found["student"]["accuracy"] >= found["logistic_regression"]["accuracy"]


@pytest.mark.parametrize("task", TASKS)
def test_readme_says_where_the_control_is_better_on_the_test_texts(task: str) -> None:
    found = load_bundle(SHIPPED / task).manifest.metrics["test"]
    accuracy, control = found["student"]["accuracy"], found["logistic_regression"]["accuracy"]
    table = README.read_text(encoding="utf-8").split("accuracy -->")[1]
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {task} |")]
    assert f"| {control_cell(accuracy, control)} |" in line
    assert ("**better**" in line) == (control > accuracy)


@pytest.mark.parametrize("task", TASKS)
def test_readme_says_whether_the_accuracy_that_was_aimed_at_was_reached(task: str) -> None:
    accuracy = load_bundle(SHIPPED / task).manifest.metrics["test"]["student"]["accuracy"]
    table = README.read_text(encoding="utf-8").split("accuracy -->")[1]
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {task} |")]
    assert f"| {target_cell(task, accuracy)} |" in line
    assert ("**missed**" in line) == (accuracy < TARGETS[task])


@pytest.mark.parametrize("task", TASKS)
def test_readme_says_whether_the_chips_noise_costs_more_than_it_may(task: str) -> None:
    figures = json.loads((ROOT / "docs" / "bench-hardware.json").read_text(encoding="utf-8"))["tasks"][task]
    table = README.read_text(encoding="utf-8").split("hardware -->")[1]
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {task} |")]
    assert figures["bundle"] == load_bundle(SHIPPED / task).id
    assert ("**missed**" in line) == (100.0 * (figures["simulator"] - figures["corrected"]) > TARGET_POINTS)
