from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_teachers import LABELS, VOCABULARY, toy_texts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from training.baselines.batches import Batch, Tokens
from training.baselines.distilbert import DistilBERT, cosine_loss
from training.baselines.loop import LoopConfig, checkpoint_path, predict, train
from training.baselines.minillm import MiniLLM, reverse_kl
from training.baselines.pkd import PKD, patient_loss
from training.baselines.teaching import said, teacher_states
from training.baselines.tinybert import TinyBERT, attention_scores, masked_mse, prediction_loss, transfer_loss
from training.baselines.transformer import (
    Classifier,
    States,
    TunedTeacher,
    cut_classifier,
    fine_tune,
    states,
)
from training.data import TaskData, Texts
from training.errors import CheckpointError, DivergedError, EncoderError, TeacherError
from training.losses import soft_loss
from training.precision import autocast
from training.steps import rate_share
from training.study.system import Lesson, Outcome, Soft, System

torch.set_num_threads(1)

TRAIN, VALIDATION = toy_texts(192, seed=1), toy_texts(48, seed=2)
UNSEEN = toy_texts(40, seed=3)
LAYERS = (1, 2, 3)
# Of one class in each row, and of another student: what is compared is row by row.
STUDENT = torch.tensor([[0.3, -0.2, 0.9], [1.5, 0.0, -1.0]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, -1.0, 0.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
LOGIT_LOSSES = {"prediction": prediction_loss, "soft": soft_loss, "reverse": reverse_kl}
QUICK = LoopConfig(epochs=2, batch_size=16, learning_rate=3e-3, max_tokens=16)
LONG = replace(QUICK, epochs=12)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT of three layers over the toy texts' words."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        pad_token_id=0,
        initializer_range=0.1,  # hidden states that differ from layer to layer
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    # As MiniLM's own file does, which the baselines must undo.
    tokenizer.enable_padding(length=24)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def teacher(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A classical teacher of the toy task; the tests leave it as it is."""
    return fine_tune(encoder, lesson(tmp_path_factory.mktemp("teacher")), LONG, progress=False)[0]


def lesson(cache: Path, seed: int = 0, soft: Soft | None = None) -> Lesson:
    """The toy task without test texts: whoever looks at them fails."""
    return Lesson(TaskData(TRAIN, VALIDATION, None), soft, seed, cache)  # type: ignore[arg-type]


def soft_of(teacher: Classifier) -> Soft:
    return Soft("tiny", teacher.logits(TRAIN), teacher.logits(VALIDATION), teacher.n_parameters)


def systems(encoder: Path, teacher: Classifier, config: LoopConfig) -> dict[str, System]:
    copies: dict[str, Any] = {"encoder": encoder, "teacher": teacher.model, "config": config, "progress": False}
    return {
        "tinybert": TinyBERT(**copies, layers=(1, 3), transfer=config),
        "minillm": MiniLLM(encoder, layers=(1, 3), config=config, progress=False),
        "distilbert": DistilBERT(**copies, layers=(1, 3)),
        "pkd": PKD(**copies, layers=(1, 3)),
        "fine-tuned": FineTuned(encoder, config),
    }


@dataclass(frozen=True)
class FineTuned:
    """The whole encoder on the labels, as a system."""

    encoder: Path
    config: LoopConfig
    name: str = "MiniLM, fine-tuned"

    def learn(self, lesson: Lesson) -> Outcome:
        return fine_tune(self.encoder, lesson, self.config, progress=False)[1]


KINDS = ("tinybert", "minillm", "distilbert", "pkd", "fine-tuned")


def accuracy(outcome: Outcome, texts: Texts) -> float:
    return float((outcome.learned.logits(texts).argmax(axis=1) == texts.targets).mean())


def a_batch(classifier: Classifier, n: int = 6) -> Batch:
    """Texts of unequal lengths."""
    tokens = classifier.tokens(UNSEEN)
    batch = tokens.batch(np.arange(n))
    assert 0 < int(batch.attention_mask.sum()) < batch.attention_mask.numel()
    return batch


def cut(encoder: Path, layers: tuple[int, ...] | None = None, seed: int = 0) -> Classifier:
    return cut_classifier(encoder, layers, len(LABELS), QUICK, seed)


# --- losses ---


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", LOGIT_LOSSES)
def test_logit_loss_is_zero_where_student_equals_teacher_and_only_there(kind: str, temperature: float) -> None:
    loss = LOGIT_LOSSES[kind]
    assert loss(TEACHER.clone(), TEACHER, temperature).item() == pytest.approx(0, abs=1e-15)
    assert loss(TEACHER + 7, TEACHER, temperature).item() == pytest.approx(0, abs=1e-12)
    assert loss(STUDENT, TEACHER, temperature).item() > 0.05


@pytest.mark.parametrize("kind", LOGIT_LOSSES)
def test_logit_loss_raises_the_class_that_the_teacher_thinks_likelier(kind: str) -> None:
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    LOGIT_LOSSES[kind](logits, torch.tensor([[1.0, -1.0]], dtype=torch.float64), 1.0).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < -0.1
    assert logits.grad[0, 1] > 0.1


@pytest.mark.parametrize("kind", LOGIT_LOSSES)
def test_gradient_vanishes_where_student_equals_teacher(kind: str) -> None:
    logits = TEACHER.clone().requires_grad_()
    LOGIT_LOSSES[kind](logits, TEACHER, 2.0).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12


def test_reverse_kl_runs_from_the_student_to_the_teacher() -> None:
    q, f = [0.5, 0.5], [0.9, 0.1]
    log_q, log_f = (torch.tensor([p], dtype=torch.float64).log() for p in (q, f))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert reverse_kl(log_q, log_f, 1.0).item() == pytest.approx(expected, rel=1e-12)
    assert abs(soft_loss(log_q, log_f, 1.0).item() - expected) > 0.1


def test_reverse_kl_leaves_out_a_mode_at_less_cost_than_forward_kl() -> None:
    two_modes = torch.tensor([[0.495, 0.495, 0.01]], dtype=torch.float64).log()
    one_mode = torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64).log()
    assert reverse_kl(one_mode, two_modes, 1.0) < soft_loss(one_mode, two_modes, 1.0)


def test_transfer_loss_is_zero_where_the_student_is_its_teacher(encoder: Path) -> None:
    whole = cut(encoder)
    batch = a_batch(whole)
    made = teacher_states(whole.model, batch)
    assert transfer_loss(whole.model, made, whole.model, made, batch.attention_mask, LAYERS).item() == 0


@pytest.mark.parametrize(
    "part", ["embeddings.word_embeddings", "encoder.layer.0.output.dense", "encoder.layer.2.attention.self.query"]
)
def test_transfer_loss_sees_embeddings_hidden_states_and_attention(encoder: Path, part: str) -> None:
    teacher, student = cut(encoder), cut(encoder)
    with torch.no_grad():
        student.model.base_model.get_submodule(part).weight.mul_(1.3)
    assert _transfer(student, teacher, LAYERS).item() > 1e-4


def test_step_against_its_gradient_lessens_the_transfer_loss(encoder: Path) -> None:
    teacher, student = cut(encoder), cut(encoder, (1, 3))
    before = _transfer(student, teacher, (1, 3))
    before.backward()
    with torch.no_grad():
        for parameter in student.model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
    assert _transfer(student, teacher, (1, 3)).item() < before.item()


def _transfer(student: Classifier, teacher: Classifier, layers: tuple[int, ...]) -> torch.Tensor:
    batch = a_batch(teacher)
    copied, original = states(student.model.eval(), batch), teacher_states(teacher.model, batch)
    return transfer_loss(student.model, copied, teacher.model, original, batch.attention_mask, layers)


def test_softmax_of_attention_scores_is_the_models_own_attention(encoder: Path) -> None:
    classifier = cut(encoder)
    classifier.model.set_attn_implementation("eager")
    batch = classifier.tokens(UNSEEN).batch(np.array([0]))
    with torch.inference_mode():
        own = classifier.model(batch.input_ids, batch.attention_mask, output_attentions=True).attentions
        made = states(classifier.model, batch)
        for layer in LAYERS:
            found = attention_scores(classifier.model, made, layer).softmax(dim=-1)
            torch.testing.assert_close(found, own[layer - 1], rtol=1e-5, atol=1e-6)


def test_masked_mse_leaves_out_padding() -> None:
    one, other = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 1.0], [2.0, 2.0], [50.0, 50.0]]])
    assert masked_mse(one, other, torch.tensor([[[1], [1], [0]]])).item() == pytest.approx((1 + 4) / 2)


def _states(*hidden: torch.Tensor) -> States:
    return States(torch.zeros(len(hidden[0]), 2), hidden)


def test_cosine_loss_measures_directions_of_own_tokens() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden, noise = (torch.randn(2, 3, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert cosine_loss(_states(hidden), _states(5 * hidden), mask).item() == pytest.approx(0, abs=1e-12)
    assert cosine_loss(_states(hidden), _states(-hidden), mask).item() == pytest.approx(2, rel=1e-12)
    padding_differs = torch.where(mask[:, :, None] == 1, hidden, noise)
    assert cosine_loss(_states(hidden), _states(padding_differs), mask).item() == pytest.approx(0, abs=1e-12)


def test_cosine_loss_turns_the_student_towards_its_teacher() -> None:
    student = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    cosine_loss(_states(student), _states(torch.tensor([[[0.0, 2.0]]])), torch.tensor([[1]])).backward()
    assert student.grad is not None
    assert student.grad[0, 0, 1] < -0.5


def test_patient_loss_compares_directions_of_cls_in_all_layers_but_the_last() -> None:
    rng = torch.Generator().manual_seed(0)
    teacher = [torch.randn(2, 3, 4, generator=rng, dtype=torch.float64) for _ in range(7)]
    noise = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64)

    def loss(*student: torch.Tensor) -> float:
        return patient_loss(_states(*student), torch.stack([teacher[2][:, 0], teacher[4][:, 0]], dim=1)).item()

    copied = [noise, 3 * teacher[2], 0.5 * teacher[4], noise]
    assert loss(*copied) == pytest.approx(0, abs=1e-12)
    only_cls = torch.cat([teacher[2][:, :1], noise[:, 1:]], dim=1)
    assert loss(noise, only_cls, teacher[4], noise) == pytest.approx(0, abs=1e-12)
    # The opposite direction in one of two layers: |2|^2 over 4 elements, halved by the mean over layers.
    assert loss(noise, -teacher[2], teacher[4], noise) == pytest.approx(4 / 4 / 2, rel=1e-12)


def test_patient_loss_turns_the_student_towards_its_teacher() -> None:
    student = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    goal = torch.tensor([[[0.0, 2.0]]])
    patient_loss(_states(student, student, student), goal).backward()
    assert student.grad is not None
    assert student.grad[0, 0, 1] < -0.5


# --- the loop ---


class _Bag(torch.nn.Module):
    """A mean of word vectors: the least model that the loop can train."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = torch.nn.Embedding(30, 8, padding_idx=0)
        self.dropout = torch.nn.Dropout(0.1)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, batch: Batch) -> torch.Tensor:
        mean = self.words(batch.input_ids).sum(dim=1) / batch.attention_mask.sum(dim=1, keepdim=True)
        return torch.as_tensor(self.head(self.dropout(mean)))


BAG = LoopConfig(epochs=4, batch_size=24, learning_rate=0.05, max_tokens=16)


def bag_tokens(texts: Texts) -> Tokens:
    return Tokens([[VOCABULARY.index(word) for word in text.split()] for text in texts.texts], texts.targets, 0)


def run_bag(
    path: Path,
    config: LoopConfig = BAG,
    seed: int = 0,
    spoil: Callable[[torch.Tensor, int], torch.Tensor] = lambda loss, step: loss,
    **changes: Any,
) -> tuple[_Bag, list[dict[str, float]]]:
    """Train a bag of words; `spoil` changes the loss of a step, counted from 0 in this call."""
    model, calls = _Bag(), iter(range(10_000))

    def loss(batch: Batch) -> torch.Tensor:
        return spoil(torch.nn.functional.cross_entropy(model(batch), batch.targets), next(calls))

    texts, validation = bag_tokens(TRAIN), bag_tokens(VALIDATION)
    history = train(model, model, loss, texts, validation, config, seed, path, "Bag", progress=False, **changes)
    return model, history.epochs


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert same_weights(one, other)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


PER_EPOCH = len(TRAIN) // BAG.batch_size


def test_loop_learns_a_separable_task(tmp_path: Path) -> None:
    model, history = run_bag(tmp_path / "bag.pt", replace(BAG, epochs=10))
    assert history[0]["train_loss"] > 2 * history[-1]["train_loss"]
    logits = predict(model, model, bag_tokens(UNSEEN), 8)
    assert (logits.argmax(axis=1) == UNSEEN.targets).mean() > 0.9


def test_an_epoch_shows_every_text_once_in_batches_of_like_length() -> None:
    tokens = bag_tokens(TRAIN)
    batches = tokens.shuffled(8, (0, 0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(TRAIN)))
    spreads = [np.ptp([len(tokens.ids[i]) for i in batch]) for batch in batches]
    assert max(spreads) <= 2
    again, next_epoch, other_seed = (tokens.shuffled(8, seed) for seed in ((0, 0), (0, 1), (1, 0)))
    assert np.array_equal(np.concatenate(again), np.concatenate(batches))
    for other in (next_epoch, other_seed):
        assert not np.array_equal(np.concatenate(other), np.concatenate(batches))


def test_learning_rate_rises_to_its_peak_and_falls_as_a_cosine_to_zero() -> None:
    shares = [rate_share(step, 100, 0.1) for step in range(101)]
    np.testing.assert_allclose(shares[:10], np.arange(1, 11) / 10)
    assert shares[10] == 1
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0)
    assert all(np.diff(shares[10:]) < 0)


def test_predicted_logits_come_in_the_texts_order(tmp_path: Path) -> None:
    model, tokens = _Bag(), bag_tokens(UNSEEN)
    one_by_one = np.concatenate([predict(model, model, bag_tokens(_only(i)), 1) for i in range(len(UNSEEN))])
    np.testing.assert_allclose(predict(model, model, tokens, 7), one_by_one, rtol=1e-5, atol=1e-6)


def _only(row: int) -> Texts:
    return Texts((UNSEEN.texts[row],), UNSEEN.targets[row : row + 1], UNSEEN.labels, "one")


def test_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, second, other = (run_bag(tmp_path / f"{i}.pt", seed=seed)[0] for i, seed in enumerate((3, 3, 4)))
    assert_same_weights(first, second)
    assert not same_weights(first, other)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_loss_that_is_no_number_stops_and_leaves_the_last_good_epoch(tmp_path: Path, what: str) -> None:
    def spoil(loss: torch.Tensor, step: int) -> torch.Tensor:
        if step != 2 * PER_EPOCH + 3:
            return loss
        # The root's slope at 0 is infinite, and infinity times 0 no number; its value is one.
        return loss * torch.nan if what == "loss" else loss + torch.sqrt(loss * 0)

    path = tmp_path / "bag.pt"
    with pytest.raises(DivergedError, match=rf"Bag: the {what}.* is nan in epoch 3 of 4, step 4 of 8.*bag\.pt"):
        run_bag(path, spoil=spoil)
    state = torch.load(path, weights_only=True)
    assert len(state["epochs"]) == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    unbroken, history = run_bag(tmp_path / "unbroken.pt")
    resumed, resumed_history = run_bag(path)
    assert_same_weights(resumed, unbroken)
    for one, other in zip(resumed_history, history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_loss_that_is_no_number_at_once_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"in epoch 1 of 4, step 1 of 8.*no epoch was finished"):
        run_bag(tmp_path / "bag.pt", spoil=lambda loss, step: loss * torch.inf)
    assert list(tmp_path.glob("bag.p*")) == []


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a file"])
def test_checkpoint_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bag.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path}: expected the checkpoint of a run, .*; delete it"):
        run_bag(path)
    assert path.read_bytes() == content


def test_step_that_spoils_the_weights_stops_before_its_epoch_is_kept(tmp_path: Path) -> None:
    config = replace(BAG, batch_size=len(TRAIN), learning_rate=math.inf)
    with pytest.raises(DivergedError, match=r"Bag: the validation loss is nan after epoch 1 of 4.*no epoch was"):
        run_bag(tmp_path / "bag.pt", config)
    assert list(tmp_path.glob("bag.p*")) == []


def test_finished_run_is_read_and_not_trained_again(tmp_path: Path) -> None:
    def fail(loss: torch.Tensor, step: int) -> torch.Tensor:
        raise AssertionError("trained again")

    trained, history = run_bag(tmp_path / "bag.pt")
    read, same_history = run_bag(tmp_path / "bag.pt", spoil=fail)
    assert_same_weights(read, trained)
    assert same_history == history
    assert set(torch.load(tmp_path / "bag.pt", weights_only=True)) == {"epochs", "kept"}


def test_run_that_two_want_at_the_same_time_is_trained_once(tmp_path: Path) -> None:
    steps: list[int] = []
    together = threading.Barrier(2)

    def note(loss: torch.Tensor, step: int) -> torch.Tensor:
        steps.append(step)
        return loss

    def want(_: int) -> tuple[_Bag, list[dict[str, float]]]:
        together.wait()
        return run_bag(tmp_path / "bag.pt", spoil=note)

    with ThreadPoolExecutor(2) as pool:
        (one, history), (other, same_history) = pool.map(want, range(2))
    assert steps == list(range(BAG.epochs * PER_EPOCH))
    assert_same_weights(one, other)
    assert history == same_history


def unlearn(loss: torch.Tensor, step: int) -> torch.Tensor:
    """Learns for two epochs, then forgets."""
    return loss if step < 2 * PER_EPOCH else -loss


def test_best_epoch_is_kept_and_not_the_last(tmp_path: Path) -> None:
    config = replace(BAG, epochs=8)
    model, history = run_bag(tmp_path / "best.pt", config, spoil=unlearn)
    accuracies = [entry["validation_accuracy"] for entry in history]
    logits = predict(model, model, bag_tokens(VALIDATION), 8)
    assert (logits.argmax(axis=1) == VALIDATION.targets).mean() == max(accuracies) > accuracies[-1]


def test_last_epoch_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    config = replace(BAG, epochs=8)
    model, history = run_bag(tmp_path / "last.pt", config, spoil=unlearn, keep="last")
    logits = predict(model, model, bag_tokens(VALIDATION), 8)
    assert (logits.argmax(axis=1) == VALIDATION.targets).mean() == history[-1]["validation_accuracy"]


def test_checkpoint_is_named_by_whatever_decides_the_result(tmp_path: Path) -> None:
    base = lesson(tmp_path)
    logits = np.zeros((len(TRAIN), 2), dtype=np.float32)
    soft = Soft("tiny", logits, logits, 1)
    others = [
        checkpoint_path("PKD (loss)", base, QUICK, beta=1),
        checkpoint_path("PKD (loss)", base, QUICK, beta=2),
        checkpoint_path("PKD (loss)", base, LONG, beta=1),
        checkpoint_path("PKD (loss)", lesson(tmp_path, seed=1), QUICK, beta=1),
        checkpoint_path("PKD (loss)", lesson(tmp_path, soft=soft), QUICK, beta=1),
        checkpoint_path("PKD (loss)", lesson(tmp_path, soft=replace(soft, train=logits + 1)), QUICK, beta=1),
    ]
    assert len(set(others)) == len(others)
    assert checkpoint_path("PKD (loss)", base, QUICK, beta=1) == others[0]
    assert others[0].name.startswith("pkd-loss-")


# --- the classifier ---


def test_cut_student_has_the_encoders_embeddings_and_named_layers(encoder: Path) -> None:
    whole, student = cut(encoder).model.base_model, cut(encoder, (1, 3)).model.base_model
    assert len(student.encoder.layer) == 2
    assert_same_weights(student.embeddings, whole.embeddings)
    for kept, layer in enumerate((1, 3)):
        assert_same_weights(student.encoder.layer[kept], whole.encoder.layer[layer - 1])


def test_head_is_drawn_from_the_seed(encoder: Path) -> None:
    first, same, other = (cut(encoder, (1,), seed).model.classifier for seed in (0, 0, 1))
    assert_same_weights(first, same)
    assert not same_weights(first, other)


def test_logits_of_a_text_do_not_depend_on_its_neighbours(teacher: Classifier) -> None:
    together = teacher.logits(UNSEEN)
    alone = np.concatenate([teacher.logits(_only(row)) for row in range(len(UNSEEN))])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
    assert together.dtype == np.float32


@pytest.mark.parametrize("layers", [(), (0, 1), (1, 4), (3, 1), (1, 1)])
def test_layers_that_the_encoder_has_not_are_refused(encoder: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(EncoderError, match=r"expected ascending ones of 1 to 3"):
        cut(encoder, layers)


def test_encoder_without_a_file_is_refused_by_its_name(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((encoder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(EncoderError, match=r"tokenizer\.json: no such file"):
        cut(tmp_path)


def test_texts_longer_than_the_encoder_reads_are_refused(encoder: Path) -> None:
    with pytest.raises(EncoderError, match="max_tokens is 64, the encoder reads at most 32"):
        cut_classifier(encoder, None, 2, replace(QUICK, max_tokens=64), seed=0)


def test_bfloat16_multiplies_and_hands_on_float32(encoder: Path) -> None:
    classifier = cut(encoder)
    batch = a_batch(classifier)
    with torch.no_grad():
        exact = states(classifier.model, batch)
        exact_scores = attention_scores(classifier.model, exact, 2)
        with autocast("bf16"):
            rough = states(classifier.model, batch)
            scores = attention_scores(classifier.model, rough, 2)
            logits = classifier.forward(batch)
    for found, expected in ((rough.logits, exact.logits), (scores, exact_scores), (logits, exact.logits)):
        assert found.dtype == torch.float32
        assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert {hidden.dtype for hidden in rough.hidden} == {torch.float32}


def test_training_in_bfloat16_keeps_weights_in_float32_and_is_another_run(encoder: Path, tmp_path: Path) -> None:
    half = replace(QUICK, precision="bf16")
    found = {}
    for config in (QUICK, half):
        classifier, outcome = fine_tune(encoder, lesson(tmp_path), config, progress=False)
        assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}
        found[config.precision] = classifier.logits(UNSEEN)
        assert len(outcome.epochs) == QUICK.epochs
    assert len(list(tmp_path.glob("*.pt"))) == 2
    assert not np.array_equal(found["fp32"], found["bf16"])
    np.testing.assert_array_equal(
        fine_tune(encoder, lesson(tmp_path / "again"), half, progress=False)[0].logits(UNSEEN), found["bf16"]
    )


@pytest.mark.parametrize("layers", [(), (1, 3)])
def test_teacher_is_asked_once_for_what_it_says_of_every_batch(teacher: Classifier, layers: tuple[int, ...]) -> None:
    tokens = teacher.tokens(UNSEEN)
    heard = said(teacher.model, tokens, QUICK, layers)
    assert heard.cls.shape[:2] == (len(UNSEEN), len(layers))
    rows = np.array([17, 3, 30])
    made = teacher_states(teacher.model, tokens.batch(rows))
    torch.testing.assert_close(heard.logits[rows], made.logits, rtol=1e-4, atol=1e-5)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(heard.cls[rows, i], made.hidden[layer][:, 0], rtol=1e-4, atol=1e-5)


# --- the systems ---


@pytest.mark.parametrize("kind", KINDS)
def test_baseline_learns_a_separable_task(kind: str, encoder: Path, teacher: Classifier, tmp_path: Path) -> None:
    outcome = systems(encoder, teacher, LONG)[kind].learn(lesson(tmp_path, soft=soft_of(teacher)))
    assert accuracy(outcome, UNSEEN) > 0.85
    assert len(outcome.epochs) == LONG.epochs
    assert outcome.epochs[outcome.facts["best_epoch"] - 1] == max(outcome.epochs)
    assert accuracy(outcome, VALIDATION) == max(outcome.epochs)


@pytest.mark.parametrize("kind", KINDS)
def test_baseline_is_decided_by_its_seed(kind: str, encoder: Path, teacher: Classifier, tmp_path: Path) -> None:
    def learn(seed: int, cache: str) -> np.ndarray:
        torch.rand(len(cache))  # whatever was drawn before
        system = systems(encoder, teacher, QUICK)[kind]
        return system.learn(lesson(tmp_path / cache, seed, soft_of(teacher))).learned.logits(UNSEEN)

    first = learn(0, "a")
    np.testing.assert_array_equal(learn(0, "bb"), first)
    assert np.abs(learn(1, "ccc") - first).max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_the_model_that_answers(
    kind: str, encoder: Path, teacher: Classifier, tmp_path: Path
) -> None:
    outcome = systems(encoder, teacher, QUICK)[kind].learn(lesson(tmp_path, soft=soft_of(teacher)))
    n_layers = 3 if kind == "fine-tuned" else 2
    embeddings = (len(VOCABULARY) + 32 + 2) * 32 + 2 * 32
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 4 * 32
    expected = embeddings + n_layers * layer + (32 * 32 + 32) + (32 * 2 + 2)
    assert outcome.n_trainable == outcome.n_total == expected


@pytest.mark.parametrize("kind", ["tinybert", "distilbert", "pkd"])
def test_teacher_is_left_as_it_was(kind: str, encoder: Path, teacher: Classifier, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    systems(encoder, teacher, QUICK)[kind].learn(lesson(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())


def test_teacher_may_be_found_for_the_lesson_once_and_for_every_seed(
    encoder: Path, teacher: Classifier, tmp_path: Path
) -> None:
    find = TunedTeacher(encoder, QUICK, seed=5, progress=False)
    first, second = find(lesson(tmp_path, seed=0)), find(lesson(tmp_path, seed=1, soft=soft_of(teacher)))
    assert_same_weights(first, second)
    assert len(list(tmp_path.glob("*.pt"))) == 1
    found, passed = (
        PKD(encoder, source, (1, 3), QUICK, progress=False).learn(lesson(tmp_path / cache))
        for source, cache in ((lambda _: first, "found"), (first, "passed"))
    )
    np.testing.assert_array_equal(found.learned.logits(UNSEEN), passed.learned.logits(UNSEEN))


def test_an_epoch_of_tinybert_is_one_of_each_stage(encoder: Path, teacher: Classifier, tmp_path: Path) -> None:
    outcome = systems(encoder, teacher, QUICK)["tinybert"].learn(lesson(tmp_path))
    (stage,) = tmp_path.glob("tinybert-loss-transfer-*.pt")
    (last,) = set(tmp_path.glob("tinybert-loss-*.pt")) - {stage}
    epochs = [torch.load(path, weights_only=True)["epochs"] for path in (stage, last)]
    expected = sum(np.mean([entry["seconds"] for entry in found]) for found in epochs)
    assert outcome.facts["seconds_per_epoch"] == pytest.approx(expected)


def test_transfer_brings_the_student_closer_to_its_teacher(encoder: Path, teacher: Classifier, tmp_path: Path) -> None:
    losses = systems(encoder, teacher, LONG)["tinybert"].learn(lesson(tmp_path)).facts["transfer_losses"]
    assert len(losses) == LONG.epochs
    assert losses[-1] < 0.6 * losses[0]


def test_minillm_follows_the_lessons_teacher_and_not_the_labels(
    encoder: Path, teacher: Classifier, tmp_path: Path
) -> None:
    soft = soft_of(teacher)
    turned = replace(soft, train=-soft.train)
    outcome = systems(encoder, teacher, LONG)["minillm"].learn(lesson(tmp_path, soft=turned))
    # The labels choose the epoch; what is learned is the opposite.
    assert outcome.epochs[-1] < 0.3


def test_teacher_that_is_no_number_stops_its_student_by_name(encoder: Path, tmp_path: Path) -> None:
    spoilt = np.full((len(TRAIN), 2), np.nan, dtype=np.float32)
    system = MiniLLM(encoder, layers=(1, 3), config=QUICK, progress=False)
    with pytest.raises(DivergedError, match=r"MiniLLM \(loss\): the loss is nan in epoch 1 of 2, step 1 of 12"):
        system.learn(lesson(tmp_path, soft=Soft("spoilt", spoilt, spoilt, 1)))


def test_names_say_that_only_the_loss_is_the_methods(encoder: Path, teacher: Classifier) -> None:
    names = [system.name for system in systems(encoder, teacher, QUICK).values()]
    assert names == ["TinyBERT (loss)", "MiniLLM (loss)", "DistilBERT (loss)", "PKD (loss)", "MiniLM, fine-tuned"]


def test_minillm_without_a_teacher_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TeacherError, match=r"MiniLLM \(loss\): expected a teacher's logits of shape \(192, 2\), found none"
    ):
        MiniLLM(encoder, layers=(1, 3)).learn(lesson(tmp_path))


def test_logits_of_other_texts_are_refused(encoder: Path, tmp_path: Path) -> None:
    soft = Soft("tiny", np.zeros((63, 2)), np.zeros((48, 2)), 1)
    with pytest.raises(TeacherError, match=r"logits of tiny have shape \(63, 2\), expected \(192, 2\)"):
        MiniLLM(encoder, layers=(1, 3)).learn(lesson(tmp_path, soft=soft))


@pytest.mark.parametrize("kind", ["tinybert", "distilbert", "pkd"])
def test_teacher_of_other_classes_is_refused(kind: str, encoder: Path, tmp_path: Path) -> None:
    other = cut_classifier(encoder, None, 5, QUICK, seed=0)
    with pytest.raises(TeacherError, match="teacher's classes: 5, expected the student's 2"):
        systems(encoder, other, QUICK)[kind].learn(lesson(tmp_path))


def test_teacher_without_the_layers_to_copy_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"layers \[1, 3\] of the teacher are to be copied, found 2"):
        systems(encoder, cut(encoder, (1, 2)), QUICK)["pkd"].learn(lesson(tmp_path))


def test_pkd_of_one_layer_is_refused(encoder: Path, teacher: Classifier, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"layers are \[3\], expected at least 2"):
        PKD(encoder, teacher.model, layers=(3,)).learn(lesson(tmp_path))
