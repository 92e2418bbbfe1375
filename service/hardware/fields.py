"""Records as Redis holds them, in a hash's fields or a value's JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from service.hardware.records import Batch, BatchStage, Hold, Job, JobSpec, Record, Run, Status
from service.schemas import HardwareResult

R = TypeVar("R", bound=Record)


def text_of(fields: Mapping[Any, Any]) -> dict[str, str]:
    """A hash as the client decodes it; its types leave open whether it does."""
    return {str(name): str(value) for name, value in fields.items()}


def job_of(fields: Mapping[str, str], runs: dict[str, str], provider_jobs: list[str]) -> Job:
    """The job that a hash holds.

    Args:
        runs: The run of each of its fingerprints.
        provider_jobs: The ids that these runs have at the provider.
    """

    def indexed(kind: str) -> dict[int, str]:
        return {int(name.partition(":")[2]): value for name, value in fields.items() if name.startswith(f"{kind}:")}

    changes = {status: float(fields[f"at:{status}"]) for status in Status if f"at:{status}" in fields}
    return Job(
        id=fields["id"],
        task=fields["task"],
        bundle=fields["bundle"],
        created_at=float(fields["created_at"]),
        status=Status(fields["status"]),
        changes=changes,
        spec=JobSpec.model_validate_json(fields["spec"]),
        runs=runs,
        n_queued=int(fields.get("n_queued", len(runs))),
        results={i: HardwareResult.model_validate_json(value) for i, value in indexed("result").items()},
        errors={i: json.loads(value) for i, value in indexed("error").items()},
        hold=Hold.model_validate_json(fields["hold"]) if "hold" in fields else None,
        provider_jobs=provider_jobs,
    )


def run_of(fields: Mapping[str, str]) -> Run:
    """The run that a hash holds."""
    return Run(
        id=fields["id"],
        sha=fields["sha"],
        status=Status(fields["status"]),
        circuit=fields["circuit"],
        layout=fields["layout"],
        shots=int(fields["shots"]),
        created_at=float(fields["created_at"]),
        batch=fields.get("batch"),
        running_at=time_of(fields.get("at:running")),
        abandoned="abandoned" in fields,
        problem=json.loads(fields.get("problem", "null")),
        traceparents=tuple(fields.get("traceparents", "").split()),
    )


def batch_of(fields: Mapping[str, str]) -> Batch:
    """The batch that a hash holds."""
    chain = json.loads(fields.get("chain", "null"))
    return Batch(
        token=fields["token"],
        runs=json.loads(fields["runs"]),
        stage=BatchStage(fields["stage"]),
        created_at=float(fields["created_at"]),
        sent_at=time_of(fields.get("sent_at")),
        submitted_at=time_of(fields.get("submitted_at")),
        chain=None if chain is None else tuple(chain),
        parts=json.loads(fields["parts"]),
        provider_job=fields.get("provider_job") or None,
        attempts=int(fields["attempts"]),
        unreadable=int(fields.get("unreadable", "0")),
        lost_at=time_of(fields.get("lost_at")),
        cancelled=bool(fields.get("cancelled")),
    )


def fields_of(batch: Batch) -> dict[str, str]:
    """What may change of a batch, its stage apart."""
    return {
        "runs": json.dumps(batch.runs),
        "chain": json.dumps(batch.chain),
        "parts": json.dumps(batch.parts),
        "provider_job": batch.provider_job or "",
        "submitted_at": _seconds(batch.submitted_at),
        "attempts": str(batch.attempts),
        "unreadable": str(batch.unreadable),
        "lost_at": _seconds(batch.lost_at),
        "cancelled": "1" if batch.cancelled else "",
    }


def record_of(kind: type[R], value: Any) -> R | None:
    """The record that a JSON value holds; None if there is none that can be read."""
    try:
        return kind.model_validate_json(value) if value else None
    except ValidationError:
        return None  # of another schema version: absent, and measured again


def time_of(value: Any) -> float | None:
    """Seconds since the epoch; None if there is nothing."""
    return float(value) if value else None


def _seconds(value: float | None) -> str:
    return "" if value is None else repr(value)
