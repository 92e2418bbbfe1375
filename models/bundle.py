"""The on-disk form of a student, and the checks before one is served.

    manifest.json         what it is and where it came from; sha256 of every other file
    circuit.json          the unbound circuit
    weights.safetensors   reducer, ansatz, head (float64)
    compiled.safetensors  the compiled expectation values
    golden.json           texts with expected angles, expvals and probabilities

A bundle's id is `<task>@<first 8 hex digits of the manifest's sha256>`: it names the bundle down to the last bit.
Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from models.circuit import Circuit, student_circuit, trainable_parameters
from models.embedder import Embedder
from models.engines import Engine
from models.engines.compiled import CompiledEngine, MultilinearTensor, compile_circuit
from models.engines.mindquantum import MindQuantumEngine
from models.errors import (
    BundleError,
    BundleFileError,
    BundleSchemaError,
    CircuitError,
    EngineError,
    ShapeError,
    StudentError,
)
from models.folders import replace_folder, require_replaceable
from models.student import Student, StudentWeights, softmax

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).parent / "bundles"
ENGINES = ("compiled", "mindquantum")

_FILES = ("circuit.json", "weights.safetensors", "compiled.safetensors", "golden.json")
_ENGINE_TOLERANCE = 1e-9
# Of probabilities: between processors the encoder's int8 kernels round differently; a wrong encoder is off by far more.
_EMBEDDER_TOLERANCE = 0.05
_T = TypeVar("_T")


@dataclass(frozen=True)
class Manifest:
    """What a student is and where it came from.

    Attributes:
        schema_version: Of this manifest.
        task: Name of the task.
        labels: Class names in the order of the logits.
        embedder: `name`, `sha256` of its model and the `features` that make an embedding.
        preset: Ansatz preset.
        n_qubits: Number of qubits.
        n_layers: Number of ansatz layers.
        parameter_counts: Trainable parameters by part, and `total`.
        metrics: What was measured on validation and test texts, the controls beside it.
        teacher: The teacher's model, its sha256 and its name in the cache; its accuracy is in `metrics`.
        training: `best_epoch` of the student, the one kept, and the `history` of all; epoch 0 is the start.
        data_sha256: Hash of the texts of each split.
        seed: Seed of the run.
        configuration: The run configuration, whole.
        command: The command that made the bundle.
        library_versions: Versions of the libraries that made it.
        files: sha256 of every other file.
    """

    schema_version: int
    task: str
    labels: list[str]
    embedder: dict[str, Any]
    preset: str
    n_qubits: int
    n_layers: int
    parameter_counts: dict[str, int]
    metrics: dict[str, Any]
    teacher: dict[str, Any]
    training: dict[str, Any]
    data_sha256: dict[str, str]
    seed: int
    configuration: dict[str, Any]
    command: str
    library_versions: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True)
class Golden:
    """Texts and what the student must make of them: angles and expvals (n, n_qubits), probs (n, n_classes) by label."""

    labels: list[str]
    texts: list[str]
    angles: np.ndarray
    expvals: np.ndarray
    probs: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle, every file checked against its manifest."""

    id: str
    manifest: Manifest
    circuit: Circuit
    weights: StudentWeights
    tensor: MultilinearTensor
    golden: Golden

    @property
    def features(self) -> list[str]:
        """The embedder's pooled layers that make this student's embedding."""
        return list(self.manifest.embedder["features"])

    def student(self, engine: str = "compiled", dtype: type[np.floating] = np.float64) -> Student:
        """The student on one of `ENGINES`; `dtype` is that of the compiled engine.

        Raises:
            EngineError: If the engine is unknown or not installed.
        """
        return Student(self.circuit, self.weights, self._engine(engine, dtype))

    def verify(self, embedder: Embedder | None = None) -> None:
        """Check the golden texts: angles to expvals and probs, and texts to probs where an embedder is given.

        Raises:
            BundleError: If a value differs by more than rounding allows, or the embedder is not the bundle's own.
        """
        student = self.student()
        golden = self.golden
        self._compare("expvals", student.expvals(golden.angles), golden.expvals, _ENGINE_TOLERANCE)
        self._compare("probs", softmax(student.logits(golden.angles)), golden.probs, _ENGINE_TOLERANCE)
        if embedder is None:
            return
        if embedder.sha256 != self.manifest.embedder["sha256"]:
            raise BundleError(
                f"{self.id}: distilled on the embedder with sha256 {self.manifest.embedder['sha256']}, "
                f"found {embedder.name} with {embedder.sha256}"
            )
        angles = student.angles(embedder.embed(golden.texts, self.features))
        self._compare("probs from texts", softmax(student.logits(angles)), golden.probs, _EMBEDDER_TOLERANCE)

    def _engine(self, engine: str, dtype: type[np.floating]) -> Engine:
        if engine == "compiled":
            return CompiledEngine(self.tensor, dtype)
        if engine == "mindquantum":
            return MindQuantumEngine(self.circuit.bind(ansatz=self.weights.ansatz.tolist()))
        raise EngineError(f"unknown engine {engine!r}, expected one of {list(ENGINES)}")

    def _compare(self, what: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
        error = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not error <= tolerance:
            raise BundleError(
                f"{self.id}: {what} of the golden texts differ from golden.json by {error:.2g}, "
                f"expected at most {tolerance}"
            )


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle and check it: hashes, schema, shapes and golden values.

    Raises:
        BundleFileError: If a file is missing, truncated or altered; names it.
        BundleSchemaError: If the manifest's or circuit's schema is not this version's.
        BundleError: If the parts do not fit each other.
    """
    raw = _read(folder / "manifest.json", "a bundle's manifest")
    manifest = _manifest(folder / "manifest.json", raw)
    content = {name: _checked(folder / name, manifest) for name in _FILES}
    bundle_id = f"{manifest.task}@{hashlib.sha256(raw).hexdigest()[:8]}"

    def parsed(name: str, parse: Callable[[bytes], _T]) -> _T:
        return _parsed(folder / name, content[name], parse)

    circuit = parsed("circuit.json", lambda data: Circuit.from_json(json.loads(data)))
    weights = parsed("weights.safetensors", lambda data: StudentWeights(**load_tensors(data)))
    tensor = parsed("compiled.safetensors", lambda data: _tensor(load_tensors(data), circuit.n_qubits))
    golden = parsed("golden.json", lambda data: _golden(json.loads(data)))
    bundle = Bundle(bundle_id, manifest, circuit, weights, tensor, golden)
    try:
        bundle.verify()
    except (ShapeError, EngineError) as exc:
        raise BundleError(f"{folder}: the files do not make a student: {exc}") from exc
    found = trainable_parameters(weights.embedding_size, circuit, weights.n_classes)
    says = (manifest.parameter_counts, manifest.labels, manifest.n_qubits)
    if says != (found, golden.labels, circuit.n_qubits) or len(golden.labels) != weights.n_classes:
        raise BundleError(
            f"{folder / 'manifest.json'}: parameters, labels and qubits are {says}, the other files hold "
            f"{(found, golden.labels, circuit.n_qubits)} and {weights.n_classes} classes"
        )
    try:
        expected = student_circuit(manifest.preset, manifest.n_qubits, manifest.n_layers)
    except CircuitError as exc:
        raise BundleSchemaError(f"{folder / 'manifest.json'}: {exc}") from exc
    if circuit != expected:
        raise BundleError(
            f"{folder / 'circuit.json'}: expected {manifest.n_layers} layers of the preset {manifest.preset!r}, as "
            "manifest.json says, found another circuit"
        )
    return bundle


def write_bundle(
    folder: Path,
    facts: Mapping[str, Any],
    circuit: Circuit,
    weights: StudentWeights,
    embedder: Embedder,
    golden_texts: Sequence[str],
) -> Bundle:
    """Compile the circuit, compute the golden values and write a bundle; an older one is replaced when all is well.

    Args:
        folder: Where the bundle goes.
        facts: The manifest's fields but `schema_version`, `parameter_counts` and `files`.
        circuit: The unbound student circuit.
        weights: What was trained.
        embedder: The embedder that the student was distilled on.
        golden_texts: Texts whose values are written down.
    """
    folder = folder.resolve()
    require_replaceable(folder, "manifest.json")
    tensor = compile_circuit(circuit.bind(ansatz=weights.ansatz.tolist()))
    student = Student(circuit, weights, CompiledEngine(tensor))
    angles = student.angles(embedder.embed(golden_texts, facts["embedder"]["features"]))
    golden = {
        "labels": facts["labels"],
        "texts": list(golden_texts),
        "angles": angles.tolist(),
        "expvals": student.expvals(angles).tolist(),
        "probs": softmax(student.logits(angles)).tolist(),
    }
    compiled = {"left": tensor.left} if tensor.right is None else {"left": tensor.left, "right": tensor.right}
    content = {
        "circuit.json": json.dumps(circuit.to_json(), indent=1).encode(),
        "weights.safetensors": save_tensors({name: np.ascontiguousarray(v) for name, v in vars(weights).items()}),
        "compiled.safetensors": save_tensors({name: np.ascontiguousarray(v) for name, v in compiled.items()}),
        "golden.json": json.dumps(golden, indent=1, ensure_ascii=False).encode(),
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        parameter_counts=student.parameter_counts,
        files={name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
        **facts,
    )
    content["manifest.json"] = (json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n").encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, data in content.items():
            (partial / name).write_bytes(data)
        bundle = load_bundle(partial)
        replace_folder(folder, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return bundle


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise BundleFileError(f"{path}: expected {what}, found no readable file ({exc.strerror})") from exc


def _checked(path: Path, manifest: Manifest) -> bytes:
    data = _read(path, "the file that manifest.json names")
    expected, found = manifest.files.get(path.name), hashlib.sha256(data).hexdigest()
    if found != expected:
        raise BundleFileError(f"{path}: expected sha256 {expected}, found {found} ({len(data)} bytes)")
    return data


def _manifest(path: Path, raw: bytes) -> Manifest:
    try:
        value = json.loads(raw)
    except ValueError as exc:
        raise BundleFileError(f"{path}: expected JSON, found {exc}") from exc
    version = value.get("schema_version") if isinstance(value, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleSchemaError(f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION}")
    wanted = {field.name for field in fields(Manifest)}
    if set(value) != wanted:
        raise BundleSchemaError(
            f"{path}: expected the fields {sorted(wanted)}, missing {sorted(wanted - set(value))}, "
            f"unknown {sorted(set(value) - wanted)}"
        )
    for name, hint in get_type_hints(Manifest).items():
        expected = get_origin(hint) or hint
        if not isinstance(value[name], expected):
            raise BundleSchemaError(f"{path}: {name} is {value[name]!r}, expected {expected.__name__}")
    missing = {"name", "sha256", "features"} - set(value["embedder"])
    if missing:
        raise BundleSchemaError(f"{path}: embedder lacks {sorted(missing)}")
    for what, names in (("labels", value["labels"]), ("embedder features", value["embedder"]["features"])):
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise BundleSchemaError(f"{path}: {what} are {names!r}, expected a list of names")
        if len(set(names)) < len(names):
            raise BundleSchemaError(f"{path}: {what} are {names!r}, expected each name once")
    for name in ("name", "sha256"):
        if not isinstance(value["embedder"][name], str):
            raise BundleSchemaError(f"{path}: embedder {name} is {value['embedder'][name]!r}, expected str")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", value["task"]):
        raise BundleSchemaError(f"{path}: task is {value['task']!r}, expected lower-case letters, digits, - and _")
    return Manifest(**value)


def _parsed(path: Path, data: bytes, parse: Callable[[bytes], _T]) -> _T:
    """What `parse` makes of a file's bytes; its errors name the file."""
    try:
        return parse(data)
    except BundleSchemaError as exc:
        raise BundleSchemaError(f"{path}: {exc}") from exc
    except KeyError as exc:
        raise BundleError(f"{path}: expected {exc}, found none") from exc
    except (StudentError, SafetensorError, ValueError, TypeError, IndexError) as exc:
        raise BundleError(f"{path}: {exc}") from exc


def _tensor(arrays: dict[str, np.ndarray], n_qubits: int) -> MultilinearTensor:
    n_left = n_qubits // 2
    tensor = MultilinearTensor(arrays["left"], arrays.get("right"), n_left, n_qubits - n_left)
    if tensor.left.shape[0] != n_qubits:
        raise ShapeError(f"the compiled tensor has {tensor.left.shape[0]} outputs, expected {n_qubits}")
    return tensor


def _golden(value: Mapping[str, Any]) -> Golden:
    return Golden(
        value["labels"],
        value["texts"],
        *(np.array(value[name], dtype=float) for name in ("angles", "expvals", "probs")),
    )
