"""`GET /tasks` and what hangs below: a task's facts and its circuit."""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Response

from models.circuit import Circuit
from models.qasm import to_qasm2, to_qasm3
from service.control.keys import Scope
from service.drawing import to_svg
from service.errors import InvalidRequestError, OverloadedError, UnknownTaskError, UnknownVersionError
from service.guard import DENIALS, require
from service.openapi import problems
from service.registry import LoadedBundle
from service.schemas import CircuitQuery, CircuitShape, Provenance, QasmQuery, Task, TaskList, TaskSummary
from service.state import AppState, KnownTask, State

router = APIRouter(
    prefix="/tasks", tags=["tasks"], dependencies=[Depends(require(Scope.CLASSIFY))], responses=problems(*DENIALS)
)

_CIRCUIT_PROBLEMS = problems(*DENIALS, UnknownTaskError, UnknownVersionError, InvalidRequestError, OverloadedError)
_QASM = "text/x-qasm"
_SVG = "image/svg+xml"


def _content(media_type: str, example: str) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": {"type": "string"}, "example": example}
    return {200: {"description": "The circuit", "content": {media_type: schema}}}


@router.get("", summary="The tasks that are loaded")
async def list_tasks(state: State) -> TaskList:
    """Every task with its bundle, its labels and the versions that a path may name."""
    snapshot = state.snapshot
    bundles = [bundle for _, bundle in sorted(snapshot.bundles.items())]
    return TaskList(
        tasks=[
            TaskSummary(task=b.task, bundle=b.id, labels=b.labels, versions=snapshot.versions(b.task)) for b in bundles
        ]
    )


@router.get("/{task}", summary="Labels, parameters, metrics and provenance", responses=problems(UnknownTaskError))
async def task(bundle: KnownTask, state: State) -> Task:
    """What the task's bundle says of its student."""
    manifest = bundle.bundle.manifest
    return Task(
        task=bundle.task,
        bundle=bundle.id,
        labels=bundle.labels,
        versions=state.snapshot.versions(bundle.task),
        circuit=CircuitShape(preset=manifest.preset, n_qubits=manifest.n_qubits, n_layers=manifest.n_layers),
        engine=bundle.student.engine.name,
        parameters=manifest.parameter_counts,
        metrics=manifest.metrics,
        provenance=Provenance(
            command=manifest.command,
            configuration=manifest.configuration,
            data_sha256=manifest.data_sha256,
            embedder=manifest.embedder,
            library_versions=manifest.library_versions,
            seed=manifest.seed,
            teacher=manifest.teacher,
        ),
    )


@router.get("/{task}/circuit", summary="The circuit as JSON", responses=_CIRCUIT_PROBLEMS)
async def circuit(bundle: KnownTask, query: Annotated[CircuitQuery, Query()], state: State) -> dict[str, Any]:
    """Without `text` the circuit as it was trained, with symbols for angles; with it, every angle is a number."""
    return (await _circuit(state, bundle, query.text)).to_json()


@router.get(
    "/{task}/circuit.qasm",
    summary="The circuit as OpenQASM",
    response_class=Response,
    responses=_CIRCUIT_PROBLEMS | _content(_QASM, 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[11];'),
)
async def circuit_qasm(bundle: KnownTask, query: Annotated[QasmQuery, Query()], state: State) -> Response:
    """Every angle is bound: for `text`, or else for the bundle's first golden text, which a comment then names."""
    if query.text is None:
        golden = bundle.bundle.golden
        bound = bundle.student.bound_circuit(golden.angles[0])
        origin = f"the bundle's first golden text, {json.dumps(golden.texts[0])}"
    else:
        bound = await _circuit(state, bundle, query.text)
        origin = "the text of the request"
    export = to_qasm2 if query.version == 2 else to_qasm3
    return Response(f"// {bundle.id}, angles bound for {origin}\n{export(bound)}", media_type=_QASM)


@router.get(
    "/{task}/circuit.svg",
    summary="The circuit as a drawing",
    response_class=Response,
    responses=_CIRCUIT_PROBLEMS | _content(_SVG, '<svg xmlns="http://www.w3.org/2000/svg" role="img"></svg>'),
)
async def circuit_svg(bundle: KnownTask, query: Annotated[CircuitQuery, Query()], state: State) -> Response:
    """Angles are symbols, or numbers in radians where `text` is given."""
    return Response(to_svg(await _circuit(state, bundle, query.text), bundle.id), media_type=_SVG)


async def _circuit(state: AppState, bundle: LoadedBundle, text: str | None) -> Circuit:
    if text is None:
        return bundle.bundle.circuit
    evaluation = await state.batcher.evaluate(bundle, [text])
    return bundle.student.bound_circuit(np.asarray(evaluation.angles[0], dtype=np.float64))
