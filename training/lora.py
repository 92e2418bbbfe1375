"""A language model as a classifier that LoRA tunes: loading it, its training loop, its checkpoints, its logits.

One process on one device by default. Under `accelerate launch` every process tunes a copy on a share of each batch and
gradients are averaged, which makes the same teacher but for rounding and dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from training.checkpoints import read_checkpoint, save_checkpoint
from training.config import TeacherConfig
from training.data import Texts
from training.errors import DivergedError, TeacherError
from training.precision import autocast, products
from training.steps import rate_share, shuffled_batches

_HEADS = ("score", "classifier")  # what the families call the layer that makes logits; it is tuned whole
_STARTED_AT_RANDOM = (*_HEADS, "pooler")  # what a folder may lack
_WARMUP_SHARE = 0.06
_CHECKPOINT_STEPS = 100


@dataclass(frozen=True)
class Classifier:
    """A model with LoRA, its tokenizer, and the device and process that it computes on."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    config: TeacherConfig
    accelerator: Accelerator

    def tokens(self, texts: Texts) -> list[list[int]]:
        """Token ids of each text, truncated, without padding.

        Raises:
            TeacherError: If the tokenizer knows tokens that the model does not.
        """
        tokens: list[list[int]] = self.tokenizer(list(texts.texts), truncation=True, max_length=self.config.max_tokens)[
            "input_ids"
        ]
        embedding: torch.nn.Embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        largest = max(self.tokenizer.pad_token_id, *(max(row, default=0) for row in tokens))
        if largest >= embedding.num_embeddings:
            raise TeacherError(
                f"{self.config.model}: expected token ids below {embedding.num_embeddings}, the rows of the model's "
                f"embedding, found {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r}): tokenizer and "
                "weights do not belong together"
            )
        return tokens


def make_accelerator() -> Accelerator:
    """This process's device and, under `accelerate launch`, its place among the processes."""
    # Precision is the teacher's, whatever the launcher's default is.
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")


def loading_options(config: TeacherConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say in which precision the weights are loaded, and onto which devices.

    Raises:
        TeacherError: If the configuration asks for what this machine or this launch cannot do.
    """
    if accelerator.device.type != "cuda":
        for field in ("quantise", "device_map"):
            if (value := getattr(config, field)) is not None:
                raise TeacherError(f"teacher.{field}: {value} needs a CUDA device, found none")
        return {"dtype": torch.float32}
    # Straight from the file: a large model has no room for a copy in float32.
    options: dict[str, Any] = {"dtype": torch.bfloat16 if config.precision == "bf16" else torch.float32}
    if config.device_map is not None:
        if accelerator.num_processes > 1:
            raise TeacherError(
                f"teacher.device_map: {config.device_map} spreads one copy of the model over all GPUs and needs one "
                f"process, found {accelerator.num_processes}"
            )
        options["device_map"] = config.device_map
    if config.quantise is not None:
        if find_spec("bitsandbytes") is None:
            raise TeacherError(f"teacher.quantise: {config.quantise} needs the package bitsandbytes, found none")
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(_HEADS))
        options.setdefault("device_map", {"": accelerator.local_process_index})
    return options


def build(
    folder: Path, gguf: str | None, config: TeacherConfig, labels: tuple[str, ...], accelerator: Accelerator
) -> Classifier:
    """Load a model with a new head of one logit a label, and LoRA in front of every other linear layer (eq. 2-3).

    Raises:
        TeacherError: If it cannot be loaded, lacks weights, or has no token to pad with; names the folder.
    """
    # peft imports slowly and is needed only here.
    from peft import LoraConfig, TaskType, get_peft_model

    options = loading_options(config, accelerator)
    source: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    # It reports a classifier's head as missing at each load, which reads as if a tuned one were lost.
    set_verbosity_error()
    disable_progress_bar()
    # Layers that the folder lacks start at random and, but for the head, stay: each build must make the same.
    torch.manual_seed(config.seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(labels), output_loading_info=True, **options, **source
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as exc:
        raise TeacherError(f"{folder}: expected a causal or sequence-classification model: {exc}") from exc
    missing = sorted(name for name in found["missing_keys"] if not set(name.split(".")) & set(_STARTED_AT_RANDOM))
    if missing:
        raise TeacherError(f"{folder}: expected all weights of the model, missing {len(missing)}, such as {missing[0]}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise TeacherError(
            f"{folder}: expected a padding, end or unknown token to pad batches with, found none; "
            "tokenizer_config.json names them"
        )
    tokenizer.padding_side = "right"
    # The classification head of a causal model reads the last token that is not this one.
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type=TaskType.SEQ_CLS,
    )
    model = get_peft_model(model, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif config.precision == "bf16" and parameter.is_floating_point():  # 8-bit weights are integers
            parameter.data = parameter.data.to(torch.bfloat16)
    return Classifier(model, tokenizer, config, accelerator)


def finetune(classifier: Classifier, train: Texts, folder: Path, progress: bool) -> None:
    """Train LoRA and the head, from the checkpoint in `folder` if there is one.

    Raises:
        DivergedError: If loss or gradient is no longer a number; the model was not updated with it.
        CheckpointError: If the checkpoint cannot be read.
    """
    model, config, accelerator = classifier.model, classifier.config, classifier.accelerator
    tokens = classifier.tokens(train)
    parallel = accelerator.prepare_model(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    lengths = [len(text) for text in tokens]
    plan = [
        batch
        for epoch in range(config.epochs)
        for batch in shuffled_batches(lengths, config.batch_size, (config.seed, epoch))
    ]
    checkpoint_steps = min(_CHECKPOINT_STEPS, len(plan) // config.epochs)
    checkpoint = folder / "checkpoint.pt"
    start = _resume(checkpoint, model, optimiser)
    model.train()
    smooth = None
    bar = _bar(classifier, "teach", "batch", len(plan), start, progress)
    # What an interrupted step had done is not counted; within an update nothing can be saved.
    done, rng, updating = start, torch.get_rng_state(), False
    try:
        for step in range(start, len(plan)):
            rows, weight = _share(plan[step], accelerator)
            _seed_step(config, step, accelerator)
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * rate_share(step, len(plan), _WARMUP_SHARE)
            logits = _forward(parallel, classifier, [tokens[i] for i in rows])
            targets = torch.as_tensor(train.targets[rows], device=logits.device)
            loss = weight * torch.nn.functional.cross_entropy(logits, targets)
            mean_loss = accelerator.reduce(loss.detach(), "mean").item()
            _require_number("loss", mean_loss, step, len(plan), config, checkpoint)
            optimiser.zero_grad(set_to_none=True)
            with products(config.precision, accelerator.device.type):
                accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            _require_number("gradient", norm.item(), step, len(plan), config, checkpoint)
            updating = True
            optimiser.step()
            done, rng = step + 1, torch.get_rng_state()
            updating = False
            smooth = mean_loss if smooth is None else 0.95 * smooth + 0.05 * mean_loss
            bar.update()
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
            if done % checkpoint_steps == 0:
                _save_checkpoint(checkpoint, classifier, optimiser, done, rng)
    except KeyboardInterrupt:
        if not updating:
            _save_checkpoint(checkpoint, classifier, optimiser, done, rng)
        raise
    finally:
        bar.close()


@torch.inference_mode()
def predict(classifier: Classifier, texts: Texts, progress: bool) -> np.ndarray:
    """Logits of shape (n, n_classes), float32, in the order of the texts; processes share the work."""
    accelerator, size = classifier.accelerator, 2 * classifier.config.batch_size
    tokens = classifier.tokens(texts)
    model = accelerator.prepare_model(classifier.model, evaluation_mode=True)
    model.eval()
    order = np.argsort([len(t) for t in tokens], kind="stable")
    logits = torch.zeros((len(texts), len(texts.labels)), device=accelerator.device)
    bar = _bar(classifier, "logits", "text", len(order), 0, progress)
    for number, begin in enumerate(range(0, len(order), size)):
        rows = order[begin : begin + size]
        if number % accelerator.num_processes == accelerator.process_index:
            logits[torch.as_tensor(rows)] = _forward(model, classifier, [tokens[i] for i in rows]).to(logits.device)
        bar.update(len(rows))
    bar.close()
    found: np.ndarray = accelerator.reduce(logits, "sum").cpu().numpy()
    return found


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """LoRA matrices and head by name."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def load_trainable(model: torch.nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Put saved LoRA matrices and head in the place of the model's."""
    parameters = dict(model.named_parameters())
    for name, value in saved.items():
        parameters[name].data.copy_(value)


def _share(rows: np.ndarray, accelerator: Accelerator) -> tuple[np.ndarray, float]:
    """This process's part of a batch, and the weight that makes the processes' mean the mean over the batch."""
    part = rows[accelerator.process_index :: accelerator.num_processes]
    if not len(part):  # a small last batch; every process has to take part in each step
        return rows[:1], 0.0
    return part, len(part) * accelerator.num_processes / len(rows)


def _seed_step(config: TeacherConfig, step: int, accelerator: Accelerator) -> None:
    """Let dropout differ between processes and be the same after a break.

    One process on a CPU goes on with one stream, which its checkpoint holds; that of a GPU, or of other processes, it
    does not hold.
    """
    if accelerator.num_processes > 1 or accelerator.device.type == "cuda":
        state = np.random.SeedSequence([config.seed, step, accelerator.process_index]).generate_state(1)
        torch.manual_seed(int(state[0]))


def _forward(model: torch.nn.Module, classifier: Classifier, tokens: list[list[int]]) -> torch.Tensor:
    device = classifier.accelerator.device
    batch = classifier.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(device)
    with autocast(classifier.config.precision, device.type):
        logits: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.float()


def _require_number(name: str, value: float, step: int, steps: int, config: TeacherConfig, checkpoint: Path) -> None:
    if np.isfinite(value):
        return
    left = f"the last checkpoint of this one is {checkpoint}" if checkpoint.exists() else "it has no checkpoint yet"
    raise DivergedError(
        f"the teacher's {name} is {value} at step {step + 1} of {steps}; lower teacher.learning_rate "
        f"(now {config.learning_rate}), which makes another teacher, from the start; {left}"
    )


def _bar(classifier: Classifier, name: str, unit: str, total: int, start: int, progress: bool) -> Any:
    silent = not (progress and classifier.accelerator.is_main_process)
    return tqdm(total=total, initial=start, desc=name, unit=unit, disable=silent, mininterval=1)


def _save_checkpoint(
    path: Path, classifier: Classifier, optimiser: torch.optim.Optimizer, step: int, rng: torch.Tensor
) -> None:
    if not classifier.accelerator.is_main_process:
        return
    state = {
        "step": step,
        "trainable": trainable(classifier.model),
        "optimiser": optimiser.state_dict(),
        "rng": rng,
    }
    save_checkpoint(path, state)


def _resume(path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    with read_checkpoint(path) as state:
        load_trainable(model, state["trainable"])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
        return int(state["step"])
