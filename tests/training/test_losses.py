from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.config import LossConfig
from training.losses import distillation_loss, js_divergence, kl_divergence

FEW, MANY = 2, 5


def draw_logits(n_classes: int, seed: int, batch: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student logits, teacher logits, targets."""
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(scale=2, size=(2, batch, n_classes))
    return student, teacher, rng.integers(n_classes, size=batch)


def loss_of(student: np.ndarray, teacher: np.ndarray, targets: np.ndarray, **settings: float) -> float:
    tensors = torch.tensor(student), torch.tensor(teacher), torch.tensor(targets)
    return distillation_loss(*tensors, LossConfig(**settings)).item()


def plain_softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def plain_kl(f: np.ndarray, q: np.ndarray) -> float:
    return float((f * np.log(f / q)).sum(axis=1).mean())


def plain_js(f: np.ndarray, q: np.ndarray) -> float:
    return (plain_kl(f, (f + q) / 2) + plain_kl(q, (f + q) / 2)) / 2


def log(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.mark.parametrize("n_classes", [FEW, MANY])
@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 0.9, "temperature": 2.0, "kl": 1.0, "js": 1.0},
        {"guidance": 0.3, "temperature": 1.0, "kl": 1.0, "js": 0.0},
        {"guidance": 0.0, "temperature": 5.0, "kl": 0.0, "js": 1.0},
        {"guidance": 0.5, "temperature": 0.5, "kl": 0.25, "js": 3.0},
    ],
)
def test_loss_is_equation_14(n_classes: int, settings: dict[str, float]) -> None:
    student, teacher, targets = draw_logits(n_classes, seed=n_classes)
    temperature, guidance = settings["temperature"], settings["guidance"]
    f, q = plain_softmax(teacher / temperature), plain_softmax(student / temperature)
    ce = -np.log(plain_softmax(student)[np.arange(len(targets)), targets]).mean()
    from_teacher = settings["kl"] * plain_kl(f, q) + settings["js"] * plain_js(f, q)
    expected = (1 - guidance) * temperature**2 * from_teacher + guidance * ce
    assert loss_of(student, teacher, targets, **settings) == pytest.approx(expected, rel=1e-12)


def test_kl_runs_from_the_teacher_to_the_student() -> None:
    f, q = [0.9, 0.1], [0.5, 0.5]
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert abs(forward - backward) > 0.1
    assert kl_divergence(log(f), log(q)).item() == pytest.approx(forward, rel=1e-12)
    found = loss_of(np.log([q]), np.log([f]), np.array([0]), guidance=0, temperature=1, js=0)
    assert found == pytest.approx(forward, rel=1e-12)


def test_kl_is_zero_exactly_where_the_distributions_are_equal() -> None:
    f = log([0.7, 0.2, 0.1])
    assert kl_divergence(f, f.clone()).item() == 0
    for other in ([0.7, 0.1, 0.2], [0.69, 0.21, 0.1], [0.1, 0.2, 0.7]):
        assert kl_divergence(f, log(other)).item() > 1e-5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("divergence", [kl_divergence, js_divergence])
def test_divergences_of_every_row_are_never_negative(divergence, seed: int) -> None:  # type: ignore[no-untyped-def]
    student, teacher, _ = draw_logits(MANY, seed, batch=50)
    for row in range(50):
        f, q = (torch.log_softmax(torch.tensor(logits[row : row + 1]), dim=1) for logits in (teacher, student))
        assert divergence(f, q).item() >= 0


def test_js_is_symmetric_and_at_most_ln_2() -> None:
    student, teacher, _ = draw_logits(MANY, seed=3, batch=40)
    f, q = (torch.log_softmax(torch.tensor(8 * logits), dim=1) for logits in (teacher, student))
    assert js_divergence(f, q).item() == pytest.approx(js_divergence(q, f).item(), rel=1e-12)
    assert 0.1 < js_divergence(f, q).item() <= math.log(2)


def test_js_reaches_ln_2_where_the_distributions_share_no_class() -> None:
    opposite = torch.log_softmax(torch.tensor([[60.0, -60.0], [-60.0, 60.0]], dtype=torch.float64), dim=1)
    assert js_divergence(opposite, opposite.flip(0)).item() == pytest.approx(math.log(2), abs=1e-12)


def test_js_averages_probabilities_not_their_logarithms() -> None:
    f, q = [0.9, 0.1], [0.2, 0.8]
    assert js_divergence(log(f), log(q)).item() == pytest.approx(plain_js(np.array([f]), np.array([q])), rel=1e-12)
    # The middle of the log-probabilities, as in the paper's released code, would give another number.
    middle = np.sqrt(np.array([f]) * np.array([q]))
    wrong = (plain_kl(np.array([f]), middle) + plain_kl(np.array([q]), middle)) / 2
    assert abs(wrong - plain_js(np.array([f]), np.array([q]))) > 0.05


@pytest.mark.parametrize("part", ["kl", "js"])
def test_gradient_hardly_depends_on_the_temperature_for_close_logits(part: str) -> None:
    student, teacher, targets = draw_logits(MANY, seed=4)
    student, teacher = 1e-2 * student, 1e-2 * teacher
    weights = {"kl": 0.0, "js": 0.0} | {part: 1.0}

    def gradient(temperature: float) -> torch.Tensor:
        logits = torch.tensor(student, requires_grad=True)
        config = LossConfig(guidance=0, temperature=temperature, **weights)
        distillation_loss(logits, torch.tensor(teacher), torch.tensor(targets), config).backward()
        assert logits.grad is not None
        return logits.grad

    at_one = gradient(1.0)
    assert at_one.norm() > 0
    for temperature in (2.0, 8.0):
        assert (gradient(temperature) - at_one).norm() < 0.05 * at_one.norm()


def test_guidance_1_ignores_the_teacher() -> None:
    student, teacher, targets = draw_logits(FEW, seed=5)
    expected = -np.log(plain_softmax(student)[np.arange(len(targets)), targets]).mean()
    for other in (teacher, -teacher, np.full_like(teacher, np.nan)):
        assert loss_of(student, other, targets, guidance=1) == pytest.approx(expected, rel=1e-12)


def test_guidance_0_ignores_the_labels() -> None:
    student, teacher, targets = draw_logits(FEW, seed=6)
    assert loss_of(student, teacher, targets, guidance=0) == loss_of(student, teacher, 1 - targets, guidance=0)
    assert loss_of(teacher, teacher, targets, guidance=0) == pytest.approx(0, abs=1e-15)


def test_what_is_common_to_all_logits_changes_nothing() -> None:
    student, teacher, targets = draw_logits(MANY, seed=7)
    shifted = loss_of(student + 30, teacher - 50, targets, guidance=0.5)
    assert shifted == pytest.approx(loss_of(student, teacher, targets, guidance=0.5), rel=1e-10)


def test_certain_teacher_gives_a_finite_loss_and_gradient() -> None:
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = distillation_loss(logits, torch.tensor([[900.0, -900.0]]), torch.tensor([0]), LossConfig(guidance=0.5))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
