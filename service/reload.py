"""How other bundles take the place of those that are served, while requests go on.

A request keeps the bundle that it began with. Embedders and bundles that have not changed are used again, so that
requests of before and after share batches.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from models.errors import StudentError
from service.control.audit import Entry
from service.errors import BundlesRejectedError, RegistryError
from service.registry import Snapshot, load_snapshot
from service.state import AppState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reloaded:
    """What came of a reload.

    Attributes:
        snapshot: What is served now.
        changed: Ids of the bundles that were not served before, or not as the default of their task.
        removed: Ids of those that are no longer served at all.
        generation: Number of the snapshot in all replicas; None without Redis.
    """

    snapshot: Snapshot
    changed: list[str]
    removed: list[str]
    generation: int | None


async def load_first(state: AppState) -> None:
    """Serve the bundles of the settings' folder.

    Raises:
        RegistryError: If the folder cannot be served as it is.
        StudentError: If a bundle must not be served.
    """
    async with state.loading:
        _serve(state, await asyncio.to_thread(_load, state))


async def reload(state: AppState, by: str, request_id: str) -> Reloaded:
    """Serve the bundles that are in the folder now, and let the other replicas do so; changes nothing on any error.

    Args:
        by: Who asks for it, for the audit.
        request_id: Likewise, with what request.

    Raises:
        BundlesRejectedError: If they cannot be served.
        RedisError: If Redis does not answer.
    """
    async with state.loading:
        old, new = state.snapshot, await _accepted(state)
        entry = Entry(
            by=by,
            action="reload",
            before={"bundles": [bundle.id for bundle in old]},
            after={"bundles": [bundle.id for bundle in new]},
            request_id=request_id,
        )
        generation = None if state.control is None else await state.control.publish(entry)
        state.metrics.reloads.labels("ok").inc()
        _serve(state, new)
    removed = sorted({bundle.id for bundle in old} - {bundle.id for bundle in new})
    return Reloaded(new, _changed(old, new), removed, generation)


async def follow(state: AppState, generation: int) -> None:
    """Likewise where another replica was asked; an error is logged, and the old ones stay."""
    async with state.loading:
        assert state.control is not None
        if state.control.generation == generation:
            return  # asked here meanwhile
        try:
            new = await _accepted(state)
        except BundlesRejectedError:
            return
        state.metrics.reloads.labels("ok").inc()
        _serve(state, new)


async def _accepted(state: AppState) -> Snapshot:
    try:
        new = await asyncio.to_thread(_load, state)
    except Exception as exc:
        state.metrics.reloads.labels("rejected").inc()
        is_known = isinstance(exc, RegistryError | StudentError)
        fields = {"detail": str(exc)}
        logger.warning("bundles rejected, the old ones stay", exc_info=not is_known, extra={"fields": fields})
        raise BundlesRejectedError(str(exc)) from exc
    return new


def _serve(state: AppState, snapshot: Snapshot) -> None:
    state.snapshot = snapshot
    state.metrics.show_bundles(snapshot)
    state.switches.show(state.metrics, snapshot.bundles)
    logger.info("bundles loaded", extra={"fields": {"bundles": [bundle.id for bundle in snapshot]}})


def _load(state: AppState) -> Snapshot:
    settings = state.settings
    return load_snapshot(
        settings.bundles_dir,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
        previous=state.snapshot,
    )


def _changed(old: Snapshot, new: Snapshot) -> list[str]:
    served = {bundle.id for bundle in old}
    defaults = {bundle.id for bundle in old.bundles.values()}
    became_default = {bundle.id for bundle in new.bundles.values()} - defaults
    return sorted(became_default | {bundle.id for bundle in new} - served)
