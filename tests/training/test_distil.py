from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.circuit import Circuit, student_circuit
from models.engines.compiled import CompiledEngine, compile_circuit
from models.student import Student, StudentWeights, softmax
from training import distil as distil_module
from training.circuit_torch import CircuitExpvals
from training.config import RunConfig
from training.distil import Distilled, Examples, StudentModule, distil, start_linear
from training.errors import CheckpointError, DivergedError
from training.hardware import Channel
from training.losses import distillation_loss

CIRCUIT = student_circuit("chain", 4, 1)
EMBEDDING_SIZE = 12


def draw(n: int, seed: int, n_classes: int = 2) -> Examples:
    """Classes apart along random directions; features of unlike mean and scale, so that standardising matters."""
    fixed = np.random.default_rng(100)
    directions = fixed.normal(size=(n_classes, EMBEDDING_SIZE))
    offset, scale = fixed.normal(size=EMBEDDING_SIZE) * 3, fixed.uniform(0.05, 2, size=EMBEDDING_SIZE)
    rng = np.random.default_rng(seed)
    targets = rng.integers(n_classes, size=n)
    standard = rng.normal(size=(n, EMBEDDING_SIZE)) + 1.5 * directions[targets]
    logits = 2 * standard @ directions.T / np.linalg.norm(directions, axis=1) + 0.3 * rng.normal(size=(n, n_classes))
    embeddings = (standard * scale + offset).astype(np.float32)
    return Examples(embeddings, logits.astype(np.float32), targets.astype(np.int64))


TRAIN, VALIDATION = draw(120, seed=1), draw(60, seed=2)


def run_config(seed: int = 0, loss: dict[str, Any] | None = None, **optimiser: Any) -> RunConfig:
    settings = {"epochs": 3, "batch_size": 20, "ridge": 1.0} | optimiser
    return RunConfig.model_validate({"task": "toy", "seed": seed, "loss": loss or {}, "optimiser": settings})


def run(
    config: RunConfig,
    cache: Path,
    train: Examples = TRAIN,
    validation: Examples = VALIDATION,
    channel: Channel | None = None,
) -> Distilled:
    return distil(config, CIRCUIT, train, validation, cache, progress=False, channel=channel)


def make_channel(scale: float = 1.0, offset: float = 0.0, shots: int = 10**12) -> Channel:
    """The same on all qubits, read out without errors; by default the identity."""
    n = CIRCUIT.n_qubits
    return Channel(np.full(n, scale), np.full(n, offset), np.zeros(n), np.zeros(n), shots)


def logits(weights: StudentWeights, embeddings: np.ndarray, circuit: Circuit = CIRCUIT) -> np.ndarray:
    student = Student(circuit, weights, CompiledEngine(compile_circuit(circuit.bind(ansatz=weights.ansatz.tolist()))))
    return student.logits(student.angles(embeddings))


def assert_same_weights(one: StudentWeights, other: StudentWeights) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let ctrl-C come in the middle of a step."""
    calls = 0

    def interrupted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return distillation_loss(*arguments)

    monkeypatch.setattr(distil_module, "distillation_loss", interrupted)


def test_linear_start_is_accurate_before_any_training() -> None:
    torch.manual_seed(0)
    model = StudentModule(CIRCUIT, EMBEDDING_SIZE, 2)
    mean, scale = TRAIN.embeddings.mean(axis=0), TRAIN.embeddings.std(axis=0)
    x, held_out = (torch.tensor((part.embeddings - mean) / scale) for part in (TRAIN, VALIDATION))

    def accuracy() -> float:
        with torch.no_grad():
            return float((model(held_out).argmax(dim=1).numpy() == VALIDATION.targets).mean())

    assert accuracy() < 0.75
    start_linear(model, x, torch.tensor(TRAIN.teacher_logits), run_config().optimiser)
    assert accuracy() > 0.9


def test_linear_start_gives_angles_of_the_configured_spread() -> None:
    torch.manual_seed(0)
    model = StudentModule(CIRCUIT, EMBEDDING_SIZE, 2)
    x = torch.tensor((TRAIN.embeddings - TRAIN.embeddings.mean(axis=0)) / TRAIN.embeddings.std(axis=0))
    start_linear(model, x, torch.tensor(TRAIN.teacher_logits), run_config(angle_scale=0.8).optimiser)
    spread = model.reducer(x).std(dim=0)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.8), rtol=1e-4, atol=0)


def test_training_lowers_the_loss_from_a_random_start(tmp_path: Path) -> None:
    history = run(run_config(start="random", epochs=10, reducer_learning_rate=1e-2), tmp_path).history
    assert len(history) == 11
    assert history[-1]["train_loss"] < 0.7 * history[1]["train_loss"]
    assert history[-1]["validation_loss"] < 0.7 * history[0]["validation_loss"]
    assert history[-1]["validation_accuracy"] > 0.85


def test_training_improves_on_the_linear_start(tmp_path: Path) -> None:
    distilled = run(run_config(epochs=8), tmp_path)
    losses = [entry["validation_loss"] for entry in distilled.history]
    assert min(losses) < losses[0]


def test_equal_seeds_give_equal_weights_and_other_seeds_others(tmp_path: Path) -> None:
    one, same, other = (run(run_config(seed), tmp_path / name) for seed, name in ((4, "a"), (4, "b"), (5, "c")))
    assert_same_weights(one.weights, same.weights)
    assert one.history == same.history
    assert not np.allclose(one.weights.reducer_weight, other.weights.reducer_weight)


# One call of the loss for the start, then six steps and one validation an epoch.
@pytest.mark.parametrize("call", [1, 2, 8, 9, 20], ids=["start", "step 1", "validation 1", "epoch 2", "epoch 3"])
def test_interrupted_run_goes_on_to_the_weights_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    config = run_config(feature_noise=0.1, weight_decay=0.01, averaging=0.9)
    unbroken = run(config, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        interrupt_at(patch, call)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "broken")
    torch.manual_seed(99)
    continued = run(config, tmp_path / "broken")
    assert continued.history == unbroken.history
    assert_same_weights(continued.weights, unbroken.weights)


def test_interrupted_run_on_a_channel_goes_on_with_the_same_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, channel = run_config(), make_channel(0.8, shots=50)
    unbroken = run(config, tmp_path / "unbroken", channel=channel)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1 + 13 + 4)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "broken", channel=channel)
    torch.manual_seed(99)
    assert_same_weights(run(config, tmp_path / "broken", channel=channel).weights, unbroken.weights)


def test_interrupted_run_loses_at_most_one_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1 + 7 + 7 + 6)
        with pytest.raises(KeyboardInterrupt):
            run(run_config(), tmp_path)
    (state,) = (torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt"))
    assert len(state["history"]) == 1 + 2


def test_finished_run_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(run_config(), tmp_path)
    interrupt_at(monkeypatch, 1)
    monkeypatch.setattr(distil_module, "start_linear", None)
    again = run(run_config(), tmp_path)
    assert_same_weights(again.weights, first.weights)
    assert again.best_epoch == first.best_epoch


def test_other_configuration_or_data_is_another_run(tmp_path: Path) -> None:
    run(run_config(epochs=1), tmp_path)
    run(run_config(epochs=1, angle_scale=0.6), tmp_path)
    run(run_config(epochs=1, loss={"guidance": 0.9}), tmp_path)
    run(run_config(epochs=1), tmp_path, train=draw(120, seed=3))
    run(run_config(epochs=1), tmp_path, validation=draw(60, seed=3))
    run(run_config(epochs=1), tmp_path, channel=make_channel(0.9))
    run(run_config(epochs=1), tmp_path, channel=make_channel(0.8))
    assert len(list(tmp_path.glob("toy-*.pt"))) == 7


@pytest.mark.parametrize("n_classes", [2, 3])
def test_exported_weights_on_raw_embeddings_equal_the_module_on_standardised_ones(
    tmp_path: Path, n_classes: int
) -> None:
    train, validation = draw(120, 1, n_classes), draw(60, 2, n_classes)
    weights = run(run_config(), tmp_path, train, validation).weights
    (state,) = (torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt"))
    model = StudentModule(CIRCUIT, EMBEDDING_SIZE, n_classes)
    model.load_state_dict(state["best"])
    mean, scale = train.embeddings.mean(axis=0), train.embeddings.std(axis=0)
    with torch.no_grad():
        expected = model(torch.tensor((validation.embeddings - mean) / scale)).numpy()
    found = logits(weights, validation.embeddings)
    np.testing.assert_allclose(softmax(found), softmax(expected), rtol=0, atol=1e-5)
    difference = found - expected
    np.testing.assert_allclose(difference, difference.mean(axis=1, keepdims=True).repeat(n_classes, 1), atol=2e-4)
    # Without the standardisation folded in, the same weights would say something else.
    assert np.abs(softmax(logits(weights, (validation.embeddings - mean) / scale)) - softmax(expected)).max() > 0.1


def test_exported_head_is_centred_over_the_classes(tmp_path: Path) -> None:
    weights = run(run_config(), tmp_path, draw(120, 1, 3), draw(60, 2, 3)).weights
    np.testing.assert_allclose(weights.head_weight.mean(axis=0), 0, atol=1e-7)
    assert weights.head_bias.mean() == pytest.approx(0, abs=1e-7)
    assert np.abs(weights.head_weight).max() > 0.1


def assert_weights_are_of_the_best_epoch(distilled: Distilled, config: RunConfig, validation: Examples) -> None:
    entry = distilled.history[distilled.best_epoch]
    found = torch.tensor(logits(distilled.weights, validation.embeddings))
    targets = torch.tensor(validation.targets)
    loss = distillation_loss(found, torch.tensor(validation.teacher_logits), targets, config.loss)
    assert loss.item() == pytest.approx(entry["validation_loss"], rel=1e-3)
    assert (found.argmax(dim=1) == targets).double().mean().item() == pytest.approx(entry["validation_accuracy"])


def test_kept_epoch_is_the_most_accurate_on_validation_even_where_its_loss_is_higher(tmp_path: Path) -> None:
    # The teacher is wrong about every validation text, so that accuracy falls while the loss falls.
    validation = Examples(VALIDATION.embeddings, VALIDATION.teacher_logits, 1 - VALIDATION.targets)
    config = run_config(epochs=6, loss={"guidance": 0.0}, start="random", reducer_learning_rate=1e-2)
    distilled = run(config, tmp_path, validation=validation)
    accuracies = [entry["validation_accuracy"] for entry in distilled.history]
    losses = [entry["validation_loss"] for entry in distilled.history]
    assert accuracies[distilled.best_epoch] == max(accuracies)
    assert distilled.best_epoch != int(np.argmin(losses))
    assert_weights_are_of_the_best_epoch(distilled, config, validation)


def test_kept_epoch_of_equally_accurate_ones_has_the_lowest_loss(tmp_path: Path) -> None:
    # Steps this long overshoot, so that the last epoch is not simply the best.
    config = run_config(
        seed=1, epochs=8, start="random", reducer_learning_rate=0.3, ansatz_learning_rate=0.5, head_learning_rate=0.5
    )
    distilled = run(config, tmp_path)
    most = max(entry["validation_accuracy"] for entry in distilled.history)
    equals = [i for i, entry in enumerate(distilled.history) if entry["validation_accuracy"] == most]
    assert len(equals) > 1
    assert distilled.best_epoch == min(equals, key=lambda i: distilled.history[i]["validation_loss"])
    assert_weights_are_of_the_best_epoch(distilled, config, VALIDATION)


def test_running_mean_of_the_weights_follows_the_steps_slowly(tmp_path: Path) -> None:
    def loss_moved_by(averaging: float) -> float:
        history = run(run_config(start="random", epochs=1, averaging=averaging), tmp_path / str(averaging)).history
        return abs(history[1]["validation_loss"] - history[0]["validation_loss"])

    moved = [loss_moved_by(averaging) for averaging in (0.0, 0.5, 0.99)]
    assert moved[0] > moved[1] > moved[2] > 0


def test_guidance_chooses_between_teacher_and_labels(tmp_path: Path) -> None:
    # A teacher that says the opposite of the labels.
    wrong_train, wrong_validation = (
        Examples(part.embeddings, -part.teacher_logits, part.targets) for part in (TRAIN, VALIDATION)
    )
    accuracy = {}
    for guidance in (0.0, 1.0):
        config = run_config(epochs=15, loss={"guidance": guidance}, start="random", reducer_learning_rate=1e-2)
        accuracy[guidance] = run(config, tmp_path, wrong_train, wrong_validation).history[-1]["validation_accuracy"]
    assert accuracy[0.0] < 0.2
    assert accuracy[1.0] > 0.8


def test_channel_that_changes_nothing_gives_the_weights_of_no_channel(tmp_path: Path) -> None:
    # One batch an epoch: the channel draws noise, however small, and with it come batches in another order.
    config = run_config(batch_size=len(TRAIN.targets))
    plain, on_identity = (run(config, tmp_path, channel=channel) for channel in (None, make_channel()))
    for name, value in vars(plain.weights).items():
        np.testing.assert_allclose(getattr(on_identity.weights, name), value, rtol=5e-3, atol=2e-3, err_msg=name)


def test_head_learnt_on_a_channel_fits_what_the_chip_gives_and_what_the_simulator_gives(tmp_path: Path) -> None:
    config = run_config(epochs=15, head_learning_rate=0.1)
    channel = make_channel(0.4, 0.5, shots=1000)

    def losses(weights: StudentWeights) -> tuple[float, float]:
        """On validation texts, of exact values and of the channel's."""
        student = Student(
            CIRCUIT, weights, CompiledEngine(compile_circuit(CIRCUIT.bind(ansatz=weights.ansatz.tolist())))
        )
        exact = student.expvals(student.angles(VALIDATION.embeddings))
        torch.manual_seed(0)
        found = (exact, channel(torch.tensor(exact)).numpy())
        labels = (torch.tensor(VALIDATION.teacher_logits), torch.tensor(VALIDATION.targets))
        exact_loss, chip_loss = (
            distillation_loss(torch.tensor(student.logits_from_expvals(values)), *labels, config.loss).item()
            for values in found
        )
        return exact_loss, chip_loss

    plain, on_channel = (losses(run(config, tmp_path, channel=c).weights) for c in (None, channel))
    assert max(on_channel) < 0.1 * plain[1]


def test_validation_is_exact_whatever_the_channel(tmp_path: Path) -> None:
    config = run_config(epochs=2)
    distilled = run(config, tmp_path, channel=make_channel(0.2, 0.7, shots=20))
    assert_weights_are_of_the_best_epoch(distilled, config, VALIDATION)


def test_nan_from_the_teacher_is_refused_with_epoch_and_step(tmp_path: Path) -> None:
    poisoned = TRAIN.teacher_logits.copy()
    poisoned[7, 0] = np.nan
    train = Examples(TRAIN.embeddings, poisoned, TRAIN.targets)
    with pytest.raises(DivergedError, match=r"loss is nan in epoch 1, step [1-6] of 6"):
        run(run_config(start="random"), tmp_path, train)


def test_diverging_run_leaves_its_last_finished_epoch_in_the_named_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def diverging(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return distillation_loss(*arguments) * (float("inf") if calls == 1 + 7 + 3 else 1.0)

    monkeypatch.setattr(distil_module, "distillation_loss", diverging)
    with pytest.raises(DivergedError, match=r"loss is inf in epoch 2, step 3 of 6") as caught:
        run(run_config(), tmp_path)
    (path,) = tmp_path.glob("*.pt")
    assert str(path) in str(caught.value)
    assert len(torch.load(path, weights_only=True)["history"]) == 1 + 1


def test_steps_that_overflow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"loss is nan in epoch 1, step [2-6] of 6; lower the learning rates"):
        run(run_config(reducer_learning_rate=1e37), tmp_path)


def test_gradient_that_is_no_number_is_refused_before_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steep(*arguments: Any) -> torch.Tensor:
        loss = distillation_loss(*arguments)
        # The root's slope at 0 is infinite, and infinity times 0 no number; its value is one.
        return loss + torch.sqrt(loss * 0)

    monkeypatch.setattr(distil_module, "distillation_loss", steep)
    with pytest.raises(DivergedError, match=r"the student's gradient of the loss is nan in epoch 1, step 1 of 6"):
        run(run_config(), tmp_path)


def test_step_that_spoils_the_weights_stops_before_its_epoch_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = torch.optim.AdamW.step, iter(range(100))

    def spoil_the_sixth(optimiser: torch.optim.AdamW) -> None:
        step(optimiser)
        if next(steps) == 5:
            optimiser.param_groups[0]["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil_the_sixth)
    with pytest.raises(DivergedError, match=r"student's validation loss is nan after epoch 1 of 3; lower.*toy-.*\.pt"):
        run(run_config(), tmp_path)
    (state,) = (torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt"))
    assert len(state["history"]) == 1
    assert all(torch.isfinite(value).all() for value in state["model"].values())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a file"])
def test_checkpoint_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    first = run(run_config(epochs=1), tmp_path)
    path = tmp_path / f"{first.run}.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path}: expected the checkpoint of a run, .*; delete it"):
        run(run_config(epochs=1), tmp_path)
    assert path.read_bytes() == content


def test_of_two_that_want_one_run_one_trains_and_the_other_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def counted(*arguments: Any) -> torch.Tensor:
        steps.append(arguments)
        return distillation_loss(*arguments)

    monkeypatch.setattr(distil_module, "distillation_loss", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: run(run_config(), tmp_path), range(2))
    assert_same_weights(first.weights, second.weights)
    assert len(steps) == 1 + 3 * 7


def test_module_counts_the_parameters_of_table_3() -> None:
    module = StudentModule(student_circuit("released", 11, 11), 768, 2)
    assert sum(p.numel() for p in module.parameters()) == 9_275
    assert isinstance(module.circuit, CircuitExpvals)
