from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_teachers import toy_texts
from toy_lessons import TOY, poisoned_teacher, toy_lesson

from models.circuit import student_circuit
from models.engines.compiled import compile_circuit
from training.baselines import lsfls
from training.baselines.bertqtc import BertQtc, BertQtcModule
from training.baselines.hitin import HiTin, HiTinModule
from training.baselines.loop import LoopConfig
from training.baselines.lsfls import Lsfls, draw_labelled, surest
from training.baselines.textrcnn import TextRcnn, TextRcnnEncoder, TextRcnnModule
from training.baselines.words import PAD, UNKNOWN, Vocabulary, count
from training.config import StudentConfig
from training.data import TaskData, Texts
from training.errors import ConfigError, DivergedError
from training.study.system import Lesson, System

ENCODER = 22_565_376
METHODS = ("TextRCNN", "HiTIN", "BERT-QTC", "LSFLS")
TeacherFolder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(method: str, encoder: TeacherFolder, **config: Any) -> System:
    """The smallest of each that learns the toy task."""
    loop = LoopConfig(**{"epochs": 5, "batch_size": 16, "learning_rate": 1e-2, **config})
    small: dict[str, Any] = {"config": loop, "progress": False}
    if method == "TextRCNN":
        return TextRcnn(8, 6, 7, dropout=0.1, **small)
    if method == "HiTIN":
        return HiTin(8, 6, 7, 5, dropout=0.1, **small)
    if method == "BERT-QTC":
        return BertQtc(StudentConfig(features=("mean:4",)), n_layers=1, n_filters=1, **small)
    return Lsfls(encoder("bert"), labelled=20, **{**small, "config": replace(loop, max_tokens=32)})


def lesson(tmp_path: Path, name: str = "cache", **what: Any) -> Lesson:
    return toy_lesson(tmp_path / name, **what)


@pytest.mark.parametrize(
    ("method", "changes", "accuracy"),
    [
        ("TextRCNN", {"epochs": 8}, 0.9),
        ("HiTIN", {"epochs": 8}, 0.9),
        # The largest of a window's expectation values is all that is left of its features: chance is 0.5 +- 0.03.
        ("BERT-QTC", {"learning_rate": 5e-3}, 0.65),
        ("LSFLS", {"epochs": 10, "learning_rate": 3e-3}, 0.9),
    ],
)
def test_every_baseline_learns_the_task(
    method: str, changes: dict[str, Any], accuracy: float, teacher_folder: TeacherFolder, tmp_path: Path
) -> None:
    data = TaskData(toy_texts(300, seed=10), toy_texts(100, seed=11), toy_texts(250, seed=12))
    system = build(method, teacher_folder, **changes)
    if isinstance(system, BertQtc):
        system = replace(system, features=StudentConfig(), n_filters=2)
    if isinstance(system, Lsfls):
        system = replace(system, labelled=60)
    outcome = system.learn(lesson(tmp_path, data=data))
    assert system.name == method
    found = outcome.learned.logits(data.test)
    assert found.shape == (250, 2)
    assert (found.argmax(axis=1) == data.test.targets).mean() > accuracy
    assert max(outcome.epochs) > accuracy
    assert outcome.facts["seconds_per_epoch"] > 0


def test_textrcnn_has_the_counted_parameters(teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    outcome = build("TextRCNN", teacher_folder, epochs=1).learn(lesson(tmp_path))
    n_words = outcome.facts["vocabulary"]
    encoder = n_words * 8 + 2 * 4 * 6 * (8 + 6 + 2) + 7 * (8 + 2 * 6 + 1)
    assert outcome.n_trainable == outcome.n_total == encoder + 2 * (7 + 1)


def test_hitin_has_the_counted_parameters(teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    outcome = build("HiTIN", teacher_folder, epochs=1).learn(lesson(tmp_path))
    n_words = outcome.facts["vocabulary"]
    encoder = n_words * 8 + 2 * 4 * 6 * (8 + 6 + 2) + 7 * (8 + 2 * 6 + 1)
    leaves, root, heads = 2 * 5 * (7 + 1), 2 * 5 * (5 + 1) + 2 * 5, 2 * 2 * (5 + 1)
    assert outcome.n_trainable == outcome.n_total == encoder + leaves + root + heads


def test_bertqtc_trains_angles_and_a_linear_layer(teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    outcome = build("BERT-QTC", teacher_folder, epochs=1).learn(lesson(tmp_path))
    angles = student_circuit("paper", 4, 1).n_parameters
    assert outcome.n_trainable == angles + 2 * (384 // 4 + 1)
    assert outcome.n_total == outcome.n_trainable + ENCODER
    assert outcome.facts["encoder_trained"] == 0


def test_lsfls_trains_the_whole_language_model(teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    outcome = build("LSFLS", teacher_folder, epochs=1).learn(lesson(tmp_path))
    from transformers import BertForSequenceClassification

    whole = BertForSequenceClassification.from_pretrained(teacher_folder("bert"))
    assert outcome.n_trainable == outcome.n_total == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_logits_and_another_seed_others(
    method: str, teacher_folder: TeacherFolder, tmp_path: Path
) -> None:
    def logits(cache: str, seed: int) -> np.ndarray:
        system = build(method, teacher_folder, epochs=1)
        return system.learn(lesson(tmp_path, cache, seed=seed)).learned.logits(TOY.test)

    first = logits("one", 0)
    np.testing.assert_array_equal(first, logits("two", 0))
    assert not np.allclose(first, logits("three", 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_teacher_says_is_not_read(method: str, teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    system = build(method, teacher_folder, epochs=1)
    alone = system.learn(lesson(tmp_path, "one")).learned.logits(TOY.test)
    taught = system.learn(lesson(tmp_path, "two", soft=poisoned_teacher())).learned.logits(TOY.test)
    np.testing.assert_array_equal(alone, taught)


@pytest.mark.parametrize("method", METHODS)
def test_steps_that_overflow_are_refused(method: str, teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=rf"{method}.*: the .*loss is nan in epoch 1 of 5, step \d"):
        build(method, teacher_folder, learning_rate=float("inf")).learn(lesson(tmp_path))


@pytest.mark.parametrize("method", METHODS)
def test_logits_follow_the_texts_order(method: str, teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    learned = build(method, teacher_folder, epochs=1).learn(lesson(tmp_path)).learned
    order = np.random.default_rng(0).permutation(len(TOY.test))
    shuffled = replace(TOY.test, texts=tuple(TOY.test.texts[i] for i in order), targets=TOY.test.targets[order])
    # Embedded in other batches, whose padding differs.
    np.testing.assert_allclose(learned.logits(shuffled), learned.logits(TOY.test)[order], rtol=0, atol=1e-4)


def test_vocabulary_numbers_repeated_words_by_frequency() -> None:
    texts = Texts(("b a B, a", "a c ,", "!"), np.array([0, 1, 0]), ("x", "y"), "test")
    vocabulary = Vocabulary.of(texts, max_tokens=3)
    assert vocabulary.ids == {"a": 2, ",": 3, "b": 4}
    assert len(vocabulary) == 5
    assert vocabulary.tokens(texts).ids == [[4, 2, 4], [2, UNKNOWN, 3], [UNKNOWN]]


@pytest.mark.parametrize("tree", [False, True])
def test_padding_takes_no_part(tree: bool) -> None:
    torch.manual_seed(0)
    encoder = TextRcnnEncoder(9, 4, 3, 5)
    model = (HiTinModule(encoder, 6, 3, 0.0) if tree else TextRcnnModule(encoder, 3, 0.0)).eval()
    ids = torch.tensor([[2, 3, 4], [5, 6, PAD]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :2], mask[1:, :2]))


def test_textrcnn_hears_both_sides_of_a_word() -> None:
    torch.manual_seed(0)
    encoder = TextRcnnEncoder(9, 4, 3, 200)
    mask = torch.ones(1, 3, dtype=torch.long)
    with torch.no_grad():
        found = {order: encoder(torch.tensor([order]), mask) for order in ((2, 3, 4), (4, 3, 2), (3, 2, 4))}
    assert not torch.allclose(found[2, 3, 4], found[4, 3, 2], atol=1e-4)
    assert not torch.allclose(found[2, 3, 4], found[3, 2, 4], atol=1e-4)


def test_root_of_a_flat_tree_sees_the_sum_of_its_labels() -> None:
    torch.manual_seed(0)
    model = HiTinModule(TextRcnnEncoder(9, 4, 3, 5), 6, 3, 0.0).eval()
    ids, mask = torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.long)
    with torch.no_grad():
        before = model(ids, mask)
        for values in (model.leaves.weight, model.leaves.bias):
            labels = values.unflatten(0, (3, 6))
            values.copy_(labels[[2, 0, 1]].flatten(0, 1))
        torch.testing.assert_close(model(ids, mask), before)


def test_bertqtc_pools_the_expectation_values_of_every_window() -> None:
    torch.manual_seed(0)
    model = BertQtcModule(n_features=6, kernel_size=3, n_filters=2, n_layers=1, n_classes=2)
    features = torch.randn(5, 6)
    pooled = []
    for angles in model.ansatz.detach().double().numpy():
        expvals = compile_circuit(student_circuit("paper", 3, 1).bind(ansatz=angles.tolist()))
        # Half a radian for a standard deviation.
        pooled += [expvals(features[:, window : window + 3].double().numpy() / 2).max(axis=1) for window in (0, 3)]
    expected = torch.tensor(np.stack(pooled, axis=1), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model.pooled(features), expected, rtol=0, atol=1e-5)


def test_inputs_of_bertqtcs_linear_layer_are_standardised_at_the_start() -> None:
    torch.manual_seed(0)
    model = BertQtcModule(n_features=6, kernel_size=3, n_filters=2, n_layers=1, n_classes=2)
    features = torch.randn(50, 6)
    model.standardise(features)
    with torch.no_grad():
        pooled = model.pooled(features)
        standard = (pooled - pooled.mean(dim=0)) / (pooled.std(dim=0) + 1e-3)
        torch.testing.assert_close(model(features), model.head(standard))


def test_windows_that_do_not_cover_the_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="BERT-QTC: kernel_size is 5, expected a divisor of the 384 features"):
        BertQtc(StudentConfig(features=("mean:4",)), kernel_size=5).learn(lesson(tmp_path))


def test_labelled_texts_are_balanced_and_drawn() -> None:
    targets = np.array([0] * 10 + [1] * 3)
    rows = draw_labelled(targets, 2, 4, seed=0)
    assert (targets[rows] == 0).sum() == 4
    assert (targets[rows] == 1).sum() == 3
    assert list(rows) == sorted(set(rows))
    assert any(list(draw_labelled(targets, 2, 4, seed)) != list(rows) for seed in range(1, 5))


def test_surest_takes_as_many_of_each_predicted_class() -> None:
    logits = np.array([[3, 0], [9, 0], [0, 1], [6, 0], [0, 2], [0, 5], [1, 0], [2, 0]])
    assert list(surest(logits, 0.5)) == [1, 3, 4, 5]
    assert list(surest(logits, 1.0)) == [0, 1, 2, 3, 4, 5, 7]
    assert len(surest(logits, 0.0)) == 0


def test_labels_that_lsfls_may_not_see_change_nothing(
    teacher_folder: TeacherFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = draw_labelled(TOY.train.targets, 2, 20, seed=0)
    # Which texts are labelled is drawn within the classes.
    monkeypatch.setattr(lsfls, "draw_labelled", lambda *_: rows)
    targets = 1 - TOY.train.targets
    targets[rows] = TOY.train.targets[rows]
    hidden = replace(TOY, train=replace(TOY.train, targets=targets))
    system = build("LSFLS", teacher_folder, epochs=2)
    seen, unseen = (system.learn(lesson(tmp_path, n, data=d)) for n, d in (("one", TOY), ("two", hidden)))
    np.testing.assert_array_equal(seen.learned.logits(TOY.test), unseen.learned.logits(TOY.test))
    right, wrong = (outcome.facts["rounds"][1]["own_labels_right"] for outcome in (seen, unseen))
    assert right == pytest.approx(1 - wrong)


def test_lsfls_reports_its_rounds_and_keeps_the_best(teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    outcome = build("LSFLS", teacher_folder, epochs=2).learn(lesson(tmp_path))
    facts = outcome.facts
    assert facts["labelled"] == facts["rounds"][0]["texts"] == 40
    assert 40 < facts["rounds"][1]["texts"] <= 40 + 40
    accuracies = [entry["validation_accuracy"] for entry in facts["rounds"]]
    assert max(outcome.epochs) == max(accuracies) == accuracies[facts["best_round"]]


def test_lsfls_labels_no_more_texts_than_it_draws(teacher_folder: TeacherFolder, tmp_path: Path) -> None:
    system = build("LSFLS", teacher_folder, epochs=1)
    assert isinstance(system, Lsfls)
    few = replace(system, unlabelled=10, kept=1.0).learn(lesson(tmp_path)).facts["rounds"][1]
    assert 40 < few["texts"] <= 40 + 10


def test_count_is_of_all_parameters() -> None:
    assert count(torch.nn.Linear(3, 2)) == 8
