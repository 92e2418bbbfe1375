"""The Quafu-SQC protocol. Like the real one, it refuses in prose and runs a repeated submission again."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse

from service.emulator.faults import OFFLINE, Faults
from service.emulator.machine import Machine
from service.emulator.quafu_api import wire_counts
from service.emulator.refusals import RefusedError
from service.emulator.store import Job, Order, Protocol, Status, Task

# It has fewer words than the other protocol: whatever waits is running, and what will never finish has failed.
_STATUS: Mapping[Status, str] = {
    Status.QUEUED: "Running",
    Status.RUNNING: "Running",
    Status.FINISHED: "Finished",
    Status.FAILED: "Failed",
    Status.CANCELLED: "Failed",
}


class BadTokenError(Exception):
    """The header `token` is missing or wrong."""


def _machine(request: Request) -> Machine:
    machine: Machine = request.app.state.machine
    if not hmac.compare_digest(request.headers.get("token", "").encode(), machine.config.token.encode()):
        raise BadTokenError
    return machine


def _faults(request: Request) -> Faults:
    faults: Faults = request.app.state.faults
    return faults


AMachine = Annotated[Machine, Depends(_machine)]
TheFaults = Annotated[Faults, Depends(_faults)]

router = APIRouter(prefix="/task")


@router.get("/status/0")
async def queues(request: Request, machine: AMachine) -> JSONResponse:
    offline = getattr(request.state, OFFLINE, False)
    return JSONResponse({machine.config.name: "Offline" if offline else machine.store.queue_length()})


@router.post("/run/")
async def run(request: Request, machine: AMachine, name: str = "", chip: str = "", shots: str = "") -> JSONResponse:
    try:
        return JSONResponse(await _submit(request, machine, name, chip, shots))
    except RefusedError as exc:
        wait = exc.variables.get("wait_s")
        # The status only where it says more than the prose: the real one's are not to be relied on.
        return JSONResponse(exc.detail, 429, {"Retry-After": str(wait)}) if wait else JSONResponse(exc.detail)


@router.get("/status/{tid}")
async def status(tid: str, machine: AMachine) -> JSONResponse:
    found = _find(machine, tid)
    return JSONResponse(_unknown(tid) if found is None else _STATUS[found[1].status])


@router.get("/result/{tid}")
async def result(tid: str, machine: AMachine, faults: TheFaults) -> JSONResponse:
    found = _find(machine, tid)
    if found is None:
        return JSONResponse(_unknown(tid))
    job, task = found
    if task.status in (Status.QUEUED, Status.RUNNING):
        return JSONResponse({})
    body: dict[str, Any] = {
        "count": {},
        "corrected": {},
        "status": _STATUS[task.status],
        "tid": job.number,
        "error": "",
        "chip": machine.config.name,
        "shots": task.shots,
        "calibration_id": task.calibration,
        "emulated": True,
    }
    if task.status is Status.CANCELLED:
        body["error"] = "cancelled"
    elif task.error is not None:
        body["error"] = task.error["detail"]
    elif task.sample is not None:
        body["count"] = wire_counts(task.sample.counts, faults.take_of_result())
        body["transpiled"] = task.sample.executed
        # Physical qubit of each classical bit, from c[0] on.
        body["qubits"] = [measurement.physical_qubit for measurement in task.sample.measurements]
        if body["count"] is None:
            del body["count"]
    return JSONResponse(body)


@router.get("/cancel/{tid}")
async def cancel(tid: str, machine: AMachine) -> JSONResponse:
    found = _find(machine, tid)
    if found is None:
        return JSONResponse(_unknown(tid))
    machine.cancel(found[0])
    return JSONResponse(f"task {tid} has been cancelled")


@router.get("/verify")
async def verify(machine: AMachine) -> JSONResponse:
    return JSONResponse({"user": "emulator", "emulated": True})


async def _submit(request: Request, machine: Machine, name: str, chip: str, shots: str) -> int:
    config = machine.config
    if chip != config.name:
        raise RefusedError("unknown_device", f"there is no chip {chip!r}, expected {config.name!r}")
    # More than one piece of the other protocol is fine here.
    if not shots.isdecimal() or int(shots) == 0 or int(shots) % config.shots_step:
        raise RefusedError(
            "precheck.shotsGranularity", f"shots is {shots!r}, expected a multiple of {config.shots_step}"
        )
    try:
        body = json.loads(await request.body())
    except ValueError as exc:
        raise RefusedError("invalid_request", f"the body is not JSON: {exc}") from exc
    circuit = body.get("circuit") if isinstance(body, dict) else None
    if not isinstance(circuit, str):
        raise RefusedError("invalid_request", 'the body has no circuit, expected {"circuit": "OPENQASM 2.0;..."}')
    options = body.get("options")
    target_qubits = options.get("target_qubits") if isinstance(options, dict) else None
    if target_qubits is not None and (
        not isinstance(target_qubits, list) or any(type(qubit) is not int for qubit in target_qubits)
    ):
        raise RefusedError("invalid_request", f"target_qubits is {target_qubits!r}, expected a list of integers")
    job = machine.submit(
        Protocol.SQC,
        [Order(circuit, int(shots))],
        name=name or None,
        physical=body.get("compile") is False,
        target_qubits=target_qubits or (),
    )
    return job.number


def _find(machine: Machine, tid: str) -> tuple[Job, Task] | None:
    job = machine.store.job(int(tid)) if tid.isdecimal() else None
    if job is None or job.protocol is not Protocol.SQC:
        return None
    return job, machine.store.tasks(job.number)[0]


def _unknown(tid: str) -> str:
    return f"there is no task {tid}"
