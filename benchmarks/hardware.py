"""What hardware noise costs in accuracy: the service on `baihua` against the simulator, over HTTP.

    python -m benchmarks.hardware DATA [--texts 200] [--split test] [--bundles FOLDER] [--json FILE]

Starts `qdserve serve` with its own Valkey, worker and emulator (Baihua's noise), sends every text to both backends, and
compares the labels by the simulator, by the counts as they are, and by the counts corrected for readout errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from benchmarks.serving import serving
from models.bundle import SHIPPED, Bundle, load_bundle
from training.data import Texts, read_texts

# The most points of accuracy that noise may cost after the correction.
TARGET_POINTS = 3.0
# A few jobs of the provider at a time, so that progress is seen.
_BATCH = 20
_SEED = 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with a folder of CSV files for each task")
    parser.add_argument("--texts", type=int, default=200, help="texts of each task (200)")
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="which texts (test)")
    parser.add_argument("--bundles", type=Path, default=SHIPPED, help="folder of bundles (the shipped ones)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    bundles = [load_bundle(path.parent) for path in sorted(options.bundles.glob("*/manifest.json"))]
    settings = {"QD_BUNDLES_DIR": str(options.bundles), "QD_EMULATOR_QUEUE_SECONDS": "0", "QD_LOG_LEVEL": "error"}
    with serving(settings) as url, httpx.Client(base_url=url, timeout=60.0) as client:
        await_readout(client)
        figures = {
            "split": options.split,
            "tasks": {
                bundle.manifest.task: measure(client, bundle, chosen(options.data, bundle, options))
                for bundle in bundles
            },
        }
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def await_readout(client: httpx.Client) -> None:
    """Wait until readout errors have been measured."""
    while not client.get("/jobs", params={"task": "readout", "status": "done"}).json()["jobs"]:
        sleep(0.5)


def chosen(data: Path, bundle: Bundle, options: argparse.Namespace) -> Texts:
    """Some texts of a split, drawn with a fixed seed."""
    task = bundle.manifest.task
    texts = read_texts(data / task / f"{options.split}.csv", bundle.manifest.labels)
    order = np.random.default_rng(_SEED).permutation(len(texts))[: options.texts]
    return Texts(tuple(texts.texts[i] for i in order), texts.targets[order], texts.labels, texts.source)


def measure(client: httpx.Client, bundle: Bundle, texts: Texts) -> dict[str, Any]:
    """Both backends' answers for one task, and what they are worth."""
    exact, noisy = [], []
    begun = perf_counter()
    for start in tqdm(range(0, len(texts), _BATCH), desc=bundle.manifest.task, unit=f"{_BATCH} texts"):
        inputs = {"inputs": texts.texts[start : start + _BATCH]}
        exact += client.post(f"/classify/{bundle.manifest.task}", json=inputs).raise_for_status().json()["results"]
        noisy += on_hardware(client, bundle.manifest.task, inputs)
    seconds = perf_counter() - begun
    student = bundle.student()
    labels = np.array(bundle.manifest.labels)
    by_raw = labels[student.logits_from_expvals(np.array([r["expvals_raw"] for r in noisy])).argmax(axis=1)]
    right = np.array(texts.labels)[texts.targets]
    simulated = np.array([result["label"] for result in exact])
    corrected = np.array([result["label"] for result in noisy])
    return {
        "bundle": bundle.id,
        "circuit": f"{bundle.manifest.preset}, p = {bundle.manifest.n_layers}",
        "texts": len(texts),
        "simulator": float((simulated == right).mean()),
        "raw": float((by_raw == right).mean()),
        "corrected": float((corrected == right).mean()),
        "disagreement": float((corrected != simulated).mean()),
        "flip_probability": float(np.mean([result["flip_probability"] for result in noisy])),
        "mitigated": all(result["mitigated"] for result in noisy),
        "emulated": all(result["emulated"] for result in noisy),
        "shots": noisy[0]["shots"],
        "seconds_per_circuit": seconds / len(texts),
    }


def on_hardware(client: httpx.Client, task: str, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of texts on `baihua`, however long they take."""
    response = client.post(f"/classify/{task}", params={"backend": "baihua", "wait": 30}, json=inputs)
    body: dict[str, Any] = response.raise_for_status().json()
    if response.status_code == 202:
        location = response.headers["Location"]
        while body["status"] in ("queued", "submitted", "running"):
            body = client.get(location, params={"wait": 30}).raise_for_status().json()
        if body["status"] != "done":
            raise RuntimeError(f"{location} has {body['status']}: {body.get('error')}")
    results: list[dict[str, Any]] = body["results"]
    return results


def report(figures: dict[str, Any]) -> None:
    """Print the figures."""
    lines = [
        f"{'task':<10}{'circuit':<14}{'simulator':>10}{'raw':>8}{'corrected':>11}{'points lost':>13}{'disagree':>10}"
        f"{'s/circuit':>11}"
    ]
    for task, found in figures["tasks"].items():
        lines.append(
            f"{task:<10}{found['circuit']:<14}{found['simulator']:>10.4f}{found['raw']:>8.4f}{found['corrected']:>11.4f}"
            f"{points_lost(found):>13.2f}{found['disagreement']:>10.3f}{found['seconds_per_circuit']:>11.2f}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


def points_lost(found: dict[str, Any]) -> float:
    """Points of accuracy that noise costs after the correction."""
    return 100.0 * float(found["simulator"] - found["corrected"])


if __name__ == "__main__":
    sys.exit(main())
