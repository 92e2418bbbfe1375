"""What a running app holds, handed to routes and middleware."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Request
from opentelemetry.trace import Tracer
from redis.asyncio import Redis

from service.backends.base import Backends
from service.backends.shadow import Shadow
from service.batching import Batcher
from service.control.keys import KeyRing
from service.control.limits import Limits
from service.control.switches import Switches
from service.control.sync import Control
from service.hardware.cache import Cache
from service.hardware.store import Store
from service.hardware.watch import JobWatch
from service.metrics import Metrics
from service.registry import EMPTY, LoadedBundle, Snapshot
from service.settings import Settings


@dataclass(frozen=True)
class Hardware:
    """What a hardware backend needs of Redis."""

    store: Store
    cache: Cache
    watch: JobWatch
    clients: tuple[Redis, ...]

    async def close(self) -> None:
        """Close the connections to Redis."""
        for client in self.clients:
            await client.aclose()


@dataclass
class AppState:
    """The parts of one app.

    Attributes:
        keys: The API keys that requests are checked against.
        limits: How many requests each of them makes.
        switches: What requests run on that do not name a backend.
        hardware: None where no hardware backend is configured.
        shadow: Likewise.
        control: What keeps this replica like the others; None without Redis.
        snapshot: The bundles served now; the one place that is replaced when others are loaded.
        loading: Held while bundles are loaded.
        draining: Whether the service has been told to stop.
    """

    settings: Settings
    metrics: Metrics
    batcher: Batcher
    backends: Backends
    keys: KeyRing
    limits: Limits
    switches: Switches
    tracer: Tracer
    hardware: Hardware | None = None
    shadow: Shadow | None = None
    control: Control | None = None
    snapshot: Snapshot = EMPTY
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    draining: bool = False


def app_state(request: Request) -> AppState:
    """The state that `create_app` put into the app."""
    state = request.app.state.parts
    assert isinstance(state, AppState)
    return state


State = Annotated[AppState, Depends(app_state)]


def known_task(
    task: Annotated[str, Path(description="A task of `GET /tasks`, or one version of it: `emotion@1f0c9a2b`.")],
    state: State,
) -> LoadedBundle:
    """The bundle of the task in the path.

    Raises:
        UnknownTaskError: If there is none.
        UnknownVersionError: If the path names a version, and there is none.
    """
    return state.snapshot.get(task)


KnownTask = Annotated[LoadedBundle, Depends(known_task)]
