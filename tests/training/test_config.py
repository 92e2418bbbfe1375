from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from training import config as config_module
from training.config import LossConfig, RunConfig, load_config
from training.errors import ConfigError

CONFIGS = Path(config_module.__file__).parent / "configs"
OTHERS = {"adapt", "adapt-mpnet", "search", "study"}  # files of other kinds, read by other commands
SHIPPED = sorted(path for path in CONFIGS.rglob("*.toml") if path.stem not in OTHERS)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).task == path.stem


def test_every_field_of_a_file_reaches_the_configuration(tmp_path: Path) -> None:
    text = """
        task = "emotion"
        seed = 3
        [teacher]
        rank = 8
        [student]
        preset = "chain"
        n_qubits = 5
        features = ["mean:2", "mean:6"]
        [loss]
        guidance = 0.25
        [optimiser]
        start = "random"
    """
    config = load_config(write(tmp_path, text))
    assert (config.task, config.seed, config.teacher.rank, config.loss.guidance) == ("emotion", 3, 8, 0.25)
    assert (config.student.preset, config.student.n_qubits) == ("chain", 5)
    assert (config.student.features, config.optimiser.start) == (("mean:2", "mean:6"), "random")


def test_task_alone_takes_every_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, 'task = "a"')) == RunConfig(task="a")


def test_hardware_is_off_until_its_table_is_there(tmp_path: Path) -> None:
    assert RunConfig(task="a").hardware is None
    found = load_config(write(tmp_path, 'task = "a"\n[hardware]')).hardware
    assert found is not None
    assert (found.device, found.shots) == ("baihua", 10_240)


def test_dumped_configuration_validates_to_itself() -> None:
    config = RunConfig(task="a", seed=4, loss=LossConfig(guidance=0.1))
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig(task="a").loss.guidance = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("seed = 1", "task"),
        ('task = "a"\nepoch = 3', "epoch"),
        ('task = "a"\n[teacher]\nlora = 3', r"teacher\.lora"),
        ('task = "a"\n[student]\nn_qubits = "many"', r"student\.n_qubits"),
        ('task = "a"\n[student]\nn_qubits = 4.5', r"student\.n_qubits"),
        ('task = "a"\nteacher = 3', "teacher"),
        ('task = "Emotion!"', "task"),
        ('task = "a"\nseed = -1', "seed"),
        ('task = "a"\n[teacher]\nrank = 0', r"teacher\.rank"),
        ('task = "a"\n[teacher]\ndropout = 1.0', r"teacher\.dropout"),
        ('task = "a"\n[teacher]\nprecision = "fp8"', r"teacher\.precision"),
        ('task = "a"\n[student]\npreset = "ring"', r"student\.preset"),
        ('task = "a"\n[student]\nn_qubits = 1', r"student\.n_qubits"),
        ('task = "a"\n[student]\nfeatures = []', r"student\.features"),
        ('task = "a"\n[loss]\nguidance = 1.1', r"loss\.guidance"),
        ('task = "a"\n[loss]\ntemperature = 0.0', r"loss\.temperature"),
        ('task = "a"\n[loss]\ntemperature = nan', r"loss\.temperature"),
        ('task = "a"\n[loss]\ntemperature = inf', r"loss\.temperature"),
        ('task = "a"\n[loss]\nkl = -1', r"loss\.kl"),
        ('task = "a"\n[optimiser]\nepochs = 0', r"optimiser\.epochs"),
        ('task = "a"\n[optimiser]\nhead_learning_rate = -0.1', r"optimiser\.head_learning_rate"),
        ('task = "a"\n[optimiser]\nfeature_noise = inf', r"optimiser\.feature_noise"),
        ('task = "a"\n[hardware]\nshots = 0', r"hardware\.shots"),
        ('task = "a"\n[hardware]\ndevice = "other"', r"hardware\.device"),
    ],
)
def test_wrong_field_is_refused_and_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.toml: {field}: "):
        load_config(write(tmp_path, text))


def test_teacher_term_without_kl_and_js_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss\.kl and loss\.js are both 0 while loss\.guidance < 1"):
        load_config(write(tmp_path, 'task = "a"\n[loss]\nguidance = 0.9\nkl = 0\njs = 0'))


def test_labels_alone_need_neither_kl_nor_js(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, 'task = "a"\n[loss]\nguidance = 1\nkl = 0\njs = 0')).loss.kl == 0


def test_missing_file_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        load_config(tmp_path / "absent.toml")


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_config(tmp_path)


@pytest.mark.parametrize("content", [b"task = ", b"task: emotion", b"task = '\xff'"])
def test_file_that_is_not_toml_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml: not a TOML file"):
        load_config(path)
