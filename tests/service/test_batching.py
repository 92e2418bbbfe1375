"""How texts of concurrent requests share batches, and how they do not get in each other's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import numpy as np
import pytest
from fakes import FakeEmbedder, FakeStudent, fake_bundle
from serving import until

from service.batching import Batcher, Evaluation
from service.errors import OverloadedError, ShuttingDownError
from service.metrics import Metrics
from service.registry import LoadedBundle

pytestmark = pytest.mark.anyio


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
async def batcher(metrics: Metrics, embedder: FakeEmbedder) -> AsyncIterator[Batcher]:
    async with Batcher(metrics, max_batch_texts=4, max_queued_texts=12) as batcher:
        yield batcher
        embedder.free_run()


def value(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


async def begun(embedder: FakeEmbedder) -> list[int]:
    """Wait for the next forward pass to begin; the numbers of words of its texts."""
    return await asyncio.to_thread(embedder.begun.get, timeout=30)


async def waiting(
    batcher: Batcher, metrics: Metrics, bundle: LoadedBundle, *requests: list[str]
) -> list[asyncio.Task[Evaluation]]:
    """Start requests in this order, each tokenised and waiting before the next is sent."""
    tasks = []
    already = value(metrics, "qd_tokenise_seconds_count")
    for number, texts in enumerate(requests, 1):
        tasks.append(asyncio.create_task(batcher.evaluate(bundle, texts)))
        await until(partial(_has_counted, metrics, already + number))
    return tasks


def _has_counted(metrics: Metrics, n_tokenised: float) -> bool:
    return value(metrics, "qd_tokenise_seconds_count") >= n_tokenised


def lengths(evaluation: Evaluation) -> list[float]:
    """The lengths of the texts that an answer is about."""
    return [float(row[1]) for row in evaluation.logits]


async def test_one_text_does_not_wait_for_others(batcher: Batcher, embedder: FakeEmbedder) -> None:
    embedder.free_run()
    evaluation = await batcher.evaluate(fake_bundle("a", embedder), ["alone"])
    assert lengths(evaluation) == [5]
    assert await begun(embedder) == [1]


async def test_what_waits_forms_the_next_batch_whatever_its_task(
    batcher: Batcher, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    double = fake_bundle("double", embedder, FakeStudent(2.0))
    single = fake_bundle("single", embedder)
    (first,) = await waiting(batcher, metrics, single, ["first"])
    assert await begun(embedder) == [1]
    (second,) = await waiting(batcher, metrics, double, ["one", "three"])
    (third,) = await waiting(batcher, metrics, single, ["seventeen"])
    embedder.free_run()
    assert await begun(embedder) == [1, 1, 1]
    assert lengths(await second) == [6, 10]
    assert lengths(await third) == [9]
    assert lengths(await first) == [5]
    assert value(metrics, "qd_batch_texts_sum") == 4
    assert value(metrics, "qd_batch_texts_count") == 2


async def test_texts_of_unlike_length_do_not_pad_each_other_and_return_in_order(
    batcher: Batcher, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    texts = ["w " * 100, "short", "w " * 90, "a few words"]
    (task,) = await waiting(batcher, metrics, fake_bundle("a", embedder), texts)
    embedder.free_run()
    assert lengths(await task) == [len(text) for text in texts]
    assert await begun(embedder) == [100, 90]
    assert await begun(embedder) == [1, 3]


async def test_a_large_request_takes_several_batches_and_keeps_its_order(
    batcher: Batcher, embedder: FakeEmbedder
) -> None:
    embedder.free_run()
    texts = ["x" * n for n in range(10, 20)]
    evaluation = await batcher.evaluate(fake_bundle("a", embedder), texts)
    assert lengths(evaluation) == list(range(10, 20))
    assert [len(await begun(embedder)) for _ in range(3)] == [4, 4, 2]


async def test_cancelling_one_request_leaves_the_others_of_its_batch_alone(
    batcher: Batcher, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    bundle = fake_bundle("a", embedder)
    running, queued, other = await waiting(batcher, metrics, bundle, ["runs"], ["queued", "queued"], ["other"])
    assert await begun(embedder) == [1]
    assert value(metrics, "qd_queued_texts") == 3
    running.cancel()
    queued.cancel()
    await asyncio.wait([running, queued])
    assert value(metrics, "qd_queued_texts") == 1
    embedder.free_run()
    assert lengths(await other) == [5]
    assert await begun(embedder) == [1]
    assert value(metrics, "qd_queued_texts") == 0


async def test_a_full_queue_refuses_and_takes_again_when_there_is_room(
    batcher: Batcher, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    bundle = fake_bundle("a", embedder)
    (first,) = await waiting(batcher, metrics, bundle, ["runs"])
    await begun(embedder)
    (second,) = await waiting(batcher, metrics, bundle, ["text"] * 11)
    with pytest.raises(
        OverloadedError, match="11 texts are waiting and 2 more were sent, expected at most 12"
    ) as caught:
        await batcher.evaluate(bundle, ["text"] * 2)
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert value(metrics, "qd_queued_texts") == 11
    second.cancel()
    await asyncio.wait([second])
    (third,) = await waiting(batcher, metrics, bundle, ["text"] * 12)
    embedder.free_run()
    assert len(lengths(await third)) == 12
    await first


async def test_a_broken_batch_fails_its_own_requests_only(
    batcher: Batcher, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    bundle = fake_bundle("a", embedder)
    (first,) = await waiting(batcher, metrics, bundle, ["runs"])
    await begun(embedder)
    same, later = await waiting(batcher, metrics, bundle, ["poison", *["with it"] * 4], ["w " * 50])
    embedder.free_run()
    with pytest.raises(RuntimeError, match="broken forward pass"):
        await same
    assert lengths(await first) == [4]
    assert lengths(await later) == [100]
    assert lengths(await batcher.evaluate(bundle, ["after"])) == [5]
    assert value(metrics, "qd_queued_texts") == 0


async def test_a_broken_student_fails_its_own_task_only(
    batcher: Batcher, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    broken = fake_bundle("broken", embedder, FakeStudent(error=RuntimeError("broken student")))
    whole = fake_bundle("whole", embedder)
    (first,) = await waiting(batcher, metrics, whole, ["runs"])
    await begun(embedder)
    (one,) = await waiting(batcher, metrics, broken, ["text"])
    (other,) = await waiting(batcher, metrics, whole, ["text"])
    embedder.free_run()
    assert await begun(embedder) == [1, 1]
    with pytest.raises(RuntimeError, match="broken student"):
        await one
    assert lengths(await other) == [4]
    await first


async def test_a_text_that_cannot_be_tokenised_fails_alone(
    batcher: Batcher, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    embedder.free_run()
    bundle = fake_bundle("a", embedder)
    bad, good = await asyncio.gather(
        batcher.evaluate(bundle, ["untokenisable"]), batcher.evaluate(bundle, ["good"]), return_exceptions=True
    )
    assert isinstance(bad, ValueError)
    assert isinstance(good, Evaluation)
    assert value(metrics, "qd_queued_texts") == 0


async def test_texts_on_different_embedders_do_not_share_a_batch(
    batcher: Batcher, embedder: FakeEmbedder, metrics: Metrics
) -> None:
    other = FakeEmbedder()
    (first,) = await waiting(batcher, metrics, fake_bundle("a", embedder), ["runs"])
    await begun(embedder)
    (second,) = await waiting(batcher, metrics, fake_bundle("b", other), ["text"])
    (third,) = await waiting(batcher, metrics, fake_bundle("a", embedder), ["text"])
    embedder.free_run()
    other.free_run()
    await asyncio.gather(first, second, third)
    assert await begun(other) == [1]
    assert await begun(embedder) == [1]


async def test_stopping_answers_what_still_waits(metrics: Metrics, embedder: FakeEmbedder) -> None:
    bundle = fake_bundle("a", embedder)
    async with Batcher(metrics, max_batch_texts=4, max_queued_texts=12) as batcher:
        tasks = await waiting(batcher, metrics, bundle, ["runs"], ["waits"])
        await begun(embedder)
        embedder.free_run()
    for task in tasks:
        with pytest.raises(ShuttingDownError):
            await task
    assert not batcher.is_running
    assert value(metrics, "qd_queued_texts") == 0
    with pytest.raises(ShuttingDownError):
        await batcher.evaluate(bundle, ["too late"])


async def test_shape_and_truncation_of_an_evaluation(batcher: Batcher, embedder: FakeEmbedder) -> None:
    embedder.free_run()
    evaluation = await batcher.evaluate(fake_bundle("a", embedder), ["short", "x" * 1001])
    assert evaluation.angles.shape == evaluation.logits.shape == (2, 2)
    assert evaluation.truncated == (False, True)
    assert evaluation.embed_seconds > 0
    assert np.isfinite(evaluation.logits).all()
