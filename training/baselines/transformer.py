"""A BERT with a classification head: MiniLM whole, fine-tuned, or a few of its layers, which a method then trains.

Every compression baseline starts from layers cut out of one encoder, as DistilBERT and PKD do. MiniLM has 6 layers of
width 384 where the methods' BERT has 12 of width 768, so their students have 2 or 3 layers here where they had 4 or 6;
teacher and student are equally wide, so no method needs a matrix between them. None is pre-trained again on a corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from training.baselines.batches import Batch, Tokens
from training.baselines.loop import History, Keep, LoopConfig, Loss, checkpoint_path, predict, weights_sha256
from training.baselines.loop import train as run_loop
from training.data import Texts
from training.errors import EncoderError
from training.export import MINILM_PACKAGE, MINILM_SHA256
from training.packages import packaged_file
from training.study.system import Lesson, Outcome

FINE_TUNING = LoopConfig(epochs=3, learning_rate=5e-5, precision="bf16")
"""How a whole encoder is fine-tuned."""
CUT = LoopConfig(epochs=3, learning_rate=1e-4, precision="bf16")
"""How cut layers are trained: faster, for they no longer fit each other."""


@dataclass(frozen=True)
class Classifier:
    """A BERT classifier and its tokenizer: text -> logits."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    batch_size: int

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of shape (n_texts, n_classes), float32."""
        return predict(self.model, self.forward, self.tokens(texts), self.batch_size)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of shape (batch, n_classes), float32."""
        logits: torch.Tensor = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return logits.float()

    def tokens(self, texts: Texts) -> Tokens:
        """The texts as this model's token ids."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts.texts))]
        return Tokens(ids, texts.targets, self.model.config.pad_token_id or 0)

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True)
class States:
    """What a classifier makes of a batch, in float32.

    Attributes:
        logits: Shape (batch, n_classes).
        hidden: n_layers + 1 of shape (batch, n_tokens, hidden_size); the first is the embedding layer's.
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


def minilm_folder() -> Path:
    """Folder of the registry package's all-MiniLM-L6-v2.

    Raises:
        PackagedFileError: If the package is not installed or is another one.
    """
    return packaged_file(*MINILM_PACKAGE, "model.safetensors", MINILM_SHA256).parent


def cut_classifier(
    encoder: Path, layers: Sequence[int] | None, n_classes: int, config: LoopConfig, seed: int
) -> Classifier:
    """A classifier of an encoder's embedding layer and some of its layers, with a random head on [CLS].

    Args:
        encoder: Hugging Face folder of a BERT with its tokenizer.json.
        layers: Which layers to keep, counted from 1, ascending; None keeps all.
        n_classes: Outputs of the head.
        config: Batch size and the length to which texts are truncated.
        seed: Of the head.

    Raises:
        EncoderError: If the folder holds no BERT, or has no such layers.
    """
    set_verbosity_error()  # it reports the head as missing, which it is
    disable_progress_bar()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (encoder / name).is_file():
            raise EncoderError(f"{encoder / name}: no such file; expected the folder of a Hugging Face BERT with it")
    torch.manual_seed(seed)
    try:
        model = BertForSequenceClassification.from_pretrained(encoder, num_labels=n_classes, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as exc:
        raise EncoderError(f"{encoder}: expected a Hugging Face BERT: {exc}") from exc
    whole = model.bert.encoder.layer
    kept = list(range(1, len(whole) + 1)) if layers is None else list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 1 or kept[-1] > len(whole):
        raise EncoderError(f"{encoder}: layers are {kept}, expected ascending ones of 1 to {len(whole)}")
    model.bert.encoder.layer = torch.nn.ModuleList([whole[layer - 1] for layer in kept])
    model.config.num_hidden_layers = len(kept)
    limit = int(model.config.max_position_embeddings)
    if config.max_tokens > limit:
        raise EncoderError(f"{encoder}: max_tokens is {config.max_tokens}, the encoder reads at most {limit}")
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.max_tokens)
    return Classifier(model.eval(), tokenizer, config.batch_size)


def states(model: PreTrainedModel, batch: Batch) -> States:
    """Logits and hidden states of a batch."""
    out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    return States(out.logits.float(), tuple(hidden.float() for hidden in out.hidden_states))


def learn(
    name: str,
    lesson: Lesson,
    student: Classifier,
    loss: Loss,
    config: LoopConfig,
    progress: bool,
    identity: dict[str, Any],
    facts: dict[str, Any],
) -> Outcome:
    """Train a student with a method's loss, choose its epoch on validation accuracy, and report.

    Args:
        identity: What else, beside lesson and config, decides the result; JSON. The student's weights are added.
        facts: Of the outcome; the best epoch and the seconds per epoch are added.

    Raises:
        DivergedError: If the loss is no number; the last good checkpoint stays.
    """
    history = fit(name, lesson, student, loss, config, progress, identity)
    return Outcome(
        learned=student,
        n_trainable=student.n_parameters,
        n_total=student.n_parameters,
        epochs=history.accuracies,
        facts={
            **facts,
            "best_epoch": history.best_epoch,
            "seconds_per_epoch": history.seconds_per_epoch,
        },
    )


def fit(
    name: str,
    lesson: Lesson,
    student: Classifier,
    loss: Loss,
    config: LoopConfig,
    progress: bool,
    identity: dict[str, Any],
    keep: Keep = "best",
) -> History:
    """The shared loop on a lesson's texts; the student is trained in place."""
    start = [weights_sha256(student.model), hashlib.sha256(student.tokenizer.to_str().encode()).hexdigest()]
    checkpoint = checkpoint_path(name, lesson, config, start=start, keep=keep, **identity)
    texts, validation = student.tokens(lesson.data.train), student.tokens(lesson.data.validation)
    return run_loop(
        student.model,
        student.forward,
        loss,
        texts,
        validation,
        config,
        lesson.seed,
        checkpoint,
        name,
        keep=keep,
        progress=progress,
    )


def cross_entropy_of(student: Classifier) -> Loss:
    """Cross-entropy with the labels."""

    def loss(batch: Batch) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(student.forward(batch), batch.targets)

    return loss


def fine_tune(
    encoder: Path,
    lesson: Lesson,
    config: LoopConfig = FINE_TUNING,
    progress: bool = True,
    name: str = "MiniLM, fine-tuned",
) -> tuple[Classifier, Outcome]:
    """Train the whole encoder on a lesson's labels: the shared loop with cross-entropy; read from the cache when done.

    Args:
        encoder: Hugging Face folder of a BERT; `minilm_folder()` for MiniLM.
        lesson: What the teacher's logits say (`soft`) is not looked at.

    Raises:
        EncoderError: If the folder holds no BERT.
        DivergedError: If the loss is no number; the last good checkpoint stays.
    """
    labels_only = replace(lesson, soft=None)
    classifier = cut_classifier(encoder, None, len(lesson.data.labels), config, lesson.seed)
    outcome = learn(name, labels_only, classifier, cross_entropy_of(classifier), config, progress, {}, {})
    return classifier, outcome


@dataclass(frozen=True)
class TunedTeacher:
    """Finds a lesson's teacher: `fine_tune` once a task, on all its texts, then read from the lesson's cache.

    Safe where cells run side by side: the loop lets one process train while the others wait.

    Args:
        encoder: Hugging Face folder of a BERT.
        seed: Of the teacher, whatever the lesson's seed is, so that all of a task's lessons have the same one.
    """

    encoder: Path
    config: LoopConfig = FINE_TUNING
    seed: int = 0
    progress: bool = True

    def __call__(self, lesson: Lesson) -> PreTrainedModel:
        whole = replace(lesson, data=lesson.whole or lesson.data, seed=self.seed)
        return fine_tune(self.encoder, whole, self.config, self.progress)[0].model
