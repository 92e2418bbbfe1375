"""Which folders of bundles are served, and why the others are not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from serving import TASKS, running, write_test_bundle

from models.embedder import SHIPPED, Embedder
from models.errors import BundleError, BundleFileError, EmbedderError, EngineError, StudentError
from service.errors import RegistryError, UnknownTaskError, UnknownVersionError
from service.registry import load_snapshot
from service.settings import Settings


@pytest.fixture
def own(tmp_path: Path, bundles_dir: Path) -> Path:
    """A copy of the bundles to change."""
    return Path(shutil.copytree(bundles_dir, tmp_path / "own"))


def test_every_bundle_is_loaded_by_its_task_and_shares_the_embedder(own: Path) -> None:
    snapshot = load_snapshot(own, threads=1)
    assert sorted(snapshot.bundles) == sorted(TASKS)
    assert len({id(bundle.embedder) for bundle in snapshot.bundles.values()}) == 1
    assert snapshot.get("topic").labels == TASKS["topic"][0]


def test_snapshot_cannot_be_changed(own: Path) -> None:
    snapshot = load_snapshot(own, threads=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.bundles = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        snapshot.bundles["other"] = snapshot.get("topic")  # type: ignore[index]


def test_unknown_task_names_the_tasks(own: Path) -> None:
    with pytest.raises(UnknownTaskError, match=r"no task 'x', expected one of \['emotion', 'topic'\]"):
        load_snapshot(own, threads=1).get("x")


@pytest.mark.parametrize(
    "name", ["manifest.json", "circuit.json", "weights.safetensors", "compiled.safetensors", "golden.json"]
)
@pytest.mark.parametrize("change", ["missing", "truncated"])
def test_damaged_file_is_named(own: Path, name: str, change: str) -> None:
    path = own / "bundle-1" / name
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BundleFileError) as caught:
        load_snapshot(own, threads=1)
    assert str(path) in str(caught.value)


@pytest.mark.anyio
async def test_app_with_an_altered_bundle_does_not_start(own: Path) -> None:
    path = own / "bundle-0" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleFileError, match=r"bundle-0/weights\.safetensors: expected sha256"):
        async with running(Settings(bundles_dir=own, threads=1)):
            pass


def test_bundle_of_another_embedder_is_named(own: Path, embedder: Embedder) -> None:
    other = Embedder.__new__(Embedder)
    other.__dict__ = {**vars(embedder), "sha256": "0" * 64}
    write_test_bundle(own / "bundle-1", "topic", other)
    with pytest.raises(BundleError, match=r"bundle-1.*sha256"):
        load_snapshot(own, threads=1)


def test_bundle_on_an_embedder_beside_the_bundles_is_served(own: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED / "minilm-l6", own.parent / "embedders" / "mine"))
    info = json.loads((folder / "embedder.json").read_text(encoding="utf-8"))
    info.update(name="mine", max_tokens=16)
    (folder / "embedder.json").write_text(json.dumps(info), encoding="utf-8")
    mine = Embedder(folder, threads=1)
    write_test_bundle(own / "bundle-1", "topic", mine)
    found = {task: bundle.embedder for task, bundle in load_snapshot(own, threads=1).bundles.items()}
    assert {task: embedder.name for task, embedder in found.items()} == {"emotion": "minilm-l6", "topic": "mine"}
    assert found["topic"].sha256 == mine.sha256 != found["emotion"].sha256
    shutil.rmtree(folder)
    with pytest.raises(EmbedderError, match="embedder 'mine'"):
        load_snapshot(own, threads=1)


def test_two_bundles_for_one_task_are_both_named(own: Path) -> None:
    shutil.copytree(own / "bundle-0", own / "second")
    with pytest.raises(RegistryError, match=r"'emotion'.*bundle-0 and .*second"):
        load_snapshot(own, threads=1)


def test_unfinished_writes_and_plain_files_are_passed_over(own: Path) -> None:
    (own / ".bundle-0-partial").mkdir()
    (own / "__pycache__").mkdir()
    (own / "README.md").write_text("about these bundles")
    assert len(load_snapshot(own, threads=1).bundles) == len(TASKS)


def test_folder_that_is_no_bundle_is_named(own: Path) -> None:
    (own / "notes").mkdir()
    with pytest.raises(BundleFileError, match=r"notes/manifest\.json"):
        load_snapshot(own, threads=1)


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_bundles_is_refused(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "empty"
    if exists:
        folder.mkdir()
    with pytest.raises(RegistryError, match=str(folder)):
        load_snapshot(folder)


def test_unknown_engine_is_refused(own: Path) -> None:
    with pytest.raises(EngineError, match="'qiskit'"):
        load_snapshot(own, engine="qiskit", threads=1)
    assert issubclass(EngineError, StudentError)


def test_versions_are_served_by_their_id_and_never_by_their_task(own: Path, embedder: Embedder) -> None:
    write_test_bundle(own / "versions" / "a", "emotion", embedder, seed=8)
    (own / "versions" / "_unfinished").mkdir()
    (own / "versions" / "README.md").write_text("about these versions")
    snapshot = load_snapshot(own, threads=1)
    (pinned,) = snapshot.pinned.values()
    assert snapshot.get(pinned.id) is pinned is not snapshot.get("emotion")
    assert snapshot.get(snapshot.get("emotion").id) is snapshot.get("emotion")
    assert snapshot.versions("emotion") == sorted(
        bundle.id.partition("@")[2] for bundle in (pinned, snapshot.get("emotion"))
    )
    assert len(list(snapshot)) == len(TASKS) + 1
    with pytest.raises(UnknownVersionError, match="emotion has no version 'x'"):
        snapshot.get("emotion@x")


def test_same_bundle_in_both_places_is_loaded_once(own: Path) -> None:
    shutil.copytree(own / "bundle-0", own / "versions" / "same")
    snapshot = load_snapshot(own, threads=1)
    assert snapshot.pinned[snapshot.get("emotion").id] is snapshot.get("emotion")
    assert len(list(snapshot)) == len(TASKS)
    assert len(snapshot.versions("emotion")) == 1


def test_version_of_a_task_without_a_default_is_refused(own: Path) -> None:
    (own / "versions").mkdir()
    (own / "bundle-0").rename(own / "versions" / "orphan")
    with pytest.raises(RegistryError, match=r"versions/orphan: a version of the task 'emotion'"):
        load_snapshot(own, threads=1)


def test_bundle_in_place_of_the_versions_is_refused(own: Path) -> None:
    (own / "bundle-0").rename(own / "versions")
    with pytest.raises(RegistryError, match="versions: expected a folder of bundles, found a bundle"):
        load_snapshot(own, threads=1)


def test_damaged_version_is_named(own: Path) -> None:
    damaged = Path(shutil.copytree(own / "bundle-0", own / "versions" / "damaged"))
    (damaged / "golden.json").unlink()
    with pytest.raises(BundleFileError, match=r"versions/damaged/golden\.json"):
        load_snapshot(own, threads=1)


def test_what_has_not_changed_is_used_again(own: Path, embedder: Embedder) -> None:
    previous = load_snapshot(own, threads=1)
    write_test_bundle(own / "bundle-0", "emotion", embedder, seed=9)
    snapshot = load_snapshot(own, threads=1, previous=previous)
    assert snapshot.get("topic") is previous.get("topic")
    assert snapshot.get("emotion").id != previous.get("emotion").id
    assert snapshot.get("emotion").embedder is previous.get("emotion").embedder


def test_unchanged_manifest_does_not_hide_a_damaged_file(own: Path) -> None:
    previous = load_snapshot(own, threads=1)
    path = own / "bundle-1" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BundleFileError, match=r"bundle-1/weights\.safetensors"):
        load_snapshot(own, threads=1, previous=previous)
