from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import N_LAYERS, PLACE, SIZE, long_texts, save_encoder
from transformers import AutoModel

from models.embedder import Embedder
from models.errors import FolderError
from training.baselines import loop
from training.data import SPLITS, TaskData, Texts
from training.encoders import adapt, command
from training.encoders.adapt import Adaptation
from training.encoders.config import AdaptConfig, load_adapt_config
from training.errors import ConfigError, DivergedError
from training.export import export_embedder
from training.packages import file_sha256
from training.study.system import Soft
from training.study.workshop import AskTeacher

torch.set_num_threads(1)

# Said by torch's exporter about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. batch will not be used:UserWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. tokens will not be used:UserWarning"),
]

COVER = TaskData(*(replace(long_texts(n, seed=n), labels=("cover", "stego")) for n in (60, 30, 20)))
COMMAND = "qdtrain adapt tiny.toml"
CONFIGS = Path(adapt.__file__).parents[1] / "configs"


def sure(task: str, data: TaskData, cache: Path) -> Soft:
    logits = [4 * np.eye(len(data.labels), dtype=np.float32)[t.targets] for t in (data.train, data.validation)]
    return Soft("sure", logits[0], logits[1], 1)


def never(task: str, data: TaskData, cache: Path) -> Soft:
    raise AssertionError("asked")


def write_task(folder: Path, data: TaskData) -> None:
    folder.mkdir(parents=True)
    for split in SPLITS:
        texts: Texts = getattr(data, split)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("text", "label"))
            rows.writerows((t, texts.labels[i]) for t, i in zip(texts.texts, texts.targets, strict=True))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("bert", tmp_path_factory.mktemp("encoder") / "tiny-bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two tasks."""
    folder = tmp_path_factory.mktemp("data")
    write_task(folder / "place", PLACE)
    write_task(folder / "hiding", COVER)
    return folder


def config(source: Path, /, **changes: Any) -> AdaptConfig:
    fields = {
        "teacher": "sure",
        "repeats": {"place": 1, "hiding": 2},
        "encoder": {"source": str(source), "layers": (2,), "epochs": 2, "learning_rate": 3e-3, "max_tokens": 16},
    }
    return AdaptConfig.model_validate(fields | changes)


def adaptation(
    config: AdaptConfig, data: Path, cache: Path, out: Path, teachers: dict[str, AskTeacher] | None = None
) -> Adaptation:
    return Adaptation(config, teachers or {"sure": sure}, data, cache, out, COMMAND)


@pytest.fixture(scope="module")
def adapted(encoder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An adapted encoder's folder, which the tests leave as it is, and what was returned."""
    folder = tmp_path_factory.mktemp("adapted")
    out = folder / "encoders" / "tiny-adapted"
    return out, adaptation(config(encoder), data, folder / "cache", out).run(progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_record_says_what_was_adapted_from_what_and_how(adapted: tuple[Path, dict[str, Any]], encoder: Path) -> None:
    out, returned = adapted
    found = json.loads((out / "adapted.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(returned))
    assert found["source"] == {"encoder": str(encoder), "weights_sha256": file_sha256(encoder / "model.safetensors")}
    assert found["weights_sha256"] == file_sha256(out / "model.safetensors") != found["source"]["weights_sha256"]
    assert found["data_sha256"] == {"place": PLACE.sha256, "hiding": COVER.sha256}
    assert found["configuration"] == config(encoder).model_dump(mode="json")
    assert found["command"] == COMMAND
    assert set(found["library_versions"]) == {"numpy", "tokenizers", "torch", "transformers"}
    whole = AutoModel.from_pretrained(encoder)
    heads = (3 + 2) * SIZE + 5
    assert found["parameters"] == sum(p.numel() for p in whole.parameters()) + heads
    assert found["trained_parameters"] == sum(p.numel() for p in whole.encoder.layer[:2].parameters()) + heads
    assert len(found["epochs"]) == 2
    assert found["best_epoch"] in (1, 2)
    best = found["epochs"][found["best_epoch"] - 1]["validation_accuracy"]
    measured = found["validation"]
    assert {task: entry["n"] for task, entry in measured.items()} == {"place": 30, "hiding": 30}
    assert (measured["place"]["accuracy"] + measured["hiding"]["accuracy"]) / 2 == pytest.approx(best)


def test_written_encoder_is_the_trained_one_and_exports(
    adapted: tuple[Path, dict[str, Any]], encoder: Path, tmp_path: Path
) -> None:
    out, returned = adapted
    assert {path.name for path in out.iterdir()} == {
        "adapted.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert (out / "tokenizer.json").read_bytes() == (encoder / "tokenizer.json").read_bytes()
    before, after = (AutoModel.from_pretrained(folder).eval() for folder in (encoder, out))
    same = [
        all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        for one, other in zip(before.encoder.layer, after.encoder.layer, strict=True)
    ]
    assert same == [False, False, True]
    info = export_embedder(str(out), tmp_path / "tiny-adapted", precision="fp32", max_tokens=32)
    embedder = Embedder(tmp_path / "tiny-adapted", threads=1)
    tokens = embedder.tokenise(PLACE.test.texts[:3])
    with torch.inference_mode():
        states = [after(torch.tensor([t.ids]), output_hidden_states=True).hidden_states for t in tokens]
    expected = [[state[0].mean(dim=0).numpy() for state in one] for one in states]
    found = embedder.pooled(tokens)
    assert found.shape == (3, N_LAYERS + 1, SIZE)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert info["source"]["adapted"]["trained_parameters"] == returned["trained_parameters"]
    assert info["source"]["adapted"]["teacher"] == "sure"


def test_generated_texts_are_a_task_more(encoder: Path, tmp_path: Path) -> None:
    tweets = TaskData(long_texts(820, seed=1), long_texts(20, seed=2), long_texts(20, seed=3))
    write_task(tmp_path / "data" / "tweets", tweets)
    write_task(tmp_path / "data" / "hiding", COVER)
    changed = config(
        encoder,
        repeats={"tweets": 1, "hiding": 1},
        generated={"tweets": "tweets", "hiding": "hiding"},
        encoder={"source": str(encoder), "layers": (2,), "epochs": 1, "batch_size": 128, "max_tokens": 16},
    )
    asked: list[str] = []

    def note(task: str, data: TaskData, cache: Path) -> Soft:
        asked.append(task)
        return sure(task, data, cache)

    out = tmp_path / "out"
    found = adaptation(changed, tmp_path / "data", tmp_path / "cache", out, {"sure": note}).run(progress=False)
    assert asked == ["tweets", "hiding"]  # no teacher for what is generated
    assert {task: entry["n"] for task, entry in found["validation"].items()} == {
        "tweets": 20,
        "hiding": 30,
        "generated": 400,
    }
    assert found["validation"]["generated"]["labels"] == ["written", "generated"]
    assert set(found["data_sha256"]) == {"tweets", "hiding"}


def test_task_may_have_a_teacher_of_its_own(encoder: Path, data: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def noting(name: str) -> AskTeacher:
        def note(task: str, data: TaskData, cache: Path) -> Soft:
            asked.append((name, task))
            return sure(task, data, cache)

        return note

    changed = config(encoder, teachers={"hiding": "other"})
    teachers = {"sure": noting("sure"), "other": noting("other")}
    out = tmp_path / "out"
    adaptation(changed, data, tmp_path / "cache", out, teachers).run(progress=False)
    assert asked == [("sure", "place"), ("other", "hiding")]
    info = export_embedder(str(out), tmp_path / "tiny", "fp32", max_tokens=16)
    assert info["source"]["adapted"]["teacher"] == "sure; hiding: other"


@pytest.mark.parametrize("inside", ["out/notes.txt", "out"])
def test_folder_of_something_else_is_refused_before_anything_is_learned(
    encoder: Path, data: Path, tmp_path: Path, inside: str
) -> None:
    precious = tmp_path / inside
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious", encoding="utf-8")
    with pytest.raises(FolderError, match=rf"{tmp_path / 'out'}: expected a new folder or one with adapted\.json"):
        adaptation(config(encoder), data, tmp_path / "cache", tmp_path / "out", {"sure": never}).run(progress=False)
    assert precious.read_text(encoding="utf-8") == "precious"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("teachers", [{"teacher": "nobody"}, {"teachers": {"hiding": "nobody"}}])
def test_unknown_teacher_is_refused_with_those_known(
    encoder: Path, data: Path, tmp_path: Path, teachers: dict[str, Any]
) -> None:
    unknown = config(encoder, **teachers)
    with pytest.raises(ConfigError, match=r"teacher 'nobody': expected one of \['never', 'sure'\]"):
        adaptation(unknown, data, tmp_path / "cache", tmp_path / "out", {"sure": never, "never": never}).run(
            progress=False
        )
    assert list(tmp_path.iterdir()) == []


def fail_to_copy(*args: Any) -> None:
    raise OSError("no space left")


def poisoned(task: str, data: TaskData, cache: Path) -> Soft:
    soft = sure(task, data, cache)
    soft.train[0] = np.nan
    return soft


@pytest.mark.parametrize(("what", "error"), [("training", DivergedError), ("writing", OSError)])
def test_failure_leaves_the_old_folder_and_nothing_beside_it(
    adapted: tuple[Path, dict[str, Any]],
    encoder: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    error: type[Exception],
) -> None:
    out = Path(shutil.copytree(adapted[0], tmp_path / "encoders" / "tiny"))
    before = contents(out)
    cache = adapted[0].parents[1] / "cache"
    if what == "writing":
        monkeypatch.setattr(adapt.shutil, "copyfile", fail_to_copy)
    with pytest.raises(error):
        adaptation(config(encoder), data, cache, out, {"sure": poisoned if what == "training" else sure}).run(
            progress=False
        )
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]


def test_adapting_again_reads_the_run_and_replaces_the_old_folder_whole(
    adapted: tuple[Path, dict[str, Any]], encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(adapted[0], tmp_path / "tiny"))
    (out / "leftover.txt").write_text("from an older version", encoding="utf-8")
    monkeypatch.setattr(loop, "_train_epoch", None)  # not called
    found = adaptation(config(encoder), data, adapted[0].parents[1] / "cache", out).run(progress=False)
    assert contents(out) == contents(adapted[0])
    assert found == adapted[1]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


# --- configuration and command ---


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str) -> Path:
        path = tmp_path / "adapt.toml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_shipped_configuration_is_read() -> None:
    found = load_adapt_config(CONFIGS / "adapt.toml")
    assert found.repeats == {"emotion": 1, "hiding": 3, "thematic": 1}
    assert found.encoder.source == "minilm-l6"
    loop_config = found.encoder.loop
    assert (loop_config.epochs, loop_config.averaging) == (found.encoder.epochs, found.encoder.averaging)
    assert (loop_config.learning_rate, loop_config.max_tokens) == (
        found.encoder.learning_rate,
        found.encoder.max_tokens,
    )
    assert loop_config.batch_size == found.encoder.batch_size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[repeats]\nhiding = 1\n[generated]\ntweets = "emotion"\nhiding = "hiding"',
            r"generated names the task 'emotion', expected one of \['hiding'\]",
        ),
        (
            '[repeats]\nemotion = 1\n[generated]\ntweets = "emotion"\nhiding = "hiding"',
            r"generated names the task 'hiding', expected one of \['emotion'\]",
        ),
        (
            '[repeats]\nhiding = 1\ngenerated = 1\n[generated]\ntweets = "hiding"\nhiding = "hiding"',
            "repeats names the task 'generated', which generated makes",
        ),
        (
            '[repeats]\nhiding = 1\n[generated]\ntweets = "hiding"\nhiding = "hiding"\nn_written = 399',
            r"generated\.n_written: .*greater than or equal to 400, found 399",
        ),
        (
            '[repeats]\nhiding = 1\n[teachers]\nhidden = "mpnet"',
            r"teachers names the task 'hidden', expected one of \['hiding'\]",
        ),
        ("[repeats]\nhiding = 1\n[encoder]\ndepth = 0", r"encoder\.depth: .*greater than or equal to 1, found 0"),
        ("[repeats]", "repeats: Dictionary should have at least 1 item"),
        ("[repeats]\nhiding = 0", r"repeats\.hiding: .*greater than or equal to 1, found 0"),
        ("guidance = 1.5\n[repeats]\nhiding = 1", r"guidance: .*less than or equal to 1, found 1\.5"),
        ("[repeats]\nhiding = 1\n[encoder]\nepoch = 1", r"encoder\.epoch: Extra inputs are not permitted"),
        ("[repeats]\nhiding = 1\n[encoder]\naveraging = 1.0", r"encoder\.averaging: .*less than 1"),
        ("[repeats", "not a TOML file"),
    ],
)
def test_wrong_configuration_is_refused_and_file_and_field_are_named(write: Write, content: str, message: str) -> None:
    path = write(content)
    with pytest.raises(ConfigError, match=f"{path}: .*{message}"):
        load_adapt_config(path)


def test_missing_configuration_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapt\.toml: expected a TOML configuration, found no readable file"):
        load_adapt_config(tmp_path / "adapt.toml")


def test_command_says_accuracies_and_trained_parameters(
    adapted: tuple[Path, dict[str, Any]],
    encoder: Path,
    data: Path,
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "TEACHERS", {"sure": sure})
    path = write(
        f'teacher = "sure"\n[repeats]\nplace = 1\nhiding = 2\n[encoder]\nsource = "{encoder}"\n'
        "layers = [2]\nepochs = 2\nlearning_rate = 3e-3\nmax_tokens = 16\n"
    )
    cache = adapted[0].parents[1] / "cache"  # where this run is done
    options = argparse.Namespace(config=path, data=data, cache=cache, out=tmp_path / "out", invocation=COMMAND)
    said = command.run(options)
    returned = adapted[1]
    for task in ("place", "hiding"):
        assert f"{task:<11} validation accuracy {returned['validation'][task]['accuracy']:.4f}" in said
    trained, total = returned["trained_parameters"], returned["parameters"]
    assert f"{trained:,} of {total:,} parameters trained, in {tmp_path / 'out'}" in said
    assert (tmp_path / "out" / "adapted.json").read_bytes() == (adapted[0] / "adapted.json").read_bytes()
