"""`baihua`: expectation values that the Baihua processor measures, from the cache or by a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np

from models.circuit import Circuit
from service.backends.base import Measurement, Pending, Work
from service.batching import Batcher, Evaluation
from service.errors import BudgetExhaustedError, CircuitRejectedError, OverloadedError, ShotsError
from service.hardware.budget import OverBudgetError, seconds_to_midnight
from service.hardware.cache import Cache
from service.hardware.placing import layout
from service.hardware.records import CountsRecord, Exact, Head, Item, Job, JobSpec, Readout
from service.hardware.results import hardware_result
from service.hardware.store import Draft, Store
from service.hardware.target import fingerprint
from service.metrics import Metrics
from service.registry import LoadedBundle
from service.schemas import HardwareResult
from service.settings import MAX_SHOTS, SHOTS_STEP, Settings
from service.tracing import traceparent

_RETRY_SECONDS = 10


class Baihua:
    """Answers from cached counts, or with the job that will bring them.

    Args:
        batcher: Makes angles of texts.
        store: Takes jobs.
        cache: Holds counts.
        settings: Shots, compiler and whether a calibration makes old counts void.
        metrics: Where lookups are counted, and cached labels compared with the exact ones.
    """

    def __init__(self, batcher: Batcher, store: Store, cache: Cache, settings: Settings, metrics: Metrics) -> None:
        self._batcher = batcher
        self._store = store
        self._cache = cache
        self._settings = settings
        self._metrics = metrics

    async def classify(self, bundle: LoadedBundle, work: Work) -> Measurement | Pending:
        """Classify texts.

        Raises:
            ShotsError: If no device takes this number of shots.
            OverloadedError: If too many texts or circuits wait.
            CircuitRejectedError: If the provider refused one of the circuits less than a minute ago.
            BudgetExhaustedError: If the caller may not spend the shots of the circuits that are not there yet.
            RedisError: If Redis does not answer.
        """
        # Before the texts are evaluated: what is refused should cost nothing.
        _shots(work.shots, self._settings.shots)
        return await self.measure(bundle, work, await self._batcher.evaluate(bundle, work.texts))

    async def measure(self, bundle: LoadedBundle, work: Work, evaluation: Evaluation) -> Measurement | Pending:
        """Likewise for texts that have been evaluated; raises the same."""
        shots = _shots(work.shots, self._settings.shots)
        begun = perf_counter()
        angles = await self._cache.settle_angles(bundle.id, work.texts, evaluation.angles)
        epoch = await self._store.noticeboard.calibration() if self._settings.cache_by_calibration else ""
        placing = layout(self._settings.quafu_compiler, self._settings.chain)

        def bind() -> tuple[list[Item], dict[str, Circuit]]:
            rows = [bundle.student.bound_circuit(row) for row in angles]
            shas = [fingerprint(circuit, shots, self._store.target, placing, epoch) for circuit in rows]
            facts = zip(shas, evaluation.truncated, _exact(bundle, angles), strict=True)
            items = [Item(sha=sha, truncated=truncated, exact=exact) for sha, truncated, exact in facts]
            return items, dict(zip(shas, rows, strict=True))

        # On a thread: for a large batch it takes longer than other requests should wait for the event loop.
        items, circuits = await asyncio.to_thread(bind)
        found = await self._cache.counts(circuits)
        missing = {sha: circuit for sha, circuit in circuits.items() if sha not in found}
        await self._require_not_refused(missing)
        head = Head.of(bundle.student.weights, bundle.labels)
        results = await self._results(found, head, items, work.top_k)
        if not missing:
            self._observe(bundle.task, items, results, n_hits=len(found))
            return Measurement(
                [results[item.sha, item.truncated] for item in items],
                evaluation.embed_seconds,
                perf_counter() - begun,
            )
        spec = JobSpec(
            head=head,
            traceparent=traceparent(),
            top_k=work.top_k,
            shots=shots,
            items=[item.model_copy(update={"result": results.get((item.sha, item.truncated))}) for item in items],
        )
        bodies = await asyncio.to_thread(_bodies, missing)
        job = await self._create(Draft(bundle.task, bundle.id, spec, placing, bodies, work.budget))
        self._observe(
            bundle.task,
            items,
            results,
            n_hits=len(found),
            n_coalesced=len(missing) - job.n_queued,
            n_misses=job.n_queued,
        )
        return Pending(job, evaluation.embed_seconds)

    async def _create(self, draft: Draft) -> Job:
        budget = draft.budget
        one = len(draft.circuits) == 1
        circuits = "1 circuit" if one else f"{len(draft.circuits)} circuits"
        try:
            job = await self._store.create(draft)
        except OverBudgetError:
            assert budget is not None
            raise BudgetExhaustedError(
                f"{circuits} of {draft.spec.shots} shots {'is' if one else 'are'} more than what the key has left of "
                f"its {budget.shots_per_day} shots a day (UTC)",
                seconds_to_midnight(),
                limit=budget.shots_per_day,
            ) from None
        if job is None:
            raise OverloadedError(
                f"{circuits} {'was' if one else 'were'} sent to a queue without room for {'it' if one else 'them'}, "
                f"expected at most {self._store.max_pending} in it",
                _RETRY_SECONDS,
                limit=self._store.max_pending,
            )
        return job

    def _observe(
        self,
        task: str,
        items: Sequence[Item],
        results: Mapping[tuple[str, bool], HardwareResult],
        *,
        n_hits: int,
        n_coalesced: int = 0,
        n_misses: int = 0,
    ) -> None:
        """Count what a request found, once it is clear that it is answered."""
        for found, n_circuits in (("hit", n_hits), ("coalesced", n_coalesced), ("miss", n_misses)):
            self._metrics.cache_lookups.labels(task, found).inc(n_circuits)
        for item in items:
            result = results.get((item.sha, item.truncated))
            if result is not None and item.exact is not None:
                self._metrics.observe_comparison(task, result, item.exact, cached=True)

    async def _require_not_refused(self, missing: Mapping[str, Circuit]) -> None:
        for refusal in (await self._cache.refusals(missing)).values():
            raise CircuitRejectedError(f"the provider refused a circuit of this request just now: {refusal.detail}")

    async def _results(
        self, found: Mapping[str, CountsRecord], head: Head, items: list[Item], top_k: int | None
    ) -> dict[tuple[str, bool], HardwareResult]:
        """The result of every item whose counts were found, by its fingerprint and whether its text was cut."""
        readouts: dict[str | None, Readout | None] = {}
        results: dict[tuple[str, bool], HardwareResult] = {}
        for item in items:
            record = found.get(item.sha)
            if record is None or (item.sha, item.truncated) in results:
                continue
            if record.calibration_id not in readouts:
                readouts[record.calibration_id] = await self._store.noticeboard.readout(record.calibration_id)
            results[item.sha, item.truncated] = hardware_result(
                record,
                head,
                readouts[record.calibration_id],
                top_k=top_k,
                truncated=item.truncated,
                cached=True,
            )
        return results


def _bodies(circuits: Mapping[str, Circuit]) -> dict[str, str]:
    return {sha: json.dumps(circuit.to_json()) for sha, circuit in circuits.items()}


def _exact(bundle: LoadedBundle, angles: np.ndarray) -> list[Exact]:
    """What the simulator finds for rows of angles."""
    expvals = bundle.student.expvals(angles)
    best = bundle.student.logits_from_expvals(expvals).argmax(axis=1)
    return [
        Exact(label=bundle.labels[label], expvals=row)
        for label, row in zip(best.tolist(), expvals.tolist(), strict=True)
    ]


def _shots(asked: int | None, default: int) -> int:
    if asked is None:
        return default
    if asked % SHOTS_STEP or not SHOTS_STEP <= asked <= MAX_SHOTS:
        raise ShotsError(f"shots is {asked}, expected a multiple of {SHOTS_STEP} up to {MAX_SHOTS}", step=SHOTS_STEP)
    return asked
