"""What a worker does: take waiting circuits to the provider, follow them there, and hand out what comes back.

Every step reads where things stand from the store, does one thing and stores it, so that a worker may be killed
anywhere and another repeats the step. What costs money is done once: a batch is stored before it is sent, with the
token that the provider knows it by.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from models.circuit import Circuit, Gate
from models.device import Device, best_chain
from models.errors import StudentError
from models.native import chain_order
from models.observables import expvals_from_counts
from service.errors import (
    CircuitFailedError,
    CircuitRejectedError,
    DeadlineExceededError,
    InternalError,
    LostByProviderError,
    MalformedResultError,
    ProblemError,
    SubmissionUncertainError,
    problem_document,
)
from service.hardware.answers import hardware_result
from service.hardware.cache import Cache
from service.hardware.records import (
    Batch,
    BatchStage,
    CountsRecord,
    Hold,
    Item,
    Job,
    JobSpec,
    Readout,
    Refusal,
    Run,
    Status,
)
from service.hardware.shots import split_shots
from service.hardware.store import Draft, Store
from service.hardware.target import fingerprint
from service.providers.base import (
    HoldError,
    JobState,
    Limits,
    LostJobError,
    MalformedAnswerError,
    Measured,
    NotMeasured,
    Outcome,
    Program,
    Provider,
    ProviderError,
    RejectedError,
    UncertainSubmitError,
)

logger = logging.getLogger(__name__)

READOUT_TASK = "readout"
# Circuits of fewer qubits use the front of the chain, so that the readout errors of these are known to all of them.
CHAIN_QUBITS = 11

_POLL_SECONDS = (0.5, 30.0)
_POLL_SHARE = 0.1
_BACKOFF_SECONDS = (1.0, 60.0)
_MAX_MALFORMED = 5


class Executor:
    """Moves the batches of one target on, one step at a time.

    Args:
        store: Jobs, runs and batches.
        cache: Counts.
        provider: Runs them.
        compiler: `chain` to lay circuits on the device's best chain, `server` to let the provider place them.
        chain: Physical qubits to use instead of the best chain.
        deadline_seconds: How long a circuit may take from the queue to its counts.
        readout_seconds: How old measured readout errors may become; 0 measures none.
        shots: Of a measurement of readout errors.
    """

    def __init__(
        self,
        store: Store,
        cache: Cache,
        provider: Provider,
        *,
        compiler: str,
        chain: tuple[int, ...] | None,
        deadline_seconds: int,
        readout_seconds: int,
        shots: int,
    ) -> None:
        self._store = store
        self._cache = cache
        self._provider = provider
        self._compiler = compiler
        self._fixed_chain = chain
        self._deadline = deadline_seconds
        self._readout_seconds = readout_seconds
        self._shots = shots

    # --- one step of each kind --------------------------------------------------------------------------------

    async def dispatch(self) -> list[str]:
        """Take every waiting run into a batch; returns the tokens of the new ones."""
        await self._store.beat()
        tokens: list[str] = []
        while await self._store.n_pending():
            try:
                limits = await self._provider.limits()
            except ProviderError as exc:
                logger.warning("no limits from the provider", extra={"fields": {"detail": str(exc)}})
                break
            token = await self._store.claim(_runs_in_a_job(limits, self._shots))
            if token is None:
                break
            tokens.append(token)
        return tokens

    async def sweep(self) -> list[str]:
        """Every batch that is not closed; jobs that ended long ago leave the lists."""
        await self._store.forget_ended(time() - self._deadline - self._store.job_ttl_seconds)
        return await self._store.open_batches()

    async def advance(self, token: str) -> float | None:
        """Move a batch on by one step.

        Returns:
            Seconds until the next step; None once the batch is closed.
        """
        batch = await self._store.batch(token)
        if batch is None or token not in await self._store.open_batches():
            return None
        runs = await self._store.runs(batch.runs)
        for run in runs:
            if run.status.is_final:  # a worker may have stopped before it told the jobs
                await self._finish(run, run.status)
        runs = [run for run in runs if not run.status.is_final]
        try:
            if batch.stage is BatchStage.SUBMITTED:
                return await self._follow(batch)
            return await self._send(batch, runs)
        except (HoldError, MalformedAnswerError) as exc:
            return await self._hold(batch, runs, exc)
        except RejectedError as exc:
            if len(runs) > 1:
                await self._store.split(batch)
                return None
            for run in runs:
                await self._cache.keep_refusal(run.sha, Refusal(detail=str(exc)))
            await self._fail(batch, runs, CircuitRejectedError(str(exc)))
        except LostJobError as exc:
            await self._fail(batch, runs, LostByProviderError(str(exc)))
        except UncertainSubmitError as exc:
            await self._fail(batch, runs, SubmissionUncertainError(str(exc)))
        return None

    async def calibrate(self) -> None:
        """Note the device's calibration, and queue a measurement of its readout errors if they are old or another's."""
        try:
            device = await self._provider.device()
        except ProviderError as exc:
            logger.warning("no calibration from the provider", extra={"fields": {"detail": str(exc)}})
            return
        chain = self._chain(device)
        calibration = device.calibration_id if device else None
        await self._store.note_calibration(calibration)
        newest = await self._store.newest_readout()
        if not self._readout_seconds or chain is None:
            return
        is_old = newest is None or newest.executed_at + self._readout_seconds < time()
        if not is_old and newest is not None and newest.calibration_id == calibration:
            return
        # Within one epoch the fingerprints are equal: whoever comes second joins the measurement that is under way.
        epoch = f"{calibration}:{int(time() // self._readout_seconds)}"
        if await self._store.begin_readout(epoch, self._readout_seconds):
            await self._store.create(self._readout_draft(len(chain), epoch))

    def _readout_draft(self, n_qubits: int, epoch: str) -> Draft:
        circuits: dict[str, str] = {}
        for angle in (0.0, math.pi):
            gates = tuple(Gate("rx", (qubit,), angle) for qubit in range(n_qubits) if angle)
            circuit = Circuit(n_qubits, gates)
            sha = fingerprint(circuit, self._shots, self._store.target, self._compiler, epoch)
            circuits[sha] = json.dumps(circuit.to_json())
        items = [Item(sha=sha, truncated=False) for sha in circuits]
        spec = JobSpec(head=None, top_k=None, shots=self._shots, items=items)
        return Draft(task=READOUT_TASK, bundle="", spec=spec, circuits=circuits)

    # --- to the provider --------------------------------------------------------------------------------------

    async def _send(self, batch: Batch, runs: list[Run]) -> float | None:
        if batch.stage is BatchStage.INTENT:
            runs = await self._still_wanted(runs)
            if not runs:
                await self._store.close(batch)
                return None
            if self._is_late(runs):
                await self._fail(batch, runs, self._too_late())
                return None
            limits = await self._provider.limits()
            device = await self._provider.device() if self._compiler == "chain" else None
            parts = [split_shots(run.shots, limits) for run in runs]
            n_programs = sum(len(pieces) for pieces in parts)
            if n_programs > limits.max_programs:
                raise RejectedError(f"{n_programs} programs in one job, expected at most {limits.max_programs}")
            values: dict[str, Any] = {"runs": [run.id for run in runs], "chain": self._chain(device), "parts": parts}
            batch = batch.model_copy(update={"stage": BatchStage.SENDING, **values})
            await self._store.update(batch)
        elif not self._provider.repeatable:
            raise UncertainSubmitError(
                "a worker stopped while it submitted, and this provider cannot say whether the circuit arrived"
            )
        try:
            job_id = await self._provider.submit(self._programs(batch, runs), batch.token)
        except HoldError:
            if not self._provider.repeatable:  # it says so only where nothing was accepted
                await self._store.update(batch.model_copy(update={"stage": BatchStage.INTENT}))
            raise
        values = {"stage": BatchStage.SUBMITTED, "provider_job": job_id, "submitted_at": time(), "attempts": 0}
        await self._store.update(batch.model_copy(update=values))
        logger.info("submitted", extra={"fields": {"provider_job": job_id, "circuits": len(runs)}})
        await self._mark(runs, Status.SUBMITTED, job_id)
        return _POLL_SECONDS[0]

    async def _still_wanted(self, runs: list[Run]) -> list[Run]:
        """Without those whose counts have come meanwhile, and those that nobody waits for any more."""
        cached = await self._cache.counts(run.sha for run in runs)
        wanted = []
        for run in runs:
            if run.sha in cached:
                await self._finish(run, Status.DONE)
            elif run.abandoned:
                await self._finish(run, Status.CANCELLED)
            else:
                wanted.append(run)
        return wanted

    def _chain(self, device: Device | None) -> tuple[int, ...] | None:
        if self._compiler != "chain":
            return None
        if self._fixed_chain is not None or device is None:
            return self._fixed_chain
        try:
            return best_chain(device, CHAIN_QUBITS)
        except StudentError as exc:
            logger.warning("no chain on the device", extra={"fields": {"detail": str(exc)}})
            return None

    def _programs(self, batch: Batch, runs: Sequence[Run]) -> list[Program]:
        """Every run's pieces, one run after the other."""
        programs = []
        for run, pieces in zip(runs, batch.parts, strict=True):
            circuit = Circuit.from_json(json.loads(run.circuit))
            chain = _placed(circuit, batch.chain)
            programs += [Program(circuit, shots, chain) for shots in pieces]
        return programs

    # --- at the provider --------------------------------------------------------------------------------------

    async def _follow(self, batch: Batch) -> float | None:
        assert batch.provider_job is not None
        assert batch.submitted_at is not None
        runs = await self._store.runs(batch.runs)
        waiting = [run for run in runs if not run.status.is_final]
        # A worker may have stopped between storing the id and telling the jobs.
        await self._mark([run for run in waiting if run.status is Status.QUEUED], Status.SUBMITTED, batch.provider_job)
        state = await self._provider.status(batch.provider_job)
        if state is JobState.ENDED:
            outcomes = await self._provider.result(batch.provider_job, self._programs(batch, runs))
            await self._settle(batch, runs, outcomes)
            await self._store.close(batch)
            return None
        if self._is_late(waiting):
            await self._provider.cancel(batch.provider_job)
            await self._fail(batch, waiting, self._too_late())
            return None
        if state is JobState.RUNNING:
            await self._mark(waiting, Status.RUNNING, batch.provider_job)
        elif waiting and all(run.abandoned for run in waiting):
            await self._provider.cancel(batch.provider_job)
        if batch.attempts:
            await self._store.update(batch.model_copy(update={"attempts": 0}))
        least, most = _POLL_SECONDS
        return min(max(_POLL_SHARE * (time() - batch.submitted_at), least), most)

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
                    await self._store.remember_duration(time() - run.created_at)
                await self._finish(run, Status.DONE)
            elif all(piece.cancelled for piece in failed):
                await self._finish(run, Status.CANCELLED)
            else:
                detail = next(piece.detail for piece in failed if not piece.cancelled)
                await self._finish(run, Status.FAILED, CircuitFailedError(detail))

    async def _record(self, batch: Batch, pieces: Sequence[Measured]) -> CountsRecord:
        counts: Counter[str] = Counter()
        for piece in pieces:
            counts.update(piece.counts)
        first = pieces[0]
        # Pieces of one job that ran on other qubits or under another calibration have no one readout correction.
        same = all(p.physical_qubits == first.physical_qubits for p in pieces)
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
            executed_at=time(),
            readout=await self._store.readout(calibration),
        )

    # --- to the jobs ------------------------------------------------------------------------------------------

    async def _mark(self, runs: Sequence[Run], status: Status, provider_job: str) -> None:
        if runs:
            await self._store.mark_runs(runs, status, provider_job)
            for job_id in await self._store.waiting_for(runs):
                await self._progress(job_id)

    async def _finish(self, run: Run, status: Status, problem: ProblemError | None = None) -> None:
        """End a run, then give every job that waits for it what came of it; safe to repeat."""
        document = problem_document(problem) if problem else run.problem
        # First the end: a job that came to wait for the run after its outcome was handed out would get none.
        for job_id in await self._store.finish_run(run, status, document):
            job = await self._store.job(job_id)
            if job is not None and not job.status.is_final:
                await self._deliver(job, run, status, document)
                await self._progress(job_id)

    async def _deliver(self, job: Job, run: Run, status: Status, document: Mapping[str, Any] | None) -> None:
        indices = [index for index, item in enumerate(job.spec.items) if item.sha == run.sha]
        record = (await self._cache.counts([run.sha])).get(run.sha) if status is Status.DONE else None
        if status is Status.DONE and record is None:
            document = problem_document(InternalError("the counts left the cache before they were handed out"))
        if record is not None and job.spec.head is not None:
            readout = await self._store.readout(record.calibration_id)
            for index in indices:
                truncated = job.spec.items[index].truncated
                result = hardware_result(
                    record, job.spec.head, readout, top_k=job.spec.top_k, truncated=truncated, cached=False
                )
                await self._store.deliver(job, index, result)
        elif document is not None:
            for index in indices:
                await self._store.deliver(job, index, document)

    async def _progress(self, job_id: str) -> None:
        """Move a job to where its runs are."""
        job = await self._store.job(job_id)
        if job is None or job.status.is_final:
            return
        statuses = {run.status for run in await self._store.runs(job.runs.values())}
        if all(status.is_final for status in statuses):
            # A run ends before its outcome is handed out, so that all have ended does not mean that all is there.
            if job.spec.head is not None and not job.is_complete:
                return
            if statuses == {Status.DONE} and job.spec.head is None:
                await self._keep_readout(job)
            await self._store.move(job_id, Status.DONE if statuses == {Status.DONE} else Status.FAILED)
        elif Status.RUNNING in statuses or any(status.is_final for status in statuses):
            await self._store.move(job_id, Status.RUNNING)
        elif Status.SUBMITTED in statuses:
            await self._store.move(job_id, Status.SUBMITTED)

    async def _keep_readout(self, job: Job) -> None:
        shas = [item.sha for item in job.spec.items]
        found = await self._cache.counts(shas)
        zeros, ones = (found[sha] for sha in shas)
        if zeros.physical_qubits is None or zeros.physical_qubits != ones.physical_qubits:
            logger.warning("readout errors not kept: the provider does not say on which qubits they were measured")
            return
        p10 = (1.0 - expvals_from_counts(zeros.counts, zeros.n_qubits)) / 2.0
        p01 = (1.0 + expvals_from_counts(ones.counts, ones.n_qubits)) / 2.0
        pairs = zip(p10.tolist(), p01.tolist(), strict=True)
        readout = Readout(
            calibration_id=zeros.calibration_id,
            executed_at=ones.executed_at,
            shots=zeros.shots,
            flips=dict(zip(zeros.physical_qubits, pairs, strict=True)),
        )
        await self._store.keep_readout(readout)
        logger.info("readout errors measured", extra={"fields": {"calibration": readout.calibration_id}})

    # --- when it does not go on -------------------------------------------------------------------------------

    async def _hold(self, batch: Batch, runs: Sequence[Run], error: HoldError | MalformedAnswerError) -> float | None:
        attempts = batch.attempts + 1
        if isinstance(error, MalformedAnswerError) and attempts >= _MAX_MALFORMED:
            await self._fail(batch, runs, MalformedResultError(str(error)))
            return None
        if self._is_late(runs):
            await self._fail(batch, runs, self._too_late(str(error)))
            return None
        least, most = _BACKOFF_SECONDS
        delay: float = min(most, least * 2 ** min(batch.attempts, 10)) * random.uniform(0.5, 1.0)
        if isinstance(error, HoldError) and error.retry_after_seconds is not None:
            delay = max(delay, error.retry_after_seconds)
        now = await self._store.batch(batch.token)  # its stage may have changed since this step began
        if now is not None:
            await self._store.update(now.model_copy(update={"attempts": attempts}))
        await self._store.hold(runs, Hold(reason=error.reason, detail=str(error), until=time() + delay))
        fields = {"reason": error.reason, "detail": str(error), "attempts": attempts, "next_seconds": round(delay, 1)}
        logger.warning("held", extra={"fields": fields})
        return delay

    async def _fail(self, batch: Batch, runs: Sequence[Run], problem: ProblemError) -> None:
        logger.error("circuits failed", extra={"fields": {"circuits": len(runs), "detail": problem.detail}})
        for run in runs:
            await self._finish(run, Status.FAILED, problem)
        await self._store.close(batch)

    def _is_late(self, runs: Sequence[Run]) -> bool:
        return bool(runs) and min(run.created_at for run in runs) + self._deadline < time()

    def _too_late(self, last: str = "") -> DeadlineExceededError:
        said = f"; last: {last}" if last else ""
        return DeadlineExceededError(f"no counts within {self._deadline / 3600:g} h (QD_JOB_DEADLINE_SECONDS){said}")


def _runs_in_a_job(limits: Limits, shots: int) -> int:
    return max(1, limits.max_programs // len(split_shots(shots, limits)))


def _placed(circuit: Circuit, chain: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Physical qubit of each qubit of a circuit; None where the circuit fits no chain."""
    order = chain_order(circuit) if chain is not None else None
    if chain is None or order is None or len(order) > len(chain):
        return None
    position = {qubit: place for place, qubit in enumerate(order)}
    return tuple(chain[position[qubit]] for qubit in range(circuit.n_qubits))
