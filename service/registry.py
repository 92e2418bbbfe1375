"""The bundles that are served: loaded, verified and held as one immutable snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from models.bundle import Bundle, load_bundle
from models.embedder import Embedder, find_embedder
from models.errors import BundleError, StudentError
from models.student import Student, softmax
from service.errors import RegistryError, UnknownTaskError, UnknownVersionError

_PRECISIONS: Mapping[str, type[np.floating]] = {"float64": np.float64, "float32": np.float32}
# Of probabilities, between the configured engine and golden.json; float32 is good to 1e-5.
_ENGINE_TOLERANCE = 1e-4
VERSIONS = "versions"
"""Sub-folder of the bundles that are served only where a request names their version."""


@dataclass(frozen=True)
class LoadedBundle:
    """A verified bundle with the student and embedder that answer for it."""

    bundle: Bundle
    student: Student
    embedder: Embedder

    @property
    def id(self) -> str:
        return self.bundle.id

    @property
    def task(self) -> str:
        return self.bundle.manifest.task

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.bundle.manifest.labels

    @property
    def features(self) -> list[str]:
        return self.bundle.features


@dataclass(frozen=True)
class Snapshot:
    """The bundles served at one moment; a request keeps to the snapshot it began with.

    Attributes:
        bundles: The default bundle of each task, by task.
        pinned: Bundles that are served only where a request names their version, by id.
    """

    bundles: Mapping[str, LoadedBundle]
    pinned: Mapping[str, LoadedBundle] = field(default_factory=lambda: MappingProxyType({}))

    def get(self, name: str) -> LoadedBundle:
        """The bundle of a task, or the one version of it that `task@version` names.

        Raises:
            UnknownTaskError: If there is no such task; names the tasks.
            UnknownVersionError: If the task has no such version; names the versions.
        """
        task, at, version = name.partition("@")
        if task not in self.bundles:
            tasks = sorted(self.bundles)
            raise UnknownTaskError(f"no task {task[:64]!r}, expected one of {tasks}", tasks=tasks)
        default = self.bundles[task]
        if not at or default.id == name:
            return default
        if name not in self.pinned:
            versions = self.versions(task)
            raise UnknownVersionError(
                f"{task} has no version {version[:64]!r}, expected one of {versions}", versions=versions
            )
        return self.pinned[name]

    def versions(self, task: str) -> list[str]:
        """What may follow `task@`, sorted; the default bundle's is among them."""
        return sorted(bundle.id.partition("@")[2] for bundle in self if bundle.task == task)

    def __iter__(self) -> Iterator[LoadedBundle]:
        """Every bundle once, by task and id."""
        by_id = dict(self.pinned) | {bundle.id: bundle for bundle in self.bundles.values()}
        return (by_id[bundle_id] for bundle_id in sorted(by_id))


EMPTY = Snapshot(MappingProxyType({}))


def load_snapshot(
    folder: Path,
    *,
    engine: str = "compiled",
    precision: Literal["float64", "float32"] = "float64",
    threads: int = 0,
    previous: Snapshot = EMPTY,
) -> Snapshot:
    """Load and verify every bundle in a folder; bundles on one embedder share it.

    Args:
        folder: Its sub-folders are the default bundles, and those of its sub-folder `versions` are served where a
            request names their version; the folders' names do not matter. Names that begin with a dot or underscore
            are passed over (unfinished writes, caches).
        engine: One of `models.bundle.ENGINES`.
        precision: Arithmetic of the compiled engine.
        threads: Threads of one forward pass; 0 takes every core.
        previous: Loaded from an earlier state of the folder with the same engine, precision and threads. Its
            embedders, and the bundles that have not changed, are used again as they are.

    Raises:
        RegistryError: If the folder holds no bundle, two for one task, or versions of a task that has none.
        StudentError: If a bundle or its embedder must not be served; names the file.
    """
    if not folder.is_dir():
        raise RegistryError(f"{folder}: expected a folder of bundles, found none")
    versions = folder / VERSIONS
    if (versions / "manifest.json").exists():
        raise RegistryError(f"{versions}: expected a folder of bundles, found a bundle; give it another name")
    loader = _Loader(folder, engine, precision, threads, previous)
    bundles: dict[str, LoadedBundle] = {}
    origins: dict[str, Path] = {}
    for path in _folders(folder):
        if path == versions:
            continue
        loaded = loader.load(path)
        if loaded.task in origins:
            raise RegistryError(
                f"two bundles for the task {loaded.task!r}, expected one: {origins[loaded.task]} and {path}"
            )
        bundles[loaded.task] = loaded
        origins[loaded.task] = path
    if not bundles:
        raise RegistryError(f"{folder}: expected at least one bundle, a sub-folder with manifest.json; found none")
    pinned: dict[str, LoadedBundle] = {}
    for path in _folders(versions) if versions.is_dir() else []:
        loaded = loader.load(path)
        if loaded.task not in bundles:
            raise RegistryError(
                f"{path}: a version of the task {loaded.task!r}, expected a default bundle of it in {folder}, found "
                f"those of {sorted(bundles)}"
            )
        pinned[loaded.id] = loaded
    return Snapshot(MappingProxyType(bundles), MappingProxyType(pinned))


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] not in "._")


class _Loader:
    """Loads the bundles of one snapshot, each embedder and each version once."""

    def __init__(self, folder: Path, engine: str, precision: str, threads: int, previous: Snapshot) -> None:
        self._beside = folder.resolve().parent
        self._engine = engine
        self._precision = precision
        self._threads = threads
        self._bundles = {bundle.id: bundle for bundle in previous}
        self._by_sha256 = {bundle.embedder.sha256: bundle.embedder for bundle in previous}
        self._by_name: dict[str, Embedder] = {}

    def load(self, path: Path) -> LoadedBundle:
        bundle = load_bundle(path)
        known = self._bundles.get(bundle.id)
        # The manifest holds the hashes of all other files. Ids are short, so they alone would not do.
        if known is not None and known.bundle.manifest == bundle.manifest:
            return known
        loaded = _loaded(path, bundle, self._embedder(bundle), self._engine, self._precision)
        self._bundles[loaded.id] = loaded
        return loaded

    def _embedder(self, bundle: Bundle) -> Embedder:
        name, sha256 = bundle.manifest.embedder["name"], bundle.manifest.embedder["sha256"]
        if sha256 in self._by_sha256:
            return self._by_sha256[sha256]
        if name not in self._by_name:
            embedder = Embedder(find_embedder(name, self._beside), self._threads)
            self._by_name[name] = self._by_sha256.setdefault(embedder.sha256, embedder)
        return self._by_name[name]


def _loaded(path: Path, bundle: Bundle, embedder: Embedder, engine: str, precision: str) -> LoadedBundle:
    try:
        bundle.verify(embedder)
    except StudentError as exc:  # ShapeError and EmbedderError: features that this embedder or reducer does not have
        raise BundleError(f"{path}: {exc}") from exc
    student = bundle.student(engine, _PRECISIONS[precision])
    # `verify` checks the float64 compiled engine; this checks the one in use, and folds the head before traffic comes.
    probs = softmax(student.logits(bundle.golden.angles))
    error = float(np.abs(probs - bundle.golden.probs).max())
    if not error <= _ENGINE_TOLERANCE:
        raise BundleError(
            f"{path}: probabilities of the engine {student.engine.name} in {precision} differ from golden.json by "
            f"{error:.2g}, expected at most {_ENGINE_TOLERANCE}"
        )
    return LoadedBundle(bundle, student, embedder)
