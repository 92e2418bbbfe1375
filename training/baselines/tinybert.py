"""TinyBERT: copy the teacher's embeddings, hidden states and attention first, its predictions afterwards.

Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020 (section
"Transformer Distillation"). Student layer m copies teacher layer g(m); with A the attention scores before the softmax,
H hidden states, E the embedding layer's output, z logits:

    L_attn = 1/h sum_i MSE(A_i^S, A_i^T)       L_hidn = MSE(H^S W_h, H^T)       L_embd = MSE(E^S W_e, E^T)
    L_pred = CE(z^T / t, z^S / t)
    L_layer = L_embd for m = 0, L_hidn + L_attn for 0 < m <= M, L_pred for m = M + 1

Small-scale here: layers 3 and 6 of MiniLM (every third, as 4 of 12) learn from a fine-tuned MiniLM, g(m) = 3 m. W_h and
W_e are left out, for the student is as wide as its teacher. There is no general distillation on a corpus, whose place
the cut layers take, and no data augmentation. Means run over a text's own tokens, not over padding. L_pred is KL
instead of CE: the teacher's entropy less, which has no gradient. Both start from the same encoder, so that L_embd is
small from the beginning: it holds the student's embeddings to where fine-tuning took the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from training.baselines.batches import Batch
from training.baselines.loop import LoopConfig, weights_sha256
from training.baselines.teaching import TeacherSource, find_teacher, said, teacher_states
from training.baselines.transformer import CUT, States, cut_classifier, fit, learn, states
from training.losses import kl_divergence
from training.study.system import Lesson, Outcome


@dataclass
class TinyBERT:
    """Transfer of embeddings, hidden states and attention, then of predictions.

    Args:
        encoder: Hugging Face folder of the BERT that the student is cut from.
        teacher: A BERT classifier, fine-tuned on the lesson's task, or what finds it; its logits are learned from, not
            those of the lesson.
        layers: Of the encoder, counted from 1; each copies the teacher's layer of the same number.
        transfer: The first stage, in which the head does not learn; the last epoch is kept.
        config: The second stage, prediction; the best epoch is kept.
        temperature: t of L_pred; 1 in the paper.
    """

    encoder: Path
    teacher: TeacherSource
    layers: tuple[int, ...] = (3, 6)
    transfer: LoopConfig = CUT
    config: LoopConfig = CUT
    temperature: float = 1.0
    progress: bool = True
    name: str = "TinyBERT (loss)"

    def learn(self, lesson: Lesson) -> Outcome:
        student = cut_classifier(self.encoder, self.layers, len(lesson.data.labels), self.config, lesson.seed)
        teacher = find_teacher(self.name, self.teacher, lesson, student, self.layers)

        def transfer(batch: Batch) -> torch.Tensor:
            copied, original = states(student.model, batch), teacher_states(teacher, batch)
            return transfer_loss(student.model, copied, teacher, original, batch.attention_mask, self.layers)

        @cache
        def original_logits() -> torch.Tensor:
            return said(teacher, student.tokens(lesson.data.train), self.config).logits

        def predict(batch: Batch) -> torch.Tensor:
            return prediction_loss(student.forward(batch), original_logits()[batch.rows], self.temperature)

        shape = {"layers": self.layers, "teacher": weights_sha256(teacher)}
        stage = f"{self.name}, transfer"
        first = fit(stage, lesson, student, transfer, self.transfer, self.progress, shape, keep="last")
        identity = {**shape, "temperature": self.temperature}
        facts = {"layers": list(self.layers), "transfer_losses": [entry["train_loss"] for entry in first.epochs]}
        outcome = learn(self.name, lesson, student, predict, self.config, self.progress, identity, facts)
        # An epoch of the method is one of each stage.
        seconds = first.seconds_per_epoch + outcome.facts["seconds_per_epoch"]
        return replace(outcome, facts={**outcome.facts, "seconds_per_epoch": seconds})


def transfer_loss(
    student: PreTrainedModel,
    copied: States,
    teacher: PreTrainedModel,
    original: States,
    mask: torch.Tensor,
    layers: Sequence[int],
) -> torch.Tensor:
    """L_embd + sum_m (L_hidn + L_attn), every layer with weight 1; 0 where the student is its teacher.

    Args:
        student: Its states of a batch are `copied`.
        teacher: Its states of the same batch are `original`.
        mask: 1 at a text's own tokens, shape (batch, n_tokens).
        layers: The teacher's layer for each of the student's, counted from 1.
    """
    own = mask[:, :, None]
    loss = masked_mse(copied.hidden[0], original.hidden[0], own)
    pairs = (mask[:, :, None] * mask[:, None, :])[:, None]
    for layer, source in enumerate(layers, start=1):
        loss = loss + masked_mse(copied.hidden[layer], original.hidden[source], own)
        scores = attention_scores(student, copied, layer)
        loss = loss + masked_mse(scores, attention_scores(teacher, original, source), pairs)
    return loss


def attention_scores(model: PreTrainedModel, of: States, layer: int) -> torch.Tensor:
    """A = Q K^T / sqrt(d) of a BERT's layer, counted from 1; shape (batch, n_heads, n_tokens, n_tokens).

    Computed from what the layer reads, as a BERT returns its attention only after the softmax.
    """
    attention = model.base_model.encoder.layer[layer - 1].attention.self
    read = of.hidden[layer - 1]
    batch, n_tokens, _ = read.shape
    shape = (batch, n_tokens, attention.num_attention_heads, attention.attention_head_size)
    query, key = (part(read).view(shape).transpose(1, 2) for part in (attention.query, attention.key))
    scores: torch.Tensor = query @ key.transpose(2, 3)
    return scores.float() / math.sqrt(attention.attention_head_size)


def masked_mse(one: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared difference where the mask, which broadcasts to both, is 1."""
    keep = mask.to(one.dtype).expand_as(one)
    return ((one - other) ** 2 * keep).sum() / keep.sum()


def prediction_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """L_pred as KL(f || q) at a temperature, both logits of shape (batch, n_classes)."""
    log_f = torch.log_softmax(teacher_logits / temperature, dim=1)
    return kl_divergence(log_f, torch.log_softmax(logits / temperature, dim=1))
