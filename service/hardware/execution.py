"""What a worker does with batches: send them to the provider, follow them there, and fetch what comes back.

Every step reads where things stand from the store, does one thing and stores it, so that a worker may be killed
anywhere and another repeats the step. What costs money is done once: a batch is stored before it is sent, with the
token that the provider knows it by.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import time

from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from redis.exceptions import RedisError

from service.errors import (
    CircuitFailedError,
    CircuitRejectedError,
    DeadlineExceededError,
    InternalError,
    LostByProviderError,
    MalformedResultError,
    ProblemError,
    SubmissionUncertainError,
)
from service.hardware.cache import Cache
from service.hardware.delivery import Delivery
from service.hardware.placing import SERVER, path_of, programs
from service.hardware.records import Batch, BatchStage, CountsRecord, Hold, Refusal, Run, Status
from service.hardware.shots import split_shots
from service.hardware.store import Store
from service.metrics import WorkerMetrics
from service.providers.base import (
    HoldError,
    JobState,
    LostJobError,
    MalformedAnswerError,
    Measured,
    NotMeasured,
    Outcome,
    Provider,
    ProviderError,
    RefusalError,
    RejectedError,
    UncertainSubmitError,
)
from service.tracing import context_of

logger = logging.getLogger(__name__)

_POLL_SECONDS = (0.5, 30.0)
_POLL_SHARE = 0.1
_BACKOFF_SECONDS = (1.0, 60.0)
# Whatever the provider says: cancellations and the deadline are looked at this often.
_MAX_PAUSE_SECONDS = 3600.0
_MAX_UNREADABLE = 5
# A read replica may lag, and a token of another account knows other jobs: neither loses a job for good.
_LOST_SECONDS = 600.0


class Executor:
    """Moves the batches of one target on, one step at a time.

    Args:
        store: Jobs, runs and batches.
        cache: Counts.
        provider: Runs them.
        metrics: Told of what happens.
        tracer: Makes each step a span of the trace of whoever asked first for one of its circuits.
        deadline_seconds: How long a circuit may take from the queue to its counts.
        shots: That most circuits have, from which it follows how many fit into one job.
    """

    def __init__(
        self,
        store: Store,
        cache: Cache,
        provider: Provider,
        metrics: WorkerMetrics,
        tracer: Tracer,
        *,
        deadline_seconds: int,
        shots: int,
    ) -> None:
        self._store = store
        self._cache = cache
        self._provider = provider
        self._delivery = Delivery(store, cache, metrics)
        self._metrics = metrics
        self._tracer = tracer
        self._deadline = deadline_seconds
        self._shots = shots
        self._runs_in_a_job = 1

    async def beat(self) -> None:
        """Note that a worker is at work."""
        await self._store.noticeboard.beat()

    async def dispatch(self) -> list[str]:
        """Take every waiting run into a batch; returns the tokens of the new ones."""
        tokens: list[str] = []
        if await self._store.n_pending():
            await self._look_at_limits()
        while (token := await self._store.claim(self._runs_in_a_job)) is not None:
            tokens.append(token)
        return tokens

    async def open_batches(self) -> list[str]:
        """Every batch that somebody has to move on."""
        return await self._store.open_batches()

    async def advance(self, token: str) -> float | None:
        """Move a batch on by one step.

        Returns:
            Seconds until the next step; None once the batch is closed.
        """
        batch = await self._store.batch(token)
        if batch is None or not await self._store.is_open(token):
            return None
        every = await self._store.runs(batch.runs)
        with self._span(batch, every):
            return await self._advance(batch, every)

    async def _advance(self, batch: Batch, every: list[Run]) -> float | None:
        own = [run for run in every if run.batch == batch.token]
        for run in own:
            if run.status.is_final:  # a worker may have stopped before it told the jobs
                await self._delivery.finish(run, batch.token, run.status)
        runs = [run for run in own if not run.status.is_final]
        try:
            return await self._step(batch, every, runs)
        except RedisError:
            raise
        except Exception:
            # It is repeated, as it may pass; but not for ever, and whoever waits is told.
            if not self._late(runs):
                raise
            logger.exception("step failed until the deadline")
            await self._fail(batch, runs, InternalError("a step of the service failed until the deadline"))
            return None

    async def _step(self, batch: Batch, every: list[Run], runs: list[Run]) -> float | None:
        """One step.

        Args:
            every: What was sent, in that order, ended or not; it fits the batch's parts.
            runs: Those of the batch that have not ended.
        """
        try:
            if batch.stage is BatchStage.SUBMITTED:
                return await self._follow(batch, every, runs)
            return await self._send(batch, every, runs)
        except (HoldError, MalformedAnswerError) as exc:
            return await self._hold(batch, runs, exc)
        except LostJobError as exc:
            return await self._lost(batch, runs, exc)
        except UncertainSubmitError as exc:
            await self._fail(batch, runs, SubmissionUncertainError(str(exc)))
            return None
        except RefusalError as exc:
            if batch.stage is not BatchStage.INTENT:
                # It was sent, so that it may have been accepted: only this question is refused.
                return await self._hold(batch, runs, MalformedAnswerError(f"the provider refuses to answer: {exc}"))
            if len(runs) > 1:
                await self._store.split(batch)
                return None
            for run in runs:
                await self._cache.keep_refusal(run.sha, Refusal(detail=str(exc)))
            await self._fail(batch, runs, CircuitRejectedError(str(exc)))
            return None

    @contextmanager
    def _span(self, batch: Batch, runs: Sequence[Run]) -> Iterator[None]:
        """A span for a step of a batch, in the first trace that one of its runs belongs to and linked to the others."""
        headers = dict.fromkeys(header for run in runs for header in run.traceparents)
        asked = [get_current_span(context_of(header)).get_span_context() for header in headers]
        traced = [one for one in asked if one.is_valid and one.trace_flags.sampled]
        if not traced:
            yield
            return
        first, *others = traced
        with self._tracer.start_as_current_span(
            "batch.follow" if batch.stage is BatchStage.SUBMITTED else "batch.send",
            context=set_span_in_context(NonRecordingSpan(first)),
            kind=SpanKind.CONSUMER,
            links=[Link(other) for other in others],
            attributes={"qd.batch": batch.token, "qd.circuits": len(runs)},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except Exception as exc:
                span.set_attribute("error.type", type(exc).__name__)
                span.set_status(StatusCode.ERROR)
                raise

    # --- to the provider --------------------------------------------------------------------------------------

    async def _look_at_limits(self) -> None:
        """Learn how many circuits fit into one job; without an answer it stays as it was."""
        try:
            limits = await self._provider.limits()
            self._runs_in_a_job = max(1, limits.max_programs // len(split_shots(self._shots, limits)))
        except ProviderError as exc:
            # Each batch asks again before it is sent, and says why it does not go on.
            logger.warning("no limits from the provider", extra={"fields": {"detail": str(exc)}})

    async def _send(self, batch: Batch, every: list[Run], runs: list[Run]) -> float | None:
        if batch.stage is BatchStage.INTENT:
            runs = every = await self._still_wanted(batch, await self._without_late(batch, runs))
            if not runs:
                await self._store.close(batch)
                return None
            limits = await self._provider.limits()
            parts = [split_shots(run.shots, limits) for run in runs]
            n_programs = sum(len(pieces) for pieces in parts)
            if n_programs > limits.max_programs:
                raise RejectedError(f"{n_programs} programs in one job, expected at most {limits.max_programs}")
            needs_chain = any(run.layout != SERVER for run in runs)
            device = await self._provider.device() if needs_chain else None
            best = path_of("chain", device)
            batch = batch.model_copy(update={"runs": [run.id for run in runs], "chain": best, "parts": parts})
            if not await self._store.begin_sending(batch, sender=uuid.uuid4().hex):
                return _POLL_SECONDS[0]  # another worker has
        elif not self._provider.repeatable:
            # Whoever sends it may still be at it.
            left = (batch.sent_at or 0.0) + self._provider.submit_seconds - time()
            if left > 0:
                return left
            raise UncertainSubmitError(
                "a worker stopped while it submitted, and this provider cannot say whether the circuit arrived"
            )
        try:
            job_id = await self._provider.submit(programs(every, batch.parts, batch.chain), batch.token)
        except HoldError:
            if not self._provider.repeatable:  # it says so only where nothing was accepted
                await self._store.update(batch.model_copy(update={"stage": BatchStage.INTENT}))
            raise
        values = {"stage": BatchStage.SUBMITTED, "provider_job": job_id, "submitted_at": time(), "attempts": 0}
        batch = batch.model_copy(update=values)
        await self._store.update(batch)
        logger.info("submitted", extra={"fields": {"provider_job": job_id, "circuits": len(every)}})
        await self._store.release(every)
        await self._delivery.mark(batch, every, Status.SUBMITTED)
        return _POLL_SECONDS[0]

    async def _without_late(self, batch: Batch, runs: list[Run]) -> list[Run]:
        """Those that have time left; the others fail."""
        late = self._late(runs)
        for run in late:
            await self._delivery.finish(run, batch.token, Status.FAILED, self._too_late())
        return [run for run in runs if run not in late]

    async def _still_wanted(self, batch: Batch, runs: list[Run]) -> list[Run]:
        """Without those whose counts have come meanwhile, and those that nobody waits for any more."""
        cached = await self._cache.counts(run.sha for run in runs)
        wanted = []
        for run in runs:
            if run.sha in cached:
                await self._delivery.finish(run, batch.token, Status.DONE)
            elif run.abandoned:
                await self._delivery.finish(run, batch.token, Status.CANCELLED)
            else:
                wanted.append(run)
        return wanted

    # --- at the provider --------------------------------------------------------------------------------------

    async def _follow(self, batch: Batch, every: list[Run], waiting: list[Run]) -> float | None:
        job_id, submitted_at = batch.provider_job, batch.submitted_at
        assert job_id is not None
        assert submitted_at is not None
        # A worker may have stopped between storing the id and telling the jobs.
        queued = [run for run in waiting if run.status is Status.QUEUED]
        await self._delivery.mark(batch, queued, Status.SUBMITTED)
        state = await self._provider.status(job_id)
        if batch.attempts or batch.lost_at is not None:
            batch = batch.model_copy(update={"attempts": 0, "lost_at": None})
            await self._store.update(batch)
            await self._store.release(waiting)
        if state is JobState.ENDED:
            asked = programs(every, batch.parts, batch.chain)
            try:
                outcomes = await self._provider.result(job_id, asked)
            except MalformedAnswerError:
                # A result that stays unreadable will not become readable; a page of maintenance elsewhere passes.
                await self._store.update(batch.model_copy(update={"unreadable": batch.unreadable + 1}))
                raise
            await self._settle(batch, every, outcomes)
            await self._store.close(batch)
            return None
        waiting = await self._without_late(batch, waiting)
        if not waiting or (state is JobState.QUEUED and all(run.abandoned for run in waiting)):
            # First stored, then done: a run that is cancelled must not look as if the provider had done it.
            batch = batch.model_copy(update={"cancelled": True})
            await self._store.update(batch)
            await self._provider.cancel(job_id)
        if not waiting:
            await self._store.close(batch)
            return None
        if state is JobState.RUNNING:
            await self._delivery.mark(batch, waiting, Status.RUNNING)
        least, most = _POLL_SECONDS
        return min(max(_POLL_SHARE * (time() - submitted_at), least), most)

    async def _settle(self, batch: Batch, runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
        rest = iter(outcomes)
        for run, parts in zip(runs, batch.parts, strict=True):
            pieces = [next(rest) for _ in parts]
            failed = [piece for piece in pieces if isinstance(piece, NotMeasured)]
            if not failed:
                record = await self._record(batch, [piece for piece in pieces if isinstance(piece, Measured)])
                # Before the run ends: whoever asks for this circuit afterwards finds its counts.
                await self._cache.keep_counts(run.sha, record)
                if not run.status.is_final:
                    await self._store.noticeboard.remember_duration(time() - run.created_at)
                    await self._delivery.finish(run, batch.token, Status.DONE, submitted_at=batch.submitted_at)
            elif run.status.is_final:
                continue
            elif all(piece.cancelled for piece in failed) and (batch.cancelled or run.abandoned):
                await self._delivery.finish(run, batch.token, Status.CANCELLED)
            else:
                detail = next((piece.detail for piece in failed if not piece.cancelled), "cancelled at the provider")
                await self._delivery.finish(run, batch.token, Status.FAILED, CircuitFailedError(detail))

    async def _record(self, batch: Batch, pieces: Sequence[Measured]) -> CountsRecord:
        counts: Counter[str] = Counter()
        for piece in pieces:
            counts.update(piece.counts)
        first = pieces[0]
        # Pieces of one job that ran on other qubits or under another calibration have no one readout correction.
        same = all(piece.physical_qubits == first.physical_qubits for piece in pieces)
        calibrations = {piece.calibration_id for piece in pieces}
        calibration = first.calibration_id if len(calibrations) == 1 else None
        return CountsRecord(
            counts=dict(counts),
            n_qubits=len(next(iter(counts))),
            device=self._store.target.device,
            emulated=any(piece.emulated for piece in pieces),
            physical_qubits=first.physical_qubits if same else None,
            calibration_id=calibration,
            provider_jobs=[batch.provider_job or ""],
            executed_at=max((piece.executed_at or time()) for piece in pieces),
            readout=await self._store.noticeboard.readout(calibration),
        )

    # --- when it does not go on -------------------------------------------------------------------------------

    async def _hold(self, batch: Batch, runs: Sequence[Run], error: ProviderError) -> float | None:
        """Try again later, and tell the jobs why."""
        now = await self._store.batch(batch.token)  # it may have changed since this step began
        if now is None:
            return None
        if now.unreadable >= _MAX_UNREADABLE:
            await self._fail(batch, runs, MalformedResultError(str(error)))
            return None
        late = self._late(runs)
        if late and len(late) == len(runs):
            await self._fail(batch, runs, self._too_late(str(error)))
            return None
        least, most = _BACKOFF_SECONDS
        delay: float = min(most, least * 2 ** min(now.attempts, 10)) * random.uniform(0.5, 1.0)
        if isinstance(error, HoldError) and error.retry_after_seconds is not None:
            left = min((run.created_at for run in runs), default=0.0) + self._deadline - time()
            delay = min(max(delay, error.retry_after_seconds), max(left, most), _MAX_PAUSE_SECONDS)
        await self._store.update(now.model_copy(update={"attempts": now.attempts + 1}))
        self._metrics.holds.labels(error.reason).inc()
        await self._store.hold(runs, Hold(reason=error.reason, detail=str(error), until=time() + delay))
        fields = {"reason": error.reason, "detail": str(error), "attempts": now.attempts + 1}
        logger.warning("held", extra={"fields": fields | {"next_seconds": round(delay, 1)}})
        return delay

    async def _lost(self, batch: Batch, runs: Sequence[Run], error: LostJobError) -> float | None:
        lost_at = batch.lost_at or time()
        if lost_at + _LOST_SECONDS < time():
            await self._fail(batch, runs, LostByProviderError(str(error)))
            return None
        await self._store.update(batch.model_copy(update={"lost_at": lost_at}))
        return await self._hold(batch, runs, error)

    async def _fail(self, batch: Batch, runs: Sequence[Run], problem: ProblemError) -> None:
        logger.error("circuits failed", extra={"fields": {"circuits": len(runs), "detail": problem.detail}})
        for run in runs:
            await self._delivery.finish(run, batch.token, Status.FAILED, problem)
        await self._store.close(batch)

    def _late(self, runs: Sequence[Run]) -> list[Run]:
        return [run for run in runs if run.created_at + self._deadline < time()]

    def _too_late(self, last: str = "") -> DeadlineExceededError:
        said = f"; last: {last}" if last else ""
        return DeadlineExceededError(f"no counts within {self._deadline / 3600:g} h (QD_JOB_DEADLINE_SECONDS){said}")
