from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from tiny_encoders import N_LAYERS, PLACE, PLACES, SIZE, WEATHER, places, save_encoder
from transformers import AutoModel, DistilBertConfig, DistilBertModel

from training.baselines import loop
from training.baselines.batches import Batch, Tokens
from training.baselines.loop import History
from training.data import TaskData, Texts
from training.encoders import learn as learning
from training.encoders.config import EncoderConfig
from training.encoders.learn import Subject, learn
from training.encoders.pooled import PooledEncoder, Reader, open_encoder
from training.encoders.teachers import encoder_teacher
from training.errors import DivergedError, EncoderError
from training.study.system import Soft

torch.set_num_threads(1)

KINDS = ("bert", "mpnet")
QUICK = EncoderConfig(layers=(1, 2), epochs=3, batch_size=16, learning_rate=3e-3, max_tokens=16)
LONG = QUICK.model_copy(update={"epochs": 10, "learning_rate": 1e-2, "train_words": True, "dropout": 0.0})
SMOOTHING, GUIDANCE, TEMPERATURE = 0.1, 0.3, 2.0
LABELS = {"weather": WEATHER.labels, "place": PLACE.labels}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_encoder(kind, tmp_path_factory.mktemp("encoders") / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def bert(encoders: dict[str, Path]) -> Path:
    return encoders["bert"]


def teacher(data: TaskData, seed: int = 0) -> Soft:
    """Logits that differ from text to text and are often wrong."""
    rng = np.random.default_rng(seed)
    train, validation = (
        rng.normal(size=(len(texts), len(data.labels))).astype(np.float32) for texts in (data.train, data.validation)
    )
    return Soft("tiny", train, validation, 1000)


def both(soft: Soft | None = None, repeats: int = 1) -> dict[str, Subject]:
    """Two tasks of two and three classes; the second one with a teacher, where there is one."""
    return {"weather": Subject(WEATHER), "place": Subject(PLACE, soft, repeats)}


def run(
    folder: Path,
    cache: Path,
    subjects: Mapping[str, Subject] | None = None,
    config: EncoderConfig = QUICK,
    guidance: float = GUIDANCE,
    temperature: float = TEMPERATURE,
) -> tuple[Reader, History]:
    subjects = subjects or both(teacher(PLACE))
    return learn(folder, config, subjects, guidance, temperature, cache, "tiny", progress=False)


def changed(**changes: Any) -> EncoderConfig:
    return QUICK.model_copy(update=changes)


class Prepared:
    """What `learn` hands to the shared loop, which is not run; the model without dropout."""

    def __init__(self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        def keep(
            model: PooledEncoder,
            forward: Callable[[Batch], torch.Tensor],
            loss: Callable[[Batch], torch.Tensor],
            texts: Tokens,
            validation: Tokens,
            *args: Any,
            **kwargs: Any,
        ) -> History:
            self.model, self.forward, self.loss = model.eval(), forward, loss
            self.texts, self.validation = texts, validation
            return History([])

        with monkeypatch.context() as patch:
            patch.setattr(learning, "train", keep)
            self.reader, _ = run(folder, cache, **options)

    def logits(self, task: str, text: str) -> np.ndarray:
        """Of one text alone, by the head's own weights."""
        ids = torch.tensor([self.reader.tokenizer.encode(text).ids])
        with torch.inference_mode():
            states = self.model.encoder(input_ids=ids, output_hidden_states=True).hidden_states
            pooled = np.concatenate([states[layer][0].numpy().mean(axis=0) for layer in QUICK.layers])
        head = self.model.heads[task]
        return np.asarray(head.weight.detach().numpy() @ pooled + head.bias.detach().numpy(), dtype=np.float64)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert same_weights(one, other)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def without_seconds(history: History) -> list[dict[str, float]]:
    return [{**entry, "seconds": 0} for entry in history.epochs]


# --- what a text costs ---


def smoothed_cross_entropy(logits: np.ndarray, target: int) -> float:
    """Against (1 - s) one-hot + s / K (Szegedy et al. 2016, section 7)."""
    log_q = log_softmax(logits)
    return float(-(1 - SMOOTHING) * log_q[target] - SMOOTHING * log_q.mean())


def divergence(teacher_logits: np.ndarray, logits: np.ndarray) -> float:
    """T^2 KL(f || q) at the temperature T."""
    f, log_q = softmax(teacher_logits / TEMPERATURE), log_softmax(logits / TEMPERATURE)
    return float(TEMPERATURE**2 * (f * (np.log(f) - log_q)).sum())


def test_loss_of_labels_alone_is_the_smoothed_cross_entropy_over_a_tasks_own_classes(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(bert, tmp_path, monkeypatch, subjects=both())
    rows = np.array([0, 5, 9, 96, 99, 120, 121])
    expected = [
        smoothed_cross_entropy(prepared.logits("weather", WEATHER.train.texts[i]), WEATHER.train.targets[i])
        if i < 96
        else smoothed_cross_entropy(prepared.logits("place", PLACE.train.texts[i - 96]), PLACE.train.targets[i - 96])
        for i in rows
    ]
    assert prepared.loss(prepared.texts.batch(rows)).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_loss_with_a_teacher_weighs_labels_and_divergence_and_leaves_other_tasks_to_their_labels(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = teacher(PLACE)
    prepared = Prepared(bert, tmp_path, monkeypatch, subjects=both(soft))
    rows = np.array([2, 96, 97, 130, 155])
    expected = [smoothed_cross_entropy(prepared.logits("weather", WEATHER.train.texts[2]), WEATHER.train.targets[2])]
    for i in rows[1:] - 96:
        logits = prepared.logits("place", PLACE.train.texts[i])
        from_labels = smoothed_cross_entropy(logits, PLACE.train.targets[i])
        expected.append(GUIDANCE * from_labels + (1 - GUIDANCE) * divergence(soft.train[i], logits))
    assert prepared.loss(prepared.texts.batch(rows)).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_guidance_of_one_does_not_hear_the_teacher(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(90, 110)
    losses = []
    for subjects in (both(teacher(PLACE)), both()):
        prepared = Prepared(bert, tmp_path, monkeypatch, subjects=subjects, guidance=1.0)
        losses.append(prepared.loss(prepared.texts.batch(rows)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_text_of_one_task_gives_no_gradient_to_the_head_of_another(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(bert, tmp_path, monkeypatch)
    prepared.loss(prepared.texts.batch(np.arange(8))).backward()
    gradients = {task: head.weight.grad for task, head in prepared.model.heads.items()}
    assert gradients["weather"] is not None
    assert gradients["weather"].abs().max() > 1e-4
    assert gradients["place"] is None


def test_logits_of_a_text_are_its_own_tasks_and_no_other_class_has_a_chance(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(bert, tmp_path, monkeypatch)
    rows = np.array([1, 31, 32, 40, 61])  # of the validation texts: the first 32 are of the first task
    with torch.inference_mode():
        logits = prepared.forward(prepared.validation.batch(rows))
    assert logits.shape == (5, 5)
    for row, found in zip(rows, logits.numpy(), strict=True):
        task, texts, block = ("weather", WEATHER, slice(0, 2)) if row < 32 else ("place", PLACE, slice(2, 5))
        text = texts.validation.texts[row if row < 32 else row - 32]
        np.testing.assert_allclose(found[block], prepared.logits(task, text), rtol=1e-4, atol=1e-5)
        assert np.count_nonzero(softmax(found)) == block.stop - block.start


def test_epoch_shows_repeated_texts_with_their_targets_and_teacher_and_validation_shows_each_once(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(bert, tmp_path, monkeypatch, subjects=both(teacher(PLACE), repeats=3))
    n_weather, n_place = len(WEATHER.train), len(PLACE.train)
    assert len(prepared.texts.ids) == n_weather + 3 * n_place
    expected = [*WEATHER.train.targets, *np.tile(PLACE.train.targets + 2, 3)]
    np.testing.assert_array_equal(prepared.texts.targets, expected)
    np.testing.assert_array_equal(
        prepared.validation.targets, [*WEATHER.validation.targets, *(PLACE.validation.targets + 2)]
    )
    shown = [prepared.texts.batch(n_weather + i * n_place + np.arange(7)) for i in range(3)]
    losses = [prepared.loss(batch).item() for batch in shown]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-7)
    assert prepared.loss(prepared.texts.batch(n_weather + 7 + np.arange(7))).item() != pytest.approx(losses[0])


# --- the encoder ---


@pytest.mark.parametrize("kind", KINDS)
def test_means_are_of_a_texts_own_tokens_whatever_its_neighbours(encoders: dict[str, Path], kind: str) -> None:
    reader = open_encoder(encoders[kind], QUICK, {"place": 3})
    tokens = reader.tokens(PLACE.validation)
    assert tokens.pad_id == {"bert": 0, "mpnet": 1}[kind]
    batch = tokens.batch(np.arange(12))
    assert 0 < int(batch.attention_mask.sum()) < batch.attention_mask.numel()
    encoder = AutoModel.from_pretrained(encoders[kind], attn_implementation="eager").eval()
    with torch.inference_mode():
        found = reader.model.pooled(batch)
        for row, ids in zip(found, tokens.ids, strict=False):
            states = encoder(input_ids=torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
            alone = torch.cat([states[layer][0].mean(dim=0) for layer in QUICK.layers])
            torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_that_is_cut_answers_as_the_layers_that_are_kept(encoders: dict[str, Path], kind: str) -> None:
    whole, cut = (open_encoder(encoders[kind], changed(layers=(2,), depth=depth), {"place": 3}) for depth in (None, 2))
    assert len(cut.model.encoder.encoder.layer) == cut.model.encoder.config.num_hidden_layers == 2
    assert len(whole.model.encoder.encoder.layer) == N_LAYERS
    np.testing.assert_array_equal(cut.answer("place", PLACE.validation), whole.answer("place", PLACE.validation))


def test_answers_come_in_the_texts_order_and_the_same_in_any_batch(bert: Path) -> None:
    readers = [open_encoder(bert, changed(batch_size=size), {"place": 3}) for size in (1, 7)]
    one, seven = (reader.answer("place", PLACE.validation) for reader in readers)
    assert one.shape == (30, 3)
    np.testing.assert_allclose(seven, one, rtol=1e-4, atol=1e-5)
    assert np.ptp(one[:, 0]) > 0.01


def test_long_text_is_truncated(bert: Path) -> None:
    reader = open_encoder(bert, changed(max_tokens=8), {"place": 3})
    text = Texts(("the road " * 20,), np.array([2]), PLACES, "long")
    assert [len(ids) for ids in reader.tokens(text).ids] == [8]


def weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("train_words", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_read_and_not_frozen_is_trained_and_counted(
    encoders: dict[str, Path], tmp_path: Path, kind: str, train_words: bool
) -> None:
    config = changed(layers=(2,), frozen_layers=1, train_words=train_words, epochs=1)
    reader, _ = run(encoders[kind], tmp_path, config=config)
    before, after = AutoModel.from_pretrained(encoders[kind]), reader.model.encoder
    kept = {
        "word vectors": (before.embeddings, after.embeddings),
        "pooler": (before.pooler, after.pooler),
        **{f"layer {i + 1}": (before.encoder.layer[i], after.encoder.layer[i]) for i in range(N_LAYERS)},
    }
    moved = {what for what, (one, other) in kept.items() if not same_weights(one, other)}
    assert moved == {"layer 2", *(["word vectors"] if train_words else [])}
    heads = 2 * SIZE + 2 + 3 * SIZE + 3
    trained = weights(after.encoder.layer[1]) + heads
    if kind == "mpnet":  # one table for all layers, so it is frozen with any of them
        assert same_weights(before.encoder.relative_attention_bias, after.encoder.relative_attention_bias)
    assert reader.n_trainable == trained + (weights(after.embeddings) if train_words else 0)
    assert reader.n_parameters == weights(before) + heads


def test_heads_alone_are_trained_where_all_layers_are_frozen(bert: Path, tmp_path: Path) -> None:
    reader, _ = run(bert, tmp_path, config=changed(frozen_layers=2, epochs=1))
    assert_same_weights(AutoModel.from_pretrained(bert), reader.model.encoder)
    assert reader.n_trainable == (2 + 3) * (2 * SIZE) + 5


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_folder_that_lacks_a_file_is_refused_and_the_file_named(bert: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "partial"))
    (folder / name).unlink()
    with pytest.raises(EncoderError, match=f"{folder / name}: no such file"):
        open_encoder(folder, QUICK, {"place": 3})


def test_weights_that_are_none_are_refused_and_the_folder_named(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "damaged"))
    (folder / "model.safetensors").write_bytes(b"not what it should be")
    with pytest.raises(EncoderError, match=f"{folder}: expected a Hugging Face encoder"):
        open_encoder(folder, QUICK, {"place": 3})


def test_encoder_of_another_build_is_refused_and_named(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "distilbert"
    DistilBertModel(DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32)).save_pretrained(
        folder
    )
    shutil.copyfile(bert / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(EncoderError, match=f"{folder}: expected an encoder built as BERT is, found DistilBertModel"):
        open_encoder(folder, QUICK, {"place": 3})


@pytest.mark.parametrize("wrong", [{"layers": (1, 4)}, {"layers": (0,)}, {"frozen_layers": 4}])
def test_layers_that_the_encoder_lacks_are_refused(bert: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(EncoderError, match=r"expected some of 1 to 3"):
        open_encoder(bert, changed(**wrong), {"place": 3})


def test_more_layers_than_there_are_cannot_be_kept(bert: Path) -> None:
    with pytest.raises(EncoderError, match=f"{bert}: depth is 4, expected at most its 3 layers"):
        open_encoder(bert, changed(depth=4), {"place": 3})


# --- learning ---


def test_one_encoder_learns_two_tasks(bert: Path, tmp_path: Path) -> None:
    reader, history = run(bert, tmp_path, both(), LONG, guidance=1.0)
    for task, data in (("weather", WEATHER), ("place", PLACE)):
        accuracy = (reader.answer(task, data.test).argmax(axis=1) == data.test.targets).mean()
        assert accuracy > 0.75, task
    assert history.epochs[0]["train_loss"] > history.epochs[-1]["train_loss"]


def test_teacher_decides_where_labels_have_no_weight(bert: Path, tmp_path: Path) -> None:
    data = TaskData(PLACE.train, PLACE.validation, PLACE.test)
    opposite = 6 * np.eye(3, dtype=np.float32)[(PLACE.train.targets + 1) % 3]
    turned = replace(PLACE.validation, targets=(PLACE.validation.targets + 1) % 3)
    subject = Subject(replace(data, validation=turned), Soft("wrong", opposite, opposite[:30], 1))
    reader, _ = run(bert, tmp_path, {"place": subject}, LONG, guidance=0.0)
    answers = reader.answer("place", PLACE.test).argmax(axis=1)
    assert (answers == (PLACE.test.targets + 1) % 3).mean() > 0.7


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_run_that_was_interrupted_goes_on_to_the_same_weights(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, averaging: float
) -> None:
    config, validate = LONG.model_copy(update={"averaging": averaging, "epochs": 3}), loop._validate
    unbroken, history = run(bert, tmp_path / "unbroken", both(), config)
    assert history.best_epoch > 1  # what is kept is learned after the interruption
    calls = iter(range(100))

    def interrupt(*args: Any) -> dict[str, float]:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return validate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_validate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(bert, tmp_path / "broken", both(), config)
    resumed, resumed_history = run(bert, tmp_path / "broken", both(), config)
    assert_same_weights(resumed.model, unbroken.model)
    assert without_seconds(resumed_history) == without_seconds(history)


def test_mean_of_the_weights_is_what_is_validated_and_kept(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decay, steps = 0.4, []
    update = loop._Average.update

    def note(average: loop._Average) -> None:
        steps.append([parameter.detach().double().numpy().copy() for parameter in average._parameters])
        update(average)

    monkeypatch.setattr(loop._Average, "update", note)
    config = changed(averaging=decay, epochs=1)
    start = open_encoder(bert, config, {task: len(labels) for task, labels in LABELS.items()}).model
    means = [p.detach().double().numpy().copy() for p in start.parameters() if p.requires_grad]
    reader, history = run(bert, tmp_path, both(), config, guidance=1.0)
    assert len(steps) == 10  # 156 texts in batches of 16
    for k, weights_after in enumerate(steps, start=1):
        # Early steps count for more: k / (k + 10) stays under the decay until step 6.
        keep = min(decay, k / (k + 10))
        means = [keep * mean + (1 - keep) * now for mean, now in zip(means, weights_after, strict=True)]
    kept = [p.detach().numpy() for p in reader.model.parameters() if p.requires_grad]
    for found, mean in zip(kept, means, strict=True):
        np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)
    assert max(np.abs(found - last).max() for found, last in zip(kept, steps[-1], strict=True)) > 1e-4
    losses = [
        -log_softmax(reader.answer(task, texts).astype(float), axis=1)[np.arange(len(texts)), texts.targets]
        for task, texts in (("weather", WEATHER.validation), ("place", PLACE.validation))
    ]
    assert history.epochs[0]["validation_loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)


def test_mean_with_a_long_memory_follows_the_weights_of_a_short_run() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    average = loop._Average([parameter], 0.999)
    with torch.no_grad():
        parameter.fill_(1.0)
    for _ in range(30):
        average.update()
    # prod_k k / (k + 10) = 1 / C(40, 10) is what is left of the start; 0.999^30 would leave 97 %.
    assert 1 - average.values[0].item() == pytest.approx(1 / math.comb(40, 10), abs=1e-6)


def test_nan_loss_stops_and_leaves_the_last_finished_epoch(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, calls, divergence_of = changed(averaging=0.9), iter(range(10_000)), learning.soft_loss
    subjects = {"place": both(teacher(PLACE))["place"]}
    n_batches = -(-len(PLACE.train) // QUICK.batch_size)

    def poisoned(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
        return divergence_of(logits, taught, temperature) * (torch.nan if next(calls) == n_batches + 1 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(learning, "soft_loss", poisoned)
        with pytest.raises(DivergedError, match=rf"tiny: the loss is nan in epoch 2 of 3, step 2 of {n_batches}.*\.pt"):
            run(bert, tmp_path / "broken", subjects, config)
    [checkpoint] = (tmp_path / "broken").glob("*.pt")
    state = torch.load(checkpoint, weights_only=True)
    assert len(state["epochs"]) == 1
    assert all(torch.isfinite(value).all() for value in [*state["model"].values(), *state["average"]["values"]])
    resumed, history = run(bert, tmp_path / "broken", subjects, config)
    unbroken, expected = run(bert, tmp_path / "unbroken", subjects, config)
    assert_same_weights(resumed.model, unbroken.model)
    assert without_seconds(history) == without_seconds(expected)


def test_teacher_whose_logits_are_no_numbers_stops_at_once_and_leaves_no_checkpoint(bert: Path, tmp_path: Path) -> None:
    soft = teacher(PLACE)
    soft.train[7, 0] = np.nan
    with pytest.raises(DivergedError, match=r"the loss is nan in epoch 1 of 3.*no epoch was finished"):
        run(bert, tmp_path, both(soft))
    assert list(tmp_path.glob("*.pt")) == []


def test_finished_run_is_read_and_not_trained_again(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(averaging=0.9)
    trained, history = run(bert, tmp_path, config=config)

    def fail(*args: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "_train_epoch", fail)
    read, same_history = run(bert, tmp_path, config=config)
    assert_same_weights(read.model, trained.model)
    assert same_history == history


def test_another_run_has_another_checkpoint(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []

    def note(*args: Any, **kwargs: Any) -> History:
        paths.append(args[7])
        return History([])

    monkeypatch.setattr(learning, "train", note)
    soft = teacher(PLACE)
    other_texts = replace(PLACE, train=places(60, seed=40))
    other_validation = replace(PLACE, validation=places(30, seed=50))
    run(bert, tmp_path, both(soft))
    run(bert, tmp_path, both(teacher(PLACE)))
    assert paths[0] == paths[1]
    assert paths[0].parent == tmp_path
    run(bert, tmp_path, both(teacher(PLACE, seed=1)))
    run(bert, tmp_path, both())
    run(bert, tmp_path, both(soft, repeats=2))
    run(bert, tmp_path, {"weather": Subject(WEATHER), "place": Subject(other_texts, soft)})
    run(bert, tmp_path, {"weather": Subject(WEATHER), "place": Subject(other_validation, soft)})
    run(bert, tmp_path, both(soft), guidance=0.4)
    run(bert, tmp_path, both(soft), temperature=3.0)
    for change in ({"averaging": 0.9}, {"learning_rate": 1e-3}, {"layers": (2,)}, {"seed": 1}, {"train_words": True}):
        run(bert, tmp_path, both(soft), changed(**change))
    run(save_encoder("bert", tmp_path / "other", seed=1), tmp_path, both(soft))
    assert len(set(paths[1:])) == len(paths[1:])


def test_test_texts_do_not_matter(bert: Path, tmp_path: Path) -> None:
    blind = {task: replace(subject, data=replace(subject.data, test=None)) for task, subject in both().items()}  # type: ignore[arg-type]
    reader, _ = run(bert, tmp_path, blind, changed(epochs=1))
    assert reader.answer("place", PLACE.test).shape == (30, 3)


# --- a teacher of one task ---


def test_encoder_teacher_answers_for_any_texts_and_is_trained_once(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LONG.model_copy(update={"source": str(bert)})
    soft = encoder_teacher("tiny", config, "place", PLACE, tmp_path)
    assert (soft.name, soft.train.shape, soft.validation.shape) == ("tiny", (60, 3), (30, 3))
    assert soft.n_parameters == weights(AutoModel.from_pretrained(bert)) + 3 * (2 * SIZE) + 3
    assert soft.answer is not None
    np.testing.assert_array_equal(soft.answer(PLACE.train), soft.train)
    assert (soft.answer(PLACE.test).argmax(axis=1) == PLACE.test.targets).mean() > 0.7
    assert [path.name[:11] for path in (tmp_path / "encoders").glob("*.pt")] == ["tiny-place-"]
    monkeypatch.setattr(loop, "_train_epoch", None)  # not called
    np.testing.assert_array_equal(encoder_teacher("tiny", config, "place", PLACE, tmp_path).train, soft.train)
