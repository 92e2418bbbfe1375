from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_lessons import TOY, accuracy_on_test, poisoned_teacher, sure_teacher, toy_lesson

from models.circuit import student_circuit, trainable_parameters
from models.embedder import find_embedder
from models.errors import EmbedderError
from training.config import RunConfig
from training.data import Texts
from training.distil import Examples, fit, start_linear
from training.errors import ConfigError, DivergedError
from training.features import embed_texts
from training.pipeline import MAX_PARAMETERS
from training.study.controls import (
    LogisticRegressionControl,
    MlpControl,
    MlpModule,
    SurrogateControl,
    SurrogateModule,
    UntaughtStudent,
    mlp_parameters,
    nearest_size,
    surrogate_parameters,
)
from training.study.student import Features, StudentSystem, encoder_parameters
from training.study.system import Outcome, System

ENCODER = 22_565_376
EMBEDDING_SIZE = 384
LEARNERS = (StudentSystem, UntaughtStudent, MlpControl, SurrogateControl)


def configured(n_qubits: int = 3, **optimiser: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "task": "toy",
            "student": {"preset": "chain", "n_qubits": n_qubits, "n_layers": 1, "features": ["mean:4"]},
            "optimiser": {"epochs": 3, "batch_size": 20, "ridge": 10.0, **optimiser},
        }
    )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of the toy texts."""
    cache = tmp_path_factory.mktemp("embedded")
    features = Features.of(configured().student, toy_lesson(cache))
    for texts in (TOY.train, TOY.validation, TOY.test):
        features(texts)
    return cache / "embeddings"


@pytest.fixture
def new_cache(embedded: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A cache that holds embeddings and no run."""

    def make(name: str = "cache") -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "embeddings").symlink_to(embedded)
        return tmp_path / name

    return make


NewCache = Callable[..., Path]


@pytest.mark.parametrize("system", [*LEARNERS, LogisticRegressionControl])
def test_every_system_learns_the_task(system: Callable[[RunConfig], System], new_cache: NewCache) -> None:
    outcome = system(configured()).learn(toy_lesson(new_cache(), sure_teacher()))
    assert accuracy_on_test(outcome.learned) > 0.9
    assert len(outcome.epochs) == (0 if system is LogisticRegressionControl else 3)
    assert outcome.n_total == outcome.n_trainable + ENCODER


def test_encoder_is_counted_as_its_source_has_it() -> None:
    size, inner, norm = 384, 1536, 2 * 384
    embeddings = (30_522 + 512 + 2) * size + norm
    layer = 4 * (size * size + size) + (size * inner + inner) + (inner * size + size) + 2 * norm
    assert encoder_parameters(find_embedder("minilm-l6")) == embeddings + 6 * layer == ENCODER


def test_student_counts_its_parameters_by_part(new_cache: NewCache) -> None:
    outcome = StudentSystem(configured()).learn(toy_lesson(new_cache(), sure_teacher()))
    counts = trainable_parameters(EMBEDDING_SIZE, student_circuit("chain", 3, 1), 2)
    assert outcome.facts["parameters"] == counts
    assert outcome.n_trainable == counts["total"]
    assert outcome.facts["seconds_per_epoch"] > 0
    assert outcome.facts["best"]["validation_accuracy"] == max(
        outcome.facts["best"]["validation_accuracy"], *outcome.epochs
    )


def test_logistic_regression_has_a_weight_a_feature_and_a_bias(new_cache: NewCache) -> None:
    outcome = LogisticRegressionControl(configured()).learn(toy_lesson(new_cache()))
    assert outcome.n_trainable == EMBEDDING_SIZE + 1


def test_logits_of_logistic_regression_are_its_probabilities(new_cache: NewCache) -> None:
    cache = new_cache()
    outcome = LogisticRegressionControl(configured()).learn(toy_lesson(cache))
    logits = outcome.learned.logits(TOY.test)
    again = LogisticRegressionControl(configured()).learn(toy_lesson(cache, seed=1)).learned.logits(TOY.test)
    np.testing.assert_array_equal(logits, again)
    assert (logits[:, 0] == 0).all()


@pytest.mark.parametrize(("m", "n_classes", "wanted"), [(768, 2, 8549), (384, 2, 4325), (768, 4, 8573), (768, 2, 9275)])
def test_mlp_comes_as_near_to_the_student_as_a_hidden_size_can(m: int, n_classes: int, wanted: int) -> None:
    hidden = nearest_size(lambda h: mlp_parameters(m, h, n_classes), wanted, "MLP")
    found = mlp_parameters(m, hidden, n_classes)
    assert found <= MAX_PARAMETERS
    for other in (hidden - 1, hidden + 1):
        count = mlp_parameters(m, other, n_classes)
        assert count > MAX_PARAMETERS or abs(count - wanted) >= abs(found - wanted)
    module = MlpModule(m, hidden, hidden, n_classes)
    assert sum(p.numel() for p in module.parameters()) == found


@pytest.mark.parametrize(
    ("m", "n_classes", "rank", "total"), [(768, 2, 5, 9181), (768, 4, 5, 9213), (384, 2, 13, 8917)]
)
def test_surrogate_takes_the_largest_rank_within_table_3(m: int, n_classes: int, rank: int, total: int) -> None:
    assert nearest_size(lambda r: surrogate_parameters(m, 11, r, n_classes), MAX_PARAMETERS, "surrogate") == rank
    assert surrogate_parameters(m, 11, rank, n_classes) == total
    assert surrogate_parameters(m, 11, rank + 1, n_classes) > MAX_PARAMETERS
    assert sum(p.numel() for p in SurrogateModule(11, rank, m, n_classes).parameters()) == total


def test_trained_modules_are_of_the_counted_size(new_cache: NewCache) -> None:
    config, lesson = configured(11), toy_lesson(new_cache(), sure_teacher())
    student = trainable_parameters(EMBEDDING_SIZE, student_circuit("chain", 11, 1), 2)["total"]
    mlp = MlpControl(config).learn(lesson)
    assert abs(mlp.n_trainable - student) <= (EMBEDDING_SIZE + 3) / 2
    assert SurrogateControl(config).learn(lesson).n_trainable == 8917


def test_too_many_features_for_any_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="MLP: 9301 parameters at size 1, expected at most 9275"):
        nearest_size(lambda h: mlp_parameters(9296, h, 2), 9000, "MLP")


@pytest.mark.parametrize("n_qubits", [2, 4])
def test_surrogate_is_multilinear_in_one_cos_and_sin(n_qubits: int) -> None:
    torch.manual_seed(0)
    module = SurrogateModule(n_qubits, 2, 5, 3).double()
    angles = torch.randn(6, n_qubits, dtype=torch.float64)
    vectors = np.stack([np.ones(angles.shape), np.cos(angles.numpy()), np.sin(angles.numpy())], axis=2)
    first, cores = module.first.detach().numpy(), module.cores.detach().numpy()
    last = module.head.weight.detach().numpy().reshape(3, 2, 3)
    expected = np.tile(module.head.bias.detach().numpy(), (6, 1))
    for k in itertools.product(range(3), repeat=n_qubits):
        row = first[k[0]]
        for core, index in zip(cores, k[1:-1], strict=True):
            row = row @ core[:, index]
        coefficient = last[:, :, k[-1]] @ row
        monomial = np.prod([vectors[:, j, index] for j, index in enumerate(k)], axis=0)
        expected += monomial[:, None] * coefficient
    with torch.no_grad():
        found = module.head(module.middle(angles)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("module", ["mlp", "surrogate"])
def test_controls_start_at_the_linear_map_too(module: str) -> None:
    torch.manual_seed(0)
    built = MlpModule(20, 11, 11, 2) if module == "mlp" else SurrogateModule(11, 5, 20, 2)
    x = torch.randn(400, 20)
    targets = (x @ torch.randn(20) > 0).long()
    start_linear(built, x[:200], 4 * torch.nn.functional.one_hot(targets[:200]).float(), configured().optimiser)
    with torch.no_grad():
        assert (built(x[200:]).argmax(dim=1) == targets[200:]).double().mean() > 0.85


@pytest.mark.parametrize("system", LEARNERS)
def test_same_seed_same_logits_and_another_seed_others(
    system: Callable[[RunConfig], System], new_cache: NewCache
) -> None:
    def logits(cache: str, seed: int) -> np.ndarray:
        lesson = toy_lesson(new_cache(cache), sure_teacher(), seed)
        return system(configured(start="random")).learn(lesson).learned.logits(TOY.test)

    first = logits("one", 0)
    np.testing.assert_array_equal(first, logits("two", 0))
    assert not np.allclose(first, logits("three", 1), rtol=0, atol=1e-3)


def test_finished_run_is_read_from_the_cache(new_cache: NewCache, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = toy_lesson(new_cache(), sure_teacher())
    first = SurrogateControl(configured()).learn(lesson)
    monkeypatch.setattr("training.distil._train_epoch", None)
    again = SurrogateControl(configured()).learn(lesson)
    np.testing.assert_array_equal(again.learned.logits(TOY.test), first.learned.logits(TOY.test))
    assert again.facts == first.facts


def test_systems_of_one_configuration_share_no_run(new_cache: NewCache) -> None:
    cache = new_cache()
    for system in LEARNERS:
        system(configured()).learn(toy_lesson(cache, sure_teacher()))
    assert len(list((cache / "runs").glob("*.pt"))) == len(LEARNERS)


def test_without_a_teacher_nothing_of_it_is_read(new_cache: NewCache) -> None:
    def logits(outcome: Outcome) -> np.ndarray:
        return outcome.learned.logits(TOY.test)

    untaught = logits(UntaughtStudent(configured()).learn(toy_lesson(new_cache("one"), poisoned_teacher())))
    alone = logits(StudentSystem(configured()).learn(toy_lesson(new_cache("two"))))
    taught = logits(StudentSystem(configured()).learn(toy_lesson(new_cache("three"), sure_teacher())))
    np.testing.assert_array_equal(untaught, alone)
    assert not np.allclose(untaught, taught, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("system", "kind"), [(StudentSystem, "student"), (MlpControl, r"MLP-\d+"), (SurrogateControl, r"surrogate-\d+")]
)
def test_loss_that_is_no_number_stops_and_leaves_the_checkpoint(
    system: Callable[[RunConfig], System], kind: str, new_cache: NewCache
) -> None:
    cache = new_cache()
    with pytest.raises(DivergedError, match=rf"the {kind}'s loss is nan in epoch 1, step \d of 6") as caught:
        system(configured(start="random")).learn(toy_lesson(cache, poisoned_teacher()))
    (path,) = (cache / "runs").glob("*.pt")
    assert str(path) in str(caught.value)
    assert len(torch.load(path, weights_only=True)["history"]) == 1


def test_kinds_are_told_apart_where_all_else_is_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = Examples(
        rng.normal(size=(20, 6)).astype(np.float32), np.eye(2, dtype=np.float32)[[0, 1] * 10], np.array([0, 1] * 10)
    )
    for kind in ("one", "two"):
        fit(lambda m, n: MlpModule(m, 3, 3, n), configured(), data, data, tmp_path, progress=False, kind=kind)
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_features_are_the_embedders(embedded: Path) -> None:
    features = Features.of(configured().student, toy_lesson(embedded.parent))
    expected = embed_texts(features.embedder, TOY.test, ("mean:4",), embedded, progress=False)
    np.testing.assert_array_equal(features(TOY.test), expected)
    assert features.embedding_size == expected.shape[1] == EMBEDDING_SIZE


def test_features_may_be_of_an_embedder_that_the_cache_has(tmp_path: Path) -> None:
    (tmp_path / "embedders").mkdir()
    (tmp_path / "embedders" / "own").symlink_to(find_embedder("minilm-l6"))
    own = configured().student.model_copy(update={"embedder": "own"})
    assert Features.of(own, toy_lesson(tmp_path)).folder == tmp_path / "embedders" / "own"
    with pytest.raises(EmbedderError, match="embedder 'own': expected one of"):
        Features.of(own, toy_lesson(tmp_path / "elsewhere"))


def test_texts_that_are_not_the_lessons_are_not_kept(new_cache: NewCache, embedded: Path) -> None:
    features = Features.of(configured().student, toy_lesson(new_cache()))
    before = sorted(path.name for path in embedded.glob("*.safetensors"))
    other = Texts(TOY.test.texts[:5], TOY.test.targets[:5], TOY.labels, "others")
    np.testing.assert_allclose(features(other), features(TOY.test)[:5], rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in embedded.glob("*.safetensors")) == before
    assert len(before) == 3
