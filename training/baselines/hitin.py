"""HiTIN: a text as a tree of labels, whose nodes gather their children's vectors from the leaves to the root.

Zhu et al., "HiTIN: Hierarchy-aware tree isomorphism network for hierarchical text classification", ACL 2023. A text
encoder's vector is mapped to one vector x_v for every label; these are the leaves of a coding tree, and

    h_v = ReLU(norm(MLP(sum of h_u over the children u of v))),
    logits = sum over the tree's levels of W_level (sum of h_v over the nodes v of the level) + b_level.

Our labels have no hierarchy, so the tree is flat: the labels under one root, depth 1. What HiTIN is named for, the
coding tree that minimises structural entropy, has nothing to choose there and is left out, as is the regularisation
that draws a label's weights to its parent's. What a flat tree leaves of the method is little: the leaves' sum is one
linear map of the text's vector, so the logits are those of a linear layer and of a perceptron beside it.

The encoder is the one of `textrcnn` where the paper has a bi-GRU with convolutions, or BERT; one label is true of a
text, so the loss is softmax cross-entropy, not a sigmoid for each label; and layer normalisation stands for the
batch's, which a batch of one text does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch

from training.baselines.loop import LoopConfig
from training.baselines.textrcnn import TextRcnnEncoder
from training.baselines.words import Vocabulary, WordClassifier, learn_words
from training.study.system import Lesson, Outcome


@dataclass(frozen=True)
class HiTin:
    """HiTIN over a flat tree, on a lesson's labels."""

    word_size: int = 100
    context_size: int = 64
    hidden_size: int = 100
    node_size: int = 64
    dropout: float = 0.5
    config: LoopConfig = field(default_factory=partial(LoopConfig, epochs=6, learning_rate=2e-3))
    progress: bool = True
    name: str = "HiTIN"

    def learn(self, lesson: Lesson) -> Outcome:
        """Train with cross-entropy in the shared loop.

        Raises:
            DivergedError: If the loss is no number; the last good checkpoint stays.
        """
        torch.manual_seed(lesson.seed)
        vocabulary = Vocabulary.of(lesson.data.train, self.config.max_tokens)
        encoder = TextRcnnEncoder(len(vocabulary), self.word_size, self.context_size, self.hidden_size)
        model = HiTinModule(encoder, self.node_size, len(lesson.data.labels), self.dropout)
        sizes = [self.word_size, self.context_size, self.hidden_size, self.node_size]
        classifier = WordClassifier(model, vocabulary, self.config.batch_size)
        shape = {"sizes": sizes, "dropout": self.dropout}
        return learn_words(self.name, lesson, classifier, self.config, self.progress, **shape)


class HiTinModule(torch.nn.Module):
    """Encoder, a vector for every label, the tree, and a linear layer for each of its two levels."""

    def __init__(self, encoder: TextRcnnEncoder, node_size: int, n_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.leaves = torch.nn.Linear(encoder.project.out_features, n_classes * node_size)
        self.root = torch.nn.Sequential(
            torch.nn.Linear(node_size, node_size),
            torch.nn.ReLU(),
            torch.nn.Linear(node_size, node_size),
            torch.nn.LayerNorm(node_size),
            torch.nn.ReLU(),
        )
        self.dropout = torch.nn.Dropout(dropout)
        self.leaf_head = torch.nn.Linear(node_size, n_classes)
        self.root_head = torch.nn.Linear(node_size, n_classes)
        self._n_classes = n_classes

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        text = self.encoder(input_ids, attention_mask)
        leaves = self.leaves(text).reshape(len(text), self._n_classes, -1).sum(dim=1)
        logits: torch.Tensor = self.leaf_head(self.dropout(leaves)) + self.root_head(self.dropout(self.root(leaves)))
        return logits
