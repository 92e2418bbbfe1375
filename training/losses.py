"""The distillation loss of eq. 14."""

from __future__ import annotations

import math

import torch

from training.config import LossConfig


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, targets: torch.Tensor, config: LossConfig
) -> torch.Tensor:
    """L = lambda1 (KL(f || q) + JS(f, q)) + lambda2 CE(y, q), lambda1 = 1 - lambda2 (eq. 14), mean over the batch.

    f and q are teacher and student at the temperature T; KL and JS are scaled by T^2, so that their gradients do not
    shrink with T (the paper leaves T out; its released code has T = 2). CE is at temperature 1.

    Args:
        logits: The student's, shape (batch, n_classes).
        teacher_logits: The teacher's, same shape.
        targets: Class indices, shape (batch,).
        config: lambda2 (`guidance`), T, and the weights of KL and JS.
    """
    ce = torch.nn.functional.cross_entropy(logits, targets)
    if config.guidance == 1:
        return ce
    log_f = torch.log_softmax(teacher_logits / config.temperature, dim=1)
    log_q = torch.log_softmax(logits / config.temperature, dim=1)
    from_teacher = config.kl * kl_divergence(log_f, log_q) + config.js * js_divergence(log_f, log_q)
    return (1 - config.guidance) * config.temperature**2 * from_teacher + config.guidance * ce


def kl_divergence(log_f: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(f || q), mean over the batch; both arguments are log-probabilities, shape (batch, n_classes)."""
    return (log_f.exp() * (log_f - log_q)).sum(dim=1).mean()


def soft_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(f || q), f and q at the temperature T, mean over the batch; both logits of shape (batch, n_classes)."""
    log_f = torch.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * kl_divergence(log_f, torch.log_softmax(logits / temperature, dim=1))


def js_divergence(log_f: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """JS(f, q) with m = (f + q) / 2, mean over the batch; both arguments are log-probabilities."""
    log_m = torch.logaddexp(log_f, log_q) - math.log(2)
    return (kl_divergence(log_f, log_m) + kl_divergence(log_q, log_m)) / 2
