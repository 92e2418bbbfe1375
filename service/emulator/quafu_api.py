"""The quafu-sdk protocol, as quafu-sdk 0.2.7 speaks it."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse

from service.emulator.calibration import BASIS_GATES
from service.emulator.faults import OFFLINE, Fault, Faults, Rule
from service.emulator.machine import Machine, job_status
from service.emulator.refusals import RefusedError
from service.emulator.store import Job, Order, Protocol, Status, Task

PREFIX = "/api/v1"
BIT_ORDER = "c0_rightmost"

_LEVELS = {"logical": False, "physical": True}
_MAX_PAGE = 200

router = APIRouter(prefix=PREFIX)


def _machine(request: Request) -> Machine:
    machine: Machine = request.app.state.machine
    return machine


def _faults(request: Request) -> Faults:
    faults: Faults = request.app.state.faults
    return faults


def _authorised(request: Request) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    expected = _machine(request).config.token
    if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode(), expected.encode()):
        raise RefusedError("invalid_api_key", "the API key is not one of this emulator")


AMachine = Annotated[Machine, Depends(_machine)]
TheFaults = Annotated[Faults, Depends(_faults)]
AUTHORISED = [Depends(_authorised)]


@router.get("/devices")
async def devices(request: Request, machine: AMachine) -> JSONResponse:
    return JSONResponse({"devices": [_device_row(request, machine)], "emulated": True})


@router.get("/devices/{name}")
async def device(request: Request, name: str, machine: AMachine) -> JSONResponse:
    _require_device(machine, name)
    return JSONResponse(_device_row(request, machine))


@router.get("/devices/{name}/calibration")
async def device_calibration(name: str, machine: AMachine) -> JSONResponse:
    _require_device(machine, name)
    return JSONResponse(machine.calibration())


@router.get("/calibrations/{calibration_id}")
async def calibration(calibration_id: str, machine: AMachine) -> JSONResponse:
    found = machine.past_calibration(calibration_id)
    if found is None:
        raise RefusedError("not_found", f"there is no calibration {calibration_id!r}")
    return JSONResponse(found)


@router.get("/backends/{name}/metadata")
async def metadata(request: Request, name: str, machine: AMachine) -> JSONResponse:
    _require_device(machine, name)
    current = machine.calibration()
    return JSONResponse(
        _device_row(request, machine)
        | {
            "basis_gates": list(BASIS_GATES),
            "coupling_map": [row["qubits"] for row in current["couplers"]],
        }
    )


@router.get("/auth/me", dependencies=AUTHORISED)
async def me() -> JSONResponse:
    return JSONResponse({"user": {"public_id": "emulator", "name": "emulator", "email": None}, "emulated": True})


@router.get("/stats/me", dependencies=AUTHORISED)
async def stats(machine: AMachine) -> JSONResponse:
    quota = machine.quota()
    return JSONResponse(
        machine.store.totals()
        | {"quota": {"date": quota["resets_at"][:10], "sim": None, "noisy": None, "real": quota}, "emulated": True}
    )


@router.post("/jobs", dependencies=AUTHORISED)
async def submit(request: Request, machine: AMachine) -> JSONResponse:
    body = await _json_object(request)
    client_ref = _field(body, "client_ref", str, None)
    if client_ref is not None:
        earlier = machine.store.job_of(client_ref)
        if earlier is not None:
            machine.store.count_replay(earlier.number)
            return JSONResponse(_accepted(machine, earlier), 200)
    if body.get("mode") not in ("single", "collection"):
        raise _invalid("mode", f"mode is {body.get('mode')!r}, the emulator takes 'single' and 'collection'")
    _require_device(machine, _field(body, "target", str))
    level = _field(body, "circuit_level", str, "logical")
    if level not in _LEVELS:
        raise _invalid("circuit_level", f"circuit_level is {level!r}, expected one of {sorted(_LEVELS)}")
    circuits = _field(body, "circuits", list)
    if not circuits or (body["mode"] == "single" and len(circuits) != 1):
        raise _invalid("circuits", f"a job of mode {body['mode']!r} has {len(circuits)} circuits")
    shots = _field(body, "shots", int)
    orders = [_order(machine, seq, item, shots) for seq, item in enumerate(circuits)]
    job = machine.submit(
        Protocol.QUAFU, orders, client_ref=client_ref, name=_field(body, "name", str, None), physical=_LEVELS[level]
    )
    return JSONResponse(_accepted(machine, job), 201)


@router.get("/jobs/{job_id}/status", dependencies=AUTHORISED)
async def status(job_id: str, machine: AMachine) -> JSONResponse:
    statuses = machine.store.statuses(_job(machine, job_id).number)
    counts = {kind.lower(): statuses.count(kind) for kind in Status if kind is not Status.PARTIALLY_FINISHED}
    return JSONResponse(
        {
            "job_id": job_id,
            "status": job_status(statuses),
            "open": False,
            "counts": {"total": len(statuses)} | counts,
            "emulated": True,
        }
    )


@router.get("/jobs/{job_id}/tasks/{seq}", dependencies=AUTHORISED)
async def task(job_id: str, seq: str, machine: AMachine, faults: TheFaults, include: str = "") -> JSONResponse:
    job = _job(machine, job_id)
    tasks = machine.store.tasks(job.number)
    if not seq.isdecimal() or int(seq) >= len(tasks):
        raise RefusedError("not_found", f"job {job_id} has no task {seq}")
    found = tasks[int(seq)]
    rule = faults.take_of_result() if found.status is Status.FINISHED else None
    return JSONResponse(_detail(machine, job, found, set(include.split(",")), rule))


@router.get("/jobs/{job_id}/results", dependencies=AUTHORISED)
async def results(
    job_id: str,
    machine: AMachine,
    faults: TheFaults,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = _MAX_PAGE,
) -> JSONResponse:
    job = _job(machine, job_id)
    tasks = machine.store.tasks(job.number)
    rows = tasks[offset : offset + limit]
    counts = [task.sample and wire_counts(task.sample.counts, faults.take_of_result()) for task in rows]
    return JSONResponse(
        {
            "job_id": job_id,
            "schema_version": 1,
            "bit_order": BIT_ORDER,
            "total": len(tasks),
            "emulated": True,
            "seq": [task.seq for task in rows],
            "task_ids": [f"{job_id}-{task.seq}" for task in rows],
            "names": [task.name for task in rows],
            "status": [task.status for task in rows],
            "n_clbits": [task.sample and len(task.sample.measurements) for task in rows],
            "shots_returned": [each and sum(each.values()) for each in counts],
            "counts": counts,
            "errors": [task.error for task in rows],
        }
    )


@router.post("/jobs/{job_id}/cancel", dependencies=AUTHORISED)
async def cancel(job_id: str, machine: AMachine) -> JSONResponse:
    job = _job(machine, job_id)
    queued, running = machine.cancel(job)
    return JSONResponse(
        {
            "job_id": job_id,
            "status": job_status(machine.store.statuses(job.number)),
            "open": False,
            "cancelled_now": queued,
            "cancel_requested": running,
        }
    )


def quafu_id(job: Job) -> str:
    """A job's id in this protocol."""
    return f"emulated-{job.number:06d}"


def wire_counts(counts: Mapping[str, int], rule: Rule | None) -> dict[str, int] | None:
    """Counts with classical bit 0 rightmost, as both protocols send them, spoilt as a fault asks."""
    sent = {bits[::-1]: n for bits, n in counts.items()}
    if rule is None:
        return sent
    if rule.fault is Fault.PARTIAL_RESULT:
        return dict(list(sent.items())[: len(sent) // 2])
    if rule.form == "no_counts":
        return None
    narrow: dict[str, int] = {}
    for bits, n in sent.items():
        narrow[bits[1:]] = narrow.get(bits[1:], 0) + n
    return narrow


def _device_row(request: Request, machine: Machine) -> dict[str, Any]:
    config = machine.config
    current = machine.calibration()
    return {
        "name": config.name,
        "kind": "real",
        "status": "offline" if getattr(request.state, OFFLINE, False) else "online",
        "n_qubits": len(current["qubits"]),
        "queue": machine.store.queue_length(),
        "calibration_id": current["id"],
        "calibration_source": current["source"],
        "simulator_available": False,
        "limits": {
            "min_shots": config.min_shots,
            "max_shots": config.max_shots,
            "shots_step": config.shots_step,
            "max_qubits": config.max_qubits,
            "qubit_count": "active",
            "max_tasks_per_job": config.max_tasks_per_job,
        },
        "emulated": True,
    }


def _require_device(machine: Machine, name: str) -> None:
    if name != machine.config.name:
        raise RefusedError("unknown_device", f"there is no device {name!r}, expected {machine.config.name!r}")


def _job(machine: Machine, job_id: str) -> Job:
    number = job_id.removeprefix("emulated-")
    job = machine.store.job(int(number)) if number.isdecimal() else None
    if job is None or job.protocol is not Protocol.QUAFU or quafu_id(job) != job_id:
        raise RefusedError("not_found", f"there is no job {job_id!r}")
    return job


def _accepted(machine: Machine, job: Job) -> dict[str, Any]:
    statuses = machine.store.statuses(job.number)
    job_id = quafu_id(job)
    return {
        "job_id": job_id,
        "task_ids": [f"{job_id}-{seq}" for seq in range(len(statuses))],
        "status": job_status(statuses),
        "emulated": True,
    }


def _detail(machine: Machine, job: Job, task: Task, include: set[str], rule: Rule | None) -> dict[str, Any]:
    job_id, name = quafu_id(job), machine.config.name
    detail: dict[str, Any] = {
        "task_id": f"{job_id}-{task.seq}",
        "status": task.status,
        "target": name,
        "chip": name,
        "kind": "real",
        "name": task.name,
        "emulated": True,
        "job": {"id": job_id, "seq": task.seq},
        "execution": {
            "shots_requested": task.shots,
            "submitted_at": _iso(job.submitted_at),
            "started_at": _iso(task.started_at),
            "finished_at": _iso(task.finished_at),
            "compiler": None if job.physical else {"name": "emulator"},
        },
        "calibration": {"id": task.calibration},
        "error": task.error,
    }
    if task.status is Status.FINISHED and task.sample is not None:
        counts = wire_counts(task.sample.counts, rule)
        detail["result"] = {
            "bit_order": BIT_ORDER,
            "n_clbits": len(task.sample.measurements),
            "shots_returned": task.shots if counts is None else sum(counts.values()),
        }
        if "counts" in include and counts is not None:
            detail["result"]["counts"] = counts
        detail["circuit"] = {
            "measurements": [
                {"cbit": m.cbit, "physical_qubit": m.physical_qubit, "virtual_qubit": m.virtual_qubit}
                for m in task.sample.measurements
            ]
        }
        if "executed" in include:
            detail["circuit"]["executed"] = {"text": task.sample.executed}
    return detail


def _order(machine: Machine, seq: int, item: Any, shots: int) -> Order:
    if not isinstance(item, dict):
        raise _invalid(f"circuits[{seq}]", f"circuits[{seq}] is {type(item).__name__}, expected an object")
    order = Order(_field(item, "qasm", str), _field(item, "shots", int, shots), _field(item, "name", str, None))
    config = machine.config
    if not config.min_shots <= order.shots <= config.max_shots:
        raise RefusedError(
            "precheck.shotsOutOfRange",
            f"{order.shots} shots, expected {config.min_shots} to {config.max_shots}",
            shots=order.shots,
            min_shots=config.min_shots,
            max_shots=config.max_shots,
            task_index=seq,
        )
    if order.shots % config.shots_step:
        raise RefusedError(
            "precheck.shotsGranularity",
            f"{order.shots} shots, expected a multiple of {config.shots_step}",
            shots=order.shots,
            shots_step=config.shots_step,
            task_index=seq,
        )
    return order


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError as exc:
        raise RefusedError("invalid_request", f"the body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise RefusedError("invalid_request", f"the body is {type(body).__name__}, expected an object")
    return body


_REQUIRED = object()


def _field(body: Mapping[str, Any], name: str, kind: type, default: Any = _REQUIRED) -> Any:
    value = body.get(name)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _invalid(name, f"{name} is {value!r}, expected {kind.__name__}")
    return value


def _invalid(field: str, detail: str) -> RefusedError:
    return RefusedError("invalid_request", detail, field=field)


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
