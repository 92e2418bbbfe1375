"""A cell of the study: one system, on one task, with one seed; its name does not depend on where or when it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.data import TaskData

Track = Literal["frozen", "adapted", "adapted-large", "end-to-end"]
_ID_LENGTH = 16  # hexadecimal digits


def canonical(value: Any) -> str:
    """JSON that is the same for equal values, whatever the order of their keys.

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def data_digest(data: TaskData) -> str:
    """Hash of a task's three splits."""
    return digest(data.sha256)


class Options(Mapping[str, Any]):
    """A mapping of JSON values that nobody can change: it can be hashed, and sent to another process."""

    __slots__ = ("_json",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._json = canonical(dict(values or {}))

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._json)
        return found

    def __getitem__(self, name: str) -> Any:
        return self.as_dict()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_dict())

    def __len__(self) -> int:
        return len(self.as_dict())

    def __hash__(self) -> int:
        return hash(self._json)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._json == other._json

    def __repr__(self) -> str:
        return f"Options({self._json})"


@dataclass(frozen=True)
class Cell:
    """One independent run.

    Attributes:
        system: Name of the system.
        task: Name of the task.
        track: `frozen` where the features come from an encoder that is never trained, `adapted` where from one that was
            trained once for all tasks, `adapted-large` where that is a larger one, `end-to-end` where there are no such
            features: the model itself is trained.
        teacher: Name of the teacher or ensemble; None where labels alone teach.
        seed: Of everything that is drawn.
        data: `data_digest` of the task's texts.
        options: Whatever else makes this run another one.
        setup: `digest` of the run configuration and the embedder that the system reads; empty where it reads neither.
    """

    system: str
    task: str
    track: Track
    teacher: str | None
    seed: int
    data: str
    options: Options = field(default_factory=Options)
    setup: str = ""

    @property
    def id(self) -> str:
        """Name of the cell's folder."""
        return digest(self.to_json())[:_ID_LENGTH]

    def to_json(self) -> dict[str, Any]:
        return {
            "system": self.system,
            "task": self.task,
            "track": self.track,
            "teacher": self.teacher,
            "seed": self.seed,
            "data": self.data,
            "setup": self.setup,
            "options": self.options.as_dict(),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Cell:
        return cls(**{**found, "options": Options(found["options"])})

    def __str__(self) -> str:
        taught = "labels alone" if self.teacher is None else self.teacher
        options = "".join(f", {name} = {value}" for name, value in self.options.items())
        return f"{self.id} {self.system} on {self.task}, {self.track}, {taught}{options}, seed {self.seed}"
