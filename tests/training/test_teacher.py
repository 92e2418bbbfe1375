from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_teachers import CAUSAL, LABELS, toy_texts
from transformers import AutoModelForSequenceClassification

from training import teacher as teacher_module
from training.config import TeacherConfig
from training.data import Texts
from training.errors import DivergedError, TeacherError
from training.teacher import Teacher, find_base, teach, teacher_key

# transformers says it about itself whenever peft asks.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TRAIN, FEW = toy_texts(64, seed=1), toy_texts(24, seed=2)
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


def accuracy(teacher: Teacher, texts: Texts) -> float:
    return float((logits(teacher, texts).argmax(axis=1) == texts.targets).mean())


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def trained_model(config: TeacherConfig, folder: Path, train: Texts = TRAIN) -> tuple[torch.nn.Module, Any]:
    """The model right before and right after training, built and trained as `teach` does."""
    torch.manual_seed(config.seed)
    model, tokenizer = teacher_module._build(find_base(config.model), config, train.labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folder.mkdir()
    teacher_module._train(model, tokenizer, train, config, folder, progress=False)
    return model, before


@pytest.mark.parametrize("kind", [*CAUSAL, "bert", "bert without pooler"])
def test_teacher_learns_a_separable_task(kind: str, teacher_folder: Folder, tmp_path: Path) -> None:
    teacher = run(teacher_config(teacher_folder(kind), epochs=16), tmp_path)
    assert accuracy(teacher, TRAIN) > 0.85


@pytest.mark.parametrize("kind", CAUSAL)
def test_bf16_teacher_learns_as_well(kind: str, teacher_folder: Folder, tmp_path: Path) -> None:
    teacher = run(teacher_config(teacher_folder(kind), epochs=16, precision="bf16"), tmp_path)
    assert accuracy(teacher, TRAIN) > 0.85
    assert all(value.dtype == torch.float32 for value in lora(teacher).values())


@pytest.mark.parametrize("kind", CAUSAL)
def test_only_lora_and_the_head_are_trained(kind: str, teacher_folder: Folder, tmp_path: Path) -> None:
    model, before = trained_model(teacher_config(teacher_folder(kind), epochs=1), tmp_path / "run")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    assert any("lora_A" in name for name in trainable)
    assert any("score" in name for name in trainable)
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == trainable


@pytest.mark.parametrize("kind", CAUSAL)
def test_base_weights_equal_those_of_the_folder_after_training(
    kind: str, teacher_folder: Folder, tmp_path: Path
) -> None:
    model, _ = trained_model(teacher_config(teacher_folder(kind), epochs=1), tmp_path / "run")
    base = AutoModelForSequenceClassification.from_pretrained(teacher_folder(kind), num_labels=len(LABELS))
    trained = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in model.state_dict().items()
    }
    compared = [name for name in base.state_dict() if "score" not in name]
    assert len(compared) > 10
    assert_same_tensors({n: base.state_dict()[n] for n in compared}, {n: trained[n] for n in compared})


def test_every_lora_matrix_has_the_configured_rank(teacher_folder: Folder, tmp_path: Path) -> None:
    weights = lora(run(teacher_config(teacher_folder("llama"), epochs=1, rank=3), tmp_path))
    inner = [v.shape[0] if "lora_A" in n else v.shape[1] for n, v in weights.items() if "lora_" in n]
    # q, k, v, o, gate, up and down of two layers, two matrices each.
    assert inner == [3] * 28


def test_teacher_on_disk_is_what_the_record_says(teacher_folder: Folder, tmp_path: Path) -> None:
    config = teacher_config(teacher_folder("llama"), epochs=1)
    teacher = run(config, tmp_path)
    record = json.loads((teacher.folder / "teacher.json").read_text(encoding="utf-8"))
    assert record["config"] == config.model_dump()
    assert record["labels"] == list(LABELS)
    assert (record["train_sha256"], record["model_sha256"]) == (TRAIN.sha256, teacher.base.sha256)
    assert record["trainable_parameters"] == sum(value.numel() for value in lora(teacher).values())
    assert not (teacher.folder / "checkpoint.pt").exists()


def test_logits_are_computed_once_and_then_read_from_disk(teacher_folder: Folder, tmp_path: Path) -> None:
    base = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "base"))
    teacher = run(teacher_config(base, epochs=1), tmp_path / "cache")
    first, other = logits(teacher, TRAIN), logits(teacher, FEW)
    assert first.shape == (64, 2)
    assert first.dtype == np.float32
    shutil.rmtree(base)  # the model cannot be built again
    np.testing.assert_array_equal(logits(teacher, TRAIN), first)
    np.testing.assert_array_equal(logits(teacher, FEW), other)
    with pytest.raises(TeacherError):
        logits(teacher, toy_texts(5, seed=3))


def test_teacher_is_trained_once(teacher_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = teacher_config(teacher_folder("opt"), epochs=1)
    first = run(config, tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("trained again"))
    again = run(config, tmp_path)
    assert again == first
    assert_same_tensors(lora(again), lora(first))


def test_cached_logits_of_another_shape_are_refused_and_the_file_named(teacher_folder: Folder, tmp_path: Path) -> None:
    teacher = run(teacher_config(teacher_folder("llama"), epochs=1), tmp_path)
    logits(teacher, FEW)
    (path,) = teacher.folder.glob("logits-*.safetensors")
    save_file({"logits": torch.zeros(3, 2)}, path)
    with pytest.raises(TeacherError, match=rf"{path.name}: logits have shape \(3, 2\), expected \(24, 2\)"):
        logits(teacher, FEW)


@pytest.mark.parametrize("kind", ["llama", "bert without pooler"])
def test_logits_are_the_same_when_the_model_is_built_again(kind: str, teacher_folder: Folder, tmp_path: Path) -> None:
    teacher = run(teacher_config(teacher_folder(kind), epochs=1), tmp_path)
    first = logits(teacher, FEW)
    for path in teacher.folder.glob("logits-*"):
        path.unlink()
    torch.manual_seed(1234)
    np.testing.assert_array_equal(logits(teacher, FEW), first)


def test_key_changes_with_texts_configuration_and_base(teacher_folder: Folder, tmp_path: Path) -> None:
    config = teacher_config(teacher_folder("llama"))
    base = find_base(config.model)
    fewer = Texts(TRAIN.texts[:60], TRAIN.targets[:60], TRAIN.labels, TRAIN.source)
    relabelled = Texts(TRAIN.texts, 1 - TRAIN.targets, TRAIN.labels, TRAIN.source)
    reordered = Texts(TRAIN.texts, 1 - TRAIN.targets, TRAIN.labels[::-1], TRAIN.source)
    assert reordered.sha256 == TRAIN.sha256  # the same rows, but the columns of the logits change places
    keys = [teacher_key(texts, base, config) for texts in (TRAIN, fewer, relabelled, reordered)]
    for change in ({"rank": 5}, {"seed": 1}, {"epochs": 3}, {"learning_rate": 1e-3}, {"max_tokens": 17}):
        keys.append(teacher_key(TRAIN, base, config.model_copy(update=change)))
    changed = Path(shutil.copytree(base.folder, tmp_path / "changed" / "llama"))
    weights = load_file(changed / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    keys.append(teacher_key(TRAIN, find_base(str(changed)), config))
    assert len(set(keys)) == len(keys)


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


def test_key_does_not_depend_on_where_the_base_lies(teacher_folder: Folder, tmp_path: Path) -> None:
    config = teacher_config(teacher_folder("llama"))
    moved = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "llama"))
    moved_key = teacher_key(TRAIN, find_base(str(moved)), teacher_config(moved))
    assert moved_key == teacher_key(TRAIN, find_base(config.model), config)


def test_equal_seeds_give_equal_weights_and_other_seeds_others(teacher_folder: Folder, tmp_path: Path) -> None:
    config = teacher_config(teacher_folder("llama"), epochs=1)
    one, same = (lora(run(config, tmp_path / name)) for name in "ab")
    other = lora(run(config.model_copy(update={"seed": 1}), tmp_path / "c"))
    assert_same_tensors(one, same)
    assert not any(torch.equal(value, other[name]) for name, value in one.items() if "lora_A" in name)


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


@pytest.mark.parametrize("call", [1, 5, 11], ids=["first step", "epoch 1", "epoch 2"])
@pytest.mark.parametrize(
    ("owner", "name", "before"),
    [
        (teacher_module, "_forward", True),
        (teacher_module, "_forward", False),
        (torch.optim.AdamW, "step", True),
        (torch.optim.AdamW, "step", False),
    ],
    ids=["before forward", "after forward", "before update", "after update"],
)
def test_interrupted_teacher_goes_on_to_the_weights_of_an_unbroken_one(
    owner: Any,
    name: str,
    before: bool,
    call: int,
    teacher_folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher_module, "_CHECKPOINT_STEPS", 3)
    config = teacher_config(teacher_folder("llama"), dropout=0.2)
    unbroken = run(config, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, call, before)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "broken")
    torch.manual_seed(99)
    continued = run(config, tmp_path / "broken")
    assert_same_tensors(lora(continued), lora(unbroken))
    assert not list(continued.folder.glob("checkpoint*"))


def test_continued_teacher_does_not_start_over(
    teacher_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_module, "_CHECKPOINT_STEPS", 3)
    config = teacher_config(teacher_folder("llama"))  # 16 steps
    with monkeypatch.context() as patch:
        interrupt(patch, torch.optim.AdamW, "step", call=11, before=True)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path)
    forwards = []
    forward = teacher_module._forward
    monkeypatch.setattr(teacher_module, "_forward", lambda *rest: forwards.append(None) or forward(*rest))
    run(config, tmp_path)
    assert 16 - 10 <= len(forwards) <= 16 - 9


@pytest.mark.parametrize("kind", [*CAUSAL, "bert"])
def test_padding_does_not_change_a_texts_logits(kind: str, teacher_folder: Folder, tmp_path: Path) -> None:
    teacher = run(teacher_config(teacher_folder(kind), epochs=1, batch_size=32), tmp_path)
    assert len({len(text.split()) for text in FEW.texts}) > 3
    together = logits(teacher, FEW)
    alone = [logits(teacher, Texts((t,), FEW.targets[i : i + 1], LABELS, "one")) for i, t in enumerate(FEW.texts)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-5)
    assert np.ptp(together, axis=0).min() > 1e-3


def test_logits_follow_the_order_of_the_texts(teacher_folder: Folder, tmp_path: Path) -> None:
    teacher = run(teacher_config(teacher_folder("llama"), epochs=1), tmp_path)
    order = np.random.default_rng(0).permutation(len(FEW))
    shuffled = Texts(tuple(FEW.texts[i] for i in order), FEW.targets[order], LABELS, "shuffled")
    np.testing.assert_allclose(logits(teacher, shuffled), logits(teacher, FEW)[order], rtol=0, atol=1e-5)


def test_long_texts_are_cut_to_the_configured_tokens(teacher_folder: Folder, tmp_path: Path) -> None:
    teacher = run(teacher_config(teacher_folder("llama"), epochs=1, max_tokens=8), tmp_path)
    start = "the day we saw some snow near again"
    ends = Texts((start, f"{start} sun sun", f"{start} ice"), np.array([0, 1, 0]), LABELS, "ends")
    cut = logits(teacher, ends)
    np.testing.assert_allclose(cut, cut[:1].repeat(3, axis=0), rtol=0, atol=1e-5)


def test_tokenizer_without_a_padding_token_still_pads(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "llama"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings["pad_token"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    teacher = run(teacher_config(folder, epochs=1, batch_size=32), tmp_path / "cache")
    alone = logits(teacher, Texts(FEW.texts[:1], FEW.targets[:1], FEW.labels, FEW.source))
    np.testing.assert_allclose(logits(teacher, FEW)[:1], alone, rtol=0, atol=1e-5)


def test_teacher_that_diverges_is_refused_with_the_step(
    teacher_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = teacher_module._forward, 0

    def diverging(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(*arguments) * (float("nan") if calls == 5 else 1.0)

    monkeypatch.setattr(teacher_module, "_forward", diverging)
    with pytest.raises(DivergedError, match=r"loss is nan at step 5 of 16"):
        run(teacher_config(teacher_folder("llama")), tmp_path)


def test_missing_folder_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"nowhere: expected 'smollm2-135m' or the folder"):
        run(teacher_config(tmp_path / "nowhere"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "expected a config.json beside the weights, found none"),
        ("model.safetensors", r"expected \*.safetensors weights, found none"),
        ("tokenizer.json", "expected a tokenizer"),
    ],
)
def test_folder_that_lacks_a_file_is_refused_and_named(
    missing: str, said: str, teacher_folder: Folder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "partial"))
    (folder / missing).unlink()
    with pytest.raises(TeacherError, match=f"partial: {said}"):
        run(teacher_config(folder), tmp_path / "cache")


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


def test_model_that_cannot_classify_is_refused(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder("llama"), tmp_path / "vision"))
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}), encoding="utf-8")
    with pytest.raises(TeacherError, match="vision: expected a causal or sequence-classification model"):
        run(teacher_config(folder), tmp_path / "cache")
