"""What a caller of `POST /classify/{task}` gets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
from needs import needs_mindquantum
from serving import TASKS, client_of, running

from models.bundle import load_bundle
from models.embedder import Embedder
from models.student import softmax
from service.settings import Settings

pytestmark = pytest.mark.anyio


async def test_answer_has_exactly_the_documented_members(client: httpx.AsyncClient) -> None:
    response = await client.post("/classify/emotion?backend=simulator", json={"inputs": "what a lovely day"})
    body = response.json()
    assert response.status_code == 200
    assert list(body) == ["task", "backend", "bundle", "results", "timing"]
    assert (body["task"], body["backend"]) == ("emotion", "simulator")
    assert body["bundle"].startswith("emotion@")
    assert len(body["bundle"]) == len("emotion@") + 8
    (result,) = body["results"]
    assert list(result) == ["label", "score", "scores", "truncated"]
    assert list(body["timing"]) == ["embed_ms", "circuit_ms", "total_ms"]
    assert body["timing"]["total_ms"] >= body["timing"]["embed_ms"] > 0


async def test_probabilities_are_those_of_the_student(
    client: httpx.AsyncClient, bundles_dir: Path, embedder: Embedder
) -> None:
    texts = ["a text", "another, rather longer text about nothing in particular"]
    response = await client.post("/classify/topic", json={"inputs": texts})
    bundle = load_bundle(bundles_dir / "bundle-1")
    student = bundle.student()
    expected = softmax(student.logits(student.angles(embedder.embed(texts, bundle.features))))
    for result, probs in zip(response.json()["results"], expected, strict=True):
        found = {score["label"]: score["score"] for score in result["scores"]}
        assert found == pytest.approx(dict(zip(TASKS["topic"][0], probs, strict=True)), abs=1e-5)


async def test_scores_are_best_first_and_sum_to_one(client: httpx.AsyncClient) -> None:
    response = await client.post("/classify/topic", json={"inputs": ["one", "two", "three"]})
    for result in response.json()["results"]:
        scores = [score["score"] for score in result["scores"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)
        assert (result["label"], result["score"]) == (result["scores"][0]["label"], scores[0])


async def test_two_strings_are_a_batch_of_two_in_the_callers_order(client: httpx.AsyncClient) -> None:
    texts = ["a rather long text, which takes many more tokens than the other one does", "short"]
    together = (await client.post("/classify/emotion", json={"inputs": texts})).json()["results"]
    alone = [(await client.post("/classify/emotion", json={"inputs": text})).json()["results"][0] for text in texts]
    assert len(together) == 2
    for one, other in zip(together, alone, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert abs(together[0]["score"] - together[1]["score"]) > 1e-3


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (2, 2), (3, 3), (50, 3), (None, 3)])
async def test_top_k_cuts_scores_only(client: httpx.AsyncClient, top_k: int | None, expected: int) -> None:
    body = {"inputs": "a text"} if top_k is None else {"inputs": "a text", "top_k": top_k}
    (result,) = (await client.post("/classify/topic", json=body)).json()["results"]
    assert len(result["scores"]) == expected
    assert result["label"] == result["scores"][0]["label"]


async def test_only_the_over_long_text_says_truncated(client: httpx.AsyncClient) -> None:
    response = await client.post("/classify/emotion", json={"inputs": ["short", "word " * 500]})
    assert [result["truncated"] for result in response.json()["results"]] == [False, True]


async def test_text_of_every_script_is_answered(client: httpx.AsyncClient) -> None:
    texts = ["今天天气很好", "مرحبا", "🙂🙃", "a\x00b", "e\u0301", "\u200b"]
    response = await client.post("/classify/emotion", json={"inputs": texts})
    assert response.status_code == 200
    assert len(response.json()["results"]) == len(texts)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("compiled", "float32"), pytest.param("mindquantum", "float64", marks=needs_mindquantum)],
)
async def test_engines_agree_with_the_default(
    settings: Settings, client: httpx.AsyncClient, engine: str, precision: str
) -> None:
    body = {"inputs": ["a text", "and one more"]}
    expected = (await client.post("/classify/topic", json=body)).json()["results"]
    other = settings.model_copy(update={"engine": engine, "precision": precision})
    async with running(other) as app, client_of(app) as other_client:
        found = (await other_client.post("/classify/topic", json=body)).json()["results"]
    np.testing.assert_allclose([r["score"] for r in found], [r["score"] for r in expected], atol=1e-5)


async def test_concurrent_requests_of_mixed_tasks_get_the_answers_they_get_alone(client: httpx.AsyncClient) -> None:
    requests = [
        (task, [f"text {number} " + "and so on " * (number % 7 * k) for k in range(1 + number % 3)])
        for number in range(30)
        for task in TASKS
    ]

    async def ask(task: str, texts: list[str]) -> list[float]:
        response = await client.post(f"/classify/{task}", json={"inputs": texts})
        assert response.status_code == 200
        results = response.json()["results"]
        assert len(results) == len(texts)
        return [
            next(s["score"] for s in result["scores"] if s["label"] == label)
            for result in results
            for label in TASKS[task][0]
        ]

    alone = [await ask(*request) for request in requests]
    together = await asyncio.gather(*(ask(*request) for request in requests))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
