"""What a worker does with circuits, whatever the provider does and wherever the worker is killed."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hardware import DEVICE, FakeProvider, World, draft, store_for
from redis.asyncio import Redis

from service.hardware.noticeboard import eta
from service.hardware.records import Job, Status
from service.hardware.store import Store
from service.providers.base import (
    DeviceOfflineError,
    LostJobError,
    MalformedAnswerError,
    Measured,
    NotMeasured,
    OperatorNeededError,
    ProviderError,
    QuotaExhaustedError,
    RejectedError,
    UncertainSubmitError,
    UnreachableError,
)

pytestmark = pytest.mark.anyio


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test handles it."""


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def world(redis: Redis, provider: FakeProvider) -> World:
    return World(redis, provider)


async def test_job_passes_through_every_state_and_brings_results_in_the_callers_order(world: World) -> None:
    job = await world.submit(0.2, 3.0)
    await world.finish()
    done = await world.read(job)
    assert list(done.changes) == [Status.QUEUED, Status.SUBMITTED, Status.RUNNING, Status.DONE]
    assert sorted(done.changes.values()) == list(done.changes.values())
    labels = [result and result.label for result in done.ordered_results]
    assert labels == ["no", "yes"]
    (provider_job,) = done.provider_jobs
    assert provider_job.startswith("job-")


async def test_shots_that_the_device_refuses_in_one_piece_are_split_and_merged(world: World) -> None:
    job = await world.submit(1.0)
    await world.finish()
    (programs,) = world.provider.submissions.values()
    assert [program.shots for program in programs] == [5120, 5120]
    (result,) = (await world.read(job)).ordered_results
    assert result is not None
    assert result.shots == 10_240
    assert result.expvals_raw[0] == pytest.approx(math.cos(1.0), abs=1e-3)


async def test_circuits_of_several_jobs_travel_together_on_the_best_chain(world: World) -> None:
    await world.submit(0.1)
    await world.submit(0.2, 0.3)
    await world.finish()
    (programs,) = world.provider.submissions.values()
    assert len(programs) == 6
    assert {program.chain for program in programs} <= {(0, 1, 2), (10, 9, 8), (1, 2, 3), (11, 10, 9)}


async def test_equal_circuits_in_flight_are_one_run_and_later_ones_come_from_the_cache(world: World) -> None:
    first, second = await world.submit(0.7), await world.submit(0.7)
    worker = world.worker()
    (token,) = await worker.dispatch()
    await worker.advance(token)
    third = await world.submit(0.7)
    await world.finish()
    assert [(await world.read(job)).status for job in (first, second, third)] == [Status.DONE] * 3
    # Created after the counts were stored, as a request that looked into the cache just before would be.
    late = await world.submit(0.7)
    await world.finish()
    assert (await world.read(late)).status is Status.DONE
    assert len(world.provider.circuits) == 1


async def _killed_at(world: World, step: int, job: Job) -> bool:
    """Run a worker that is killed at its n-th call to Redis or the provider; whether it came that far."""
    count = itertools.count()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(count) == step:
                raise Killed
            return await call(*args, **kwargs)

        return wrapper

    victim = World(world.redis, world.provider)
    victim.store = store_for(world.redis, world.store.target)
    for part in (victim.store, victim.cache):
        for name in dir(type(part)):
            method = getattr(part, name)
            if not name.startswith("_") and callable(method):
                setattr(part, name, counted(method))
    for name in ("submitted", "result", "status"):
        world.provider.errors.pop(name, None)
    try:
        await victim.finish()
    except Killed:
        return True
    return False


async def test_worker_killed_at_any_step_loses_nothing_and_pays_once(redis: Redis) -> None:
    reached = 0
    for step in itertools.count():
        world = World(redis, FakeProvider())
        jobs = [await world.submit(0.4, 2.9), await world.submit(2.9)]
        killed = await _killed_at(world, step, jobs[0])
        await world.finish()
        for job in jobs:
            done = await world.read(job)
            assert done.status is Status.DONE, step
            assert None not in done.ordered_results, step
        assert len(world.provider.circuits) == len(set(world.provider.circuits)) == 2, step
        if not killed:
            break
        reached = step
    assert reached > 30


async def test_worker_killed_between_submission_and_its_record_finds_the_same_job_again(world: World) -> None:
    job = await world.submit(0.4)
    world.provider.fail("submitted", Killed())  # type: ignore[arg-type]
    with pytest.raises(Killed):
        await world.finish()
    await world.finish()
    assert (await world.read(job)).status is Status.DONE
    assert world.provider.calls.count("submit") == 2
    assert len(world.provider.submissions) == 1


async def test_provider_without_tokens_is_not_asked_twice_after_a_crash(world: World) -> None:
    world.provider.repeatable = False
    job = await world.submit(0.4)
    world.provider.fail("submitted", Killed())  # type: ignore[arg-type]
    with pytest.raises(Killed):
        await world.finish()
    await world.finish()
    failed = await world.read(job)
    assert failed.status is Status.FAILED
    assert failed.errors[0]["type"] == "urn:qd:problem:submission-uncertain"
    assert world.provider.calls.count("submit") == 1


async def test_provider_without_tokens_that_was_not_reached_is_asked_again(world: World) -> None:
    world.provider.repeatable = False
    world.provider.fail("submit", UnreachableError("no connection"))
    job = await world.submit(0.4)
    await world.finish()
    assert (await world.read(job)).status is Status.DONE


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("submit", UnreachableError("500")),
        ("submit", QuotaExhaustedError("used up", 1800.0)),
        ("submit", DeviceOfflineError("calibrating")),
        ("submit", OperatorNeededError("token refused")),
        ("limits", UnreachableError("time-out")),
        ("status", UnreachableError("time-out")),
        ("result", MalformedAnswerError("counts of 10 bits, expected 3")),
    ],
)
async def test_trouble_that_may_pass_holds_the_job_and_says_why(
    world: World, method: str, error: ProviderError
) -> None:
    job = await world.submit(0.4)
    worker = world.worker()
    # `limits` is asked once more by the dispatch, which only waits.
    world.provider.fail(method, *([None, error] if method == "limits" else [error]))
    (token,) = await worker.dispatch()
    for _ in range(10):
        delay = await worker.advance(token)
        held = await world.read(job)
        if held.hold is not None:
            break
    assert held.hold is not None
    assert held.hold.detail == str(error)
    assert held.hold.reason == getattr(error, "reason")  # noqa: B009
    assert delay is not None
    assert delay >= (1800.0 if isinstance(error, QuotaExhaustedError) else 0.5)
    await world.finish()
    done = await world.read(job)
    assert done.status is Status.DONE
    assert done.hold is None
    assert len(world.provider.circuits) == 1


async def test_pauses_grow_while_the_trouble_lasts_and_stay_below_a_minute(world: World) -> None:
    await world.submit(0.4)
    worker = world.worker()
    world.provider.fail("submit", *[UnreachableError("500")] * 12)
    (token,) = await worker.dispatch()
    delays = [await worker.advance(token) for _ in range(12)]
    assert all(0.5 * min(60, 2**n) <= (delay or 0) <= min(60, 2**n) for n, delay in enumerate(delays))


@pytest.mark.parametrize(
    ("method", "error", "slug", "calls"),
    [
        ("submit", RejectedError("too wide"), "circuit-rejected", 1),
        ("submit", UncertainSubmitError("answer lost"), "submission-uncertain", 1),
    ],
)
async def test_refusal_fails_the_job_with_its_problem_and_is_not_repeated(
    world: World, method: str, error: ProviderError, slug: str, calls: int
) -> None:
    job = await world.submit(0.4)
    world.provider.fail(method, error)
    await world.finish()
    failed = await world.read(job)
    assert failed.status is Status.FAILED
    assert failed.errors[0]["type"] == f"urn:qd:problem:{slug}"
    assert str(error) in failed.errors[0]["detail"]
    assert world.provider.calls.count(method) == calls


async def test_refusal_is_remembered_and_trouble_is_not(world: World) -> None:
    rejected, held = await world.submit(0.4), await world.submit(0.5)
    world.provider.max_programs = 2  # one circuit a job
    world.provider.fail("submit", RejectedError("too wide"), UnreachableError("500"))
    await world.finish()
    shas = [job.spec.items[0].sha for job in (rejected, held)]
    assert list(await world.cache.refusals(shas)) == [shas[0]]


async def test_one_refused_circuit_does_not_fail_those_that_travelled_with_it(world: World) -> None:
    jobs = [await world.submit(angle) for angle in (0.1, 0.2, 0.3)]
    world.provider.fail("submit", RejectedError("job refused"), None, RejectedError("circuit refused"))
    await world.finish()
    statuses = sorted([(await world.read(job)).status for job in jobs])
    assert statuses == [Status.DONE, Status.DONE, Status.FAILED]


async def test_partly_finished_job_gives_its_good_circuits_and_fails_the_others(world: World) -> None:
    job, other = await world.submit(0.1, 3.0), await world.submit(0.1)
    worker = world.worker()
    (token,) = await worker.dispatch()
    await worker.advance(token)
    programs = world.provider.submissions[token]
    good = await world.provider.result(f"job-{token}", programs)
    first = repr(programs[0].circuit)
    world.provider.outcomes[f"job-{token}"] = [
        outcome if repr(program.circuit) == first else NotMeasured("runtime.hardware: interrupted")
        for program, outcome in zip(programs, good, strict=True)
    ]
    await world.finish()
    failed = await world.read(job)
    assert failed.status is Status.FAILED
    assert [result is None for result in failed.ordered_results] == [False, True]
    assert failed.errors[1]["type"] == "urn:qd:problem:circuit-failed"
    assert (await world.read(other)).status is Status.DONE


async def test_page_of_maintenance_does_not_fail_what_was_paid_for(world: World) -> None:
    job = await world.submit(0.4)
    world.provider.fail("status", *[MalformedAnswerError("<html>")] * 12)
    await world.finish()
    assert (await world.read(job)).status is Status.DONE


@pytest.mark.parametrize("method", ["status", "result"])
async def test_question_that_is_refused_after_the_submission_sends_nothing_again(world: World, method: str) -> None:
    jobs = [await world.submit(angle) for angle in (0.1, 0.2)]
    world.provider.fail(method, RejectedError("HTTP 400"))
    await world.finish()
    assert {(await world.read(job)).status for job in jobs} == {Status.DONE}
    assert len(world.provider.submissions) == 1


async def test_job_that_the_provider_does_not_know_for_a_moment_is_not_lost(world: World) -> None:
    job = await world.submit(0.4)
    world.provider.fail("status", *[LostJobError("no such job")] * 3)
    await world.finish()
    assert (await world.read(job)).status is Status.DONE


async def test_job_that_the_provider_cancels_by_itself_fails_and_is_not_paid_for_again(world: World) -> None:
    job = await world.submit(0.4)
    worker = world.worker()
    (token,) = await worker.dispatch()
    await worker.advance(token)
    world.provider.outcomes[f"job-{token}"] = [NotMeasured("cancelled", cancelled=True)] * 2
    await world.finish()
    failed = await world.read(job)
    assert failed.errors[0]["type"] == "urn:qd:problem:circuit-failed"
    assert len(world.provider.submissions) == 1


async def test_run_that_goes_back_into_the_queue_goes_there_once(world: World) -> None:
    job = await world.submit(0.4)
    (token,) = await world.worker().dispatch()
    (run,) = await world.store.runs(job.runs.values())
    for _ in range(2):
        await world.store.finish_run(run, token, Status.CANCELLED)
    assert await world.store.n_pending() == 1


async def test_two_workers_on_one_batch_submit_it_once(world: World) -> None:
    world.provider.repeatable = False
    world.provider.submit_seconds = 60.0
    job = await world.submit(0.4)
    (token,) = await world.worker().dispatch()
    await asyncio.gather(*(world.worker().advance(token) for _ in range(4)))
    await world.finish()
    assert (await world.read(job)).status is Status.DONE
    assert world.provider.calls.count("submit") == 1


async def test_worker_that_may_still_be_sending_is_waited_for(world: World) -> None:
    world.provider.repeatable = False
    world.provider.submit_seconds = 60.0
    world.provider.fail("submitted", Killed())  # type: ignore[arg-type]
    job = await world.submit(0.4)
    (token,) = await world.worker().dispatch()
    with pytest.raises(Killed):
        await world.worker().advance(token)
    delay = await world.worker().advance(token)
    assert delay is not None
    assert 50.0 < delay <= 60.0
    assert (await world.read(job)).status is Status.QUEUED


async def test_late_circuit_fails_alone_and_those_with_it_go_on(world: World) -> None:
    old = await world.submit(0.1)
    run_id = next(iter(old.runs.values()))
    await world.redis.hset(f"{world.store.target.prefix}run:{run_id}", "created_at", repr(old.created_at - 7200.0))
    young = await world.submit(0.2)
    await world.finish()
    assert (await world.read(old)).errors[0]["type"] == "urn:qd:problem:deadline-exceeded"
    assert (await world.read(young)).status is Status.DONE


async def test_counts_that_leave_the_cache_before_they_are_handed_out_fail_the_job(world: World) -> None:
    job = await world.submit(0.1, 0.2)
    keep = world.cache.keep_counts
    first = job.spec.items[0].sha

    async def forgetful(sha: str, record: Any) -> None:
        if sha != first:
            await keep(sha, record)

    world.cache.keep_counts = forgetful  # type: ignore[method-assign]
    await world.finish()
    failed = await world.read(job)
    assert failed.status is Status.FAILED
    assert [result is None for result in failed.ordered_results] == [True, False]
    assert failed.errors[0]["type"] == "urn:qd:problem:internal"


async def test_shots_that_the_device_no_longer_takes_fail_their_job_and_no_other(world: World) -> None:
    odd, even = await world.submit(0.1, shots=1024), await world.submit(0.2, shots=20_480)
    world.provider.max_programs = 2  # 20,480 shots would be three pieces
    await world.finish(world.worker(shots=1000))
    assert (await world.read(odd)).status is Status.DONE
    assert (await world.read(even)).errors[0]["type"] == "urn:qd:problem:circuit-rejected"


async def test_provider_that_says_nothing_of_its_limits_holds_the_job_and_ends_at_the_deadline(world: World) -> None:
    job = await world.submit(0.4)
    world.provider.fail("limits", *[UnreachableError("no connection")] * 4)
    worker = world.worker()
    (token,) = await worker.dispatch()
    await worker.advance(token)
    held = (await world.read(job)).hold
    assert held is not None
    assert held.reason == "provider-unreachable"
    await world.worker(deadline_seconds=0).advance(token)
    assert (await world.read(job)).status is Status.FAILED


async def test_hold_ends_with_the_trouble_even_if_the_state_stays(world: World) -> None:
    job = await world.submit(0.4)
    worker = world.worker()
    (token,) = await worker.dispatch()
    await worker.advance(token)
    world.provider.fail("status", UnreachableError("500"))
    await worker.advance(token)
    assert (await world.read(job)).hold is not None
    await worker.advance(token)
    now = await world.read(job)
    assert now.status is Status.SUBMITTED
    assert now.hold is None


async def test_pause_that_the_provider_asks_for_is_bounded(world: World) -> None:
    await world.submit(0.4)
    world.provider.fail("submit", QuotaExhaustedError("later", 1e20))
    worker = world.worker(deadline_seconds=86_400)
    (token,) = await worker.dispatch()
    assert await worker.advance(token) == 3600.0


async def test_step_that_fails_for_no_foreseen_reason_is_repeated_until_the_deadline(world: World) -> None:
    job = await world.submit(0.4)
    (token,) = await world.worker().dispatch()
    world.provider.fail("submit", KeyError("surprise"))
    with pytest.raises(KeyError):
        await world.worker().advance(token)
    world.provider.fail("submit", KeyError("surprise"))
    await world.worker(deadline_seconds=0).advance(token)
    assert (await world.read(job)).errors[0]["type"] == "urn:qd:problem:internal"


async def test_circuit_goes_where_its_layout_says(world: World) -> None:
    fixed = ",".join(str(20 + n) for n in range(11))
    for layout in ("server", f"chain:{fixed}"):
        assert await world.store.create(draft(world.store.target, [0.4], layout=layout)) is not None
    await world.finish()
    (programs,) = world.provider.submissions.values()
    assert {program.chain for program in programs} == {None, (20, 21, 22)}


async def test_result_that_stays_unreadable_fails_after_five_attempts(world: World) -> None:
    job = await world.submit(0.4)
    world.provider.fail("result", *[MalformedAnswerError("no counts")] * 5)
    await world.finish()
    failed = await world.read(job)
    assert failed.errors[0]["type"] == "urn:qd:problem:malformed-result"
    assert world.provider.calls.count("result") == 5
    assert world.provider.calls.count("submit") == 1


async def test_circuit_that_waits_too_long_fails_and_is_cancelled_at_the_provider(world: World) -> None:
    job = await world.submit(0.4)
    (token,) = await world.worker().dispatch()
    await world.worker().advance(token)
    await world.worker(deadline_seconds=0).advance(token)
    failed = await world.read(job)
    assert failed.errors[0]["type"] == "urn:qd:problem:deadline-exceeded"
    assert world.provider.cancelled == [f"job-{token}"]


async def test_cancelled_job_leaves_the_queue_and_nothing_is_sent(world: World) -> None:
    job = await world.submit(0.4)
    assert await world.store.cancel(job.id)
    assert not await world.store.cancel(job.id)
    await world.finish()
    assert (await world.read(job)).status is Status.CANCELLED
    assert world.provider.submissions == {}


async def test_job_cancelled_while_it_waits_at_the_provider_is_cancelled_there(world: World) -> None:
    job = await world.submit(0.4)
    worker = world.worker()
    (token,) = await worker.dispatch()
    await worker.advance(token)
    await world.store.cancel(job.id)
    await world.finish()
    assert world.provider.cancelled == [f"job-{token}"]
    assert (await world.read(job)).status is Status.CANCELLED


async def test_circuit_that_another_job_waits_for_is_not_cancelled_with_one_of_them(world: World) -> None:
    job, other = await world.submit(0.4), await world.submit(0.4)
    worker = world.worker()
    (token,) = await worker.dispatch()
    await worker.advance(token)
    await world.store.cancel(job.id)
    await world.finish()
    assert world.provider.cancelled == []
    assert (await world.read(job)).status is Status.CANCELLED
    assert (await world.read(other)).status is Status.DONE


async def test_job_that_comes_while_its_circuit_is_being_cancelled_runs_it_anew(world: World) -> None:
    job = await world.submit(0.4)
    worker = world.worker()
    (token,) = await worker.dispatch()
    await worker.advance(token)
    await world.store.cancel(job.id)
    await worker.advance(token)
    assert world.provider.cancelled == [f"job-{token}"]
    late = await world.submit(0.4)
    world.provider.outcomes[f"job-{token}"] = [NotMeasured("cancelled", cancelled=True)] * 2
    await world.finish()
    assert (await world.read(late)).status is Status.DONE


async def test_readout_errors_are_measured_once_an_interval_and_correct_what_comes_after(world: World) -> None:
    worker, readouts = world.worker(), world.readouts()

    async def noisy(job_id: str, programs: Any) -> list[Any]:
        outcomes = []
        for program in programs:
            n = program.circuit.n_qubits
            exact = world.provider._measured(program)
            # Three in a hundred zeros are read as one, ten in a hundred ones as zero, all qubits of a shot at once.
            flipped: dict[str, int] = {}
            for bits, count in exact.counts.items():
                wrong = round(count * (0.10 if bits == "1" * n else 0.03 if bits == "0" * n else 0.0))
                flipped[bits] = flipped.get(bits, 0) + count - wrong
                mirror = bits.translate(str.maketrans("01", "10"))
                flipped[mirror] = flipped.get(mirror, 0) + wrong
            outcomes.append(Measured(flipped, exact.physical_qubits, "cal-1", True))
        return outcomes

    async def ones(job_id: str, programs: Any) -> list[Any]:
        found = []
        for program in programs:
            n = program.circuit.n_qubits
            bit, error = ("1", 0.10) if program.circuit.gates else ("0", 0.03)
            wrong = round(program.shots * error)
            other = "0" if bit == "1" else "1"
            found.append(Measured({bit * n: program.shots - wrong, other * n: wrong}, program.chain, "cal-1", True))
        return found

    world.provider.result = ones  # type: ignore[method-assign]
    await readouts.keep_up()
    await readouts.keep_up()
    await world.finish(worker)
    readout = await world.store.noticeboard.newest_readout()
    assert readout is not None
    assert len(readout.flips) == 11
    assert set(readout.flips) <= set(DEVICE.qubits)
    assert all(flips == pytest.approx((0.03, 0.10), abs=1e-3) for flips in readout.flips.values())
    assert len(world.provider.submissions) == 1
    await readouts.keep_up()
    await world.finish(worker)
    assert len(world.provider.submissions) == 1

    world.provider.result = noisy  # type: ignore[method-assign]
    job = await world.submit(0.0)
    await world.finish(worker)
    (result,) = (await world.read(job)).ordered_results
    assert result is not None
    assert result.mitigated
    assert result.expvals_raw == pytest.approx([0.94] * 3, abs=1e-3)
    assert result.expvals == pytest.approx([1.0] * 3, abs=1e-3)

    # Another calibration of the device voids what was measured under the last one.
    world.provider.device_now = type(DEVICE)(DEVICE.name, "cal-2", DEVICE.qubits, DEVICE.couplers)
    await readouts.keep_up()
    await world.finish(worker)
    assert len(world.provider.submissions) == 3


async def test_queue_without_room_takes_no_part_of_a_job(redis: Redis, provider: FakeProvider) -> None:
    world = World(redis, provider, max_pending=2)
    assert await world.store.create(draft(world.store.target, [0.1, 0.2, 0.3])) is None
    assert await world.store.n_pending() == 0
    assert await world.store.jobs(None, None, 10, None) == []
    assert await world.store.create(draft(world.store.target, [0.1, 0.2])) is not None


async def test_jobs_are_listed_newest_first_by_state_and_task_in_pages(world: World) -> None:
    jobs = [await world.submit(angle) for angle in (0.1, 0.2, 0.3)]
    await world.store.cancel(jobs[1].id)

    async def ids(status: Status | None, limit: int = 10, before: float | None = None, task: str | None = None) -> Any:
        return [job.id for job in await world.store.jobs(status, task, limit, before)]

    newest_first = [job.id for job in reversed(jobs)]
    assert await ids(None) == newest_first
    assert await ids(Status.CANCELLED) == [jobs[1].id]
    assert await ids(Status.QUEUED) == [jobs[2].id, jobs[0].id]
    assert await ids(None, task="topic") == []
    assert await ids(None, limit=2) == newest_first[:2]
    assert await ids(None, before=jobs[1].created_at) == [jobs[0].id]


async def test_estimate_comes_from_history_and_is_absent_without_one(world: World) -> None:
    job = await world.submit(0.1)
    assert eta(job, await world.store.noticeboard.durations()) is None
    for seconds in (20.0, 1000.0, 30.0):
        await world.store.noticeboard.remember_duration(seconds)
    assert eta(job, await world.store.noticeboard.durations()) == pytest.approx(job.created_at + 30.0)


async def test_store_of_another_target_sees_none_of_the_jobs(world: World, redis: Redis) -> None:
    job = await world.submit(0.1)
    other: Store = store_for(redis)
    assert await other.job(job.id) is None
    assert await other.n_pending() == 0
