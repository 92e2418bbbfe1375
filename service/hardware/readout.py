"""Readout errors: when they are measured, and what two circuits say of them."""

from __future__ import annotations

import json
import logging
import math
import uuid
from time import time

from models.circuit import Circuit, Gate
from models.observables import expvals_from_counts
from service.hardware.placing import path_of
from service.hardware.records import CountsRecord, Item, Job, JobSpec, Readout, Status
from service.hardware.store import Draft, Store
from service.hardware.target import fingerprint
from service.providers.base import Provider, ProviderError
from service.settings import CHAIN_QUBITS

logger = logging.getLogger(__name__)

TASK = "readout"
_AFTER_FAILURE_SECONDS = 300


class ReadoutSchedule:
    """Queues a measurement of readout errors when the last is old or of another calibration.

    Args:
        store: Takes the measurement as a job like any other.
        provider: Says what the device's calibration is.
        layout: How circuits are laid on the chip; without a chain there is nothing to measure.
        interval_seconds: How old a measurement may become; 0 measures none.
        shots: Of each of its two circuits.
    """

    def __init__(self, store: Store, provider: Provider, *, layout: str, interval_seconds: int, shots: int) -> None:
        self._store = store
        self._provider = provider
        self._layout = layout
        self._interval = interval_seconds
        self._shots = shots

    async def keep_up(self) -> None:
        """Note the device's calibration, and queue a measurement if one is due."""
        try:
            device = await self._provider.device()
        except ProviderError as exc:
            logger.warning("no calibration from the provider", extra={"fields": {"detail": str(exc)}})
            return
        calibration = device.calibration_id if device else None
        await self._store.noticeboard.note_calibration(calibration)
        path = path_of(self._layout, device)
        if self._interval and path is not None and await self._is_due(calibration):
            job_id = uuid.uuid4().hex
            # First noted, then created: whoever stops in between has noted a job that does not exist.
            await self._store.noticeboard.note_readout_job(job_id)
            await self._store.create(self._draft(min(len(path), CHAIN_QUBITS), calibration, job_id), job_id)

    async def _is_due(self, calibration: str | None) -> bool:
        job_id = await self._store.noticeboard.readout_job()
        last = None if job_id is None else await self._store.job(job_id)
        if last is None:
            newest = await self._store.noticeboard.newest_readout()
            return (
                newest is None or newest.calibration_id != calibration or newest.executed_at + self._interval < time()
            )
        if not last.status.is_final:
            return False
        pause = self._interval if last.status is Status.DONE else min(self._interval, _AFTER_FAILURE_SECONDS)
        if last.status is Status.DONE and last.spec.calibration_id != calibration:
            return True
        return last.created_at + pause < time()

    def _draft(self, n_qubits: int, calibration: str | None, epoch: str) -> Draft:
        circuits: dict[str, str] = {}
        for angle in (0.0, math.pi):
            gates = tuple(Gate("rx", (qubit,), angle) for qubit in range(n_qubits) if angle)
            circuit = Circuit(n_qubits, gates)
            sha = fingerprint(circuit, self._shots, self._store.target, self._layout, epoch)
            circuits[sha] = json.dumps(circuit.to_json())
        items = [Item(sha=sha, truncated=False) for sha in circuits]
        spec = JobSpec(head=None, calibration_id=calibration, top_k=None, shots=self._shots, items=items)
        return Draft(TASK, "", spec, self._layout, circuits)


def readout_of(job: Job, counts: dict[str, CountsRecord]) -> Readout | None:
    """What a measurement found; None if its counts do not go together, or are gone."""
    found = [counts.get(item.sha) for item in job.spec.items]
    zeros, ones = found
    if zeros is None or ones is None:
        return None
    where = (zeros.physical_qubits, zeros.calibration_id)
    if zeros.physical_qubits is None or where != (ones.physical_qubits, ones.calibration_id):
        return None
    p10 = (1.0 - expvals_from_counts(zeros.counts, zeros.n_qubits)) / 2.0
    p01 = (1.0 + expvals_from_counts(ones.counts, ones.n_qubits)) / 2.0
    pairs = zip(p10.tolist(), p01.tolist(), strict=True)
    return Readout(
        calibration_id=zeros.calibration_id,
        executed_at=ones.executed_at,
        shots=zeros.shots,
        flips=dict(zip(zeros.physical_qubits, pairs, strict=True)),
    )
