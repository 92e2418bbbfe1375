"""PKD: patient knowledge distillation, which copies the normalised [CLS] states of the layers in between.

Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019 (section "Patient Teacher
for Model Compression"): with h_{i,j} the [CLS] state of text i in layer j, and I_pt(j) the teacher's layer for the
student's j,

    L_PT = sum_i sum_{j < k} || h^s_{i,j} / ||h^s_{i,j}|| - h^t_{i,I_pt(j)} / ||h^t_{i,I_pt(j)}|| ||^2
    L_PKD = (1 - alpha) L_CE + alpha L_DS + beta L_PT

PKD-skip takes every other layer of the teacher; the student's last layer, k, is left to the predictions.

Small-scale here: 3 layers of MiniLM (2, 4, 6) where the paper has 6 of BERT's 12, so two layers are copied, from a
fine-tuned MiniLM. L_PT is a mean over texts, layers and elements, as in the authors' code, for which beta is meant.
L_DS is KL scaled by T^2: the teacher's entropy less, which has no gradient. The student starts from the layers that
it copies instead of the first ones. alpha, beta and T lie within what the authors' published results were found with
(0.2 to 0.7, 0.1 to 1000, 5 to 20).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from training.baselines.batches import Batch
from training.baselines.loop import LoopConfig, weights_sha256
from training.baselines.teaching import Said, TeacherSource, find_teacher, said
from training.baselines.transformer import CUT, States, cut_classifier, learn, states
from training.errors import TeacherError
from training.losses import soft_loss
from training.study.system import Lesson, Outcome


@dataclass
class PKD:
    """Labels, the teacher's predictions and its [CLS] states.

    Args:
        encoder: Hugging Face folder of the BERT that the student is cut from.
        teacher: A BERT classifier, fine-tuned on the lesson's task, or what finds it; its logits are learned from, not
            those of the lesson.
        layers: Of the encoder, counted from 1; each but the last copies the teacher's layer of the same number.
        alpha: Weight of the teacher's predictions against the labels.
        beta: Weight of the patient loss.
    """

    encoder: Path
    teacher: TeacherSource
    layers: tuple[int, ...] = (2, 4, 6)
    config: LoopConfig = CUT
    alpha: float = 0.5
    beta: float = 100.0
    temperature: float = 5.0
    progress: bool = True
    name: str = "PKD (loss)"

    def learn(self, lesson: Lesson) -> Outcome:
        """Learn as any system does.

        Raises:
            TeacherError: If the teacher does not fit, or the student has one layer, which is not to be copied.
        """
        if len(self.layers) < 2:
            raise TeacherError(
                f"{self.name}: layers are {list(self.layers)}, expected at least 2: the last copies none"
            )
        student = cut_classifier(self.encoder, self.layers, len(lesson.data.labels), self.config, lesson.seed)
        teacher = find_teacher(self.name, self.teacher, lesson, student, self.layers)

        @cache
        def original() -> Said:
            return said(teacher, student.tokens(lesson.data.train), self.config, self.layers[:-1])

        def loss(batch: Batch) -> torch.Tensor:
            copied = states(student.model, batch)
            return (
                (1 - self.alpha) * torch.nn.functional.cross_entropy(copied.logits, batch.targets)
                + self.alpha * soft_loss(copied.logits, original().logits[batch.rows], self.temperature)
                + self.beta * patient_loss(copied, original().cls[batch.rows])
            )

        identity = {
            "layers": self.layers,
            "weights": (self.alpha, self.beta),
            "temperature": self.temperature,
            "teacher": weights_sha256(teacher),
        }
        facts = {"layers": list(self.layers), "alpha": self.alpha, "beta": self.beta}
        return learn(self.name, lesson, student, loss, self.config, self.progress, identity, facts)


def patient_loss(copied: States, original: torch.Tensor) -> torch.Tensor:
    """L_PT, mean over texts, elements and all student layers but the last; in [0, 4 / hidden_size].

    Args:
        original: The teacher's [CLS] state for each of those layers, shape (batch, n_layers - 1, hidden_size).
    """
    student = torch.stack([hidden[:, 0] for hidden in copied.hidden[1:-1]], dim=1)
    normalise = torch.nn.functional.normalize
    return torch.nn.functional.mse_loss(normalise(student, dim=2), normalise(original, dim=2))
