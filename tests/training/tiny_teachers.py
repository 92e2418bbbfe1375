"""Tiny random language models, saved as the folders that a real teacher comes in, and a task that they can learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
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
)

from training.data import Texts

COLD, WARM = ("ice", "snow", "frost", "winter"), ("sun", "beach", "heat", "summer")
FILLERS = ("the", "a", "we", "saw", "felt", "some", "and", "then", "of", "near", "day", "road", "house", "again")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = (*SPECIAL, *COLD, *WARM, *FILLERS)
LABELS = ("cold", "warm")
# "llama" is built as LLaMA-2 is.
CAUSAL = ("bloom", "opt", "llama", "llama-3", "llama-3 tied")
_SIZE = 32
_SPREAD = 0.2  # of the random weights: wide, so that features that nobody trained tell words apart
_SHAPE = {"hidden_size": _SIZE, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")  # the heart of LLaMA-3's
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def save_teacher(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write configuration, safetensors weights and tokenizer of a random model; returns the folder.

    Each kind has the files, special tokens and tokenizer that its family is published with: BLOOMZ byte-level and
    padded on the left, OPT `vocab.json` and `merges.txt`, LLaMA-2 SentencePiece's pieces with bytes to fall back on
    and no padding token, LLaMA-3 byte-level, shared key-value heads and no padding token.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    size = _TOKENIZERS[kind.removesuffix(" tied")](folder)
    _model(kind, size).save_pretrained(folder)
    return folder


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


def _bloom_tokenizer(folder: Path) -> int:
    words = _byte_level(pre_tokenizers.Split(_WORDS, "isolated"), ["<unk>", "<s>", "</s>", "<pad>"])
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return _save_tokenizer(words, folder, "BloomTokenizerFast", padding_side="left", **tokens)


def _opt_tokenizer(folder: Path) -> int:
    words = _byte_level(None, ["<s>", "<pad>", "</s>", "<unk>"])
    words.model.save(str(folder))
    tokens = {"unk_token": "</s>", "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return words.get_vocab_size()


def _llama_tokenizer(folder: Path) -> int:
    special = ["<unk>", "<s>", "</s>"]
    pieces = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Training needs words to stay apart; SentencePiece's merges keep them so afterwards.
    pieces.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    all_bytes = [f"<0x{value:02X}>" for value in range(256)]
    pieces.train_from_iterator(_corpus(), BpeTrainer(special_tokens=special + all_bytes, show_progress=False))
    content = json.loads(pieces.to_str())
    # The bytes are pieces of the vocabulary, which plain text does not name.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    content["pre_tokenizer"] = None
    pieces = Tokenizer.from_str(json.dumps(content))
    pieces.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return _save_tokenizer(pieces, folder, "LlamaTokenizer", padding_side="left", add_bos_token=True, **tokens)


def _llama3_tokenizer(folder: Path) -> int:
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    words = _byte_level(pre_tokenizers.Split(_WORDS, "isolated"), [begin, end])
    words.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    return _save_tokenizer(words, folder, "PreTrainedTokenizerFast", bos_token=begin, eos_token=end)


def _word_tokenizer(folder: Path) -> int:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.add_special_tokens(list(SPECIAL))
    words.pre_tokenizer = Whitespace()
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return _save_tokenizer(words, folder, "PreTrainedTokenizerFast", **tokens)


_TOKENIZERS: dict[str, Callable[[Path], int]] = {
    "bloom": _bloom_tokenizer,
    "opt": _opt_tokenizer,
    "llama": _llama_tokenizer,
    "llama-3": _llama3_tokenizer,
    "bert": _word_tokenizer,
    "bert without pooler": _word_tokenizer,
}


def _byte_level(split: pre_tokenizers.PreTokenizer | None, special: list[str]) -> Tokenizer:
    words = Tokenizer(BPE())
    if split is None:
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        words.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator(_corpus(), trainer)
    return words


def _corpus() -> list[str]:
    return [" ".join((*COLD, *WARM, *FILLERS, *COLD, *WARM, *FILLERS))] * 4


def _save_tokenizer(words: Tokenizer, folder: Path, tokenizer_class: str, **settings: str | bool) -> int:
    words.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": tokenizer_class, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return int(words.get_vocab_size())


def _model(kind: str, size: int) -> PreTrainedModel:
    if kind == "bloom":
        tokens = {"unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
        return BloomForCausalLM(
            BloomConfig(vocab_size=size, hidden_size=_SIZE, n_layer=2, n_head=4, initializer_range=_SPREAD, **tokens)
        )
    if kind == "opt":
        tokens = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
        shape = {**_SHAPE, "word_embed_proj_dim": _SIZE, "ffn_dim": 64, "init_std": _SPREAD}
        return OPTForCausalLM(OPTConfig(vocab_size=size, **shape, **tokens))
    llama = {**_SHAPE, "vocab_size": size, "intermediate_size": 64, "initializer_range": _SPREAD}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**llama))
    if kind.startswith("llama-3"):
        own = {"num_key_value_heads": 2, "rope_parameters": _LLAMA3_ROPE, "bos_token_id": 0, "eos_token_id": 1}
        tied = {"tie_word_embeddings": kind.endswith("tied")}
        return LlamaForCausalLM(LlamaConfig(**llama, **own, **tied))
    config = BertConfig(vocab_size=size, intermediate_size=64, num_labels=len(LABELS), **_SHAPE, pad_token_id=0)
    if kind == "bert":
        return BertForSequenceClassification(config)
    return BertModel(config, add_pooling_layer=False)
