"""The protocol between the classify route and whatever runs the circuits, and the table of what is configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.batching import Evaluation
from service.control.keys import Caller, Scope
from service.control.switches import Switches
from service.errors import BackendNotConfiguredError, UnknownBackendError
from service.hardware.budget import Budget
from service.hardware.records import Job
from service.registry import LoadedBundle
from service.schemas import HardwareResult
from service.settings import BackendName


@dataclass(frozen=True)
class Classification:
    """A finished answer: one row a text, in the caller's order.

    Attributes:
        probs: Shape (n_texts, n_classes), float64, rows sum to 1.
        evaluation: What they come from; hardware may run the same angles.
    """

    probs: np.ndarray
    evaluation: Evaluation


@dataclass(frozen=True)
class Measurement:
    """A finished answer from hardware: one result a text, in the caller's order.

    Attributes:
        embed_seconds: Tokenisation and forward passes.
        circuit_seconds: Finding the counts.
    """

    results: Sequence[HardwareResult]
    embed_seconds: float
    circuit_seconds: float


@dataclass(frozen=True)
class Pending:
    """An answer that will be there later.

    Attributes:
        job: Whom to ask for it.
    """

    job: Job
    embed_seconds: float


@dataclass(frozen=True)
class Work:
    """What a caller wants classified.

    Attributes:
        texts: At least one, none blank.
        top_k: Most scores of each result; None for all.
        shots: Shots of each circuit; None for as many as the backend takes by default.
        budget: What the caller may spend on hardware; None for a caller without a limit.
    """

    texts: Sequence[str]
    top_k: int | None = None
    shots: int | None = None
    budget: Budget | None = None


class Backend(Protocol):
    """Runs a bundle's circuit for texts; the route decides by the type of the answer what to send."""

    async def classify(self, bundle: LoadedBundle, work: Work) -> Classification | Measurement | Pending:
        """Classify texts.

        Raises:
            OverloadedError: If the backend cannot take them now.
            ShotsError: If it does not take this number of shots.
        """


class Backends:
    """The configured backends.

    Args:
        configured: Those that this service runs.
        default: The one for requests that name none, where no operator has switched their task.
        switches: What operators have.

    Raises:
        BackendNotConfiguredError: If the default is not configured.
    """

    def __init__(self, configured: Mapping[BackendName, Backend], default: BackendName, switches: Switches) -> None:
        self._configured = configured
        self._switches = switches
        self.get(default)

    def resolve(self, name: str | None, task: str, caller: Caller) -> BackendName:
        """The backend that a request for a task means.

        Without a name it is the task's default; a caller who may not use hardware stays on the simulator then, as an
        operator's switch should neither fail nor charge them.

        Raises:
            UnknownBackendError: If there is none of this name.
            ForbiddenError: If the caller may not use it.
        """
        if name is None:
            default = self._switches.of(task).backend
            return default if _scope(default) in caller.scopes else BackendName.SIMULATOR
        backend = backend_named(name)
        caller.require(_scope(backend))
        return backend

    def get(self, name: BackendName) -> Backend:
        """The backend itself.

        Raises:
            BackendNotConfiguredError: If this service does not run it.
        """
        try:
            return self._configured[name]
        except KeyError:
            configured = [backend.value for backend in self._configured]
            raise BackendNotConfiguredError(
                f"the backend {name.value} is not configured here, expected one of {configured}", backends=configured
            ) from None


def backend_named(name: str) -> BackendName:
    """The backend of a name.

    Raises:
        UnknownBackendError: If there is none.
    """
    try:
        return BackendName(name)
    except ValueError:
        known = [backend.value for backend in BackendName]
        raise UnknownBackendError(f"backend is {name[:64]!r}, expected one of {known}", backends=known) from None


def _scope(backend: BackendName) -> Scope:
    """What a caller needs for a backend."""
    return Scope.HARDWARE if backend is BackendName.BAIHUA else Scope.CLASSIFY
