from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch
from needs import needs_mindquantum
from tiny_teachers import LABELS, toy_texts

from models.bundle import Bundle, load_bundle
from models.embedder import SHIPPED, Embedder
from training.cli import main
from training.data import SPLITS, load_task, read_csv

# transformers says it about itself whenever peft asks.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CONFIG = """
task = "weather"
[teacher]
rank = 4
alpha = 16
epochs = 8
batch_size = 8
learning_rate = 4e-3
max_tokens = 16
precision = "fp32"
[student]
preset = "chain"
n_qubits = 4
n_layers = 1
features = ["mean:4"]
[optimiser]
epochs = 3
batch_size = 16
"""
METRICS = ["n", "accuracy", "precision", "recall", "f1", "confusion", "labels"]


@dataclass(frozen=True)
class Task:
    """Everything that one run of the three commands reads and writes."""

    folder: Path
    teacher: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "bundles" / "weather"

    @property
    def options(self) -> list[str]:
        named = {"--data": self.folder / "data", "--teacher": self.teacher, "--cache": self.folder / "cache"}
        return [str(self.folder / "weather.toml"), *(str(part) for pair in named.items() for part in pair)]

    def with_config(self, **replaced: str) -> list[str]:
        """The options, with lines of the configuration replaced."""
        text = CONFIG
        for name, value in replaced.items():
            (line,) = [line for line in CONFIG.splitlines() if line.startswith(f"{name} =")]
            text = text.replace(line, f"{name} = {value}")
        (self.folder / "weather.toml").write_text(text, encoding="utf-8")
        return self.options


def make_task(folder: Path, teacher: Path) -> Task:
    (folder / "data").mkdir(parents=True)
    for seed, (split, n) in enumerate(zip(SPLITS, (40, 16, 16), strict=True)):
        texts = toy_texts(n, seed=seed)
        with (folder / "data" / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [(text, LABELS[target]) for text, target in zip(texts.texts, texts.targets, strict=True)]
            csv.writer(file).writerows([("text", "label"), *rows])
    (folder / "weather.toml").write_text(CONFIG, encoding="utf-8")
    return Task(folder, teacher)


def output_of(arguments: list[str]) -> str:
    with redirect_stdout(StringIO()) as out:
        assert main(arguments) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Callable[[str], Path]) -> Task:
    """A task whose teacher and bundle are made; no test alters it."""
    task = make_task(tmp_path_factory.mktemp("weather"), teacher_folder("llama"))
    output_of(["distil", *task.options, "--out", str(task.bundle), "--final"])
    return task


@pytest.fixture
def task(tmp_path: Path, teacher_folder: Callable[[str], Path]) -> Task:
    """A task that nothing was run on, with a teacher of its own."""
    return make_task(tmp_path / "weather", Path(shutil.copytree(teacher_folder("llama"), tmp_path / "tiny-llama")))


@pytest.fixture
def bundle(finished: Task) -> Bundle:
    return load_bundle(finished.bundle)


def test_teach_prints_accuracy_on_train_and_validation_texts(finished: Task) -> None:
    lines = output_of(["teach", *finished.options]).splitlines()
    assert [line.split(": ")[0].split()[:2] for line in lines] == [["weather", "teacher"]] * 2
    assert [line.split(": ")[1].split()[0] for line in lines] == ["train", "validation"]
    assert float(lines[0].split()[-1]) > 0.8


def test_distil_writes_a_bundle_that_loads_and_knows_where_it_came_from(finished: Task, bundle: Bundle) -> None:
    manifest = bundle.manifest
    bundle.verify()
    assert (manifest.task, manifest.labels, manifest.seed) == ("weather", list(LABELS), 0)
    assert (manifest.preset, manifest.n_qubits, manifest.n_layers) == ("chain", 4, 1)
    assert manifest.embedder["features"] == ["mean:4"]
    assert manifest.parameter_counts == {"reducer": 384 * 4 + 4, "ansatz": 12, "head": 10, "total": 1562}
    assert manifest.data_sha256 == load_task(finished.folder / "data").sha256
    assert manifest.configuration["teacher"]["rank"] == 4
    assert manifest.configuration["teacher"]["model"] == str(finished.teacher)
    assert manifest.teacher["model"] == "llama"
    assert (finished.folder / "cache" / "teachers" / manifest.teacher["key"] / "teacher.json").exists()
    assert (finished.folder / "cache" / "runs" / f"{manifest.training['run']}.pt").exists()
    assert manifest.library_versions["torch"] == torch.__version__
    assert [set(entry) for entry in manifest.training["history"]] == [
        {"validation_loss", "validation_accuracy"},
        *[{"train_loss", "validation_loss", "validation_accuracy"}] * 3,
    ]
    best = manifest.training["history"][manifest.training["best_epoch"]]
    assert best["validation_accuracy"] == manifest.metrics["validation"]["student"]["accuracy"]


def test_final_bundle_holds_student_teacher_and_control_on_validation_and_test(bundle: Bundle) -> None:
    assert set(bundle.manifest.metrics) == {"validation", "test"}
    for systems in bundle.manifest.metrics.values():
        assert set(systems) == {"student", "teacher", "logistic_regression"}
        for found in systems.values():
            assert list(found) == METRICS
            assert sum(map(sum, found["confusion"])) == found["n"] == 16


def test_test_texts_are_not_measured_unless_asked(finished: Task, tmp_path: Path) -> None:
    out = output_of(["distil", *finished.options, "--out", str(tmp_path / "draft")])
    assert set(load_bundle(tmp_path / "draft").manifest.metrics) == {"validation"}
    assert "1562 trainable parameters" in out


@needs_mindquantum
def test_configured_chip_takes_part_in_training_and_is_measured(finished: Task, bundle: Bundle, tmp_path: Path) -> None:
    config = tmp_path / "weather.toml"
    config.write_text(CONFIG + "[hardware]\nshots = 512\n", encoding="utf-8")
    arguments = ["distil", str(config), *finished.options[1:], "--out", str(tmp_path / "chip")]
    out = output_of(arguments)
    manifest = load_bundle(tmp_path / "chip").manifest
    assert manifest.configuration["hardware"] == {"device": "baihua", "shots": 512}
    channel = manifest.training["channel"]
    assert channel["shots"] == 512
    assert [len(channel[name]) for name in ("scale", "offset", "p10", "p01")] == [4] * 4
    assert manifest.files["weights.safetensors"] != bundle.manifest.files["weights.safetensors"]
    assert {"validation_accuracy", "validation_accuracy_on_chip"} < set(manifest.training["history"][0])
    found = manifest.metrics["validation"]
    # All 16 texts, as there are fewer than are drawn.
    assert found["hardware_exact"] == found["student"]
    for name in ("hardware_raw", "hardware_corrected"):
        assert list(found[name]) == METRICS
        assert name in out


def test_command_in_the_manifest_makes_the_same_bundle_again(finished: Task, bundle: Bundle, tmp_path: Path) -> None:
    program, *arguments = shlex.split(bundle.manifest.command)
    assert program == "qdtrain"
    assert arguments == ["distil", *finished.options, "--out", str(finished.bundle), "--final"]
    fresh = {str(finished.folder / "cache"): str(tmp_path / "cache"), str(finished.bundle): str(tmp_path / "again")}
    output_of([fresh.get(argument, argument) for argument in arguments])
    again = load_bundle(tmp_path / "again").manifest
    assert again.files["weights.safetensors"] == bundle.manifest.files["weights.safetensors"]
    assert again.metrics == bundle.manifest.metrics


def test_evaluate_prints_one_json_object_equal_to_the_manifests_metrics(finished: Task, bundle: Bundle) -> None:
    found = json.loads(output_of(["evaluate", str(finished.bundle), str(finished.folder / "data/test.csv"), "--json"]))
    assert list(found) == METRICS
    # Batches of other shapes round differently, so only what was decided must agree.
    assert found == bundle.manifest.metrics["test"]["student"]


@needs_mindquantum
def test_evaluate_on_the_reference_engine_decides_the_same(finished: Task) -> None:
    arguments = ["evaluate", str(finished.bundle), str(finished.folder / "data/test.csv"), "--json"]
    assert output_of([*arguments, "--engine", "mindquantum"]) == output_of(arguments)


def test_student_of_an_own_embedder_is_measured_with_the_one_beside_its_bundle(finished: Task, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(SHIPPED / "minilm-l6", tmp_path / "embedders" / "mine"))
    info = json.loads((mine / "embedder.json").read_text(encoding="utf-8"))
    (mine / "embedder.json").write_text(json.dumps({**info, "name": "mine", "max_tokens": 8}), encoding="utf-8")
    config = tmp_path / "own.toml"
    config.write_text(CONFIG.replace("features =", f"embedder = '{mine}'\nfeatures ="), encoding="utf-8")
    out = tmp_path / "bundles" / "weather"
    output_of(["distil", str(config), *finished.options[1:], "--out", str(out)])
    manifest = load_bundle(out).manifest
    assert (manifest.embedder["name"], manifest.embedder["sha256"]) == ("mine", Embedder(mine, threads=1).sha256)
    found = json.loads(output_of(["evaluate", str(out), str(finished.folder / "data/validation.csv"), "--json"]))
    assert found == manifest.metrics["validation"]["student"]


def test_evaluate_reads_a_folder_of_class_files(finished: Task, tmp_path: Path) -> None:
    texts = read_csv(finished.folder / "data/test.csv")
    for target, label in enumerate(LABELS):
        lines = [text for text, found in zip(texts.texts, texts.targets, strict=True) if found == target]
        (tmp_path / f"{label}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    from_csv = output_of(["evaluate", str(finished.bundle), str(finished.folder / "data/test.csv"), "--json"])
    assert output_of(["evaluate", str(finished.bundle), str(tmp_path), "--json"]) == from_csv


def test_evaluate_prints_a_table_without_json(finished: Task, bundle: Bundle) -> None:
    lines = output_of(["evaluate", str(finished.bundle), str(finished.folder / "data/test.csv")]).splitlines()
    assert lines[0] == f"{bundle.id} on 16 texts"
    confusion = bundle.manifest.metrics["test"]["student"]["confusion"]
    assert [line.split() for line in lines[-2:]] == [
        [label, *map(str, row)] for label, row in zip(LABELS, confusion, strict=True)
    ]


def assert_refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *said: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if not line.startswith("loading ")]
    assert line.startswith("qdtrain: ")
    assert all(part in line for part in said), line
    assert out == ""


def assert_nothing_was_trained(task: Task) -> None:
    assert not list(task.folder.rglob("*.safetensors"))
    assert not list(task.folder.rglob("*.pt"))


def distil_arguments(options: list[str], task: Task) -> list[str]:
    return ["distil", *options, "--out", str(task.bundle)]


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"features": '["mean:2", "mean:3", "mean:4"]', "n_qubits": "11"}, ["12", "at most 9275"]),
        ({"features": '["mean:7"]'}, ["feature 'mean:7'", "a layer of 0 to 6"]),
        ({"features": '["mean:4"]\nembedder = "large"'}, ["embedder 'large'", "minilm-l6"]),
    ],
    ids=["too many parameters", "layer that is not there", "unknown embedder"],
)
def test_student_that_cannot_be_made_is_refused_before_any_training(
    task: Task, replaced: dict[str, str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Teaching takes hours; the student's shape is known before.
    assert_refused(distil_arguments(task.with_config(**replaced), task), capsys, *said)
    assert_nothing_was_trained(task)


def test_folder_that_is_no_bundle_is_refused_before_any_training(
    task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(task.folder.rglob("*"))
    for out in (task.folder, task.folder / "weather.toml"):
        arguments = ["distil", *task.options, "--out", str(out)]
        assert_refused(arguments, capsys, f"{out}: expected a new folder or one with manifest.json")
    assert sorted(task.folder.rglob("*")) == before


def test_folder_that_is_no_embedder_is_refused_and_left(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(task.folder.rglob("*"))
    arguments = ["export-embedder", "minilm-l6", str(task.folder)]
    assert_refused(arguments, capsys, f"{task.folder}: expected a new folder or one with embedder.json")
    assert sorted(task.folder.rglob("*")) == before


def test_wrong_configuration_is_refused(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(distil_arguments(task.with_config(n_qubits="99"), task), capsys, "weather.toml", "student.n_qubits")
    assert_refused(distil_arguments(task.with_config(rank="4\nrang = 5"), task), capsys, "teacher.rang")
    (task.folder / "weather.toml").unlink()
    assert_refused(distil_arguments(task.options, task), capsys, "weather.toml: no such file")
    assert_nothing_was_trained(task)


def test_wrong_texts_are_refused(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    path = task.folder / "data" / "validation.csv"
    path.write_text("text,label\nsnow,cold\n ,warm\n", encoding="utf-8")
    assert_refused(["teach", *task.options], capsys, "validation.csv: text 2 is blank")
    path.unlink()
    assert_refused(["teach", *task.options], capsys, "validation.csv: no such file")
    shutil.rmtree(task.folder / "data")
    assert_refused(["teach", *task.options], capsys, "data: no such folder")
    (task.folder / "data").mkdir()
    for label, content in (("cold", b"snow\n" * 5), ("warm", b"\xff\xfe\n" * 5)):
        (task.folder / "data" / f"{label}.txt").write_bytes(content)
    assert_refused(["teach", *task.options], capsys, "warm.txt", "UTF-8")
    assert_nothing_was_trained(task)


def test_wrong_teacher_is_refused(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    (task.teacher / "tokenizer.json").unlink()
    assert_refused(["teach", *task.options], capsys, "tiny-llama: expected a tokenizer")
    shutil.rmtree(task.teacher)
    assert_refused(["teach", *task.options], capsys, "tiny-llama", "no such folder")
    assert_nothing_was_trained(task)


def test_teacher_of_unknown_architecture_is_refused_on_one_line(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    # transformers explains itself over many lines.
    (task.teacher / "config.json").write_text('{"model_type": "unheard-of"}', encoding="utf-8")
    assert_refused(["teach", *task.options], capsys, "tiny-llama: expected a causal or sequence-classification model")


def test_wrong_bundle_or_texts_to_evaluate_are_refused(
    finished: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = str(finished.folder / "data/test.csv")
    assert_refused(["evaluate", str(tmp_path / "none"), texts, "--json"], capsys, "manifest.json")
    assert_refused(["evaluate", str(finished.bundle), str(tmp_path / "none.csv")], capsys, "none.csv: no such file")
    other = tmp_path / "other.csv"
    other.write_text("text,label\nsnow,cold\nfog,grey\n", encoding="utf-8")
    assert_refused(["evaluate", str(finished.bundle), str(other)], capsys, "text 2 has the label 'grey'", "'cold'")
    damaged = Path(shutil.copytree(finished.bundle, tmp_path / "damaged"))
    (damaged / "weights.safetensors").write_bytes(b"")
    assert_refused(["evaluate", str(damaged), texts], capsys, "weights.safetensors: expected sha256")


def test_unknown_command_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["learn"])
    assert caught.value.code == 2
    assert "invalid choice: 'learn'" in capsys.readouterr().err


def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(
    finished: Task, task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = torch.optim.AdamW.step
    calls = 0

    def interrupted(*arguments: object, **keywords: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 25:
            raise KeyboardInterrupt
        return step(*arguments, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        assert main(["teach", *task.options]) == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err
    broken = output_of(["teach", *task.options])
    assert [line.split(": ")[1] for line in broken.splitlines()] == [
        line.split(": ")[1] for line in output_of(["teach", *finished.options]).splitlines()
    ]
