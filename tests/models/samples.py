"""A small random student and texts for it."""

from __future__ import annotations

import numpy as np

from models.circuit import Circuit
from models.student import StudentWeights

FEATURES = ["mean:4"]
TEXTS = ["A quiet little film that I loved.", "Dull.", "Two hours of my life that nobody will give back to me."]


def random_weights(circuit: Circuit, embedding_size: int, n_classes: int = 2, seed: int = 0) -> StudentWeights:
    rng = np.random.default_rng(seed)
    n = circuit.n_qubits
    return StudentWeights(
        reducer_weight=rng.normal(size=(n, embedding_size)) / np.sqrt(embedding_size),
        reducer_bias=rng.normal(size=n),
        ansatz=rng.uniform(-np.pi, np.pi, circuit.n_parameters),
        head_weight=rng.normal(size=(n_classes, n)),
        head_bias=rng.normal(size=n_classes),
    )
