"""Tiny random language models, saved as the folders that a real teacher comes in, and a task that they can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from training.data import Texts

COLD, WARM = ("ice", "snow", "frost", "winter"), ("sun", "beach", "heat", "summer")
FILLERS = ("the", "a", "we", "saw", "felt", "some", "and", "then", "of", "near", "day", "road", "house", "again")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = (*SPECIAL, *COLD, *WARM, *FILLERS)
LABELS = ("cold", "warm")
CAUSAL = ("bloom", "opt", "llama")
_SIZE = 32


def save_teacher(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write config.json, model.safetensors and the tokenizer of a random model; returns the folder."""
    torch.manual_seed(seed)
    _model(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def toy_texts(n: int, seed: int = 0, labels: tuple[str, str] = LABELS) -> Texts:
    """Balanced texts of 3 to 9 words, one of which tells the label."""
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(n) % 2)
    texts = []
    for target in targets:
        words = list(rng.choice(FILLERS, size=rng.integers(2, 9)))
        words.insert(int(rng.integers(len(words) + 1)), str(rng.choice((COLD, WARM)[target])))
        texts.append(" ".join(words))
    return Texts(tuple(texts), targets.astype(np.int64), labels, f"toy texts {seed}")


def _model(kind: str) -> PreTrainedModel:
    common = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(hidden_size=_SIZE, n_layer=2, n_head=4, **common))
    if kind == "opt":
        return OPTForCausalLM(
            OPTConfig(
                hidden_size=_SIZE,
                word_embed_proj_dim=_SIZE,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
                **common,
            )
        )
    shape = {
        "hidden_size": _SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **shape, **common))
    config = BertConfig(num_labels=len(LABELS), **shape, vocab_size=len(VOCABULARY), pad_token_id=0)
    if kind == "bert":
        return BertForSequenceClassification(config)
    if kind == "bert without pooler":
        return BertModel(config, add_pooling_layer=False)
    raise ValueError(kind)
