"""The protocol between the classify route and whatever runs the circuits, and the table of what is configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from service.errors import BackendNotConfiguredError, UnknownBackendError
from service.registry import LoadedBundle


class BackendName(StrEnum):
    """Every backend a caller may name."""

    SIMULATOR = "simulator"
    """The exact expectation values, computed here."""
    BAIHUA = "baihua"
    """The Baihua processor, through Quafu."""


@dataclass(frozen=True)
class Classification:
    """A finished answer: one row a text, in the caller's order.

    Attributes:
        probs: Shape (n_texts, n_classes), float64, rows sum to 1.
        truncated: Whether each text was longer than the embedder reads.
        embed_seconds: Tokenisation and forward passes that this request took part in.
        circuit_seconds: Reducer, circuit and head likewise.
    """

    probs: np.ndarray
    truncated: Sequence[bool]
    embed_seconds: float
    circuit_seconds: float


class Backend(Protocol):
    """Runs a bundle's circuit for texts.

    The route decides by the type of the answer: a `Classification` is sent as 200. A backend that cannot answer at
    once returns a type of its own, which the route learns to send.
    """

    async def classify(self, bundle: LoadedBundle, texts: Sequence[str]) -> Classification:
        """Classify texts, at least one and none blank.

        Raises:
            OverloadedError: If the backend cannot take them now.
        """


class Backends:
    """The configured backends.

    Args:
        configured: Those that this service runs.
        default: The one for requests that name none.

    Raises:
        BackendNotConfiguredError: If the default is not configured.
    """

    def __init__(self, configured: Mapping[BackendName, Backend], default: BackendName) -> None:
        self._configured = configured
        self._default = default
        self.get(default)

    def resolve(self, name: str | None) -> BackendName:
        """The backend that a request means.

        Raises:
            UnknownBackendError: If there is none of this name.
        """
        if name is None:
            return self._default
        try:
            return BackendName(name)
        except ValueError:
            known = [backend.value for backend in BackendName]
            raise UnknownBackendError(f"backend is {name[:64]!r}, expected one of {known}", backends=known) from None

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
