"""Counts to the answer a caller gets: raw and corrected expectation values, label, and what shot noise may change."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from models.errors import ReadoutError
from models.observables import correct_readout, covariance_from_counts, expvals_from_counts, readout_slope
from models.student import flip_probability, softmax
from service.hardware.records import CountsRecord, Head, Readout
from service.schemas import HardwareResult, Score


def hardware_result(
    record: CountsRecord, head: Head, readout: Readout | None, *, top_k: int | None, truncated: bool, cached: bool
) -> HardwareResult:
    """The result of one text.

    Args:
        record: What its circuit gave.
        head: Of the bundle that asked.
        readout: Readout errors for a record that has none of its own for its qubits.
        top_k: How many scores to keep; None keeps all.
        truncated: Whether the text was cut.
        cached: Whether the counts were there before the request.
    """
    raw = expvals_from_counts(record.counts, record.n_qubits)
    covariance = covariance_from_counts(record.counts, record.n_qubits)
    expvals, mitigated = raw, False
    known = (errors.of(record.physical_qubits) for errors in (record.readout, readout) if errors is not None)
    flips = next((found for found in known if found is not None), None)
    if flips is not None:
        p10, p01 = flips
        try:
            expvals, mitigated = correct_readout(raw, p10, p01), True
        except ReadoutError:
            pass  # a qubit that cannot be read: the raw values are all there is
        else:
            slope = readout_slope(p10, p01)
            covariance = covariance / np.outer(slope, slope)
    weight, bias = np.array(head.weight), np.array(head.bias)
    logits = weight @ expvals + bias
    probs = softmax(logits)
    scores = [Score(label=head.labels[i], score=float(probs[i])) for i in np.argsort(-probs, kind="stable")]
    return HardwareResult(
        label=scores[0].label,
        score=scores[0].score,
        scores=scores[:top_k],
        truncated=truncated,
        device=record.device,
        emulated=record.emulated,
        shots=record.shots,
        cached=cached,
        expvals=expvals.tolist(),
        expvals_raw=raw.tolist(),
        mitigated=mitigated,
        flip_probability=flip_probability(logits, weight @ covariance @ weight.T),
        calibration_id=record.calibration_id,
        executed_at=datetime.fromtimestamp(record.executed_at, UTC),
    )
