from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_teachers import toy_texts

from models.embedder import SHIPPED, Embedder, find_embedder
from training.features import embed_texts

TEXTS = toy_texts(40)


class CountingEmbedder(Embedder):
    """Counts the texts that it embeds."""

    embedded = 0

    def pooled_batches(self, texts: Sequence[str], batch_size: int = 32) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.embedded += len(texts)
        return super().pooled_batches(texts, batch_size)


@pytest.fixture
def counting() -> CountingEmbedder:
    return CountingEmbedder(find_embedder("minilm-l6"), threads=1)


def test_embeddings_are_the_embedders_and_every_layer_is_computed_once(
    counting: CountingEmbedder, tmp_path: Path
) -> None:
    embedder = Embedder(find_embedder("minilm-l6"), threads=1)
    for features in (("mean:4",), ("mean:6", "mean:0"), ("mean:4",)):
        found = embed_texts(counting, TEXTS, features, tmp_path / "cache", progress=False)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, embedder.embed(TEXTS.texts, features), rtol=0, atol=1e-5)
    assert counting.embedded == len(TEXTS)


def test_other_texts_are_embedded_anew(counting: CountingEmbedder, tmp_path: Path) -> None:
    for texts in (TEXTS, toy_texts(40, seed=1)):
        embed_texts(counting, texts, ("mean:4",), tmp_path, progress=False)
    assert counting.embedded == 2 * len(TEXTS)


def test_another_embedder_of_the_same_name_and_graph_embeds_anew(counting: CountingEmbedder, tmp_path: Path) -> None:
    embed_texts(counting, TEXTS, ("mean:4",), tmp_path / "cache", progress=False)
    folder = Path(shutil.copytree(SHIPPED / "minilm-l6", tmp_path / "minilm-l6"))
    info = json.loads((folder / "embedder.json").read_text(encoding="utf-8"))
    (folder / "embedder.json").write_text(json.dumps({**info, "max_tokens": 4}), encoding="utf-8")
    shorter = Embedder(folder, threads=1)
    found = embed_texts(shorter, TEXTS, ("mean:4",), tmp_path / "cache", progress=False)
    np.testing.assert_allclose(found, shorter.embed(TEXTS.texts, ["mean:4"]), rtol=0, atol=1e-5)
