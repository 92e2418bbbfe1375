"""DistilBERT: the teacher's softened predictions, the labels, and the direction of its last hidden states.

Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019 (section 2, not
numbered): with t and s teacher's and student's probabilities at a temperature T,

    L = a_ce L_ce + a_mlm L_mlm + a_cos L_cos
    L_ce = - sum_i t_i log s_i        L_cos = mean over tokens of 1 - cos(H^S, H^T)

Small-scale here: the method distils while pre-training on a corpus; here it distils on a task's texts, so that L_mlm
becomes the cross-entropy with the labels. The weights 5, 2 and 1 and T = 2 are those of the authors' code, as is KL
scaled by T^2 in place of L_ce: the teacher's entropy less, which has no gradient. The student is every other layer of
MiniLM, as there of BERT, and the teacher a fine-tuned MiniLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from training.baselines.batches import Batch
from training.baselines.loop import LoopConfig, weights_sha256
from training.baselines.teaching import TeacherSource, find_teacher, teacher_states
from training.baselines.transformer import CUT, States, cut_classifier, learn, states
from training.losses import soft_loss
from training.study.system import Lesson, Outcome


@dataclass
class DistilBERT:
    """Soft and hard cross-entropy with the cosine of last hidden states.

    Args:
        encoder: Hugging Face folder of the BERT that the student is cut from.
        teacher: A BERT classifier, fine-tuned on the lesson's task, or what finds it; its logits are learned from, not
            those of the lesson.
        layers: Of the encoder, counted from 1.
        soft, hard, cosine: Weights of the three losses.
    """

    encoder: Path
    teacher: TeacherSource
    layers: tuple[int, ...] = (2, 4, 6)
    config: LoopConfig = CUT
    soft: float = 5.0
    hard: float = 2.0
    cosine: float = 1.0
    temperature: float = 2.0
    progress: bool = True
    name: str = "DistilBERT (loss)"

    def learn(self, lesson: Lesson) -> Outcome:
        student = cut_classifier(self.encoder, self.layers, len(lesson.data.labels), self.config, lesson.seed)
        teacher = find_teacher(self.name, self.teacher, lesson, student, self.layers)

        def loss(batch: Batch) -> torch.Tensor:
            copied, original = states(student.model, batch), teacher_states(teacher, batch)
            return (
                self.soft * soft_loss(copied.logits, original.logits, self.temperature)
                + self.hard * torch.nn.functional.cross_entropy(copied.logits, batch.targets)
                + self.cosine * cosine_loss(copied, original, batch.attention_mask)
            )

        weights = (self.soft, self.hard, self.cosine)
        identity = {
            "layers": self.layers,
            "weights": weights,
            "temperature": self.temperature,
            "teacher": weights_sha256(teacher),
        }
        facts = {"layers": list(self.layers), "weights": list(weights)}
        return learn(self.name, lesson, student, loss, self.config, self.progress, identity, facts)


def cosine_loss(copied: States, original: States, mask: torch.Tensor) -> torch.Tensor:
    """L_cos over the texts' own tokens, in [0, 2]; `mask` has shape (batch, n_tokens)."""
    cosine = torch.nn.functional.cosine_similarity(copied.hidden[-1], original.hidden[-1], dim=2)
    return ((1 - cosine) * mask).sum() / mask.sum()
