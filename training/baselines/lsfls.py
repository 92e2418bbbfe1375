"""LSFLS: a pre-trained language model tuned on few labelled texts, then on its own labels for the others.

Wang et al., "Linguistic steganalysis in few-shot scenario", IEEE TIFS 2023 (doi 10.1109/TIFS.2023.3298210): a
"pre-trained language model with self-training for few-shot linguistic steganalysis", which copes "through a small
number of labeled samples and some auxiliary unlabeled samples". Known here from its abstract alone, so that what
follows is self-training as it is commonly done, not the authors' variant of it: tune on the labelled texts; predict the
unlabelled ones; take those it is surest of, as many of each predicted class as of any other; tune a fresh model on
both; repeat.

Small-scale here: the language model is MiniLM, and the unlabelled texts are others of the task's training texts, whose
labels are not looked at. The validation texts choose epoch and round, labels and all: more labels than a few-shot
protocol has, and far fewer than every other baseline here learns from. Prompts and steganographic domains play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.student import softmax
from training.baselines.loop import LoopConfig
from training.baselines.transformer import FINE_TUNING, Classifier, fine_tune
from training.data import Texts
from training.study.system import Lesson, Outcome

LSFLS_LOOP = replace(FINE_TUNING, epochs=5, learning_rate=1e-4)
"""A few labelled texts are a few steps an epoch."""


@dataclass(frozen=True)
class Lsfls:
    """LSFLS on a part of a lesson's labels.

    Attributes:
        encoder: Hugging Face folder of a BERT; `transformer.minilm_folder()` for MiniLM.
        labelled: Labelled texts of each class; all of a class that has fewer.
        unlabelled: Most other texts, drawn at random, that a round may label itself.
        rounds: Of self-training, after the one on labelled texts.
        kept: Share of the unlabelled texts whose predicted labels are learned from in a round.
    """

    encoder: Path
    labelled: int = 100
    unlabelled: int = 2_000
    rounds: int = 1
    kept: float = 0.5
    config: LoopConfig = LSFLS_LOOP
    progress: bool = True
    name: str = "LSFLS"

    def learn(self, lesson: Lesson) -> Outcome:
        """Self-train; the round with the best validation accuracy is kept, of equals the earlier.

        `facts` holds, for each round, how many texts it learned from and how many of the model's own labels were right,
        which is counted only to report it.

        Raises:
            EncoderError: If the folder holds no BERT.
            DivergedError: If the loss is no number; the last good checkpoint stays.
        """
        train = lesson.data.train
        rows = draw_labelled(train.targets, len(train.labels), self.labelled, lesson.seed)
        rest = np.setdiff1d(np.arange(len(train)), rows)
        drawn = np.sort(np.random.default_rng((lesson.seed, 1)).permutation(rest)[: self.unlabelled])
        labelled, others = _take(train, rows), _take(train, drawn)
        rounds: list[dict[str, Any]] = []
        tuned: list[tuple[Classifier, Outcome]] = []
        learning, right = labelled, None
        for number in range(self.rounds + 1):
            if number:
                logits = tuned[-1][0].logits(others)
                sure = surest(logits, self.kept)
                own = replace(_take(others, sure), targets=logits[sure].argmax(axis=1))
                learning = _join(labelled, own)
                right = float((own.targets == others.targets[sure]).mean()) if len(own) else None
            taught = Lesson(replace(lesson.data, train=learning), None, lesson.seed, lesson.cache)
            classifier, outcome = fine_tune(
                self.encoder, taught, self.config, self.progress, f"{self.name}, round {number}"
            )
            tuned.append((classifier, outcome))
            accuracy = max(outcome.epochs)
            rounds.append({"texts": len(learning), "own_labels_right": right, "validation_accuracy": accuracy})
            if not len(others):
                break
        best = max(range(len(tuned)), key=lambda i: rounds[i]["validation_accuracy"])
        classifier, outcome = tuned[best]
        facts = {
            **outcome.facts,
            "labelled": len(labelled),
            "best_round": best,
            "rounds": rounds,
            # An epoch of the method is one of every round.
            "seconds_per_epoch": sum(found.facts["seconds_per_epoch"] for _, found in tuned),
        }
        return replace(outcome, learned=classifier, facts=facts)


def draw_labelled(targets: np.ndarray, n_classes: int, most: int, seed: int) -> np.ndarray:
    """Rows of at most `most` texts of each class, drawn without replacement, ascending."""
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(targets == c))[:most] for c in range(n_classes)]))


def surest(logits: np.ndarray, share: float) -> np.ndarray:
    """Rows (ascending) of the predictions with the highest probability, as many of each class, `share` of all at most.

    A class that is predicted for fewer texts gives all of those.
    """
    probs = softmax(logits.astype(np.float64))
    predicted, sureness = probs.argmax(axis=1), probs.max(axis=1)
    most = int(share * len(logits) / logits.shape[1])
    chosen = []
    for label in range(logits.shape[1]):
        rows = np.flatnonzero(predicted == label)
        chosen.append(rows[np.argsort(-sureness[rows], kind="stable")][:most])
    return np.sort(np.concatenate(chosen))


def _take(texts: Texts, rows: Sequence[int] | np.ndarray) -> Texts:
    return replace(texts, texts=tuple(texts.texts[i] for i in rows), targets=texts.targets[rows])


def _join(one: Texts, other: Texts) -> Texts:
    return replace(one, texts=one.texts + other.texts, targets=np.concatenate([one.targets, other.targets]))
