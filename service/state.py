"""What a running app holds, handed to routes and middleware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from redis.asyncio import Redis

from service.backends.base import Backends
from service.batching import Batcher
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
        hardware: None where no hardware backend is configured.
        snapshot: The bundles served now; the one place that is replaced when others are loaded.
        draining: Whether the service has been told to stop.
    """

    settings: Settings
    metrics: Metrics
    batcher: Batcher
    backends: Backends
    hardware: Hardware | None = None
    snapshot: Snapshot = EMPTY
    draining: bool = False


def app_state(request: Request) -> AppState:
    """The state that `create_app` put into the app."""
    state = request.app.state.parts
    assert isinstance(state, AppState)
    return state


State = Annotated[AppState, Depends(app_state)]


def known_task(task: Annotated[str, Path(description="A task of `GET /tasks`.")], state: State) -> LoadedBundle:
    """The bundle of the task in the path.

    Raises:
        UnknownTaskError: If there is none.
    """
    return state.snapshot.get(task)


KnownTask = Annotated[LoadedBundle, Depends(known_task)]
