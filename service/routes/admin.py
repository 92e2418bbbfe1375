"""`/admin`: what operators change while the service runs."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from service.backends.base import backend_named
from service.control.audit import OPEN, Entry, switched
from service.control.keys import Caller, Scope
from service.control.switches import Switch
from service.control.sync import Control
from service.errors import (
    BackendNotConfiguredError,
    BundlesRejectedError,
    InvalidRequestError,
    MalformedBodyError,
    NoRedisError,
    UnknownBackendError,
    UnknownTaskError,
    UnsupportedMediaTypeError,
)
from service.guard import DENIALS, require, require_json
from service.logs import request_facts
from service.openapi import problems
from service.reload import reload
from service.schemas import (
    AuditEntry,
    AuditList,
    AuditQuery,
    ReloadBody,
    ReloadRequest,
    SwitchBody,
    SwitchRequest,
)
from service.settings import BackendName
from service.state import AppState, State

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require(Scope.ADMIN))])

BACKEND_ROUTE = "/tasks/{task}/backend"

Operator = Annotated[Caller, Depends(require(Scope.ADMIN))]

logger = logging.getLogger(__name__)


def switched_task(task: Annotated[str, Path(description="A task of `GET /tasks`.")], state: State) -> str:
    """The task in the path; a switch is for all of its versions.

    Raises:
        UnknownTaskError: If there is none.
    """
    if task not in state.snapshot.bundles:
        tasks = sorted(state.snapshot.bundles)
        raise UnknownTaskError(f"no task {task[:64]!r}, expected one of {tasks}", tasks=tasks)
    return task


SwitchedTask = Annotated[str, Depends(switched_task)]


@router.get(BACKEND_ROUTE, summary="What runs a task by default", responses=problems(*DENIALS, UnknownTaskError))
async def read_backend(task: SwitchedTask, state: State) -> SwitchBody:
    """As this replica does it now; after a change the others follow within two seconds.

    While Redis is away it is what the settings say.
    """
    return _body(state, task)


@router.put(
    BACKEND_ROUTE,
    summary="Switch a task's default backend",
    dependencies=[Depends(require_json)],
    responses=problems(
        *DENIALS,
        UnknownTaskError,
        MalformedBodyError,
        UnsupportedMediaTypeError,
        InvalidRequestError,
        UnknownBackendError,
        BackendNotConfiguredError,
        NoRedisError,
    ),
)
async def switch_backend(task: SwitchedTask, body: SwitchRequest, state: State, caller: Operator) -> SwitchBody:
    """For requests that name no backend, in every replica within two seconds; those in flight end where they began.

    With `shadow_percent`, so many of 100 of them are answered by the simulator and run on hardware too, which their
    callers do not notice. Callers whose key does not have the scope `hardware` stay on the simulator.
    """
    backend = backend_named(body.backend)
    if backend is BackendName.BAIHUA and body.shadow_percent:
        detail = f"expected 0 with the backend {backend.value}, found {body.shadow_percent:g}"
        pointer = "#/shadow_percent"
        raise InvalidRequestError(
            f"1 error in the request: {pointer}: {detail}", errors=[{"detail": detail, "pointer": pointer}]
        )
    state.backends.get(BackendName.BAIHUA if body.shadow_percent else backend)
    control = _control(state, "the default backend")
    by = caller.key or OPEN
    before = state.switches.of(task)
    switch = Switch(backend=backend, shadow_percent=body.shadow_percent, since=datetime.now(UTC), by=by)
    entry = Entry(
        by=by,
        action="switch",
        task=task,
        before=switched(before),
        after=switched(switch),
        request_id=_request_id(),
    )
    await control.switch(task, switch, entry)
    logger.info("default backend switched", extra={"fields": {"task": task, "by": by} | switched(switch)})
    return _body(state, task)


@router.get("/audit", summary="What was changed", responses=problems(*DENIALS, InvalidRequestError, NoRedisError))
async def read_audit(query: Annotated[AuditQuery, Query()], state: State) -> AuditList:
    """The last changes, the newest first; a thousand are kept."""
    entries = await _control(state, "the audit").entries(query.limit)
    return AuditList(entries=[AuditEntry(**entry.model_dump(exclude={"schema_version", "id"})) for entry in entries])


@router.post(
    "/reload",
    summary="Load bundles anew",
    dependencies=[Depends(require_json)],
    responses=problems(
        *DENIALS, MalformedBodyError, BundlesRejectedError, UnsupportedMediaTypeError, InvalidRequestError
    ),
)
async def reload_bundles(state: State, caller: Operator, body: ReloadRequest | None = None) -> ReloadBody:
    """What is in QD_BUNDLES_DIR now is served, here at once and in every other replica soon; requests in flight keep
    the bundle that they began with. On any error those that are served stay, everywhere.
    """
    found = await reload(state, caller.key or OPEN, _request_id())
    return ReloadBody(
        bundles=[bundle.id for bundle in found.snapshot],
        changed=found.changed,
        removed=found.removed,
        generation=found.generation,
    )


def _control(state: AppState, what: str) -> Control:
    if state.control is None:
        raise NoRedisError(f"{what} is kept in Redis, and QD_REDIS_URL is unset")
    return state.control


def _body(state: AppState, task: str) -> SwitchBody:
    switch = state.switches.of(task)
    return SwitchBody(
        task=task,
        backend=switch.backend.value,
        shadow_percent=switch.shadow_percent,
        source="redis" if state.switches.is_set(task) else "settings",
        since=switch.since,
        by=switch.by,
    )


def _request_id() -> str:
    facts = request_facts.get()
    assert facts is not None
    return facts.request_id
