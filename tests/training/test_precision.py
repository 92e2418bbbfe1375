from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training import precision
from training.precision import autocast, products

CPUS = pytest.mark.parametrize("instructions", [True, False], ids=["with instructions", "without"])


class Seen(TorchDispatchMode):
    """Counts matrix products by the type of their factors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "linear", "matmul", "baddbmm"):
            self.found[args[1].dtype] += 1
        return func(*args, **(kwargs or {}))


def attend(weights: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """A layer and the products of attention: with a bias, without one, and batched."""
    hidden = weights(x)
    scores = torch.softmax(hidden @ hidden.transpose(1, 2), dim=-1)
    return (scores.to(hidden.dtype) @ hidden) @ weights.weight.to(hidden.dtype)


def step(kind: precision.Precision) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and gradient of the weights, in one training step."""
    torch.manual_seed(0)
    weights, x = torch.nn.Linear(24, 24), torch.randn(4, 10, 24)
    with autocast(kind):
        out = attend(weights, x)
    with products(kind):
        out.float().pow(2).mean().backward()  # type: ignore[no-untyped-call]
    assert weights.weight.grad is not None
    return out.detach(), weights.weight.grad


@pytest.fixture
def cpu(instructions: bool, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "has_instructions", lambda: instructions)
    return instructions


@CPUS
def test_products_are_in_bfloat16_on_every_cpu(cpu: bool) -> None:
    with Seen() as seen:
        out, gradient = step("bf16")
    assert out.dtype == torch.bfloat16
    assert gradient.dtype == torch.float32
    # Whatever is widened is seen as it reaches the CPU.
    assert set(seen.found) == {torch.bfloat16 if cpu else torch.float32}
    assert seen.found.total() >= 9


def test_cpus_differ_by_the_order_of_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for instructions in (True, False):
        monkeypatch.setattr(precision, "has_instructions", lambda instructions=instructions: instructions)
        found[instructions] = step("bf16")
    exact = step("fp32")
    for native, widened, whole in zip(found[True], found[False], exact, strict=True):
        scale = whole.abs().max()
        rounding = (native.float() - whole).abs().max() / scale
        assert rounding > 1e-4
        # A sum that falls on the other side of a tie is another bfloat16; most are the same.
        assert (native == widened).float().mean() > 0.8
        assert (native.float() - widened.float()).abs().max() / scale < 2 * rounding


@CPUS
def test_float32_is_left_alone(cpu: bool) -> None:
    with Seen() as seen:
        out, _ = step("fp32")
    assert out.dtype == torch.float32
    assert set(seen.found) == {torch.float32}


@CPUS
def test_what_only_predicts_is_widened_too(cpu: bool) -> None:
    weights, x = torch.nn.Linear(24, 24), torch.randn(4, 10, 24)
    with Seen() as seen, torch.inference_mode(), autocast("bf16"):
        assert attend(weights, x).dtype == torch.bfloat16
    assert (torch.float32 in seen.found) is not cpu
    assert (torch.bfloat16 in seen.found) is cpu


@CPUS
def test_factors_in_float32_are_multiplied_as_they_are(cpu: bool) -> None:
    x = torch.randn(3, 3)
    with products("bf16"):
        assert (x @ x).dtype == torch.float32
        torch.testing.assert_close(x @ x, torch.mm(x, x), rtol=0, atol=0)
