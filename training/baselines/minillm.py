"""MiniLLM: the reverse Kullback-Leibler divergence from student to a language model as teacher.

Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024 (section "Method"):

    theta = argmin KL(q_theta || p) = argmin E_{y ~ q_theta} log(q_theta(y | x) / p(y | x))

It asks that the student be likely only where its teacher is, and lets it leave out what it cannot hold.

Small-scale here: y is a class instead of a text, so the expectation over y is an exact sum. What the method needs to
estimate it from samples (policy gradient, single-step decomposition, teacher-mixed sampling, length normalisation) has
nothing to do; the language-modelling loss on a corpus is left out. The student is layers 2, 4 and 6 of MiniLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from training.baselines.batches import Batch
from training.baselines.loop import LoopConfig
from training.baselines.transformer import CUT, cut_classifier, learn
from training.errors import TeacherError
from training.losses import kl_divergence
from training.study.system import Lesson, Outcome


@dataclass
class MiniLLM:
    """Reverse KL against the logits of the lesson's teacher.

    Args:
        encoder: Hugging Face folder of the BERT that the student is cut from.
        layers: Of the encoder, counted from 1.
        temperature: Softens both; 1 in the paper. The loss is scaled by its square.
    """

    encoder: Path
    layers: tuple[int, ...] = (2, 4, 6)
    config: LoopConfig = CUT
    temperature: float = 1.0
    progress: bool = True
    name: str = "MiniLLM (loss)"

    def learn(self, lesson: Lesson) -> Outcome:
        """Learn as any system does.

        Raises:
            TeacherError: If the lesson has no teacher, or its logits are not those of the train texts.
        """
        shape = (len(lesson.data.train), len(lesson.data.labels))
        if lesson.soft is None:
            raise TeacherError(f"{self.name}: expected a teacher's logits of shape {shape}, found none in the lesson")
        if lesson.soft.train.shape != shape:
            raise TeacherError(
                f"{self.name}: logits of {lesson.soft.name} have shape {lesson.soft.train.shape}, expected {shape}"
            )
        student = cut_classifier(self.encoder, self.layers, shape[1], self.config, lesson.seed)
        teacher_logits = torch.tensor(lesson.soft.train, dtype=torch.float32)

        def loss(batch: Batch) -> torch.Tensor:
            return reverse_kl(student.forward(batch), teacher_logits[batch.rows], self.temperature)

        identity = {"layers": self.layers, "temperature": self.temperature}
        facts = {"layers": list(self.layers), "teacher": lesson.soft.name}
        return learn(self.name, lesson, student, loss, self.config, self.progress, identity, facts)


def reverse_kl(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(q || f), q the student's and f the teacher's distribution; both logits of shape (batch, n_classes)."""
    log_q = torch.log_softmax(logits / temperature, dim=1)
    return temperature**2 * kl_divergence(log_q, torch.log_softmax(teacher_logits / temperature, dim=1))
