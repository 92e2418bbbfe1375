"""`simulator`: exact expectation values, computed in this process."""

from __future__ import annotations

import numpy as np

from models.student import softmax
from service.backends.base import Classification, Work
from service.batching import Batcher
from service.errors import ShotsError
from service.registry import LoadedBundle


class Simulator:
    """Answers from the student's engine, in batches shared with other requests."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    async def classify(self, bundle: LoadedBundle, work: Work) -> Classification:
        """Classify texts; raises OverloadedError if too many are waiting, ShotsError if shots are asked for."""
        if work.shots is not None:
            raise ShotsError(f"shots is {work.shots}, expected none: the simulator is exact")
        evaluation = await self._batcher.evaluate(bundle, work.texts)
        return Classification(softmax(evaluation.logits.astype(np.float64)), evaluation)
