"""Tiny random encoders, saved as Hugging Face folders, and tasks that they can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_teachers import COLD, FILLERS, VOCABULARY, WARM, toy_texts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from training.data import TaskData, Texts

N_LAYERS, SIZE = 3, 16
PLACES = ("house", "near", "road")  # in sorted order
_SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": SIZE,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 72,
    "initializer_range": 0.2,  # hidden states that differ from layer to layer
}


def save_encoder(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a random encoder of three layers with its tokenizer.json; `bert` pads with token 0, `mpnet` with 1."""
    words = list(VOCABULARY)
    torch.manual_seed(seed)
    if kind == "bert":
        BertModel(BertConfig(**_SHAPE, pad_token_id=0)).save_pretrained(folder)
    else:
        words[:2] = ["<s>", "<pad>"]
        MPNetModel(MPNetConfig(**_SHAPE, pad_token_id=1, bos_token_id=0, eos_token_id=2)).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", words.index("<s>")), ("</s>", 2)]
    )
    # As MiniLM's own file does, which whoever trains it must undo.
    tokenizer.enable_padding(length=24, pad_id=words.index("<pad>"), pad_token="<pad>")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def places(n: int, seed: int) -> Texts:
    """Balanced texts of three classes, told by a word."""
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(n) % len(PLACES))
    others = [word for word in FILLERS if word not in PLACES]
    texts = []
    for target in targets:
        words = [str(word) for word in rng.choice(others, size=rng.integers(2, 12))]
        words.insert(int(rng.integers(len(words) + 1)), PLACES[target])
        texts.append(" ".join(words))
    return Texts(tuple(texts), targets.astype(np.int64), PLACES, f"places {seed}")


def long_texts(n: int, seed: int) -> Texts:
    """Different texts of 6 to 12 words of two classes, told by a word."""
    rng = np.random.default_rng(seed)
    texts: dict[str, int] = {}
    while len(texts) < n:
        target = len(texts) % 2
        words = [str(word) for word in rng.choice(FILLERS, size=rng.integers(5, 12))]
        words.insert(int(rng.integers(len(words) + 1)), str(rng.choice((COLD, WARM)[target])))
        texts[" ".join(words)] = target
    return Texts(tuple(texts), np.array(list(texts.values()), dtype=np.int64), ("cold", "warm"), f"long {seed}")


WEATHER = TaskData(toy_texts(96, seed=1), toy_texts(32, seed=2), toy_texts(32, seed=3))
PLACE = TaskData(places(60, seed=4), places(30, seed=5), places(30, seed=6))
