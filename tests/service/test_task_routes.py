"""What `GET /tasks` and the paths below it answer."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
from serving import GOLDEN_TEXTS, N_QUBITS, TASKS

from models.bundle import load_bundle
from models.circuit import Circuit
from models.embedder import Embedder

pytestmark = pytest.mark.anyio

SVG = "{http://www.w3.org/2000/svg}"


async def test_tasks_are_listed_by_name(client: httpx.AsyncClient) -> None:
    tasks = (await client.get("/tasks")).json()["tasks"]
    assert [task["task"] for task in tasks] == sorted(TASKS)
    assert all(task["labels"] == TASKS[task["task"]][0] for task in tasks)
    assert all(re.fullmatch(rf"{task['task']}@[0-9a-f]{{8}}", task["bundle"]) for task in tasks)


async def test_task_tells_what_its_manifest_holds(client: httpx.AsyncClient, bundles_dir: Path) -> None:
    body = (await client.get("/tasks/topic")).json()
    manifest = load_bundle(bundles_dir / "bundle-1").manifest
    assert body["labels"] == manifest.labels
    assert body["parameters"] == manifest.parameter_counts
    assert body["metrics"] == manifest.metrics
    assert body["circuit"] == {"preset": "chain", "n_qubits": N_QUBITS, "n_layers": 1}
    assert body["engine"] == "compiled"
    assert body["provenance"]["teacher"] == manifest.teacher
    assert body["provenance"]["command"] == manifest.command
    assert body["provenance"]["embedder"]["features"] == ["mean:2", "mean:6"]


async def test_circuit_json_is_the_unbound_circuit(client: httpx.AsyncClient, bundles_dir: Path) -> None:
    found = Circuit.from_json((await client.get("/tasks/emotion/circuit")).json())
    assert found == load_bundle(bundles_dir / "bundle-0").circuit


async def test_circuit_of_a_text_is_bound_to_its_angles(
    client: httpx.AsyncClient, bundles_dir: Path, embedder: Embedder
) -> None:
    text = "what a lovely day"
    response = await client.get("/tasks/emotion/circuit", params={"text": text})
    found = Circuit.from_json(response.json())
    bundle = load_bundle(bundles_dir / "bundle-0")
    (angles,) = bundle.student().angles(embedder.embed([text], bundle.features))
    assert found.is_bound
    assert [found.gates[qubit].angle for qubit in range(N_QUBITS)] == pytest.approx(angles, abs=1e-5)


@pytest.mark.parametrize(("version", "header"), [(None, "OPENQASM 2.0;"), (2, "OPENQASM 2.0;"), (3, "OPENQASM 3.0;")])
@pytest.mark.parametrize("text", [None, "two\nlines; measure q[0] -> c[0];"])
async def test_qasm_is_bound_and_says_for_which_text(
    client: httpx.AsyncClient, version: int | None, header: str, text: str | None
) -> None:
    given = {"version": version, "text": text}
    params = {name: str(value) for name, value in given.items() if value is not None}
    response = await client.get("/tasks/emotion/circuit.qasm", params=params)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/x-qasm")
    comment, first, *rest = response.text.splitlines()
    assert comment.startswith("// emotion@")
    assert ("first golden text" in comment) == (text is None)
    assert first == header
    assert sum(line.startswith("//") for line in rest) == 0
    assert all(line.endswith(";") for line in rest)
    angles = re.findall(r"\b(?:rx|ry|rz)\(([^)]*)\)", response.text)
    assert len(angles) >= 3 * N_QUBITS
    assert all(re.fullmatch(r"-?\d+\.\d{12}", angle) for angle in angles)
    assert sum("measure" in line for line in rest) == N_QUBITS
    assert sum(line.startswith("cz ") for line in rest) == N_QUBITS - 1


async def test_qasm_comment_keeps_a_golden_text_of_two_lines_on_one(client: httpx.AsyncClient) -> None:
    assert "\n" in GOLDEN_TEXTS[0]
    response = await client.get("/tasks/emotion/circuit.qasm")
    assert response.text.splitlines()[1] == "OPENQASM 2.0;"


@pytest.mark.parametrize("text", [None, "a text"])
async def test_svg_is_well_formed_and_draws_every_wire(client: httpx.AsyncClient, text: str | None) -> None:
    response = await client.get("/tasks/emotion/circuit.svg", params={} if text is None else {"text": text})
    assert response.headers["content-type"].startswith("image/svg+xml")
    root = ElementTree.fromstring(response.text)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert [word for word in words if word and word.startswith("q")] == [f"q{n}" for n in range(N_QUBITS)]
    assert ("z0" in words) == (text is None)
    title = root.find(f"{SVG}title")
    assert title is not None
    assert "emotion@" in (title.text or "")
