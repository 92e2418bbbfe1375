from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_teachers import CAUSAL, LABELS, save_teacher, toy_texts
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from training import lora as lora_module
from training import teacher as teacher_module
from training.config import TeacherConfig
from training.data import SPLITS, Texts, load_task
from training.errors import DataError, DivergedError, TeacherError
from training.lora import Classifier, build, finetune, loading_options, make_accelerator, predict
from training.pipeline import Pipeline
from training.teacher import FAMILIES, BaseModel, Teacher, find_base, teach, teacher_key

# transformers says it about itself whenever peft asks.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TRAIN, FEW = toy_texts(64, seed=1), toy_texts(24, seed=2)
KINDS = (*CAUSAL, "bert", "bert without pooler")
_LLAMA = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
LINEAR = {
    "bloom": {f"self_attention.{name}" for name in ("query_key_value", "dense")}
    | {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "opt": {f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")} | {"fc1", "fc2"},
    "llama": _LLAMA,
    "llama-3": _LLAMA,
    "llama-3 tied": _LLAMA,
}
Folder = Callable[[str], Path]


def teacher_config(model: Path, **changes: Any) -> TeacherConfig:
    settings = {
        "rank": 4,
        "alpha": 16.0,
        "learning_rate": 4e-3,
        "epochs": 2,
        "batch_size": 8,
        "max_tokens": 16,
        "precision": "fp32",
    }
    return TeacherConfig.model_validate({"model": str(model), **settings, **changes})


def run(config: TeacherConfig, cache: Path, train: Texts = TRAIN) -> Teacher:
    return teach(train, config, cache, progress=False)


def lora(teacher: Teacher) -> dict[str, torch.Tensor]:
    return load_file(teacher.folder / "lora.safetensors")


def logits(teacher: Teacher, texts: Texts) -> np.ndarray:
    return teacher.logits(texts, progress=False)


def built(config: TeacherConfig) -> Classifier:
    base = find_base(config.model)
    return build(base.folder, base.gguf, config, LABELS, make_accelerator())


def some(*texts: str) -> Texts:
    return Texts(texts, np.zeros(len(texts), dtype=np.int64), LABELS, "some texts")


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@dataclass(frozen=True)
class Taught:
    """A teacher after one epoch, with its weights before."""

    teacher: Teacher
    before: dict[str, torch.Tensor]
    classifier: Classifier


@pytest.fixture(scope="module")
def taught(teacher_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Taught]:
    """One teacher of a kind, in the cache and in memory; shared by all tests, which leave it as it is."""
    found: dict[str, Taught] = {}

    def taught(kind: str) -> Taught:
        if kind not in found:
            config = teacher_config(teacher_folder(kind), epochs=1)
            classifier = built(config)
            before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
            finetune(classifier, TRAIN, tmp_path_factory.mktemp("run"), progress=False)
            found[kind] = Taught(run(config, tmp_path_factory.mktemp("cache")), before, classifier)
        return found[kind]

    return taught


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_learns_a_separable_task(kind: str, teacher_folder: Folder, tmp_path: Path) -> None:
    teacher = run(teacher_config(teacher_folder(kind), epochs=6, learning_rate=1e-2), tmp_path)
    assert (logits(teacher, TRAIN).argmax(axis=1) == TRAIN.targets).mean() > 0.85


def test_bf16_teacher_learns_as_well(teacher_folder: Folder, tmp_path: Path) -> None:
    config = teacher_config(teacher_folder("llama"), epochs=6, learning_rate=1e-2, precision="bf16")
    teacher = run(config, tmp_path)
    assert (logits(teacher, TRAIN).argmax(axis=1) == TRAIN.targets).mean() > 0.85
    assert all(value.dtype == torch.float32 for value in lora(teacher).values())


def test_bf16_holds_only_the_frozen_weights_in_half_precision(teacher_folder: Folder) -> None:
    model = built(teacher_config(teacher_folder("bloom"), precision="bf16")).model
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_linear_layer_of_the_family_has_lora(kind: str, taught: Callable[[str], Taught]) -> None:
    modules = dict(taught(kind).classifier.model.named_modules())
    tuned = {name.removesuffix(".lora_A.default") for name in modules if name.endswith(".lora_A.default")}
    linear = {
        name.removesuffix(".base_layer")
        for name, module in modules.items()
        if type(module) is torch.nn.Linear and "lora_" not in name and "score" not in name
    }
    assert tuned == linear
    assert {name.split("layers.")[-1].split(".h.")[-1].split(".", 1)[1] for name in tuned} == LINEAR[kind]
    assert len(tuned) == 2 * len(LINEAR[kind])  # two layers


@pytest.mark.parametrize("kind", CAUSAL)
def test_only_lora_and_the_head_are_trained(kind: str, taught: Callable[[str], Taught]) -> None:
    model = taught(kind).classifier.model
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    assert any("lora_A" in name for name in trainable)
    assert any("score" in name for name in trainable)
    after = model.state_dict()
    changed = {name for name, value in taught(kind).before.items() if not torch.equal(value, after[name])}
    assert changed == trainable


@pytest.mark.parametrize("kind", CAUSAL)
def test_base_weights_equal_those_of_the_folder_after_training(
    kind: str, teacher_folder: Folder, taught: Callable[[str], Taught]
) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(teacher_folder(kind), num_labels=len(LABELS))
    trained = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in taught(kind).classifier.model.state_dict().items()
    }
    compared = [name for name in base.state_dict() if "score" not in name]
    assert len(compared) > 10
    assert_same_tensors({n: base.state_dict()[n] for n in compared}, {n: trained[n] for n in compared})


def test_every_lora_matrix_has_the_configured_rank(teacher_folder: Folder) -> None:
    weights = lora_module.trainable(built(teacher_config(teacher_folder("llama"), rank=3)).model)
    inner = [v.shape[0] if "lora_A" in n else v.shape[1] for n, v in weights.items() if "lora_" in n]
    # q, k, v, o, gate, up and down of two layers, two matrices each.
    assert inner == [3] * 28


def test_teacher_on_disk_is_what_the_record_says(taught: Callable[[str], Taught]) -> None:
    teacher = taught("llama").teacher
    record = json.loads((teacher.folder / "teacher.json").read_text(encoding="utf-8"))
    assert record["config"] == teacher.config.model_dump()
    assert record["labels"] == list(LABELS)
    assert (record["train_sha256"], record["model_sha256"]) == (TRAIN.sha256, teacher.base.sha256)
    assert record["trainable_parameters"] == sum(value.numel() for value in lora(teacher).values())
    assert {path.name for path in teacher.folder.iterdir()} >= {"teacher.json", "lora.safetensors"}
    assert not list(teacher.folder.glob("*.p*t*"))  # neither a checkpoint nor half a file


@pytest.mark.parametrize("kind", CAUSAL)
def test_logits_are_computed_once_and_then_read_from_disk(
    kind: str, taught: Callable[[str], Taught], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = taught(kind).teacher
    first, other = logits(teacher, TRAIN), logits(teacher, FEW)
    assert first.shape == (64, 2)
    assert first.dtype == np.float32
    assert np.ptp(first, axis=0).min() > 1e-3
    monkeypatch.setattr(teacher_module, "build", lambda *_: pytest.fail("built again"))
    np.testing.assert_array_equal(logits(teacher, TRAIN), first)
    np.testing.assert_array_equal(logits(teacher, FEW), other)


def test_teacher_is_trained_once(taught: Callable[[str], Taught], monkeypatch: pytest.MonkeyPatch) -> None:
    first = taught("opt").teacher
    monkeypatch.setattr(teacher_module, "build", lambda *_: pytest.fail("built again"))
    assert run(first.config, first.folder.parent) == first


def test_cached_logits_of_another_shape_are_refused_and_the_file_named(taught: Callable[[str], Taught]) -> None:
    teacher, texts = taught("llama").teacher, toy_texts(5, seed=8)
    logits(teacher, texts)
    path = teacher.folder / f"logits-{texts.sha256[:16]}.safetensors"
    save_file({"logits": torch.zeros(3, 2)}, path)
    with pytest.raises(TeacherError, match=rf"{path.name}: logits have shape \(3, 2\), expected \(5, 2\)"):
        logits(teacher, texts)


@pytest.mark.parametrize("kind", ["llama", "bert without pooler"])
def test_logits_are_the_same_when_the_model_is_built_again(kind: str, taught: Callable[[str], Taught]) -> None:
    teacher, texts = taught(kind).teacher, toy_texts(7, seed=9)
    first = logits(teacher, texts)
    (teacher.folder / f"logits-{texts.sha256[:16]}.safetensors").unlink()
    torch.manual_seed(1234)
    np.testing.assert_array_equal(logits(teacher, texts), first)


def test_key_changes_with_texts_configuration_and_base(teacher_folder: Folder, tmp_path: Path) -> None:
    config = teacher_config(teacher_folder("llama"))
    base = find_base(config.model)
    fewer = Texts(TRAIN.texts[:60], TRAIN.targets[:60], TRAIN.labels, TRAIN.source)
    relabelled = Texts(TRAIN.texts, 1 - TRAIN.targets, TRAIN.labels, TRAIN.source)
    reordered = Texts(TRAIN.texts, 1 - TRAIN.targets, TRAIN.labels[::-1], TRAIN.source)
    assert reordered.sha256 == TRAIN.sha256  # the same rows, but the columns of the logits change places
    keys = [teacher_key(texts, base, config) for texts in (TRAIN, fewer, relabelled, reordered)]
    changes = [{"rank": 5}, {"seed": 1}, {"epochs": 3}, {"learning_rate": 1e-3}, {"max_tokens": 17}]
    for change in (*changes, {"quantise": "8bit"}):
        keys.append(teacher_key(TRAIN, base, config.model_copy(update=change)))
    changed = Path(shutil.copytree(base.folder, tmp_path / "changed" / "llama"))
    weights = load_file(changed / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    keys.append(teacher_key(TRAIN, find_base(str(changed)), config))
    assert len(set(keys)) == len(keys)


def test_key_of_a_teacher_is_the_one_that_older_caches_hold() -> None:
    base = BaseModel("base", Path("base"), None, "0" * 64)
    assert teacher_key(some("one", "two"), base, TeacherConfig()) == "base-81942838e36dfce1"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_key_changes_with_every_file_that_the_logits_depend_on(
    name: str, teacher_folder: Folder, tmp_path: Path
) -> None:
    config = teacher_config(teacher_folder("llama"))
    changed = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "llama"))
    content = json.loads((changed / name).read_text(encoding="utf-8"))
    (changed / name).write_text(json.dumps(content | {"truncation": None, "rope_theta": 99.0}), encoding="utf-8")
    keys = {teacher_key(TRAIN, find_base(str(folder)), config) for folder in (changed, teacher_folder("llama"))}
    assert len(keys) == 2


def test_key_does_not_depend_on_where_the_base_lies_or_which_gpus_hold_it(
    teacher_folder: Folder, tmp_path: Path
) -> None:
    config = teacher_config(teacher_folder("llama"))
    moved = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "llama"))
    moved_key = teacher_key(TRAIN, find_base(str(moved)), teacher_config(moved, device_map="auto"))
    assert moved_key == teacher_key(TRAIN, find_base(config.model), config)


def test_equal_seeds_give_equal_weights_and_other_seeds_others(taught: Callable[[str], Taught], tmp_path: Path) -> None:
    first = taught("llama").teacher
    assert_same_tensors(lora(run(first.config, tmp_path)), lora(first))
    other = lora(run(first.config.model_copy(update={"seed": 1}), tmp_path))
    assert not any(torch.equal(value, other[name]) for name, value in lora(first).items() if "lora_A" in name)


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, before: bool) -> None:
    """Let ctrl-C come right before or right after a call of a function that each training step calls once."""
    original = getattr(owner, name)
    calls = 0

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and before:
            raise KeyboardInterrupt
        result = original(*arguments, **keywords)
        if calls == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)


def leave_checkpoint(config: TeacherConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, train: Texts = TRAIN) -> Path:
    """Stop a run with ctrl-C in its second epoch; returns the checkpoint that it leaves."""
    with monkeypatch.context() as patch:
        interrupt(patch, lora_module, "_forward", call=11, before=True)
        with pytest.raises(KeyboardInterrupt):
            run(config, cache, train)
    (checkpoint,) = cache.glob("*/checkpoint.pt")
    return checkpoint


@pytest.fixture(scope="module")
def unbroken(teacher_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return run(teacher_config(teacher_folder("llama"), dropout=0.2), tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize(
    ("owner", "name", "call", "before"),
    [
        (lora_module, "_forward", 1, True),
        (lora_module, "_forward", 11, False),
        (torch.optim.AdamW, "step", 5, True),
        (torch.optim.AdamW, "step", 1, False),
        (torch.optim.AdamW, "step", 11, False),
    ],
    ids=["before any step", "after forward", "before update", "after the first update", "after update"],
)
def test_interrupted_teacher_goes_on_to_the_weights_of_an_unbroken_one(
    owner: Any, name: str, call: int, before: bool, unbroken: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_module, "_CHECKPOINT_STEPS", 3)
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, call, before)
        with pytest.raises(KeyboardInterrupt):
            run(unbroken.config, tmp_path)
    torch.manual_seed(99)
    continued = run(unbroken.config, tmp_path)
    assert_same_tensors(lora(continued), lora(unbroken))
    assert not list(continued.folder.glob("checkpoint*"))


@pytest.mark.parametrize("kind", ["bloom", "opt", "llama-3"])
def test_interrupted_teacher_of_each_family_goes_on(
    kind: str, teacher_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = teacher_config(teacher_folder(kind), dropout=0.2)
    leave_checkpoint(config, tmp_path / "broken", monkeypatch)
    steps = []
    step = torch.optim.AdamW.step
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda *rest, **more: steps.append(None) or step(*rest, **more))
        continued = run(config, tmp_path / "broken")
    assert len(steps) == 16 - 10
    assert_same_tensors(lora(continued), lora(run(config, tmp_path / "unbroken")))


def spoil(monkeypatch: pytest.MonkeyPatch, call: int, what: str) -> None:
    """Let a step's loss be NaN, or its loss be finite and the gradient NaN."""
    original, calls = lora_module._forward, 0

    def spoilt(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        result = original(*arguments)
        if calls == call and what == "gradient":
            result.register_hook(lambda gradient: gradient * float("nan"))
        return result * float("nan") if calls == call and what == "loss" else result

    monkeypatch.setattr(lora_module, "_forward", spoilt)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_teacher_that_diverges_says_where_and_leaves_a_checkpoint_to_go_on_from(
    what: str, unbroken: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, 13, what)  # after the first epoch's checkpoint
        with pytest.raises(
            DivergedError, match=rf"{what} is nan at step 13 of 16.*learning_rate.*{unbroken.key}/checkpoint\.pt"
        ):
            run(unbroken.config, tmp_path)
    state = torch.load(tmp_path / unbroken.key / "checkpoint.pt", weights_only=True)
    assert state["step"] == 8
    assert all(value.isfinite().all() for value in state["trainable"].values())
    assert_same_tensors(lora(run(unbroken.config, tmp_path)), lora(unbroken))


def test_teacher_that_diverges_at_once_claims_no_checkpoint(
    unbroken: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 1, "loss")
    with pytest.raises(DivergedError, match=r"loss is nan at step 1 of 16.*no checkpoint yet"):
        run(unbroken.config, tmp_path)


def test_folder_that_lost_a_file_leaves_the_checkpoint_to_go_on_from(
    teacher_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded("llama", tmp_path)
    config = teacher_config(folder, dropout=0.2)
    checkpoint = leave_checkpoint(config, tmp_path / "cache", monkeypatch)
    left = checkpoint.read_bytes()
    shard = next(iter(folder.glob("model-*.safetensors"))).name
    for name in ("config.json", shard, "model.safetensors.index.json", "tokenizer.json"):
        (folder / name).rename(tmp_path / name)
        with pytest.raises(TeacherError, match=f"sharded: expected .*{name.partition('.')[0]}"):
            run(config, tmp_path / "cache")
        (tmp_path / name).rename(folder / name)
    assert checkpoint.read_bytes() == left
    continued = run(config, tmp_path / "cache")
    assert_same_tensors(lora(continued), lora(run(config, tmp_path / "unbroken")))


@pytest.mark.parametrize(
    ("split", "line", "said"),
    [
        ("test", "fog,grey", r"test\.csv: text 33 has the label 'grey', expected one of \['cold', 'warm'\]"),
        ("test", None, r"test\.csv: .*'warm'"),
        ("train", None, r"train\.csv: .*\['cold'\]"),
    ],
    ids=["label only in test", "class empty in test", "class empty in train"],
)
def test_wrong_data_stops_before_the_checkpoint_is_touched(
    split: str,
    line: str | None,
    said: str,
    teacher_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, cache, path = tmp_path / "data", tmp_path / "cache", tmp_path / "run.toml"
    data.mkdir()
    lines = [f"{text},{LABELS[target]}\n" for text, target in zip(TRAIN.texts, TRAIN.targets, strict=True)]
    for name in SPLITS:
        (data / f"{name}.csv").write_text("text,label\n" + "".join(lines[:32]), encoding="utf-8")
    config = teacher_config(teacher_folder("llama"), epochs=4)
    content = [f"{name} = {json.dumps(value)}" for name, value in config.model_dump(exclude_none=True).items()]
    path.write_text("\n".join(['task = "weather"', "[teacher]", *content]), encoding="utf-8")
    train = load_task(data).train
    checkpoint = leave_checkpoint(config, cache / "teachers", monkeypatch, train)
    left, good = checkpoint.read_bytes(), (data / f"{split}.csv").read_text(encoding="utf-8")
    wrong = f"{good}{line}\n" if line else "".join(row for row in good.splitlines(True) if ",warm" not in row)
    (data / f"{split}.csv").write_text(wrong, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        Pipeline.open(path, data, cache)
    assert checkpoint.read_bytes() == left


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_a_texts_logits(kind: str, taught: Callable[[str], Taught]) -> None:
    classifier = taught(kind).classifier
    # The token that pads may also stand in a text, or be all of it.
    pad = classifier.tokenizer.pad_token
    texts = some(*FEW.texts, f"snow {pad}", pad, f"the {pad} day", "naïve 日本")
    assert len({len(tokens) for tokens in classifier.tokens(texts)}) > 3
    together = predict(classifier, texts, progress=False)
    alone = [predict(classifier, some(text), progress=False) for text in texts.texts]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-5)
    assert np.ptp(together, axis=0).min() > 1e-3


@pytest.mark.parametrize("kind", CAUSAL)
def test_head_reads_the_last_token_that_is_no_padding(kind: str, taught: Callable[[str], Taught]) -> None:
    classifier = taught(kind).classifier
    read: list[torch.Tensor] = []
    head = classifier.model.get_submodule("base_model.model.score")
    hook = head.register_forward_hook(lambda _module, _inputs, output: read.append(output))
    texts = some("the ice", "we saw snow near the road again")
    found = predict(classifier, texts, progress=False)
    hook.remove()
    lengths = [len(tokens) for tokens in classifier.tokens(texts)]
    assert read[0].shape[1] == lengths[1] > lengths[0]
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(found[row], read[0][row, length - 1].numpy())


@pytest.mark.parametrize(
    ("kind", "token"),
    [("bloom", "<pad>"), ("opt", "<pad>"), ("llama", "</s>"), ("llama-3", "<|end_of_text|>")],
)
def test_batches_are_padded_on_the_right_with_the_families_token(
    kind: str, token: str, taught: Callable[[str], Taught]
) -> None:
    tokenizer = taught(kind).classifier.tokenizer
    assert (tokenizer.pad_token, tokenizer.padding_side) == (token, "right")


@pytest.mark.parametrize(("kind", "first"), [("opt", "</s>"), ("llama", "<s>"), ("llama-3", "<|begin_of_text|>")])
def test_text_begins_with_the_families_token(kind: str, first: str, taught: Callable[[str], Taught]) -> None:
    classifier = taught(kind).classifier
    (tokens,) = classifier.tokens(some("snow"))
    assert classifier.tokenizer.convert_ids_to_tokens(tokens)[0] == first


def test_logits_follow_the_order_of_the_texts(taught: Callable[[str], Taught]) -> None:
    classifier = taught("llama").classifier
    order = np.random.default_rng(0).permutation(len(FEW))
    shuffled = predict(classifier, some(*(FEW.texts[i] for i in order)), progress=False)
    np.testing.assert_allclose(shuffled, predict(classifier, FEW, progress=False)[order], rtol=0, atol=1e-5)


def test_long_texts_are_cut_to_the_configured_tokens(taught: Callable[[str], Taught]) -> None:
    classifier = taught("llama").classifier
    start = "the day we saw some snow near again then " * 2  # 18 words, of which 15 and the first token are read
    cut = predict(classifier, some(start, f"{start}sun sun", f"{start}ice"), progress=False)
    np.testing.assert_allclose(cut, cut[:1].repeat(3, axis=0), rtol=0, atol=1e-5)


def test_missing_folder_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"nowhere: expected 'smollm2-135m' or the folder"):
        run(teacher_config(tmp_path / "nowhere"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("kind", "missing", "said"),
    [
        ("llama", "config.json", "expected a config.json beside the weights, found none"),
        ("llama", "model.safetensors", r"expected \*.safetensors weights, found none"),
        ("llama", "tokenizer.json", "expected a tokenizer"),
        ("llama-3", "tokenizer_config.json", "expected a padding, end or unknown token .*tokenizer_config.json"),
        ("opt", "vocab.json", "expected a tokenizer"),
        ("opt", "merges.txt", r"expected a merges\.txt beside vocab\.json, found none"),
    ],
)
def test_folder_that_lacks_a_file_is_refused_and_named(
    kind: str, missing: str, said: str, teacher_folder: Folder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(teacher_folder(kind), tmp_path / "partial"))
    (folder / missing).unlink()
    with pytest.raises(TeacherError, match=f"partial: {said}"):
        run(teacher_config(folder), tmp_path / "cache")


def test_sentencepiece_model_alone_is_refused(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "partial"))
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(TeacherError, match=r"partial: expected a tokenizer .*tokenizer\.model alone is not read"):
        find_base(str(folder))


def test_weights_that_lack_a_tensor_are_refused_and_one_is_named(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder("bloom"), tmp_path / "partial"))
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "h.1.mlp.dense_h_to_4h" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherError, match=r"partial: expected all weights .*missing 2, such as .*h\.1\.mlp\.dense_h"):
        built(teacher_config(folder))


def sharded(kind: str, parent: Path) -> Path:
    """A model whose weights lie in several files and an index, as those of large models do."""
    folder = save_teacher(kind, parent / "sharded")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("kind", CAUSAL)
def test_sharded_weights_are_those_of_the_whole_file(kind: str, teacher_folder: Folder, tmp_path: Path) -> None:
    one, other = (built(teacher_config(path)).model for path in (teacher_folder(kind), sharded(kind, tmp_path)))
    assert_same_tensors(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("kind", ["bloom", "opt", "llama-3"])
def test_teacher_that_lacks_a_shard_is_refused_and_the_file_named(kind: str, tmp_path: Path) -> None:
    folder = sharded(kind, tmp_path)
    (folder / "model.safetensors.index.json").rename(tmp_path / "index")
    with pytest.raises(TeacherError, match=r"sharded: expected model\.safetensors\.index\.json beside model-00001-of"):
        find_base(str(folder))
    (tmp_path / "index").rename(folder / "model.safetensors.index.json")
    next(folder.glob("model-00002-of-*")).unlink()
    with pytest.raises(TeacherError, match=r"sharded: expected the \d weight files .* missing .*model-00002-of"):
        find_base(str(folder))


def test_pickled_weights_alone_are_refused(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"pickled: .*pickled weights are not read"):
        run(teacher_config(folder), tmp_path / "cache")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 64], ids=["empty", "truncated", "zeros"])
def test_damaged_file_is_refused_and_the_folder_named(
    name: str, content: bytes, teacher_folder: Folder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "damaged"))
    (folder / name).write_bytes(content)
    with pytest.raises(TeacherError, match="damaged: "):
        run(teacher_config(folder), tmp_path / "cache")


@pytest.mark.parametrize("family", ["clip_vision_model", "gpt2", "unheard-of"])
def test_unsupported_family_is_refused_with_those_that_are_supported(
    family: str, teacher_folder: Folder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "other"))
    (folder / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    with pytest.raises(
        TeacherError, match=f"other: .*'bert', 'bloom', 'llama', 'opt'.*found the model_type '{family}'"
    ):
        run(teacher_config(folder), tmp_path / "cache")


def test_every_supported_family_is_tried_here(teacher_folder: Folder) -> None:
    configs = [(teacher_folder(kind) / "config.json").read_text(encoding="utf-8") for kind in KINDS]
    assert {json.loads(config)["model_type"] for config in configs} == set(FAMILIES)


def test_tokenizer_of_another_model_is_refused(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder("llama-3"), tmp_path / "mixed"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher_folder("llama") / name, folder / name)
    with pytest.raises(TeacherError, match=r"mixed: expected token ids below 323, .* embedding, found 34\d"):
        run(teacher_config(folder), tmp_path / "cache")


GPU = SimpleNamespace(device=torch.device("cuda"), num_processes=1, local_process_index=0)


@pytest.mark.parametrize(("field", "value"), [("quantise", "8bit"), ("device_map", "auto")])
def test_what_needs_a_gpu_is_refused_without_one(
    field: str, value: str, teacher_folder: Folder, tmp_path: Path
) -> None:
    config = teacher_config(teacher_folder("llama"), **{field: value})
    with pytest.raises(TeacherError, match=rf"teacher\.{field}: {value} needs a CUDA device, found none"):
        run(config, tmp_path)


def test_8_bit_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_module, "find_spec", lambda _name: None)
    with pytest.raises(TeacherError, match="8bit needs the package bitsandbytes, found none"):
        loading_options(TeacherConfig(quantise="8bit"), GPU)


def test_model_spread_over_gpus_needs_one_process() -> None:
    two = SimpleNamespace(**{**vars(GPU), "num_processes": 2})
    with pytest.raises(TeacherError, match=r"teacher\.device_map: auto .* needs one process, found 2"):
        loading_options(TeacherConfig(device_map="auto"), two)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"dtype": torch.bfloat16}),
        ({"precision": "fp32"}, {"dtype": torch.float32}),
        ({"device_map": "auto"}, {"dtype": torch.bfloat16, "device_map": "auto"}),
        ({"quantise": "8bit"}, {"dtype": torch.bfloat16, "device_map": {"": 1}}),
        ({"quantise": "8bit", "device_map": "auto"}, {"dtype": torch.bfloat16, "device_map": "auto"}),
    ],
)
def test_configuration_reaches_from_pretrained_on_a_gpu(
    changes: dict[str, Any], expected: dict[str, Any], teacher_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def from_pretrained(folder: Path, **options: Any) -> None:
        seen.update(options, folder=folder)
        raise OSError("seen enough")

    monkeypatch.setattr(lora_module, "find_spec", lambda name: name)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
    config = TeacherConfig(model=str(teacher_folder("llama")), **changes)
    second = SimpleNamespace(**{**vars(GPU), "local_process_index": 1})
    with pytest.raises(TeacherError, match="seen enough"):
        build(Path(config.model), None, config, LABELS, second)
    quantised = seen.pop("quantization_config", None)
    assert seen == {"folder": Path(config.model), "num_labels": 2, "output_loading_info": True, **expected}
    assert (quantised is not None) == ("quantise" in changes)
    if quantised is not None:
        assert quantised.load_in_8bit
        assert "score" in quantised.llm_int8_skip_modules  # the head is tuned, in full precision


def data_parallel_worker(folder: str, cache: str) -> None:
    """What each of two processes runs: a teacher without dropout, one with it, and that one again with a break."""
    assert make_accelerator().num_processes == 2
    train = toy_texts(17, seed=1)  # the last of an epoch's batches is one text, for one of the processes
    teacher = run(teacher_config(Path(folder), dropout=0.0), Path(cache) / "plain", train)
    logits(teacher, FEW)
    config = teacher_config(Path(folder), dropout=0.2)
    run(config, Path(cache) / "unbroken", train)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, torch.optim.AdamW, "step", call=5, before=False)
        with pytest.raises(KeyboardInterrupt):
            run(config, Path(cache) / "broken", train)
    run(config, Path(cache) / "broken", train)


def test_two_processes_make_the_teacher_that_one_makes(teacher_folder: Folder, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    called = [str(teacher_folder("llama")), str(tmp_path)]
    program = f"import test_teacher; test_teacher.data_parallel_worker(*{called!r})"
    # What `accelerate launch` and `torchrun` tell each process.
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    paths = os.pathsep.join(str(path) for path in (Path(__file__).parent, Path(__file__).parents[2]))
    environment = {**os.environ, **place, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program], env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    train = toy_texts(17, seed=1)
    alone = run(teacher_config(teacher_folder("llama"), dropout=0.0), tmp_path / "alone", train)
    together = run(alone.config, tmp_path / "plain", train)
    for name, value in lora(alone).items():
        torch.testing.assert_close(lora(together)[name], value, rtol=0, atol=1e-5)
    assert list(together.folder.glob("logits-*"))
    np.testing.assert_allclose(logits(together, FEW), logits(alone, FEW), rtol=0, atol=1e-5)
    broken, unbroken = (load_file(next((tmp_path / name).glob("*/lora*"))) for name in ("broken", "unbroken"))
    assert_same_tensors(broken, unbroken)
