"""The shipped students are what the project promises; read from their manifests, so that no text is needed."""

from __future__ import annotations

import pytest

from models.bundle import SHIPPED, load_bundle
from models.embedder import Embedder, find_embedder

PROMISED = {"emotion": 0.785, "hiding": 0.735, "thematic": 0.885}  # accuracy on the test texts
MAX_PARAMETERS = 9_275  # Table 3


def test_exactly_the_promised_students_are_shipped() -> None:
    assert {path.parent.name for path in SHIPPED.glob("*/manifest.json")} == set(PROMISED)


@pytest.mark.parametrize("task", PROMISED)
def test_shipped_student_is_small_accurate_and_no_worse_than_the_control(task: str) -> None:
    bundle = load_bundle(SHIPPED / task)
    bundle.verify(Embedder(find_embedder(bundle.manifest.embedder["name"]), 1))
    test = bundle.manifest.metrics["test"]
    assert bundle.manifest.task == task
    assert bundle.manifest.parameter_counts["total"] <= MAX_PARAMETERS
    assert test["student"]["accuracy"] >= PROMISED[task]
    assert test["student"]["accuracy"] >= test["logistic_regression"]["accuracy"]
