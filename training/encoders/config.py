"""How encoders are trained: what a TOML file states of the adapted encoder, and the classical teachers' settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from training.baselines.loop import LoopConfig
from training.encoders.generated import GENERATED
from training.toml import Positive, Section, checked, read_toml


class EncoderConfig(Section):
    """An encoder under training: linear heads on the means of some layers over a text's own tokens."""

    source: str = Field("minilm-l6", description="`minilm-l6`, `mpnet`, or the folder of a Hugging Face encoder")
    depth: int | None = Field(None, ge=1, description="layers that are kept, the lowest; None for all")
    layers: tuple[int, ...] = Field((4, 6), min_length=1, description="whose means the heads read, counted from 1")
    frozen_layers: int = Field(
        0, ge=0, description="the word vectors and this many layers above them keep their weights"
    )
    train_words: bool = Field(False, description="train the word vectors too")
    dropout: float = Field(0.1, ge=0, lt=1, description="in front of the heads")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the cross-entropy with the labels")
    learning_rate: Positive = 5e-5
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    max_tokens: int = Field(64, ge=8)
    averaging: float = Field(0.0, ge=0, lt=1, description="decay, a step, of the running mean of the weights")
    seed: int = Field(0, ge=0)

    @property
    def loop(self) -> LoopConfig:
        """The same as the shared loop takes it."""
        return LoopConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            max_tokens=self.max_tokens,
            averaging=self.averaging,
            precision="bf16",
        )


class GeneratedConfig(Section):
    """A task more: written or generated? Its texts come from those of two others (`training.encoders.generated`)."""

    tweets: str = Field(description="the task whose texts are the written ones")
    hiding: str = Field(description="the task that it is to help")
    n_written: int = Field(5_000, ge=400, description="written texts, at most; there are as many generated ones")
    repeats: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)


class AdaptConfig(Section):
    """The adapted encoder: one for all tasks, from the labels and from what each task's teacher says."""

    teacher: str = Field("ensemble", description="by the name that the study has for it")
    teachers: dict[str, str] = Field({}, description="tasks that have another teacher, and whom")
    guidance: float = Field(0.5, ge=0, le=1, description="weight of the labels; the teacher has the rest")
    temperature: Positive = Field(2.0, description="softens teacher and encoder, as in eq. 14")
    repeats: dict[str, Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="tasks, and how often an epoch shows the texts of each"
    )
    generated: GeneratedConfig | None = None
    encoder: EncoderConfig = EncoderConfig()

    def teacher_of(self, task: str) -> str:
        """The name of a task's teacher."""
        return self.teachers.get(task, self.teacher)

    @model_validator(mode="after")
    def _tasks_are_there(self) -> AdaptConfig:
        for task in self.teachers:
            if task not in self.repeats:
                raise ValueError(f"teachers names the task {task!r}, expected one of {sorted(self.repeats)}")
        if self.generated is not None:
            if GENERATED in self.repeats:
                raise ValueError(f"repeats names the task {GENERATED!r}, which generated makes")
            for task in (self.generated.tweets, self.generated.hiding):
                if task not in self.repeats:
                    raise ValueError(f"generated names the task {task!r}, expected one of {sorted(self.repeats)}")
        return self


def load_adapt_config(path: Path) -> AdaptConfig:
    """Read how the encoder is adapted.

    Raises:
        ConfigError: If the file is missing, is not TOML, or has an unknown or wrong field; names the field.
    """
    return checked(AdaptConfig, read_toml(path, "a TOML configuration"), str(path), "the configuration")
