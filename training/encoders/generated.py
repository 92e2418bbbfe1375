"""Written or generated? A task of its own, whose texts cost nothing, for an encoder that is to tell cover from stego.

Stego texts are drawn from a language model so that the draws carry a message; cover texts are written by people. Both
are tweets in lower case without punctuation. The texts of another tweet task, spelt that way, are written texts as
well, and texts drawn from their n-grams are generated ones: nobody has to label either.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from training.data import TaskData, Texts
from training.errors import DataError

GENERATED = "generated"  # the task
COVER = "cover"  # the hiding task's class of texts that people wrote
LABELS = ("written", "generated")
_MIN_WORDS, _MAX_WORDS = 5, 30  # the hiding task has no shorter ones, and few that are longer
_VALIDATION = 400  # texts, of both kinds together
_MIN_TEXTS = 2 * _VALIDATION
_TRIGRAMS = (0.1, 0.5)  # share of words that are drawn after two words, drawn anew for each text
_WORDS = (0.0, 0.08)  # share of words that are drawn after none
_START, _END = "<s>", "</s>"


def generated_task(tweets: TaskData, hiding: TaskData, n_written: int, seed: int) -> TaskData:
    """As many generated texts as there are written ones, in random order.

    Args:
        tweets: Its train texts, spelt as the hiding task's are, are the written ones.
        hiding: Its cover texts for training are n-grams too. No text that its validation or test files hold is taken.
        n_written: Written texts, at most; the n-grams are those of all.
        seed: Of everything that is drawn.

    Raises:
        DataError: If fewer than 800 written texts are left, or the hiding task has no class `cover`.
    """
    if COVER not in hiding.labels:
        raise DataError(f"{hiding.train.source}: expected a class {COVER!r}, found {list(hiding.labels)}")
    held_back = {_letters(text) for part in (hiding.validation, hiding.test) for text in part.texts}
    spelt = [spell(text) for text in tweets.train.texts]
    written = [t for t in dict.fromkeys(spelt) if len(t.split()) >= _MIN_WORDS and _letters(t) not in held_back]
    if len(written) < _MIN_TEXTS:
        raise DataError(
            f"{tweets.train.source}: expected {_MIN_TEXTS} different texts of {_MIN_WORDS} words and more to draw "
            f"n-grams from, found {len(written)}"
        )
    rng = np.random.default_rng(seed)
    cover = hiding.train.targets == hiding.labels.index(COVER)
    corpus = [*written, *(hiding.train.texts[i] for i in np.flatnonzero(cover))]
    written = [written[i] for i in rng.permutation(len(written))[:n_written]]
    drawn = Ngrams(corpus).draw(len(written), rng)
    texts = [*written, *drawn]
    targets = np.repeat([0, 1], [len(written), len(drawn)])
    order = rng.permutation(len(texts))
    source = f"{tweets.train.source}, written and generated"

    def part(rows: np.ndarray) -> Texts:
        return Texts(tuple(texts[i] for i in rows), targets[rows], LABELS, source)

    return TaskData(part(order[_VALIDATION:]), part(order[:_VALIDATION]), part(order[:0]))


def spell(tweet: str) -> str:
    """A tweet as the hiding task's files spell theirs: no names, links, capitals or punctuation, n't and 's apart."""
    text = re.sub(r"@\w+|http\S+|www\S+", "", tweet.lower())
    text = re.sub(r"[^a-z0-9' ]", "", text)
    text = re.sub(r"n't\b", " n't", text)
    text = re.sub(r"(\w)'(s|re|ve|ll|d)\b", r"\1 '\2", text)
    return " ".join(text.split())


class Ngrams:
    """Word counts after two words, after one and after none."""

    def __init__(self, texts: Iterable[str]) -> None:
        follow: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for text in texts:
            words = [_START, _START, *text.split(), _END]
            for first, second, third in zip(words, words[1:], words[2:], strict=False):
                for context in ((first, second), (second,), ()):
                    follow[context].append(third)
        self._follow = dict(follow)

    def draw(self, n: int, rng: np.random.Generator) -> list[str]:
        """Texts of 5 to 30 words. Each has a share of trigrams and of single words of its own; the rest are bigrams."""
        return [self._text(rng) for _ in range(n)]

    def _text(self, rng: np.random.Generator) -> str:
        trigrams, words = rng.uniform(*_TRIGRAMS), rng.uniform(*_WORDS)
        found = [_START, _START]
        while len(found) < _MAX_WORDS + 2:
            kind = rng.random()
            context: Sequence[str] = found[-2:] if kind < trigrams else () if kind > 1 - words else found[-1:]
            # After a single word that was drawn after none there may be no trigram.
            follow = self._follow.get(tuple(context)) or self._follow[tuple(found[-1:])]
            word = follow[int(rng.integers(len(follow)))]
            if word != _END:
                found.append(word)
            elif len(found) >= _MIN_WORDS + 2:
                break
            else:
                found[2:] = []  # too short: begin again
        return " ".join(found[2:])


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
