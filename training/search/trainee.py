"""The student as a search sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache as once
from pathlib import Path

import numpy as np
import torch

from models.embedder import Embedder, find_embedder
from models.errors import EmbedderError
from training.config import RunConfig
from training.errors import ConfigError, DivergedError
from training.search.run import Score
from training.search.space import Space, Values
from training.study.student import StudentSystem, student_parameters
from training.study.system import Lesson


@dataclass(frozen=True)
class StudentTrainee:
    """`StudentSystem` of any configuration on one lesson: train texts teach, validation texts measure."""

    lesson: Lesson

    def n_trainable(self, config: RunConfig) -> int:
        """Parameters of the configured student."""
        size = _embedder(config.student.embedder, self.lesson.cache).embedding_size(config.student.features)
        return student_parameters(config, size, len(self.lesson.data.labels))

    def train(self, config: RunConfig) -> Score:
        """Distil with the configuration's seed, or read the run from the cache; measure what is kept.

        Raises:
            DivergedError: If the loss or a logit is no number.
        """
        outcome = StudentSystem(config).learn(replace(self.lesson, seed=config.seed))
        texts = self.lesson.data.validation
        logits = outcome.learned.logits(texts)
        if not np.isfinite(logits).all():
            raise DivergedError(
                f"the student's logits of {(~np.isfinite(logits)).any(axis=1).sum()} of {len(texts)} validation texts "
                f"are no numbers; the best epoch was {outcome.facts['best_epoch']}"
            )
        loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(texts.targets))
        return Score(float((logits.argmax(axis=1) == texts.targets).mean()), loss.item())


def embedders(space: Space, base: RunConfig, cache: Path) -> dict[str, str]:
    """The space's embedders, name to hash, once every one of them is known to have the space's layers.

    Args:
        space: Levers.
        base: The configuration that it is around.
        cache: May have embedders that are not shipped, in `embedders`.

    Raises:
        ConfigError: Names them.
        EmbedderError: If there is no such embedder.
    """
    names, features = space.levers.get("student.embedder"), space.levers.get("student.features")
    found = {}
    for name in names.values if isinstance(names, Values) else (base.student.embedder,):
        embedder = _embedder(name, cache)
        for value in features.values if isinstance(features, Values) else (base.student.features,):
            try:
                embedder.embedding_size(value)
            except EmbedderError as exc:
                raise ConfigError(f"student.features of the embedder {name}: {exc}") from exc
        found[name] = embedder.sha256
    return found


@once
def _embedder(name: str, cache: Path) -> Embedder:
    return Embedder(find_embedder(name, cache), threads=1)
