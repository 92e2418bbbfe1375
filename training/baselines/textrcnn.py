"""TextRCNN: every word with its left and right context, then the maximum over the words.

Lai et al., "Recurrent convolutional neural networks for text classification", AAAI 2015 (section "Model"): with e_i
the vector of word i and c_l, c_r its contexts from recurrent passes over the text,

    x_i = [c_l(w_i); e(w_i); c_r(w_i)],    y_i = tanh(W x_i + b),    y = max_i y_i,    logits = V y + d.

Small-scale here: the word vectors are learned from the task's own texts, where the paper starts from skip-gram
vectors of Wikipedia. The contexts come from a bidirectional LSTM, as in most later implementations; the paper's
recurrence is a plain one whose context leaves word i itself out. Dropout in front of the last layer is not the
paper's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.baselines.loop import LoopConfig
from training.baselines.words import PAD, Vocabulary, WordClassifier, learn_words
from training.study.system import Lesson, Outcome


@dataclass(frozen=True)
class TextRcnn:
    """TextRCNN on a lesson's labels."""

    word_size: int = 100
    context_size: int = 64
    hidden_size: int = 100
    dropout: float = 0.5
    config: LoopConfig = field(default_factory=partial(LoopConfig, epochs=6, learning_rate=2e-3))
    progress: bool = True
    name: str = "TextRCNN"

    def learn(self, lesson: Lesson) -> Outcome:
        """Train with cross-entropy in the shared loop.

        Raises:
            DivergedError: If the loss is no number; the last good checkpoint stays.
        """
        torch.manual_seed(lesson.seed)
        vocabulary = Vocabulary.of(lesson.data.train, self.config.max_tokens)
        encoder = TextRcnnEncoder(len(vocabulary), self.word_size, self.context_size, self.hidden_size)
        model = TextRcnnModule(encoder, len(lesson.data.labels), self.dropout)
        shape = {"sizes": [self.word_size, self.context_size, self.hidden_size], "dropout": self.dropout}
        classifier = WordClassifier(model, vocabulary, self.config.batch_size)
        return learn_words(self.name, lesson, classifier, self.config, self.progress, **shape)


class TextRcnnEncoder(torch.nn.Module):
    """Word ids and mask, both (batch, n_tokens) -> y of the module's docstring, (batch, hidden_size)."""

    def __init__(self, n_words: int, word_size: int, context_size: int, hidden_size: int) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(n_words, word_size, padding_idx=PAD)
        self.contexts = torch.nn.LSTM(word_size, context_size, batch_first=True, bidirectional=True)
        self.project = torch.nn.Linear(word_size + 2 * context_size, hidden_size)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        words = self.words(input_ids)
        # Packed: the pass from the right starts at a text's last word, not in its padding.
        packed = pack_padded_sequence(words, attention_mask.sum(dim=1), batch_first=True, enforce_sorted=False)
        contexts, _ = pad_packed_sequence(self.contexts(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        left, right = contexts.chunk(2, dim=2)
        each = torch.tanh(self.project(torch.cat([left, words, right], dim=2)))
        return each.masked_fill(attention_mask[:, :, None] == 0, -torch.inf).amax(dim=1)


class TextRcnnModule(torch.nn.Module):
    """The encoder and a linear layer."""

    def __init__(self, encoder: TextRcnnEncoder, n_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(encoder.project.out_features, n_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.encoder(input_ids, attention_mask)))
        return logits
