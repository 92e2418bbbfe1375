"""What int8 costs the embedder in accuracy and gains in time and size, measured in one run.

    python -m benchmarks.embedder DATA_FOLDER [--json docs/bench-embedder.json]

For every shipped task: logistic regression on the embedding of the shipped int8 encoder and on that of an fp32 export
of the same weights, penalty and accuracy both by five-fold cross-validation over train and validation texts (test texts
are not read). Time is CPU time of one forward pass on one thread, repeats interleaved.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.bundle import SHIPPED, load_bundle
from models.embedder import Embedder, find_embedder
from training.data import Texts, load_task
from training.export import MINILM, export_embedder
from training.features import embed_texts

_PENALTIES = (1e-3, 1e-2)
_REPEATS = 15
_SHAPES = ((1, 24), (32, 24))  # texts in a batch, tokens a text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with one folder a task")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="embeddings (default .cache)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / f"{MINILM}-fp32"
        export_embedder(MINILM, exported, "fp32")
        embedders = {"int8": Embedder(find_embedder(MINILM), 1), "fp32": Embedder(exported, 1)}
        megabytes = {
            "int8": (find_embedder(MINILM) / "model.onnx").stat().st_size / 1e6,
            "fp32": (exported / "model.onnx").stat().st_size / 1e6,
        }
        figures: dict[str, Any] = {
            "megabytes": megabytes,
            "milliseconds": milliseconds(embedders),
            "accuracy": {path.name: accuracies(path, options.data, options.cache, embedders) for path in bundles()},
        }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def bundles() -> list[Path]:
    """The shipped bundles' folders."""
    return sorted(path.parent for path in SHIPPED.glob("*/manifest.json"))


def accuracies(bundle: Path, data: Path, cache: Path, embedders: dict[str, Embedder]) -> dict[str, float]:
    """Cross-validated accuracy of logistic regression on a bundle's features, for each embedder."""
    features = tuple(load_bundle(bundle).features)
    task = load_task(data / bundle.name)
    return {
        name: linear_accuracy(task.train, task.validation, embedder, features, cache)
        for name, embedder in embedders.items()
    }


def linear_accuracy(
    train: Texts, validation: Texts, embedder: Embedder, features: tuple[str, ...], cache: Path
) -> float:
    """Five-fold accuracy over both sets of texts, at the better of two penalties."""
    embeddings = np.concatenate([embed_texts(embedder, t, features, cache / "embeddings") for t in (train, validation)])
    targets = np.concatenate([train.targets, validation.targets])
    return max(
        float(
            cross_val_score(
                make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)), embeddings, targets, cv=5
            ).mean()
        )
        for penalty in _PENALTIES
    )


def milliseconds(embedders: dict[str, Embedder]) -> dict[str, dict[str, float]]:
    """Median CPU milliseconds of one forward pass, by shape and embedder."""
    rng = np.random.default_rng(0)
    result = {}
    for texts, tokens in _SHAPES:
        # Words of the vocabulary's common part, one token each for nearly all.
        words = [
            "time",
            "people",
            "water",
            "market",
            "game",
            "music",
            "light",
            "story",
            "river",
            "paper",
            "city",
            "road",
        ]
        batch = [" ".join(rng.choice(words, tokens - 2)) for _ in range(texts)]
        ready = {name: embedder.tokenise(batch) for name, embedder in embedders.items()}
        times: dict[str, list[float]] = {name: [] for name in embedders}
        for _ in range(_REPEATS):
            for name, embedder in embedders.items():
                start = time.process_time()
                embedder.pooled(ready[name])
                times[name].append(1e3 * (time.process_time() - start))
        result[f"{texts} x {tokens} tokens"] = {name: float(np.median(values)) for name, values in times.items()}
    return result


if __name__ == "__main__":
    sys.exit(main())
