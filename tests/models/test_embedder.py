from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Encoding, Tokenizer

from models.embedder import SHIPPED, Embedder, Feature, find_embedder
from models.errors import EmbedderError

WORDS = ["a", "quiet", "film", "that", "I", "loved", "more", "than", "any", "other", "for", "its", "music"]
TEXTS = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(n)) for i, n in enumerate((1, 3, 9, 25, 60, 200))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED / "minilm-l6", tmp_path / "minilm-l6"))


def edit_info(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "embedder.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def put(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    edit_info(folder, lambda info: info["files"].update({name: hashlib.sha256(data).hexdigest()}))


def test_a_text_alone_padded_and_in_any_batch_gives_the_same_vectors(embedder: Embedder) -> None:
    tokens = embedder.tokenise(TEXTS)
    alone = np.concatenate([embedder.pooled([token]) for token in tokens])
    assert alone.shape == (len(TEXTS), embedder.n_layers + 1, embedder.hidden_size)
    padded = np.concatenate([embedder.pooled([token, tokens[-1]])[:1] for token in tokens])
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-5)
    for order in (range(len(tokens)), reversed(range(len(tokens))), [3, 0, 3, 5, 1, 1, 4, 2]):
        rows = list(order)
        np.testing.assert_allclose(embedder.pooled([tokens[i] for i in rows]), alone[rows], rtol=0, atol=1e-5)


def test_different_texts_give_different_vectors(embedder: Embedder) -> None:
    found = embedder.embed(["I loved it.", "I hated it."], ["mean:0", "mean:6"])
    assert np.abs(found[0] - found[1]).max() > 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_batching_by_length_keeps_the_rows_in_order(embedder: Embedder, batch_size: int) -> None:
    rng = np.random.default_rng(0)
    texts = [TEXTS[i] for i in rng.permutation(np.repeat(np.arange(len(TEXTS)), 3))]
    expected = {text: embedder.embed([text], ["mean:4"])[0] for text in TEXTS}
    found = embedder.embed(texts, ["mean:4"], batch_size=batch_size)
    np.testing.assert_allclose(found, [expected[text] for text in texts], rtol=0, atol=1e-5)


def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    assert embedder.embed([], ["mean:4"]).shape == (0, embedder.hidden_size)


def test_embedding_is_the_features_one_after_the_other(embedder: Embedder) -> None:
    pooled = embedder.pooled(embedder.tokenise(TEXTS[:2]))
    found = embedder.embed(TEXTS[:2], ["mean:6", "mean:0", "mean:3"])
    assert found.dtype == np.float32
    assert found.shape == (2, embedder.embedding_size(["mean:6", "mean:0", "mean:3"])) == (2, 3 * 384)
    np.testing.assert_allclose(found, np.concatenate([pooled[:, k] for k in (6, 0, 3)], axis=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("features", "size"), [(["mean:4"], 384), (["mean:4", "mean:6"], 768)])
def test_embedding_size_is_the_hidden_size_a_feature(embedder: Embedder, features: list[str], size: int) -> None:
    assert embedder.embedding_size(features) == size


def test_long_text_is_cut_keeps_its_closing_token_and_says_so(embedder: Embedder) -> None:
    short, long = embedder.tokenise(["film", "film " * 500])
    assert not short.truncated
    assert long.truncated
    assert len(long.ids) == embedder.max_tokens
    opening, word, closing = short.ids
    assert long.ids == (opening, *[word] * (embedder.max_tokens - 2), closing)


def test_text_that_just_fits_is_not_truncated(embedder: Embedder) -> None:
    fits, over = embedder.tokenise(["film " * (embedder.max_tokens - 2), "film " * (embedder.max_tokens - 1)])
    assert (len(fits.ids), fits.truncated) == (embedder.max_tokens, False)
    assert (len(over.ids), over.truncated) == (embedder.max_tokens, True)


BLANKS = {"spaces": " ", "lines": "\r\n", "tabs": "\t", "wide": "\u3000", "no-break": "\u00a0"}


@pytest.mark.parametrize("blank", BLANKS.values(), ids=BLANKS)
def test_blanks_around_a_text_neither_hide_nor_truncate_it(embedder: Embedder, blank: str) -> None:
    (expected,) = embedder.tokenise(["a quiet film"])
    assert not expected.truncated
    many = blank * 200 * embedder.max_tokens
    for text in (f"{many}a quiet film", f"a quiet film{many}", f"{many}a quiet film{many}"):
        assert embedder.tokenise([text]) == [expected]


def test_blank_text_is_its_special_tokens(embedder: Embedder) -> None:
    empty, blank = embedder.tokenise(["", " \n" * 20_000])
    assert blank == empty
    assert (len(empty.ids), empty.truncated) == (2, False)


class _RecordingTokenizer:
    """Hands texts on and keeps the length of the longest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.longest = 0
        self._tokenizer = tokenizer

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        self.longest = max(map(len, texts))
        return self._tokenizer.encode_batch(texts)


@pytest.mark.parametrize("text", ["film " * 2_000_000, "x" * 10_000_000], ids=["words", "one word"])
def test_of_a_very_long_text_only_the_beginning_is_tokenised_and_it_says_so(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    recorder = _RecordingTokenizer(embedder._tokenizer)
    monkeypatch.setattr(embedder, "_tokenizer", recorder)
    (found,) = embedder.tokenise([text])
    assert recorder.longest <= 200 * embedder.max_tokens
    (beginning,) = embedder.tokenise([text[: 200 * embedder.max_tokens]])
    assert found == beginning
    assert found.truncated
    assert len(found.ids) <= embedder.max_tokens


def test_words_behind_the_cut_change_nothing(embedder: Embedder) -> None:
    one, other = "film " * 300, "film " * 200 + "hated " * 100
    np.testing.assert_array_equal(embedder.embed([one], ["mean:6"]), embedder.embed([other], ["mean:6"]))


def test_text_that_is_no_unicode_is_refused(embedder: Embedder) -> None:
    with pytest.raises(EmbedderError, match=r"text 1 .*surrogate"):
        embedder.tokenise(["fine", "\ud800"])


@pytest.mark.parametrize("feature", ["mean:7", "mean:-1", "max:3", "mean", "mean:", "3", "", "mean:3:4", "mean:²"])
def test_wrong_feature_is_refused_with_what_there_is(embedder: Embedder, feature: str) -> None:
    with pytest.raises(EmbedderError, match=r"expected POOLING:LAYER with a pooling of \['mean'\] and a layer"):
        embedder.embed(["text"], [feature])
    with pytest.raises(EmbedderError):
        embedder.embedding_size([feature])


def test_feature_is_written_as_it_was_read() -> None:
    assert Feature.parse("mean:4", 6) == Feature("mean", 4)
    assert str(Feature.parse("mean:4", 6)) == "mean:4"


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in SHIPPED.glob("*/embedder.json")), ids=lambda p: p.name
)
def test_shipped_embedder_is_what_its_own_record_says(folder: Path) -> None:
    info = json.loads((folder / "embedder.json").read_text(encoding="utf-8"))
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in info["files"]}
    assert found == info["files"]
    assert {"model.onnx", "tokenizer.json"} == set(info["files"])
    assert info["name"] == folder.name
    assert {"model", "licence", "weights_sha256"} <= set(info["source"])


def test_minilm_comes_from_the_known_weights(embedder: Embedder) -> None:
    assert embedder.info["source"]["weights_sha256"].startswith("53aa5117")
    assert embedder.info["source"]["licence"] == "Apache-2.0"
    assert (embedder.n_layers, embedder.hidden_size) == (6, 384)


def test_identity_is_the_same_wherever_and_whatever_the_embedder_is_called(embedder: Embedder, folder: Path) -> None:
    moved = folder.rename(folder.with_name("elsewhere"))
    edit_info(moved, lambda info: info.update(name="elsewhere", source={"model": "copied"}))
    assert Embedder(moved, threads=1).sha256 == embedder.sha256
    assert re.fullmatch(r"[0-9a-f]{64}", embedder.sha256)


def test_identity_changes_with_where_texts_are_cut(embedder: Embedder, folder: Path) -> None:
    edit_info(folder, lambda info: info.update(max_tokens=embedder.max_tokens - 1))
    assert Embedder(folder, threads=1).sha256 != embedder.sha256


def test_identity_changes_with_the_tokenizer(embedder: Embedder, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["normalizer"]["lowercase"] = False
    put(folder, "tokenizer.json", json.dumps(tokenizer).encode())
    other = Embedder(folder, threads=1)
    assert other.tokenise(["Film"]) != embedder.tokenise(["Film"])
    assert other.sha256 != embedder.sha256


def test_identity_changes_with_the_graph(embedder: Embedder, folder: Path) -> None:
    # Protocol buffers may be written in pieces: this adds the field 2, ModelProto.producer_name, once more.
    put(folder, "model.onnx", (folder / "model.onnx").read_bytes() + b"\x12\x05other")
    assert Embedder(folder, threads=1).sha256 != embedder.sha256


@pytest.mark.parametrize("name", ["embedder.json", "model.onnx", "tokenizer.json"])
def test_missing_file_is_refused_and_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(EmbedderError, match=rf"{name}: no such file"):
        Embedder(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_altered_file_is_refused_with_both_hashes(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    data = (folder / name).read_bytes()
    expected = hashlib.sha256(data).hexdigest()
    (folder / name).write_bytes(damage(data))
    found = hashlib.sha256(damage(data)).hexdigest()
    with pytest.raises(EmbedderError, match=rf"{name}: sha256 is {found}, expected {expected}"):
        Embedder(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_file_that_is_no_model_or_tokenizer_is_refused_and_named(folder: Path, name: str) -> None:
    put(folder, name, b"not what it should be")
    with pytest.raises(EmbedderError, match=rf"{name}: "):
        Embedder(folder)


@pytest.mark.parametrize("version", [0, 2, "1", True, None])
def test_another_schema_is_refused(folder: Path, version: object) -> None:
    edit_info(folder, lambda info: info.update(schema_version=version))
    with pytest.raises(EmbedderError, match=rf"embedder\.json: schema_version is {version!r}, expected 1"):
        Embedder(folder)


@pytest.mark.parametrize("field", ["name", "n_layers", "hidden_size", "max_tokens", "files", "source"])
def test_missing_field_is_refused_and_named(folder: Path, field: str) -> None:
    edit_info(folder, lambda info: info.pop(field))
    with pytest.raises(EmbedderError, match=rf"embedder\.json: .*'{field}'"):
        Embedder(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5),
        ("n_layers", "6"),
        ("hidden_size", None),
        ("max_tokens", "128"),
        ("max_tokens", True),
        ("max_tokens", 2),
        ("files", ["model.onnx"]),
        ("source", None),
    ],
)
def test_field_of_another_type_is_refused_and_named(folder: Path, field: str, value: object) -> None:
    edit_info(folder, lambda info: info.update({field: value}))
    with pytest.raises(EmbedderError, match=rf"embedder\.json: {field} is {re.escape(repr(value))}, expected"):
        Embedder(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_record_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "embedder.json").write_text(text, encoding="utf-8")
    with pytest.raises(EmbedderError, match=r"embedder\.json: "):
        Embedder(folder)


def test_embedder_is_found_by_name_or_folder(folder: Path) -> None:
    assert find_embedder("minilm-l6") == SHIPPED / "minilm-l6"
    assert find_embedder(str(folder)) == folder
    with pytest.raises(EmbedderError, match=r"expected one of \['minilm-l6'.*\] or a folder with embedder\.json"):
        find_embedder("nowhere")


def test_own_embedder_is_found_beside_the_bundles_and_before_a_shipped_one(tmp_path: Path) -> None:
    for name in ("own", "minilm-l6"):
        (tmp_path / "embedders" / name).mkdir(parents=True)
        (tmp_path / "embedders" / name / "embedder.json").write_text("{}", encoding="utf-8")
        assert find_embedder(name, tmp_path) == tmp_path / "embedders" / name
    with pytest.raises(EmbedderError, match="embedder 'own'"):
        find_embedder("own")


def test_shipped_embedder_is_found_where_there_is_none_beside_the_bundles(folder: Path) -> None:
    (folder.parent / "embedders" / "minilm-l6").mkdir(parents=True)
    assert find_embedder("minilm-l6", folder.parent) == SHIPPED / "minilm-l6"
    assert find_embedder(str(folder), folder.parent / "nowhere") == folder
