"""What the baselines without a language model read: words of the training texts, numbered."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.baselines.batches import Batch, Tokens
from training.baselines.loop import History, LoopConfig, checkpoint_path, predict, train
from training.data import Texts
from training.study.system import Lesson, Outcome

PAD, UNKNOWN = 0, 1
_MIN_COUNT = 2  # a word seen once teaches its own text by heart
_MAX_WORDS = 20_000
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Vocabulary:
    """Words to ids; 0 pads, 1 is any other word."""

    ids: dict[str, int]
    max_tokens: int

    @classmethod
    def of(cls, texts: Texts, max_tokens: int) -> Vocabulary:
        """The words that occur more than once, the most frequent first."""
        counts = Counter(word for text in texts.texts for word in words(text))
        known = sorted((w for w, n in counts.items() if n >= _MIN_COUNT), key=lambda w: (-counts[w], w))[:_MAX_WORDS]
        return cls({word: i for i, word in enumerate(known, start=UNKNOWN + 1)}, max_tokens)

    def __len__(self) -> int:
        return len(self.ids) + UNKNOWN + 1

    def tokens(self, texts: Texts) -> Tokens:
        """Ids of every text's words, cut to `max_tokens`; a text without any is one unknown word."""
        ids = [
            [self.ids.get(word, UNKNOWN) for word in words(text)[: self.max_tokens]] or [UNKNOWN]
            for text in texts.texts
        ]
        return Tokens(ids, texts.targets, PAD)


@dataclass(frozen=True)
class WordClassifier:
    """A model of (input_ids, attention_mask), which gives logits, and the vocabulary that it reads with."""

    model: torch.nn.Module
    vocabulary: Vocabulary
    batch_size: int

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of shape (batch, n_classes)."""
        logits: torch.Tensor = self.model(batch.input_ids, batch.attention_mask)
        return logits

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of shape (n_texts, n_classes), float32."""
        return predict(self.model, self.forward, self.vocabulary.tokens(texts), self.batch_size)


def words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, in order."""
    return _WORD.findall(text.lower())


def learn_words(
    name: str, lesson: Lesson, classifier: WordClassifier, config: LoopConfig, progress: bool, **shape: Any
) -> Outcome:
    """Train on the labels alone, with cross-entropy; what a teacher says is not looked at.

    Args:
        shape: JSON; what besides lesson and config makes the model what it is.

    Raises:
        DivergedError: If the loss is no number; the last good checkpoint stays.
    """
    labels_only = Lesson(lesson.data, None, lesson.seed, lesson.cache)

    def loss(batch: Batch) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(classifier.forward(batch), batch.targets)

    history = train(
        classifier.model,
        classifier.forward,
        loss,
        classifier.vocabulary.tokens(lesson.data.train),
        classifier.vocabulary.tokens(lesson.data.validation),
        config,
        lesson.seed,
        checkpoint_path(name, labels_only, config, **shape),
        name,
        progress=progress,
    )
    n_parameters = count(classifier.model)
    facts = {**loop_facts(history), "vocabulary": len(classifier.vocabulary)}
    return Outcome(classifier, n_parameters, n_parameters, history.accuracies, facts)


def count(model: torch.nn.Module) -> int:
    """Parameters, all of which are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def loop_facts(history: History) -> dict[str, Any]:
    """What tables read of a run of the shared loop."""
    return {"best_epoch": history.best_epoch, "seconds_per_epoch": history.seconds_per_epoch}
