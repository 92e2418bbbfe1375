"""An encoder with a linear head for each task on the means of its layers: what is trained, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from training.baselines.batches import Batch, Tokens
from training.baselines.loop import predict
from training.data import Texts
from training.encoders.config import EncoderConfig
from training.errors import EncoderError

_FILES = ("config.json", "tokenizer.json", "model.safetensors")


class PooledEncoder(torch.nn.Module):
    """Token ids -> means of some layers -> logits of each task.

    Args:
        encoder: A Hugging Face encoder.
        layers: Whose means over a text's own tokens the heads read; counted from 1.
        n_classes: Of each task.
        dropout: In front of the heads, while training.
    """

    def __init__(
        self, encoder: PreTrainedModel, layers: Sequence[int], n_classes: Mapping[str, int], dropout: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = tuple(layers)
        self.dropout = torch.nn.Dropout(dropout)
        width = len(self.layers) * int(encoder.config.hidden_size)
        self.heads = torch.nn.ModuleDict({task: torch.nn.Linear(width, n) for task, n in n_classes.items()})

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Means of the layers, in order, shape (batch, n_layers * hidden_size), float32."""
        out = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        keep = batch.attention_mask[:, :, None].float()
        means = [(out.hidden_states[layer].float() * keep).sum(dim=1) / keep.sum(dim=1) for layer in self.layers]
        return torch.cat(means, dim=1)

    def logits(self, task: str, pooled: torch.Tensor) -> torch.Tensor:
        """Of one task, shape (batch, n_classes), float32."""
        logits: torch.Tensor = self.heads[task](self.dropout(pooled))
        return logits.float()


@dataclass(frozen=True)
class Reader:
    """A pooled encoder and its tokenizer: texts -> logits.

    Attributes:
        folder: What the encoder was loaded from.
    """

    model: PooledEncoder
    tokenizer: Tokenizer
    batch_size: int
    folder: Path

    def tokens(self, texts: Texts) -> Tokens:
        """The texts as this encoder's token ids."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts.texts))]
        return Tokens(ids, texts.targets, int(self.model.encoder.config.pad_token_id or 0))

    def answer(self, task: str, texts: Texts) -> np.ndarray:
        """A task's logits of shape (n_texts, n_classes), float32."""

        def forward(batch: Batch) -> torch.Tensor:
            return self.model.logits(task, self.model.pooled(batch))

        return predict(self.model, forward, self.tokens(texts), self.batch_size)

    @property
    def n_parameters(self) -> int:
        """All of them, trained or not, heads among them."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def n_trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


def open_encoder(folder: Path, config: EncoderConfig, n_classes: Mapping[str, int]) -> Reader:
    """An encoder as it comes, with random heads, frozen where `config` says so.

    Args:
        folder: Hugging Face folder with its tokenizer.json.
        config: Layers, what stays frozen, the seed of the heads.
        n_classes: Of each task.

    Raises:
        EncoderError: If the folder lacks a file, holds no encoder, or one with fewer layers than are read or kept.
    """
    set_verbosity_error()  # it reports weights of heads that are not read
    disable_progress_bar()
    for name in _FILES:
        if not (folder / name).is_file():
            raise EncoderError(f"{folder / name}: no such file; expected the folder of a Hugging Face encoder with it")
    torch.manual_seed(config.seed)
    try:
        cut = _cut(folder, config.depth)
        # Eager: on a CPU, with dropout and a mask, the fused attention takes half as long again.
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **cut)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as exc:
        raise EncoderError(f"{folder}: expected a Hugging Face encoder: {exc}") from exc
    if not hasattr(encoder, "pooler") or not hasattr(encoder.encoder, "layer"):
        raise EncoderError(f"{folder}: expected an encoder built as BERT is, found {type(encoder).__name__}")
    n_layers = int(encoder.config.num_hidden_layers)
    if not all(1 <= layer <= n_layers for layer in (*config.layers, config.frozen_layers or 1)):
        raise EncoderError(
            f"{folder}: layers are {list(config.layers)}, of which {config.frozen_layers} frozen, "
            f"expected some of 1 to {n_layers}"
        )
    model = PooledEncoder(encoder, config.layers, n_classes, config.dropout)
    _freeze(encoder, config, max(config.layers))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.max_tokens)
    return Reader(model.eval(), tokenizer, config.batch_size, folder)


def _cut(folder: Path, depth: int | None) -> dict[str, int]:
    """What `from_pretrained` is to make of the encoder's number of layers: it would draw those that there are not."""
    if depth is None:
        return {}
    n_layers = int(AutoConfig.from_pretrained(folder).num_hidden_layers)
    if depth > n_layers:
        raise EncoderError(f"{folder}: depth is {depth}, expected at most its {n_layers} layers")
    return {"num_hidden_layers": depth}


def _freeze(encoder: PreTrainedModel, config: EncoderConfig, n_read: int) -> None:
    """Word vectors are most of a small encoder, and the rare ones among them learn their texts by heart."""
    layers = encoder.encoder.layer
    kept = [] if config.train_words else [*encoder.embeddings.parameters()]
    for layer in (*layers[: config.frozen_layers], *layers[n_read:]):  # nothing reads the layers above the last
        kept += [*layer.parameters()]
    # MPNet's layers share one table of relative positions: frozen layers would attend differently if it moved.
    if config.frozen_layers and (shared := getattr(encoder.encoder, "relative_attention_bias", None)) is not None:
        kept += [*shared.parameters()]
    if encoder.pooler is not None:  # nothing reads it
        kept += [*encoder.pooler.parameters()]
    for parameter in kept:
        parameter.requires_grad = False
