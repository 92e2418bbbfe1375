"""The frozen configuration of a run, read from TOML and copied into the bundle's manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from models.engines.compiled import MAX_QUBITS
from training.errors import ConfigError
from training.toml import Positive, Section, checked, read_toml


class TeacherConfig(Section):
    """How the teacher is fine-tuned: LoRA on every linear layer (eq. 2-3)."""

    model: str = Field("smollm2-135m", description="`smollm2-135m`, or the folder of a Hugging Face model")
    rank: int = Field(64, ge=1, description="LoRA rank r of eq. 2")
    alpha: Positive = Field(128.0, description="LoRA scale; the update is alpha / rank * a b")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout in front of the LoRA matrices")
    learning_rate: Positive = Field(2e-4, description="peak of the warm-up and cosine schedule of AdamW")
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(16, ge=1)
    max_tokens: int = Field(128, ge=8, description="longer texts are truncated to this many tokens")
    seed: int = Field(0, ge=0)
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16 keeps the frozen weights and the matrix products in bfloat16, LoRA in float32"
    )
    quantise: Literal["8bit"] | None = Field(
        None, description="`8bit` loads the frozen linear layers in 8 bits; needs a CUDA device and bitsandbytes"
    )
    device_map: Literal["auto"] | None = Field(
        None, description="`auto` spreads a model too large for one GPU over all; needs a CUDA device"
    )


class StudentConfig(Section):
    """The student's shape."""

    preset: Literal["paper", "released", "chain"] = Field("released", description="ansatz preset")
    n_qubits: int = Field(11, ge=2, le=MAX_QUBITS, description="no more than the compiled engine takes")
    n_layers: int = Field(2, ge=1)
    embedder: str = Field("minilm-l6", description="a shipped embedder's name, or an exported embedder's folder")
    features: tuple[str, ...] = Field(
        ("mean:4", "mean:6"), min_length=1, description="pooled layers in order, `pooling:layer`"
    )


class LossConfig(Section):
    """Eq. 14: (1 - guidance) (KL + JS) + guidance CE, KL and JS at a temperature."""

    guidance: float = Field(0.5, ge=0, le=1, description="lambda2 of eq. 14, the weight of the labels")
    temperature: Positive = Field(2.0, description="softens teacher and student; KL and JS are scaled by its square")
    kl: float = Field(1.0, ge=0, description="weight of KL inside the teacher's term; 1 in the paper")
    js: float = Field(1.0, ge=0, description="weight of JS inside the teacher's term; 1 in the paper")


class OptimiserConfig(Section):
    """Adam, with a learning rate for each part of the student, and the start of the reducer."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(64, ge=1)
    reducer_learning_rate: Positive = 1e-3
    ansatz_learning_rate: Positive = 1e-2
    head_learning_rate: Positive = 1e-2
    weight_decay: float = Field(0.0, ge=0, description="decoupled, on the reducer's weights in standardised features")
    averaging: float = Field(
        0.0, ge=0, lt=1, description="decay, a step, of the running mean of the weights that is validated and kept"
    )
    start: Literal["linear", "random"] = Field(
        "linear", description="`linear` starts the reducer from a ridge fit of the teacher's logits"
    )
    ridge: Positive = Field(300.0, description="penalty of that fit, on standardised features")
    angle_scale: Positive = Field(0.5, description="standard deviation of the angles at the start, radians")
    feature_noise: float = Field(
        0.0, ge=0, description="standard deviation of Gaussian noise on standardised features during training"
    )


class HardwareConfig(Section):
    """The chip that the student is for, emulated: its noise takes part in training, and it is measured there."""

    device: Literal["baihua"] = Field("baihua", description="its published calibration and its best chain")
    shots: int = Field(10_240, ge=1, description="shots of a text's circuit")


class RunConfig(Section):
    """One run: a task, its teacher, its student and how the one learns from the other."""

    task: str = Field(min_length=1, pattern=r"^[a-z][a-z0-9_-]*$")
    seed: int = Field(0, ge=0)
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    hardware: HardwareConfig | None = Field(None, description="without it the student learns noise-free")

    @model_validator(mode="after")
    def _some_signal(self) -> RunConfig:
        if self.loss.guidance < 1 and self.loss.kl == self.loss.js == 0:
            raise ValueError("loss.kl and loss.js are both 0 while loss.guidance < 1: nothing teaches the student")
        return self


def load_config(path: Path) -> RunConfig:
    """Read a run configuration.

    Raises:
        ConfigError: If the file is missing, is not TOML, or has an unknown or wrong field; names the field.
    """
    expected = "a TOML run configuration"
    if not path.exists():
        raise ConfigError(f"{path}: no such file; expected {expected}")
    return checked(RunConfig, read_toml(path, expected), str(path), "the run")
