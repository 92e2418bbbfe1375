"""Text -> embedding with an exported encoder: onnxruntime and tokenizers, no torch.

The exported graph returns the mean of every layer's hidden states over a text's own tokens. A student picks the layers
it was distilled on and reads them one after the other, so students with different layers share one forward pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from models.errors import EmbedderError

SCHEMA_VERSION = 1
POOLINGS = ("mean",)
SHIPPED = Path(__file__).parent / "embedders"
_FILES = ("model.onnx", "tokenizer.json")
_FIELDS = {"name": str, "n_layers": int, "hidden_size": int, "max_tokens": int, "files": dict, "source": dict}
_MIN_TOKENS = 3  # the two special tokens and one of the text
_MAX_CHARACTERS_PER_TOKEN = 100  # a word longer than this is one unknown token in every BERT vocabulary


@dataclass(frozen=True)
class Tokens:
    """One tokenised text: ids with special tokens, and whether the text was longer than the embedder reads."""

    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Feature:
    """One pooled layer, written `pooling:layer`; layer 0 is the word embeddings."""

    pooling: str
    layer: int

    @classmethod
    def parse(cls, text: str, n_layers: int) -> Feature:
        pooling, _, layer = text.partition(":")
        if pooling not in POOLINGS or not (layer.isascii() and layer.isdigit()) or int(layer) > n_layers:
            raise EmbedderError(
                f"feature {text!r}, expected POOLING:LAYER with a pooling of {list(POOLINGS)} "
                f"and a layer of 0 to {n_layers}"
            )
        return cls(pooling, int(layer))

    def __str__(self) -> str:
        return f"{self.pooling}:{self.layer}"


class Embedder:
    """An exported encoder folder: `embedder.json`, `model.onnx`, `tokenizer.json`.

    Args:
        folder: The folder.
        threads: Threads of one forward pass; 0 takes every core.

    Raises:
        EmbedderError: If a file is missing or altered, or the folder's schema is another.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.info = _read_info(folder)
        self.name: str = self.info["name"]
        self.n_layers: int = self.info["n_layers"]
        self.hidden_size: int = self.info["hidden_size"]
        self.max_tokens: int = self.info["max_tokens"]
        self.sha256 = _identity(self.info)
        self._tokenizer = _tokenizer(folder / "tokenizer.json")
        # The source's file may pad every text to 128 tokens and truncate: both are done here, knowingly.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = _session(folder / "model.onnx", options)

    def embedding_size(self, features: Sequence[str]) -> int:
        """Length m of the embedding made of `features`."""
        return self.hidden_size * len([Feature.parse(f, self.n_layers) for f in features])

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of every text, cut to `max_tokens` with the closing special token kept.

        Raises:
            EmbedderError: If a text holds half a surrogate pair, which JSON can carry and UTF-8 cannot.
        """
        for i, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as exc:
                raise EmbedderError(f"text {i} is not valid Unicode: {exc.reason} at character {exc.start}") from exc
        # The work grows with the text, so a text far beyond what is read is cut before it is tokenised.
        # Blanks around it are no tokens, and must not count.
        limit = _MAX_CHARACTERS_PER_TOKEN * self.max_tokens
        texts = [text.strip() for text in texts]
        tokens = []
        for text, encoding in zip(texts, self._tokenizer.encode_batch([text[:limit] for text in texts]), strict=True):
            ids, long = encoding.ids, len(encoding.ids) > self.max_tokens or len(text) > limit
            if len(ids) > self.max_tokens:
                ids = [*ids[: self.max_tokens - 1], ids[-1]]
            tokens.append(Tokens(tuple(ids), long))
        return tokens

    def pooled(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Mean of the hidden states over each text's tokens, shape (batch, n_layers + 1, hidden_size), float32.

        Texts of unlike length are padded; padding takes no part in attention or in the mean.
        """
        length = max((len(t.ids) for t in tokens), default=0)
        ids = np.zeros((len(tokens), length), dtype=np.int64)
        mask = np.zeros((len(tokens), length), dtype=np.int64)
        for row, token in enumerate(tokens):
            ids[row, : len(token.ids)] = token.ids
            mask[row, : len(token.ids)] = 1
        (pooled,) = self._session.run(["mean"], {"input_ids": ids, "attention_mask": mask})
        return np.asarray(pooled)

    def select(self, pooled: np.ndarray, features: Sequence[str]) -> np.ndarray:
        """The embedding made of `features`, shape (batch, embedding_size)."""
        layers = [Feature.parse(f, self.n_layers).layer for f in features]
        return pooled[:, layers].reshape(len(pooled), -1)

    def embed(self, texts: Sequence[str], features: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Embed any number of texts, texts of like length together; shape (n, embedding_size), float32."""
        result = np.empty((len(texts), self.embedding_size(features)), dtype=np.float32)
        for rows, pooled in self.pooled_batches(texts, batch_size):
            result[rows] = self.select(pooled, features)
        return result

    def pooled_batches(self, texts: Sequence[str], batch_size: int = 32) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Texts of like length together: row indices of a batch and what `pooled` gives for them."""
        tokens = self.tokenise(texts)
        order = np.argsort([len(t.ids) for t in tokens], kind="stable")
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            yield rows, self.pooled([tokens[i] for i in rows])


def find_embedder(name: str, beside: Path | None = None) -> Path:
    """Folder of an embedder: `embedders/<name>` in a folder, a shipped one by name, or the folder itself.

    Args:
        name: A name, or a path to a folder.
        beside: A folder that may have embedders of its own, in `embedders`: the one that holds a `bundles` folder, or a
            cache.

    Raises:
        EmbedderError: If there is none of them.
    """
    own: tuple[Path, ...] = () if beside is None else (beside / "embedders" / name,)
    for folder in (*own, SHIPPED / name, Path(name)):
        if (folder / "embedder.json").is_file():
            return folder
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/embedder.json"))
    raise EmbedderError(f"embedder {name!r}: expected one of {shipped} or a folder with embedder.json, found neither")


def _identity(info: dict[str, Any]) -> str:
    """One hash of all that decides an embedding: the graph, the tokenizer and where texts are cut."""
    parts = [*(info["files"][name] for name in _FILES), info["max_tokens"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as exc:  # tokenizers raises nothing narrower
        raise EmbedderError(f"{path}: expected a tokenizer, found {exc}") from exc


def _session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's errors share no narrower base
        raise EmbedderError(f"{path}: expected an ONNX model that onnxruntime can run, found {exc}") from exc


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "embedder.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise EmbedderError(f"{path}: no such file; expected an exported embedder") from exc
    except ValueError as exc:
        raise EmbedderError(f"{path}: expected JSON, found {exc}") from exc
    version = info.get("schema_version") if isinstance(info, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise EmbedderError(f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION}")
    missing = set(_FIELDS) - set(info)
    if missing:
        raise EmbedderError(f"{path}: the fields {sorted(missing)} are missing")
    for name, expected in _FIELDS.items():
        if type(info[name]) is not expected:
            raise EmbedderError(f"{path}: {name} is {info[name]!r}, expected {expected.__name__}")
    if info["max_tokens"] < _MIN_TOKENS:
        raise EmbedderError(f"{path}: max_tokens is {info['max_tokens']}, expected at least {_MIN_TOKENS}")
    for name in _FILES:
        file = folder / name
        if not file.is_file():
            raise EmbedderError(f"{file}: no such file; expected the one named in {path.name}")
        with file.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != info["files"].get(name):
            raise EmbedderError(f"{file}: sha256 is {found}, expected {info['files'].get(name)}")
    return info
