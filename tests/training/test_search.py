from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from toy_lessons import TOY, poisoned_teacher, sure_teacher, toy_lesson

from training import config as config_module
from training.config import RunConfig, load_config
from training.data import TaskData, Texts
from training.errors import ConfigError, DivergedError, StudyError
from training.search.command import add_arguments, run
from training.search.results import SearchResult, Trial, as_toml, plot, read_search, table
from training.search.run import Score, Search
from training.search.space import Space, configure, load_space
from training.search.trainee import StudentTrainee, embedders
from training.study.registry import TEACHERS
from training.study.system import Soft

CONFIGS = Path(config_module.__file__).parent / "configs"
BASE = RunConfig.model_validate(
    {
        "task": "toy",
        "student": {"preset": "chain", "n_qubits": 3, "n_layers": 1, "features": ["mean:4"]},
        "optimiser": {"epochs": 1, "batch_size": 20, "ridge": 10.0},
    }
)
SPACE = """
[student]
n_layers = { low = 1, high = 3 }
[loss]
temperature = { low = 1.0, high = 8.0, log = true }
"""
LIMIT = 100


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def space_of(text: str, folder: Path, base: RunConfig = BASE) -> Space:
    path = folder / "space.toml"
    path.write_text(text, encoding="utf-8")
    return load_space(path, base)


def best_near_four(config: RunConfig) -> Score:
    """The same for every seed, best at the temperature 4."""
    return Score(1 - abs(math.log(config.loss.temperature / 4)) / 10, config.student.n_layers)


@dataclass
class FakeTrainee:
    """Answers at once, and remembers what it was asked."""

    score: Callable[[RunConfig], Score] = best_near_four
    size: Callable[[RunConfig], int] = lambda config: 10
    trained: list[RunConfig] = field(default_factory=list)

    def n_trainable(self, config: RunConfig) -> int:
        return self.size(config)

    def train(self, config: RunConfig) -> Score:
        self.trained.append(config)
        return self.score(config)


def search_in(folder: Path, trainee: FakeTrainee, text: str = SPACE, base: RunConfig = BASE, **changed: Any) -> Search:
    settings: dict[str, Any] = {"about": {"teacher": "toy"}, "n_seeds": 2, "max_parameters": LIMIT, **changed}
    return Search("toy", base, space_of(text, folder, base), trainee, folder / "search", **settings)


def values(found: SearchResult) -> list[dict[str, Any]]:
    return [trial.values for trial in found.trials]


def test_levers_draw_what_their_fields_take(tmp_path: Path) -> None:
    text = """
    [student]
    features = { values = [["mean:4"], ["mean:4", "mean:6"]] }
    n_layers = { low = 1, high = 3 }
    preset = { values = ["paper", "chain"] }
    [loss]
    temperature = { values = [2, 4.0] }
    guidance = { low = 0, high = 1 }
    """
    space = space_of(text, tmp_path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(40):
        trial = study.ask()
        space.suggest(trial)
        drawn.append(configure(BASE, space.decode(trial.params)))
    assert {c.student.features for c in drawn} == {("mean:4",), ("mean:4", "mean:6")}
    assert {c.student.n_layers for c in drawn} == {1, 2, 3}
    assert {c.student.preset for c in drawn} == {"paper", "chain"}
    assert {c.loss.temperature for c in drawn} == {2.0, 4.0}
    assert len({c.loss.guidance for c in drawn}) == 40
    assert {c.optimiser for c in drawn} == {BASE.optimiser}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[loss]\ntemprature = { values = [1.0] }", r"loss\.temprature: no such field"),
        ("[loss]\ntemperature = { values = [1.0, 0.0] }", r"loss\.temperature: .*greater than 0.*found 0\.0"),
        ("[loss]\ntemperature = { low = -1.0, high = 2.0 }", r"loss\.temperature: .*greater than 0.*found -1\.0"),
        ("[loss]\ntemperature = { low = 2.0, high = 2.0 }", r"loss\.temperature: .*expected low < high"),
        ("[loss]\nguidance = { low = 0.0, high = 1.0, log = true }", r"loss\.guidance: .*low > 0 where log"),
        ("[loss]\ntemperature = { low = 1.0 }", r"loss\.temperature\.high: Field required"),
        ("[loss]\ntemperature = { values = [1.0], low = 1.0 }", r"loss\.temperature\.low: Extra inputs"),
        ("[loss]\ntemperature = { values = [] }", r"loss\.temperature\.values: .*at least 1"),
        ("[loss]\ntemperature = { values = [2, 2.0] }", r"loss\.temperature\.values: expected every value once"),
        ("[loss]\ntemperature = 2.0", r"loss\.temperature: expected \{ values"),
        ("[student]\nn_layers = { low = 1.5, high = 3 }", r"student\.n_layers\.low: .*integer"),
        ("[student]\npreset = { low = 1, high = 3 }", r"student\.preset: not a number"),
        ("[student]\npreset = { values = ['ring'] }", r"student\.preset: .*found 'ring'"),
        ("[student]\nfeatures = { values = ['mean:4'] }", r"student\.features: .*found 'mean:4'"),
        ("[teacher]\nrank = { values = [8] }", r"teacher: a search has levers in student, loss, optimiser alone"),
        ("seed = { values = [0, 1] }", r"seed: a search has levers in"),
        ("loss = 3", r"loss: expected a table"),
        ("", "expected at least one field"),
        ("[loss", "not a TOML file"),
    ],
)
def test_wrong_space_is_refused_and_the_field_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"space\.toml: {said}"):
        space_of(text, tmp_path)


def test_missing_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no readable file"):
        load_space(tmp_path / "none.toml", BASE)


def test_layer_that_the_embedder_lacks_is_refused(tmp_path: Path) -> None:
    assert embedders(space_of(SPACE, tmp_path), BASE, tmp_path).keys() == {"minilm-l6"}
    space = space_of('[student]\nfeatures = { values = [["mean:4"], ["mean:7"]] }', tmp_path)
    with pytest.raises(ConfigError, match=r"student\.features of the embedder minilm-l6: feature 'mean:7'"):
        embedders(space, BASE, tmp_path)


@pytest.mark.parametrize("task", ["emotion", "hiding", "thematic"])
@pytest.mark.parametrize("folder", [".", "frozen"])
def test_shipped_space_holds_the_shipped_configurations(task: str, folder: str, tmp_path: Path) -> None:
    base = load_config(CONFIGS / folder / f"{task}.toml")
    space = load_space(CONFIGS / "search.toml", base)
    known = space.encode(base)
    assert known is not None
    assert configure(base, space.decode(known)) == base
    assert embedders(space, base, tmp_path).keys() == {base.student.embedder}


Searched = tuple[SearchResult, FakeTrainee, Path]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """What 25 trials of three seeds find, what they trained, and the folder of the files."""
    folder, trainee = tmp_path_factory.mktemp("searched"), FakeTrainee()
    return search_in(folder, trainee, n_seeds=3).run(25, progress=False), trainee, folder / "search"


def test_search_begins_with_the_configuration_and_ends_with_a_better_one(searched: Searched) -> None:
    found, trainee, folder = searched
    assert [config.seed for config in trainee.trained[:3]] == [0, 1, 2]
    assert {config.model_copy(update={"seed": 0}) for config in trainee.trained[:3]} == {BASE}
    best = found.ranked[0]
    assert best.accuracy == max(trial.accuracy for trial in found.trials if trial.status == "done")
    assert best.accuracy > 0.97 > found.trials[0].accuracy
    written = load_config(folder / "toy.toml")
    assert written == found.configuration(best)
    assert (written.loss.temperature, written.student.n_layers) == tuple(
        best.values[name] for name in ("loss.temperature", "student.n_layers")
    )
    assert written.optimiser == BASE.optimiser


def test_equal_accuracies_are_told_apart_by_the_validation_loss(tmp_path: Path) -> None:
    trainee = FakeTrainee(lambda config: Score(0.5, 4 - config.student.n_layers))
    found = search_in(tmp_path, trainee).run(12, progress=False)
    assert found.ranked[0].values["student.n_layers"] == 3
    assert found.importances == {}


def test_accuracies_that_differ_by_rounding_are_equal(tmp_path: Path) -> None:
    def score(config: RunConfig) -> Score:
        return Score(0.8 if config.student.n_layers == 1 else 0.8 + 2e-16, config.student.n_layers)

    text = "[student]\nn_layers = { values = [1, 2] }"
    found = search_in(tmp_path, FakeTrainee(score), text).run(5, progress=False)
    assert len({trial.accuracy for trial in found.ranked}) == 2
    assert found.ranked[0].values == {"student.n_layers": 1}
    assert found.importances == {}


def test_importances_find_the_lever_that_matters(searched: Searched) -> None:
    found = searched[0]
    assert found.importances["loss.temperature"] > 0.8
    assert sum(found.importances.values()) == pytest.approx(1)


def test_equal_values_are_trained_once(tmp_path: Path) -> None:
    text = "[student]\nn_layers = { values = [1, 2] }"
    trainee = FakeTrainee()
    found = search_in(tmp_path, trainee, text).run(6, progress=False)
    assert len(found.trials) == 6
    assert sorted((c.student.n_layers, c.seed) for c in trainee.trained) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(found.ranked) == 2
    for trial in found.trials:
        first = found.trials[trial.number if trial.repeats is None else trial.repeats]
        assert (trial.values, trial.accuracies, trial.status) == (first.values, first.accuracies, first.status)


def test_too_large_student_is_not_trained(tmp_path: Path) -> None:
    trainee = FakeTrainee(size=lambda config: 60 * config.student.n_layers)
    found = search_in(tmp_path, trainee).run(12, progress=False)
    assert {config.student.n_layers for config in trainee.trained} == {1}
    refused = [trial for trial in found.trials if trial.status == "infeasible"]
    assert refused
    assert {trial.values["student.n_layers"] for trial in refused} <= {2, 3}
    assert f"trainable parameters, expected at most {LIMIT}" in str(refused[0].reason)


def test_values_that_do_not_go_together_are_not_trained(tmp_path: Path) -> None:
    text = "[loss]\nkl = { values = [0.0, 1.0] }\njs = { values = [0.0, 1.0] }"
    trainee = FakeTrainee()
    found = search_in(tmp_path, trainee, text).run(20, progress=False)
    refused = {(t.values["loss.kl"], t.values["loss.js"]) for t in found.trials if t.status == "infeasible"}
    assert refused == {(0.0, 0.0)}
    assert {(c.loss.kl, c.loss.js) for c in trainee.trained} == {(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}


def test_diverged_trial_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    def score(config: RunConfig) -> Score:
        if config.student.n_layers == 2 and config.seed == 1:
            raise DivergedError("the student's loss is nan in epoch 1")
        return best_near_four(config)

    found = search_in(tmp_path, FakeTrainee(score)).run(12, progress=False)
    failed = [trial for trial in found.trials if trial.status == "failed"]
    assert {trial.values["student.n_layers"] for trial in failed} == {2}
    assert {trial.reason for trial in failed} == {"seed 1: the student's loss is nan in epoch 1"}
    assert found.ranked[0].values["student.n_layers"] != 2
    assert {trial.status for trial in read_search(tmp_path / "search" / "toy.json").trials} >= {"done", "failed"}


def test_search_in_which_all_fail_says_so_and_leaves_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none of 3 trials was done; .*toy\.json says why"):
        search_in(tmp_path, FakeTrainee(size=lambda config: 101)).run(3, progress=False)
    assert [t.status for t in read_search(tmp_path / "search" / "toy.json").trials] == ["infeasible"] * 3
    assert not (tmp_path / "search" / "toy.toml").exists()


def test_hopeless_configuration_is_not_trained_with_every_seed(searched: Searched) -> None:
    found, trainee, _ = searched
    pruned = [trial for trial in found.trials if trial.status == "pruned"]
    assert pruned
    assert all(len(trial.accuracies) < 3 for trial in pruned)
    done = sorted(trial.accuracy for trial in found.ranked)
    assert all(trial.accuracy < done[-1] for trial in pruned)
    assert len(trainee.trained) == sum(len(trial.accuracies) for trial in found.trials)


@pytest.mark.parametrize("when", ["in the first trial", "among random trials", "in the last trial"])
def test_stopped_search_goes_on_with_the_trial_that_ran(tmp_path: Path, when: str) -> None:
    unbroken = FakeTrainee()
    whole = search_in(tmp_path, unbroken).run(14, progress=False)
    last = {"in the first trial": 2, "among random trials": 9, "in the last trial": len(unbroken.trained)}[when]
    (tmp_path / "again").mkdir()

    def stopping(config: RunConfig) -> Score:
        if len(stopped.trained) == last:
            raise KeyboardInterrupt
        return best_near_four(config)

    stopped = FakeTrainee(stopping)
    with pytest.raises(KeyboardInterrupt):
        search_in(tmp_path / "again", stopped).run(14, progress=False)
    kept = read_search(tmp_path / "again" / "search" / "toy.json")
    assert len(kept.trials) < 14
    assert values(kept) == values(whole)[: len(kept.trials)]
    assert (tmp_path / "again" / "search" / "toy.toml").exists() == bool(kept.trials)

    rest = FakeTrainee()
    resumed = search_in(tmp_path / "again", rest).run(14, progress=False)
    assert values(resumed) == values(whole)
    assert [t.accuracies for t in resumed.trials] == [t.accuracies for t in whole.trials]
    # The trial that was stopped is trained from its first seed; the finished ones are not.
    assert rest.trained[0] == stopped.trained[-1].model_copy(update={"seed": 0})
    assert len(rest.trained) == sum(len(t.accuracies) for t in resumed.trials[len(kept.trials) :])


def test_finished_search_is_read_not_run(tmp_path: Path) -> None:
    first = search_in(tmp_path, FakeTrainee()).run(4, progress=False)
    again = FakeTrainee()
    assert search_in(tmp_path, again).run(4, progress=False) == first
    assert again.trained == []
    assert read_search(tmp_path / "search" / "toy.json") == first


def test_no_trial_starts_after_the_time_is_up(tmp_path: Path) -> None:
    search_in(tmp_path, FakeTrainee()).run(1, progress=False)
    later = FakeTrainee()
    found = search_in(tmp_path, later).run(9, seconds=0.0, progress=False)
    assert (len(found.trials), later.trained) == (1, [])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_seeds": 3}, "n_seeds"),
        ({"about": {"teacher": "other"}}, "teacher"),
        ({"text": "[student]\nn_layers = { values = [1, 2] }"}, "space"),
        ({"base": BASE.model_copy(update={"seed": 5})}, "configuration"),
    ],
)
def test_search_of_the_same_name_must_be_the_same(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    search_in(tmp_path, FakeTrainee()).run(2, progress=False)
    trainee = FakeTrainee()
    with pytest.raises(ConfigError, match=rf"toy\.journal: a search with another {said}; choose another --name"):
        search_in(tmp_path, trainee, **changed).run(2, progress=False)
    assert trainee.trained == []


@pytest.mark.parametrize("text", ["not a journal\n{}\n", "[]\n[]\n"])
def test_journal_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "toy.journal").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=r"toy\.journal: expected the journal of a search"):
        search_in(tmp_path, FakeTrainee()).run(2, progress=False)


def test_search_around_a_configuration_outside_its_space(tmp_path: Path) -> None:
    trainee = FakeTrainee()
    found = search_in(tmp_path, trainee, "[student]\nn_layers = { values = [2, 3] }").run(3, progress=False)
    assert {config.student.n_layers for config in trainee.trained} <= {2, 3}
    assert len(found.trials) == 3


def test_optuna_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    search_in(tmp_path, FakeTrainee()).run(3, progress=False)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before


def test_progress_shows_trials_and_the_best_accuracy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = search_in(tmp_path, FakeTrainee()).run(3)
    shown = capfd.readouterr().err
    assert "search toy" in shown
    assert "3/3" in shown
    assert f"best={found.ranked[0].accuracy:.4f}" in shown


def result_of(*trials: Trial, importances: dict[str, float] | None = None) -> SearchResult:
    about = {"teacher": "toy", "space": {"loss.temperature": {}, "student.features": {}}}
    return SearchResult("toy", {**about, "configuration": BASE.model_dump(mode="json")}, trials, importances or {})


def trial_of(number: int, accuracies: list[float], **changed: Any) -> Trial:
    point = {"loss.temperature": 2.0 + number, "student.features": ["mean:4", "mean:6"]}
    settings: dict[str, Any] = {"status": "done", "reason": None, "repeats": None, **changed}
    return Trial(
        number,
        values=point,
        accuracies=accuracies,
        losses=[0.5] * len(accuracies),
        n_trainable=8516,
        seconds=1.0,
        **settings,
    )


def test_table_has_the_best_first_and_counts_the_rest() -> None:
    found = result_of(
        trial_of(0, [0.70, 0.72]),
        trial_of(1, [0.80, 0.82]),
        trial_of(2, [], status="infeasible", reason="too large"),
        trial_of(3, [0.6], status="pruned"),
        trial_of(4, [0.80, 0.82], repeats=1),
    )
    shown = table(found)
    assert shown.header[:3] == ["trial", "loss.temperature", "student.features"]
    assert [row[0] for row in shown.rows] == ["1", "0"]
    assert shown.rows[0][1:] == ["3", "mean:4 + mean:6", "0.8100 ± 0.0141", "0.5000 ± 0.0000", "8,516"]
    assert "5 trials: 3 done, 1 pruned, 0 failed, 1 infeasible; 1 of them repeat" in str(shown)
    assert len(table(found, n_best=1).rows) == 1


def test_plot_is_a_picture_that_equal_results_make_again(tmp_path: Path) -> None:
    found = result_of(trial_of(0, [0.7]), trial_of(1, [0.6], status="pruned"), importances={"loss.temperature": 1.0})
    for name in ("one.png", "two.png"):
        assert plot(found, tmp_path / "plots" / name)
    assert (tmp_path / "plots" / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "plots" / "one.png").read_bytes() == (tmp_path / "plots" / "two.png").read_bytes()
    assert plot(result_of(trial_of(0, [0.7])), tmp_path / "plots" / "one.png")
    assert (tmp_path / "plots" / "one.png").read_bytes() != (tmp_path / "plots" / "two.png").read_bytes()


def test_plot_of_nothing_leaves_no_stale_picture(tmp_path: Path) -> None:
    path = tmp_path / "old.png"
    path.write_bytes(b"old")
    assert not plot(result_of(trial_of(0, [], status="infeasible")), path)
    assert not path.exists()


def test_best_configuration_is_written_as_it_is(tmp_path: Path) -> None:
    document = {
        "task": "toy",
        "student": {"embedder": 'a "quoted" \\ folder', "features": ["mean:4", "mean:6"]},
        "optimiser": {"reducer_learning_rate": 1e-7, "ridge": 1e20},
        "hardware": {"device": "baihua", "shots": 100},
    }
    for config in (BASE, RunConfig.model_validate(document)):
        (tmp_path / "run.toml").write_text(as_toml(config, "A comment."), encoding="utf-8")
        assert load_config(tmp_path / "run.toml") == config
        assert (tmp_path / "run.toml").read_text(encoding="utf-8").startswith("# A comment.\ntask = ")


def test_default_teacher_is_one_of_the_study() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.get_default("teacher") in TEACHERS


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "toy"}'])
def test_file_that_no_search_wrote_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "toy.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"toy\.json: expected what `qdtrain search` writes"):
        read_search(tmp_path / "toy.json")
    with pytest.raises(ConfigError, match=r"none\.json: no such file"):
        read_search(tmp_path / "none.json")


class Unread(Texts):
    """Test texts that have an identity and that nobody may look at."""

    sha256 = "0" * 64

    def __getattribute__(self, name: str) -> Any:
        if name in ("texts", "targets"):
            raise AssertionError(f"the test texts' {name} were read")
        return super().__getattribute__(name)


def test_students_are_measured_on_validation_texts_alone(tmp_path: Path) -> None:
    data = TaskData(TOY.train, TOY.validation, Unread(("a",), TOY.test.targets[:1], TOY.labels, "test"))
    trainee = StudentTrainee(toy_lesson(tmp_path, sure_teacher(), data=data))
    score = trainee.train(BASE)
    assert score.accuracy > 0.8
    assert 0 < score.loss < math.log(2)
    assert trainee.train(BASE) == score
    assert len(list((tmp_path / "runs").glob("*.pt"))) == 1
    assert trainee.n_trainable(BASE) == (384 * 3 + 3) + 3 * 3 + (3 * 2 + 2)


def test_teacher_that_says_no_number_is_a_failed_trial(tmp_path: Path) -> None:
    trainee = StudentTrainee(toy_lesson(tmp_path, poisoned_teacher()))
    with pytest.raises(DivergedError):
        trainee.train(BASE.model_copy(update={"optimiser": BASE.optimiser.model_copy(update={"start": "random"})}))


def write_task(folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        texts: Texts = getattr(TOY, split)
        rows = [f"{text},{texts.labels[target]}" for text, target in zip(texts.texts, texts.targets, strict=True)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return folder


def ask_toy(task: str, data: TaskData, cache: Path) -> Soft:
    assert task == "toy"
    return sure_teacher(data)


def options_of(folder: Path, *more: str) -> argparse.Namespace:
    (folder / "toy.toml").write_text(
        'task = "toy"\n[student]\npreset = "chain"\nn_qubits = 3\nn_layers = 1\nfeatures = ["mean:4"]\n'
        "[optimiser]\nepochs = 1\nbatch_size = 20\nridge = 10.0\n",
        encoding="utf-8",
    )
    (folder / "space.toml").write_text(SPACE, encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    paths = {"--space": folder / "space.toml", "--data": folder / "data", "--cache": folder / "cache"}
    named = [str(part) for pair in paths.items() for part in pair]
    return parser.parse_args([str(folder / "toy.toml"), *named, *more])


def test_command_searches_toy_texts(tmp_path: Path) -> None:
    write_task(tmp_path / "data")
    options = options_of(tmp_path, "--trials", "2", "--seeds", "1", "--teacher", "to y")
    said = run(options, {"to y": ask_toy})
    folder = tmp_path / "cache" / "search"
    assert {path.name for path in folder.iterdir()} == {
        f"toy-to-y.{end}" for end in ("journal", "json", "lock", "png", "toml")
    }
    found = read_search(folder / "toy-to-y.json")
    assert [trial.status for trial in found.trials] == ["done", "done"]
    assert found.ranked[0].accuracy > 0.8
    assert load_config(folder / "toy-to-y.toml").student.n_qubits == 3
    assert f"{found.ranked[0].accuracy:.4f}" in said
    assert "toy-to-y.toml" in said
    assert json.loads((folder / "toy-to-y.json").read_text())["about"]["texts"]["train"] == TOY.train.sha256


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", "0"], "--trials 0: expected at least 1"),
        (["--trials", "1", "--seeds", "0"], "--seeds 0: expected at least 1"),
        (["--trials", "1"], "--teacher SmolLM2: expected one of toy"),
        (["--trials", "1", "--teacher", "toy", "--name", "../up"], "--name ../up: expected letters"),
    ],
)
def test_command_refuses_before_it_asks_a_teacher(tmp_path: Path, more: list[str], said: str) -> None:
    def asked(task: str, data: TaskData, cache: Path) -> Soft:
        raise AssertionError("the teacher was asked")

    write_task(tmp_path / "data")
    with pytest.raises(ConfigError, match=said):
        run(options_of(tmp_path, *more), {"toy": asked})
    assert not (tmp_path / "cache").exists()
