"""What tests ask of the emulator and no real platform has: the faults in force, and what was ever accepted."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse

from service.emulator.faults import Fault, Faults, Operation, Rule
from service.emulator.machine import Machine
from service.emulator.quafu_api import quafu_id
from service.emulator.store import Job, Protocol

PREFIX = "/emulator"

_RULES = TypeAdapter(list[Rule])
# What a rule may hold, for whoever wrote another.
_EXPECTED = {
    "on": list(Operation),
    "fault": list(Fault),
    "times": "an integer of at least 1, or null",
    "seconds": "a number",
    "retry_after": "seconds",
    "resets_at": "ISO 8601",
    "form": ["wrong_width", "no_counts"],
}

router = APIRouter(prefix=PREFIX)


@router.get("/faults")
async def faults(request: Request) -> JSONResponse:
    return _rules_of(request)


@router.put("/faults")
async def set_faults(request: Request) -> JSONResponse:
    """Replace the rules by those of the body, a JSON list."""
    try:
        rules = _RULES.validate_json(await request.body())
    except ValidationError as exc:
        problems = [
            f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}"
            for error in exc.errors(include_url=False, include_context=False)
        ]
        return JSONResponse({"error": "; ".join(problems), "expected": _EXPECTED}, 422)
    _faults(request).rules = rules
    return _rules_of(request)


@router.delete("/faults")
async def clear_faults(request: Request) -> JSONResponse:
    _faults(request).rules = []
    return _rules_of(request)


@router.get("/ledger")
async def ledger(request: Request) -> JSONResponse:
    """Every accepted submission, in order, with what was submitted and how often it was replayed."""
    machine: Machine = request.app.state.machine
    return JSONResponse({"submissions": [_entry(machine, job) for job in machine.store.jobs()]})


def _entry(machine: Machine, job: Job) -> dict[str, Any]:
    return {
        "protocol": job.protocol,
        "job_id": quafu_id(job) if job.protocol is Protocol.QUAFU else job.number,
        "client_ref": job.client_ref,
        "replays": job.replays,
        "circuits": [
            {"sha256": task.sha256, "shots": task.shots, "status": task.status}
            for task in machine.store.tasks(job.number)
        ],
    }


def _faults(request: Request) -> Faults:
    found: Faults = request.app.state.faults
    return found


def _rules_of(request: Request) -> JSONResponse:
    return JSONResponse([rule.model_dump(mode="json", exclude_defaults=True) for rule in _faults(request).rules])
