"""Counts to a caller's answer: which readout errors correct it, how scores are ordered, what shot noise may change."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hardware import HEAD
from pydantic import ValidationError

from models.student import StudentWeights, flip_probability
from service.hardware.records import CountsRecord, Head, Readout
from service.hardware.results import hardware_result
from service.schemas import HardwareResult

# <Z> is 0.5, 0.0 and 0.5.
COUNTS = {"000": 4000, "011": 2000, "010": 2000, "110": 1000, "101": 1000}
SHOTS = 10_000
QUBITS = (7, 3, 12)
# P(read 1 | prepared 0) and P(read 0 | prepared 1).
FLIPS = {3: (0.05, 0.05), 7: (0.02, 0.1), 12: (0.0, 0.2)}


def record(**changes: Any) -> CountsRecord:
    values = {
        "counts": COUNTS,
        "n_qubits": 3,
        "device": "Baihua",
        "emulated": False,
        "physical_qubits": QUBITS,
        "calibration_id": "cal-1",
        "provider_jobs": ["job-1"],
        "executed_at": 1_800_000_000.5,
        "readout": None,
    }
    return CountsRecord(**values | changes)


def readout(flips: dict[int, tuple[float, float]] = FLIPS) -> Readout:
    return Readout(calibration_id="cal-1", executed_at=1_800_000_000.0, shots=SHOTS, flips=flips)


def symmetric(error: float) -> Readout:
    return readout(dict.fromkeys(QUBITS, (error, error)))


def result(
    of: CountsRecord, known: Readout | None = None, head: Head = HEAD, top_k: int | None = None
) -> HardwareResult:
    return hardware_result(of, head, known, top_k=top_k, truncated=False, cached=False)


def head(*biases: float) -> Head:
    """One class for each bias, whatever was measured."""
    labels = [f"class-{index}" for index in range(len(biases))]
    return Head(labels=labels, weight=[[0.0] * 3] * len(biases), bias=list(biases))


def test_without_readout_errors_the_measured_values_are_the_answer() -> None:
    found = result(record())
    assert not found.mitigated
    assert found.expvals == found.expvals_raw == pytest.approx([0.6, 0.0, 0.4])


def test_each_qubit_is_corrected_by_the_readout_errors_of_the_physical_qubit_it_ran_on() -> None:
    found = result(record(), readout())
    assert found.mitigated
    assert found.expvals_raw == pytest.approx([0.6, 0.0, 0.4])
    assert found.expvals == pytest.approx([(0.6 - 0.08) / 0.88, 0.0, (0.4 - 0.2) / 0.8])


@pytest.mark.parametrize("qubits", [None, (7, 3, 11)])
def test_without_readout_errors_of_every_qubit_nothing_is_corrected(qubits: tuple[int, ...] | None) -> None:
    found = result(record(physical_qubits=qubits, readout=readout()), readout())
    assert not found.mitigated
    assert found.expvals == found.expvals_raw


def test_qubit_that_cannot_be_read_leaves_all_values_as_measured() -> None:
    found = result(record(), readout({**FLIPS, 3: (0.5, 0.5)}))
    assert not found.mitigated
    assert found == result(record())


def test_readout_errors_known_when_the_circuit_ran_come_before_those_given() -> None:
    found = result(record(readout=symmetric(0.1)), readout())
    assert found.mitigated
    assert found == result(record(), symmetric(0.1)) != result(record(), readout())


def test_readout_errors_of_other_qubits_make_way_for_those_given() -> None:
    assert result(record(readout=readout({1: (0.0, 0.0)})), readout()) == result(record(), readout())


def test_scores_are_the_softmax_of_the_head_best_first() -> None:
    three = Head(
        labels=["a", "b", "c"], weight=[[1.0, 2.0, -1.0], [0.0, 5.0, 2.0], [-3.0, 0.0, 0.0]], bias=[0.1, -0.2, 0.3]
    )
    exponentials = {"a": math.exp(0.6 - 0.4 + 0.1), "b": math.exp(0.8 - 0.2), "c": math.exp(-1.8 + 0.3)}
    found = result(record(), head=three)
    assert found.label == "b"
    assert [score.label for score in found.scores] == ["b", "a", "c"]
    expected = [exponentials[label] / sum(exponentials.values()) for label in ("b", "a", "c")]
    assert [score.score for score in found.scores] == pytest.approx(expected)
    assert found.score == found.scores[0].score


def test_label_is_that_of_the_corrected_values() -> None:
    # Raw <Z> is below 0; read without error it would be above.
    leaning = record(counts={"000": 4900, "100": 5100})
    known = readout(dict.fromkeys(QUBITS, (0.2, 0.0)))
    assert [result(leaning).label, result(leaning, known).label] == ["yes", "no"]


def test_top_k_cuts_the_scores_and_nothing_else() -> None:
    full = result(record(), head=head(0.0, 2.0, 1.0))
    assert [len(result(record(), head=head(0.0, 2.0, 1.0), top_k=k).scores) for k in (1, 2, 3, 9)] == [1, 2, 3, 3]
    cut = result(record(), head=head(0.0, 2.0, 1.0), top_k=1)
    assert cut.scores == full.scores[:1]
    assert cut.model_dump(exclude={"scores"}) == full.model_dump(exclude={"scores"})


def test_tied_labels_keep_the_order_of_the_bundle() -> None:
    found = result(record(), head=head(*[1.0] * 20))
    assert [score.label for score in found.scores] == [f"class-{index}" for index in range(20)]
    found = result(record(), head=head(*[0.0, 1.0] * 20))
    assert [score.label for score in found.scores] == [
        f"class-{index}" for index in [*range(1, 40, 2), *range(0, 40, 2)]
    ]


def test_flip_probability_is_that_of_the_lead_of_a_binomial() -> None:
    # The logits are z and -z: the lead is 2 z, its variance 4 (1 - z^2) / shots.
    found = result(record(counts={"000": 5050, "100": 4950}))
    z = 0.01
    rerun_sigma = math.sqrt(2 * 4 * (1 - z**2) / SHOTS)
    assert found.flip_probability == pytest.approx(0.5 * math.erfc(2 * z / rerun_sigma / math.sqrt(2)))


def test_flip_probability_knows_that_qubits_are_measured_together() -> None:
    # The lead is z_0 + z_1, certain where the two are always opposite.
    both = Head(labels=["no", "yes"], weight=[[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], bias=[0.01, 0.0])
    assert result(record(counts={"010": 5000, "100": 5000}), head=both).flip_probability == 0.0
    assert result(record(counts={"000": 5000, "110": 5000}), head=both).flip_probability > 0.3


def test_correction_that_leaves_the_lead_widens_its_noise_and_so_raises_the_flip_probability() -> None:
    biased = Head(labels=["no", "yes"], weight=HEAD.weight, bias=[0.02, 0.0])
    balanced = record(counts={"000": 5000, "100": 5000})
    raw, corrected = (result(balanced, known, biased) for known in (None, symmetric(0.2)))
    assert raw.expvals == corrected.expvals
    assert raw.flip_probability < corrected.flip_probability
    # The noise of <Z> is divided by the slope.
    covariance = np.array([[1, -1], [-1, 1]]) / SHOTS / 0.6**2
    assert corrected.flip_probability == pytest.approx(flip_probability(np.array([0.02, 0.0]), covariance))


def test_correction_that_stretches_lead_and_noise_alike_leaves_the_flip_probability() -> None:
    leaning = record(counts={"000": 5050, "100": 4950})
    raw, corrected = result(leaning), result(leaning, symmetric(0.2))
    assert corrected.mitigated
    assert corrected.flip_probability == pytest.approx(raw.flip_probability)


def test_result_says_where_when_and_how_it_was_measured() -> None:
    found = hardware_result(record(emulated=True), HEAD, None, top_k=None, truncated=True, cached=True)
    assert (found.device, found.emulated, found.calibration_id) == ("Baihua", True, "cal-1")
    assert (found.shots, found.truncated, found.cached) == (SHOTS, True, True)
    assert found.executed_at == datetime(2027, 1, 15, 8, 0, 0, 500_000, tzinfo=UTC)


def test_records_are_equal_after_a_round_trip_through_json() -> None:
    stored = record(readout=readout())
    assert CountsRecord.model_validate_json(stored.model_dump_json()) == stored
    weights = StudentWeights(
        np.zeros((3, 5)), np.zeros(3), np.zeros(0), np.random.default_rng(1).normal(size=(2, 3)), np.ones(2)
    )
    again = Head.model_validate_json(Head.of(weights, ["no", "yes"]).model_dump_json())
    np.testing.assert_array_equal(again.weight, weights.head_weight)
    np.testing.assert_array_equal(again.bias, weights.head_bias)


@pytest.mark.parametrize("counts", [{}, {"000": 0}, {"00": 5}, {"000": 5, "0000": 5}])
def test_record_whose_counts_are_none_is_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="expected counts of 3 bits"):
        record(counts=counts)
