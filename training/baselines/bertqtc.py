"""BERT-QTC: a small quantum circuit slides along a frozen encoder's features, as a convolution's kernel does.

Yang et al., "When BERT meets quantum temporal convolution learning for text classification in heterogeneous
computing", ICASSP 2022. Every window of k features becomes the angles of k qubits; a variational circuit and <Z> of
each qubit follow; the maximum over a window's qubits is one feature for a linear layer.

Small-scale here: the frozen encoder is the student's (pooled MiniLM layers), standardised on the training texts,
where the paper has BERT; windows do not overlap, where a convolution's would by all but one feature, which makes a
circuit k times cheaper; the circuit is `models.circuit`'s preset `paper` (R_Y, R_ZZ, R_Z, CNOT). The paper calls its
circuit random; here the angles are drawn at random and then trained, whichever of both it means. Its vertical federated
learning, where encoder and circuit live on different machines, changes no number and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from models.circuit import student_circuit
from training.baselines.batches import Batch, Tokens
from training.baselines.loop import LoopConfig, checkpoint_path, predict, train
from training.baselines.words import count, loop_facts
from training.circuit_torch import CircuitExpvals
from training.config import StudentConfig
from training.data import Texts
from training.errors import ConfigError
from training.study.student import Features
from training.study.system import Lesson, Outcome

_ANGLE_SCALE = 0.5  # radians for a standard deviation of a feature
_MEASURED = 1_024  # training texts that the linear layer's inputs are standardised on


@dataclass(frozen=True)
class BertQtc:
    """BERT-QTC on a lesson's labels.

    Attributes:
        features: Whose embedder and layers are read; the rest of a student's shape is not.
        kernel_size: k, qubits of a circuit and features of a window.
        n_filters: Circuits, each with its own angles.
        n_layers: Of the ansatz.
    """

    features: StudentConfig = field(default_factory=StudentConfig)
    kernel_size: int = 4
    n_filters: int = 2
    n_layers: int = 2
    config: LoopConfig = field(default_factory=partial(LoopConfig, epochs=5, learning_rate=5e-3))
    progress: bool = True
    name: str = "BERT-QTC"

    def learn(self, lesson: Lesson) -> Outcome:
        """Train with cross-entropy in the shared loop.

        Raises:
            ConfigError: If windows do not cover the features.
            DivergedError: If the loss is no number; the last good checkpoint stays.
        """
        features = Features.of(self.features, lesson)
        if features.embedding_size % self.kernel_size:
            raise ConfigError(
                f"{self.name}: kernel_size is {self.kernel_size}, expected a divisor of the "
                f"{features.embedding_size} features"
            )
        data = lesson.data
        parts = [features(texts) for texts in (data.train, data.validation)]
        mean, scale = parts[0].mean(axis=0), parts[0].std(axis=0) + 1e-6
        torch.manual_seed(lesson.seed)
        model = BertQtcModule(
            features.embedding_size, self.kernel_size, self.n_filters, self.n_layers, len(data.labels)
        )
        classifier = FeatureClassifier(model, features, mean, scale, self.config.batch_size)
        # Train and validation texts are rows of one table.
        table = classifier.standardise(np.concatenate(parts))
        model.standardise(table[: min(len(data.train), _MEASURED)])
        forward = partial(classifier.forward, table)

        def loss(batch: Batch) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(forward(batch), batch.targets)

        checkpoint = checkpoint_path(
            self.name,
            Lesson(data, None, lesson.seed, lesson.cache),
            self.config,
            sizes=[self.kernel_size, self.n_filters, self.n_layers],
            embedder=features.embedder.sha256,
            features=features.features,
        )
        history = train(
            model,
            forward,
            loss,
            _rows(0, data.train.targets),
            _rows(len(data.train), data.validation.targets),
            self.config,
            lesson.seed,
            checkpoint,
            self.name,
            progress=self.progress,
        )
        n_trainable = count(model)
        n_total = n_trainable + features.n_parameters
        facts = {**features.facts, **loop_facts(history)}
        return Outcome(classifier, n_trainable, n_total, history.accuracies, facts)


class BertQtcModule(torch.nn.Module):
    """Standardised features (batch, n_features), a multiple of k -> logits (batch, n_classes).

    What the linear layer reads is standardised by what it was on some texts at the start: maxima of <Z> lie well above
    0, and what all texts have in common would drown what tells them apart.
    """

    def __init__(self, n_features: int, kernel_size: int, n_filters: int, n_layers: int, n_classes: int) -> None:
        super().__init__()
        circuit = student_circuit("paper", kernel_size, n_layers)
        self.circuit = CircuitExpvals(circuit)
        # Wide, as the student's: near the identity <Z> has no gradient at an angle of 0.
        self.ansatz = torch.nn.Parameter(torch.empty(n_filters, circuit.n_parameters).uniform_(-torch.pi, torch.pi))
        n_pooled = n_filters * (n_features // kernel_size)
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", torch.zeros(n_pooled))
        self.register_buffer("scale", torch.ones(n_pooled))
        self.head = torch.nn.Linear(n_pooled, n_classes)
        self._kernel_size = kernel_size

    def standardise(self, features: torch.Tensor) -> None:
        """Take these features' texts as the measure; at least two, (n, n_features)."""
        with torch.no_grad():
            pooled = self.pooled(features)
        self.mean.copy_(pooled.mean(dim=0))
        self.scale.copy_(pooled.std(dim=0) + 1e-3)

    def pooled(self, features: torch.Tensor) -> torch.Tensor:
        """Each window's largest <Z> under each circuit, shape (batch, n_filters n_features / k)."""
        windows = _ANGLE_SCALE * features.reshape(-1, self._kernel_size)
        largest = [self.circuit(windows, angles).amax(dim=1).reshape(len(features), -1) for angles in self.ansatz]
        return torch.cat(largest, dim=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head((self.pooled(features) - self.mean) / self.scale)
        return logits


@dataclass(frozen=True)
class FeatureClassifier:
    """A model of standardised features, and what they are read and standardised with."""

    model: torch.nn.Module
    features: Features
    mean: np.ndarray
    scale: np.ndarray
    batch_size: int

    def standardise(self, embeddings: np.ndarray) -> torch.Tensor:
        """Embeddings (n, embedding_size) in the training texts' standard deviations, float32."""
        return torch.tensor((embeddings - self.mean) / self.scale, dtype=torch.float32)

    def forward(self, table: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Logits (batch, n_classes) of the rows of a table that a batch's ids name."""
        logits: torch.Tensor = self.model(table[batch.input_ids[:, 0]])
        return logits

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of shape (n_texts, n_classes), float32."""
        table = self.standardise(self.features(texts))
        return predict(self.model, partial(self.forward, table), _rows(0, texts.targets), self.batch_size)


def _rows(first: int, targets: np.ndarray) -> Tokens:
    """Texts for the shared loop whose one token is their row in a table of features."""
    return Tokens([[first + i] for i in range(len(targets))], targets, 0)
