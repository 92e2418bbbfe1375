"""Matrix products in bfloat16: the same numbers on every CPU, and never slower than float32 by much.

A CPU without instructions for them has them computed by a plain loop, ten times as slow as in float32 (MiniLM, a step
of 16 texts of 40 tokens, AVX2). There the factors, which are bfloat16, are widened to float32, multiplied, and the
product is rounded to bfloat16: what such an instruction does too, so that results differ in the order of sums alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Precision = Literal["fp32", "bf16"]

_ATEN = torch.ops.aten
_PRODUCTS = {getattr(_ATEN, name).default for name in ("mm", "bmm", "matmul", "linear", "addmm", "baddbmm")}


@contextmanager
def autocast(precision: Precision, device: str = "cpu") -> Iterator[None]:
    """Where matrices are multiplied in bfloat16, or, for `fp32`, as they are. For a forward pass.

    Args:
        precision: Which.
        device: Type of the device, such as `cpu` or `cuda`.
    """
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"), products(precision, device):
        yield


@contextmanager
def products(precision: Precision, device: str = "cpu") -> Iterator[None]:
    """Where bfloat16 matrices are widened for their product if this CPU has no instructions. For a backward pass.

    What the forward pass has rounded is multiplied as it is: unlike in `autocast`, nothing else is.
    """
    if precision == "bf16" and device == "cpu" and not has_instructions():
        with _Widened():  # type: ignore[no-untyped-call]
            yield
    else:
        yield


def has_instructions() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func not in _PRODUCTS or args[0].dtype is not torch.bfloat16:
            return func(*args, **given)
        return func(*(arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args), **given).bfloat16()
