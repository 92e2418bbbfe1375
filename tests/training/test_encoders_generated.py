from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from training.data import TaskData, Texts
from training.encoders import generated
from training.encoders.generated import LABELS, Ngrams, generated_task, spell
from training.errors import DataError

WORDS = tuple(f"w{i}" for i in range(40))
HIDING_LABELS = ("cover", "stego")


def texts_of(words: tuple[str, ...], n: int, seed: int) -> list[str]:
    """Different texts of 6 to 14 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, size=rng.integers(6, 15))) for _ in range(n)]


def a_task(
    train: list[str], labels: tuple[str, str] = ("joy", "sadness"), rest: tuple[str, str] = ("", "")
) -> TaskData:
    """Train texts of both classes in turn; `rest` are the validation and the test text."""
    parts = [train, [rest[0]], [rest[1]]]
    return TaskData(*(Texts(tuple(part), np.arange(len(part)) % 2, labels, "toy") for part in parts))


ALL = 5_000  # more than there are
TWEETS = a_task([f"@someone {text.upper()}!!" for text in texts_of(WORDS, 850, seed=1)])
COVER_WORDS = tuple(f"c{i}" for i in range(10))
STEGO_WORDS = tuple(f"s{i}" for i in range(10))
HIDING = a_task(
    [text for pair in zip(texts_of(COVER_WORDS, 30, 2), texts_of(STEGO_WORDS, 30, 3), strict=True) for text in pair],
    HIDING_LABELS,
    ("held back for validation it is", "held back for testing it is"),
)


def of_kind(data: TaskData, target: int) -> list[str]:
    return [
        text
        for part in (data.train, data.validation)
        for text, found in zip(part.texts, part.targets, strict=True)
        if found == target
    ]


@pytest.mark.parametrize(
    ("tweet", "spelt"),
    [
        ("@VirginAmerica I CAN'T believe it!!! http://t.co/abc", "i ca n't believe it"),
        ("It's   they're, we've; she'll & I'd", "it 's they 're we 've she 'll i 'd"),
        ("see www.example.com/x now\tok", "see nowok"),
        ("#fun 2day... café", "fun 2day caf"),
        ("@only", ""),
    ],
)
def test_tweet_is_spelt_as_the_hiding_task_spells(tweet: str, spelt: str) -> None:
    assert spell(tweet) == spelt


def test_written_texts_are_the_tweets_each_once_and_as_many_are_generated() -> None:
    doubled = a_task([*TWEETS.train.texts, *TWEETS.train.texts[:50], "too few words here"])
    data = generated_task(doubled, HIDING, ALL, seed=0)
    written = of_kind(data, LABELS.index("written"))
    assert sorted(written) == sorted(set(texts_of(WORDS, 850, seed=1)))
    assert len(of_kind(data, LABELS.index("generated"))) == len(written)
    assert len(data.validation) == 400
    assert len(data.test) == 0
    assert data.labels == ("written", "generated")
    for part in (data.train, data.validation):
        assert 0.4 < part.targets.mean() < 0.6


def test_no_more_written_texts_are_taken_than_wanted_and_all_are_drawn_from() -> None:
    rare = [f"rare{i} {text}" for i, text in enumerate(texts_of(WORDS, 850, seed=1))]
    data = generated_task(a_task(rare), HIDING, 500, seed=0)
    written, drawn = of_kind(data, 0), of_kind(data, 1)
    assert len(set(written)) == len(drawn) == 500
    assert len({text.split()[0] for text in written} & {f"rare{i}" for i in range(500)}) < 400  # not the first 500

    def rare_words(texts: list[str]) -> set[str]:
        return {word for word in " ".join(texts).split() if word.startswith("rare")}

    assert rare_words(drawn) - rare_words(written)


def test_texts_that_the_hiding_task_is_measured_with_are_not_among_the_written_ones() -> None:
    held_back = ["Held back for VALIDATION, it is!", "held back, for test-ing it is"]  # but for spaces the same
    data = generated_task(a_task([*held_back, *TWEETS.train.texts]), HIDING, ALL, seed=0)
    assert len(of_kind(data, 0)) == 850
    every = " ".join([*of_kind(data, 0), *of_kind(data, 1)]).split()
    assert not {"held", "back", "validation", "testing"} & set(every)


def test_cover_texts_for_training_are_drawn_from_and_stego_texts_are_not() -> None:
    data = generated_task(TWEETS, HIDING, ALL, seed=0)
    drawn = set(" ".join(of_kind(data, 1)).split())
    assert drawn & set(COVER_WORDS)
    assert not drawn & set(STEGO_WORDS)
    assert not set(" ".join(of_kind(data, 0)).split()) & set(COVER_WORDS)


def test_same_seed_draws_the_same_and_another_seed_others() -> None:
    first, again, other = (generated_task(TWEETS, HIDING, ALL, seed) for seed in (0, 0, 1))
    assert again.sha256 == first.sha256
    assert sorted(of_kind(other, 0)) == sorted(of_kind(first, 0))
    assert not set(of_kind(other, 1)) & set(of_kind(first, 1))


def draw(monkeypatch: pytest.MonkeyPatch, corpus: list[str], trigrams: float, words: float) -> list[list[str]]:
    """300 texts with these shares of trigrams and of single words, as words."""
    monkeypatch.setattr(generated, "_TRIGRAMS", (trigrams, trigrams))
    monkeypatch.setattr(generated, "_WORDS", (words, words))
    return [text.split() for text in Ngrams(corpus).draw(300, np.random.default_rng(0))]


# Some are too short and some too long to be drawn whole.
CORPUS = [*texts_of(WORDS, 60, seed=4), *texts_of(WORDS[:5], 5, seed=5), "w1 w2", "w3", " ".join(WORDS)]


def ngrams(texts: list[list[str]], n: int) -> set[tuple[str, ...]]:
    """Of texts between two marks in front and, where they are not cut at 30 words, one behind."""
    found = set()
    for text in texts:
        marked = ["<s>", "<s>", *text, *(["</s>"] if len(text) < 30 else [])]
        found |= {tuple(marked[i : i + n]) for i in range(len(marked) - n + 1)}
    return found


IN_CORPUS = {
    n: {t for text in CORPUS for t in ngrams([text.split()], n)} | {tuple([*WORDS, "</s>"][-n:])} for n in (2, 3)
}


def test_drawn_texts_have_5_to_30_words() -> None:
    lengths = [len(text.split()) for text in Ngrams(CORPUS).draw(1000, np.random.default_rng(0))]
    assert min(lengths) == 5
    assert max(lengths) == 30


@pytest.mark.parametrize("trigrams", [0.0, 0.3, 1.0])
def test_every_bigram_that_is_drawn_occurs_in_the_corpus(monkeypatch: pytest.MonkeyPatch, trigrams: float) -> None:
    assert ngrams(draw(monkeypatch, CORPUS, trigrams, 0.0), 2) <= IN_CORPUS[2]


def test_every_trigram_occurs_in_the_corpus_where_words_are_drawn_after_two_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ngrams(draw(monkeypatch, CORPUS, 1.0, 0.0), 3) <= IN_CORPUS[3]
    assert not ngrams(draw(monkeypatch, CORPUS, 0.0, 0.0), 3) <= IN_CORPUS[3]


def test_words_that_are_drawn_after_none_make_new_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = draw(monkeypatch, CORPUS, 0.0, 0.5)
    pairs = [pair for text in texts for pair in pairwise(text)]
    new = sum(pair not in IN_CORPUS[2] for pair in pairs) / len(pairs)
    assert 0.1 < new < 0.5
    assert {word for text in texts for word in text} <= set(WORDS)


def test_word_is_drawn_as_often_as_it_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = ["a b c d e f", "a b c d e f", "a b c d e f", "x b c d e f"]
    firsts = [text[0] for text in draw(monkeypatch, corpus, 0.0, 0.0)]
    assert firsts.count("a") / len(firsts) == pytest.approx(0.75, abs=0.08)  # 3 standard deviations


def test_too_few_written_texts_are_refused_with_their_number() -> None:
    few = a_task([*texts_of(WORDS, 799, seed=1), "too few words here"])
    with pytest.raises(DataError, match=r"toy: expected 800 different texts of 5 words and more .*, found 799"):
        generated_task(few, HIDING, ALL, seed=0)


def test_hiding_task_without_cover_texts_is_refused() -> None:
    other = replace(HIDING, train=replace(HIDING.train, labels=("clean", "stego")))
    with pytest.raises(DataError, match=r"toy: expected a class 'cover', found \['clean', 'stego'\]"):
        generated_task(TWEETS, other, ALL, seed=0)
