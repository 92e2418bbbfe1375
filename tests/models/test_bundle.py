from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import needs_mindquantum
from safetensors.numpy import load_file, save
from samples import FEATURES, TEXTS, random_weights
from statevector import student_expvals

from models.bundle import Bundle, load_bundle
from models.circuit import student_circuit
from models.embedder import SHIPPED, Embedder
from models.errors import (
    BundleError,
    BundleFileError,
    BundleSchemaError,
    EmbedderError,
    EngineError,
    FolderError,
)
from models.student import softmax

HASHED = ("circuit.json", "weights.safetensors", "compiled.safetensors", "golden.json")
FILES = ("manifest.json", *HASHED)
Write = Callable[..., Bundle]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def put(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and its hash, as whoever means to pass the hash check would."""
    (folder / name).write_bytes(data)
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: hashlib.sha256(data).hexdigest()}))


def put_json(folder: Path, name: str, edit: Callable[[Any], object]) -> None:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(value)
    put(folder, name, json.dumps(value).encode())


def put_tensors(folder: Path, name: str, **changes: np.ndarray | None) -> None:
    arrays = {**load_file(folder / name), **changes}
    put(folder, name, save({key: value for key, value in arrays.items() if value is not None}))


def test_round_trip_is_exact(pristine: Path, embedder: Embedder, facts: dict[str, Any]) -> None:
    circuit = student_circuit("chain", 4, 1)
    weights = random_weights(circuit, embedder.hidden_size)
    bundle = load_bundle(pristine)
    assert bundle.circuit == circuit
    for name, expected in vars(weights).items():
        found = getattr(bundle.weights, name)
        assert found.dtype == np.float64
        assert found.tobytes() == expected.tobytes(), name
    assert {name: getattr(bundle.manifest, name) for name in facts} == facts
    assert bundle.features == FEATURES
    assert bundle.golden.texts == TEXTS
    counts = {"reducer": 384 * 4 + 4, "ansatz": 12, "head": 10, "total": 384 * 4 + 4 + 12 + 10}
    assert bundle.manifest.parameter_counts == counts


def test_write_returns_what_load_reads(write: Write, tmp_path: Path) -> None:
    written, read = write(tmp_path / "new" / "emotion"), load_bundle(tmp_path / "new" / "emotion")
    assert written.id == read.id
    assert written.manifest == read.manifest
    np.testing.assert_array_equal(written.tensor.left, read.tensor.left)
    np.testing.assert_array_equal(written.golden.probs, read.golden.probs)


def test_a_bundle_is_exactly_its_five_files(pristine: Path) -> None:
    assert {path.name for path in pristine.iterdir()} == set(FILES)
    assert [path.name for path in pristine.parent.iterdir()] == ["emotion"]


def test_manifest_holds_the_sha256_of_every_other_file(pristine: Path) -> None:
    expected = {name: hashlib.sha256((pristine / name).read_bytes()).hexdigest() for name in HASHED}
    assert load_bundle(pristine).manifest.files == expected


def test_rewriting_the_same_content_gives_the_same_id_and_bytes(write: Write, pristine: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "elsewhere")
    assert again.id == load_bundle(pristine).id
    assert contents(tmp_path / "elsewhere") == contents(pristine)


def test_id_is_the_task_and_the_manifests_hash(pristine: Path) -> None:
    digest = hashlib.sha256((pristine / "manifest.json").read_bytes()).hexdigest()
    assert load_bundle(pristine).id == f"emotion@{digest[:8]}"


def test_other_weights_give_another_id(write: Write, pristine: Path, tmp_path: Path) -> None:
    weights = load_bundle(pristine).weights
    nudged = replace(weights, head_bias=np.nextafter(weights.head_bias, 9))
    assert write(tmp_path / "emotion", weights=nudged).id != load_bundle(pristine).id


def test_golden_values_come_from_the_texts(pristine: Path, embedder: Embedder) -> None:
    bundle = load_bundle(pristine)
    weights, golden = bundle.weights, bundle.golden
    embeddings = embedder.embed(golden.texts, FEATURES)
    np.testing.assert_allclose(
        golden.angles, embeddings @ weights.reducer_weight.T + weights.reducer_bias, rtol=0, atol=1e-6
    )
    expected = student_expvals(bundle.circuit.bind(ansatz=weights.ansatz.tolist()), golden.angles)
    np.testing.assert_allclose(golden.expvals, expected, rtol=0, atol=1e-12)
    logits = expected @ weights.head_weight.T + weights.head_bias
    np.testing.assert_allclose(golden.probs, softmax(logits), rtol=0, atol=1e-12)
    bundle.verify(embedder)


@needs_mindquantum
def test_engines_agree_on_a_bundle(pristine: Path) -> None:
    bundle = load_bundle(pristine)
    angles = np.random.default_rng(0).uniform(-7, 7, (16, 4))
    reference = bundle.student("mindquantum")
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-5)):
        student = bundle.student("compiled", dtype)
        np.testing.assert_allclose(student.expvals(angles), reference.expvals(angles), rtol=0, atol=tolerance)
        np.testing.assert_allclose(student.logits(angles), reference.logits(angles), rtol=0, atol=10 * tolerance)


def test_unknown_engine_is_refused(pristine: Path) -> None:
    with pytest.raises(EngineError, match=r"unknown engine 'abacus', expected one of .*compiled"):
        load_bundle(pristine).student("abacus")


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused_and_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleFileError, match=rf"{name}: expected .*, found no readable file"):
        load_bundle(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleFileError, match=r"manifest\.json: expected a bundle's manifest"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 10, -1])
@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_refused_and_named(folder: Path, name: str, keep: int) -> None:
    data = (folder / name).read_bytes()
    # The manifest's last byte is a newline, which is no part of its JSON.
    (folder / name).write_bytes(data.rstrip()[:keep])
    with pytest.raises(BundleFileError, match=rf"{name}: expected .*, found"):
        load_bundle(folder)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", HASHED)
def test_one_flipped_bit_is_refused_with_both_hashes(folder: Path, name: str, where: float) -> None:
    data = bytearray((folder / name).read_bytes())
    expected = hashlib.sha256(data).hexdigest()
    data[int(where * len(data))] ^= 1
    (folder / name).write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(BundleFileError, match=rf"{name}: expected sha256 {expected}, found {found}"):
        load_bundle(folder)


def test_a_flipped_bit_in_the_manifest_is_refused_or_makes_another_bundle(folder: Path) -> None:
    def outcome() -> str:
        try:
            return load_bundle(folder).id
        except BundleError as exc:
            return f"refused: {exc}"

    original, path = outcome(), folder / "manifest.json"
    raw = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(raw), 60):
        data = bytearray(raw)
        data[position] ^= 1 << int(position) % 8
        path.write_bytes(data)
        assert outcome() != original, f"bit {position % 8} of byte {position}"


def test_a_file_that_the_manifest_does_not_hash_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["files"].pop("golden.json"))
    with pytest.raises(BundleFileError, match=r"golden\.json: expected sha256 None"):
        load_bundle(folder)


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_manifest_of_another_schema_is_refused(folder: Path, version: object) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(BundleSchemaError, match=rf"manifest\.json: schema_version is {version!r}, expected 1"):
        load_bundle(folder)


def test_circuit_of_a_newer_schema_is_refused_and_named(folder: Path) -> None:
    put_json(folder, "circuit.json", lambda circuit: circuit.update(schema_version=2))
    with pytest.raises(BundleSchemaError, match=r"circuit\.json: .*schema_version is 2, expected 1"):
        load_bundle(folder)


def test_unknown_manifest_field_is_refused_and_named(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(colour="blue"))
    with pytest.raises(BundleSchemaError, match=r"manifest\.json: .*unknown \['colour'\]"):
        load_bundle(folder)


@pytest.mark.parametrize("field", ["task", "labels", "embedder", "training", "seed", "files", "command"])
def test_missing_manifest_field_is_refused_and_named(folder: Path, field: str) -> None:
    edit_manifest(folder, lambda manifest: manifest.pop(field))
    with pytest.raises(BundleSchemaError, match=rf"manifest\.json: .*missing \['{field}'\]"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", ["golden.json"]),
        ("files", None),
        ("labels", 2),
        ("labels", "ab"),
        ("embedder", "minilm-l6"),
        ("embedder", {"name": "minilm-l6"}),
        ("task", None),
        ("n_qubits", "4"),
        ("parameter_counts", []),
        ("training", []),
    ],
)
def test_manifest_field_of_another_type_is_refused_and_named(folder: Path, field: str, value: object) -> None:
    edit_manifest(folder, lambda manifest: manifest.update({field: value}))
    with pytest.raises(BundleError, match=rf"manifest\.json.*{field}"):
        load_bundle(folder)


@pytest.mark.parametrize("names", [["same", "same"], [1, 2], ["negative", ""], ["negative", None], [["a"], ["b"]]])
def test_labels_that_are_not_different_names_are_refused_and_named(folder: Path, names: list[object]) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(labels=names))
    with pytest.raises(BundleSchemaError, match=r"manifest\.json: labels are \[.*\], expected (a list of|each) name"):
        load_bundle(folder)


@pytest.mark.parametrize("task", ["a/b", "../emotion", "Emotion", "émotion", "1st", "two words", "emotion\n", ""])
def test_task_that_is_no_name_for_a_path_is_refused_and_named(folder: Path, task: str) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(task=task))
    with pytest.raises(BundleSchemaError, match=r"manifest\.json: task is .*, expected lower-case letters"):
        load_bundle(folder)


@pytest.mark.parametrize("features", ["mean:4", None, 4, {"mean": 4}, [4], [None], ["mean:4", "mean:4"]])
def test_features_that_are_not_different_names_are_refused_and_named(folder: Path, features: object) -> None:
    edit_manifest(folder, lambda manifest: manifest["embedder"].update(features=features))
    with pytest.raises(BundleSchemaError, match=r"manifest\.json: embedder features are .*, expected"):
        load_bundle(folder)


@pytest.mark.parametrize("field", ["name", "sha256"])
@pytest.mark.parametrize("value", [None, 4, ["minilm-l6"]])
def test_embedder_named_by_anything_but_text_is_refused_and_named(folder: Path, field: str, value: object) -> None:
    edit_manifest(folder, lambda manifest: manifest["embedder"].update({field: value}))
    with pytest.raises(BundleSchemaError, match=rf"manifest\.json: embedder {field} is .*, expected str"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("preset", "qft", "unknown preset 'qft', expected one of"), ("n_layers", 0, "expected at least .* 1 layer")],
)
def test_circuit_that_no_version_made_is_refused_and_the_manifest_named(
    folder: Path, field: str, value: object, message: str
) -> None:
    edit_manifest(folder, lambda manifest: manifest.update({field: value}))
    with pytest.raises(BundleSchemaError, match=rf"manifest\.json: .*{message}"):
        load_bundle(folder)


@pytest.mark.parametrize(("preset", "n_layers"), [("chain", 2), ("paper", 1)])
def test_circuit_that_is_not_the_manifests_is_refused_and_named(folder: Path, preset: str, n_layers: int) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(preset=preset, n_layers=n_layers))
    with pytest.raises(BundleError, match=rf"circuit\.json: expected {n_layers} layers of the preset '{preset}'"):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", '"manifest"', "{"])
def test_manifest_that_is_no_object_is_refused_and_named(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_qubits", 5),
        ("labels", ["negative", "neutral", "positive"]),
        ("labels", ["positive", "negative"]),
        ("labels", ["negative", "other"]),
        ("labels", []),
        ("parameter_counts", {"reducer": 1, "ansatz": 1, "head": 1, "total": 3}),
    ],
)
def test_manifest_that_does_not_fit_the_weights_is_refused(folder: Path, field: str, value: object) -> None:
    edit_manifest(folder, lambda manifest: manifest.update({field: value}))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(folder)


@pytest.mark.parametrize("name", HASHED)
def test_a_pickle_with_a_matching_hash_is_refused_and_never_loaded(folder: Path, name: str, tmp_path: Path) -> None:
    trace = tmp_path / "unpickled"
    put(folder, name, pickle.dumps(_Touch(trace)))
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())
    assert trace.exists(), "the pickle would have left its trace"


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["expvals", "probs"])
def test_golden_value_that_the_student_does_not_reach_is_refused(folder: Path, name: str) -> None:
    def nudge(golden: dict[str, Any]) -> None:
        golden[name][1][0] += 1e-8

    put_json(folder, "golden.json", nudge)
    with pytest.raises(BundleError, match=rf"{name} of the golden texts differ from golden\.json by 1e-08"):
        load_bundle(folder)


def test_golden_values_of_another_shape_are_refused(folder: Path) -> None:
    put_json(folder, "golden.json", lambda golden: golden["probs"].pop())
    with pytest.raises(BundleError, match=r"golden\.json"):
        load_bundle(folder)


def test_weights_that_are_not_those_of_the_compiled_tensor_are_refused(folder: Path) -> None:
    put_tensors(folder, "weights.safetensors", head_weight=np.ones((2, 4)))
    with pytest.raises(BundleError, match=r"golden\.json"):
        load_bundle(folder)


def test_compiled_tensor_of_another_circuit_is_refused(folder: Path) -> None:
    left = load_file(folder / "compiled.safetensors")["left"]
    put_tensors(folder, "compiled.safetensors", left=left * 1.001)
    with pytest.raises(BundleError, match=r"golden\.json"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("weights.safetensors", {"reducer_weight": None}),
        ("weights.safetensors", {"extra": np.zeros(1)}),
        ("weights.safetensors", {"head_bias": np.zeros(3)}),
        ("weights.safetensors", {"ansatz": np.full(12, np.nan)}),
        ("compiled.safetensors", {"left": None}),
        ("compiled.safetensors", {"left": np.zeros((4, 8, 2))}),
    ],
)
def test_tensors_of_the_wrong_names_or_shapes_are_refused(folder: Path, name: str, changes: dict[str, Any]) -> None:
    put_tensors(folder, name, **changes)
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"texts": []}', "3"])
def test_golden_json_of_another_form_is_refused_and_named(folder: Path, text: str) -> None:
    put(folder, "golden.json", text.encode())
    with pytest.raises(BundleError, match=r"golden\.json"):
        load_bundle(folder)


def test_another_embedder_than_the_bundles_own_is_refused(folder: Path, embedder: Embedder) -> None:
    edit_manifest(folder, lambda manifest: manifest["embedder"].update(sha256="0" * 64))
    with pytest.raises(BundleError, match=f"distilled on the embedder with sha256 {'0' * 64}, found minilm-l6"):
        load_bundle(folder).verify(embedder)


def test_an_embedder_that_cuts_texts_elsewhere_is_not_the_bundles_own(pristine: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED / "minilm-l6", tmp_path / "minilm-l6"))
    info = json.loads((folder / "embedder.json").read_text(encoding="utf-8"))
    (folder / "embedder.json").write_text(json.dumps({**info, "max_tokens": 64}), encoding="utf-8")
    with pytest.raises(BundleError, match="distilled on the embedder with sha256"):
        load_bundle(pristine).verify(Embedder(folder, threads=1))


def test_golden_text_that_no_longer_gives_its_probabilities_is_refused(
    write: Write, folder: Path, embedder: Embedder
) -> None:
    # Large enough that every text has angles of its own.
    weights = load_bundle(folder).weights
    write(folder, weights=replace(weights, reducer_weight=50 * weights.reducer_weight)).verify(embedder)
    put_json(folder, "golden.json", lambda golden: golden["texts"].__setitem__(0, "Something else altogether."))
    with pytest.raises(BundleError, match="probs from texts of the golden texts differ"):
        load_bundle(folder).verify(embedder)


class _BrokenEmbedder:
    def embed(self, texts: list[str], features: list[str]) -> np.ndarray:
        raise EmbedderError("out of order")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"reader": _BrokenEmbedder()}, EmbedderError),
        ({"labels": ["only"]}, BundleError),
        ({"task": "a/b"}, BundleSchemaError),
        ({"preset": "paper"}, BundleError),
        ({"n_layers": 2}, BundleError),
        ({"unknown": 1}, TypeError),
        ({"metrics": {"accuracy": object()}}, TypeError),
    ],
)
def test_failing_to_write_leaves_the_old_bundle_untouched(
    write: Write, folder: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    before = contents(folder)
    with pytest.raises(error):
        write(folder, **changes)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["emotion"]


def test_failing_at_the_very_swap_leaves_the_old_bundle_untouched(
    write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, move, refused = contents(folder), Path.replace, []

    def replace_once_refused(self: Path, target: Path) -> Path:
        if Path(target) == folder and not refused:
            refused.append(target)
            raise OSError("no space left")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", replace_once_refused)
    with pytest.raises(OSError, match="no space left"):
        write(folder, seed=1)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["emotion"]


def test_rewriting_replaces_the_old_bundle_whole(write: Write, folder: Path) -> None:
    (folder / "leftover.txt").write_text("from an older version", encoding="utf-8")
    bundle = write(folder, seed=7)
    assert load_bundle(folder).id == bundle.id
    assert load_bundle(folder).manifest.seed == 7
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["emotion"]


@pytest.mark.parametrize("inside", ["bundles/emotion/manifest.json", "bundles/notes.txt", "bundles"])
def test_writing_over_what_is_no_bundle_is_refused_and_leaves_it(write: Write, tmp_path: Path, inside: str) -> None:
    # A folder of bundles is one level above what --out means, a slip away.
    precious = tmp_path / inside
    precious.parent.mkdir(parents=True, exist_ok=True)
    precious.write_text("precious", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FolderError, match=rf"{tmp_path / 'bundles'}: expected a new folder or one with manifest\.json"):
        write(tmp_path / "bundles")
    assert sorted(tmp_path.rglob("*")) == before
    assert precious.read_text(encoding="utf-8") == "precious"


def test_an_empty_folder_becomes_the_bundle(write: Write, tmp_path: Path) -> None:
    (tmp_path / "emotion").mkdir()
    assert write(tmp_path / "emotion").id == load_bundle(tmp_path / "emotion").id
