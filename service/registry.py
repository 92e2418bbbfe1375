"""The bundles that are served: loaded, verified and held as one immutable snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from models.bundle import Bundle, load_bundle
from models.embedder import Embedder, find_embedder
from models.errors import BundleError, StudentError
from models.student import Student, softmax
from service.errors import RegistryError, UnknownTaskError

_PRECISIONS: Mapping[str, type[np.floating]] = {"float64": np.float64, "float32": np.float32}
# Of probabilities, between the configured engine and golden.json; float32 is good to 1e-5.
_ENGINE_TOLERANCE = 1e-4


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
    """The bundles served at one moment, by task; a request keeps to the snapshot it began with."""

    bundles: Mapping[str, LoadedBundle]

    def get(self, task: str) -> LoadedBundle:
        """The bundle of a task.

        Raises:
            UnknownTaskError: If there is none; names the tasks.
        """
        try:
            return self.bundles[task]
        except KeyError:
            tasks = sorted(self.bundles)
            raise UnknownTaskError(f"no task {task[:64]!r}, expected one of {tasks}", tasks=tasks) from None


EMPTY = Snapshot(MappingProxyType({}))


def load_snapshot(
    folder: Path,
    *,
    engine: str = "compiled",
    precision: Literal["float64", "float32"] = "float64",
    threads: int = 0,
) -> Snapshot:
    """Load and verify every bundle in a folder; bundles on one embedder share it.

    Args:
        folder: Its sub-folders are bundles; their names do not matter. Names that begin with a dot or underscore
            are passed over (unfinished writes, caches).
        engine: One of `models.bundle.ENGINES`.
        precision: Arithmetic of the compiled engine.
        threads: Threads of one forward pass; 0 takes every core.

    Raises:
        RegistryError: If the folder holds no bundle, or two for one task.
        StudentError: If a bundle or its embedder must not be served; names the file.
    """
    if not folder.is_dir():
        raise RegistryError(f"{folder}: expected a folder of bundles, found none")
    embedders: dict[str, Embedder] = {}
    bundles: dict[str, LoadedBundle] = {}
    origins: dict[str, Path] = {}
    for path in sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] not in "._"):
        bundle = load_bundle(path)
        task = bundle.manifest.task
        if task in origins:
            raise RegistryError(f"two bundles for the task {task!r}, expected one: {origins[task]} and {path}")
        name = bundle.manifest.embedder["name"]
        if name not in embedders:
            embedders[name] = Embedder(find_embedder(name, folder.resolve().parent), threads)
        bundles[task] = _loaded(path, bundle, embedders[name], engine, precision)
        origins[task] = path
    if not bundles:
        raise RegistryError(f"{folder}: expected at least one bundle, a sub-folder with manifest.json; found none")
    return Snapshot(MappingProxyType(bundles))


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
