"""Texts -> embeddings, computed once for each embedder and set of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from models.embedder import Embedder
from training.data import Texts


def embed_texts(
    embedder: Embedder, texts: Texts, features: tuple[str, ...], cache: Path, progress: bool = True
) -> np.ndarray:
    """Embeddings of shape (n, embedding_size), float32.

    Every layer's mean is cached, so that a search over layers embeds each text once.
    """
    path = cache / f"{embedder.name}-{embedder.sha256[:12]}-{texts.sha256[:16]}.safetensors"
    if path.exists():
        pooled = load_file(path)["pooled"]
    else:
        pooled = _pool(embedder, texts, progress)
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"pooled": pooled}, partial)
        partial.replace(path)
    return embedder.select(pooled, features)


def _pool(embedder: Embedder, texts: Texts, progress: bool) -> np.ndarray:
    pooled = np.empty((len(texts), embedder.n_layers + 1, embedder.hidden_size), dtype=np.float32)
    bar = tqdm(total=len(texts), desc=f"embed {texts.source}", unit="text", disable=not progress, mininterval=1)
    for rows, batch in embedder.pooled_batches(texts.texts):
        pooled[rows] = batch
        bar.update(len(rows))
    bar.close()
    return pooled
