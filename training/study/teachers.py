"""The teachers of the study, by the names that a grid has for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from training.baselines.loop import weights_sha256
from training.baselines.transformer import fine_tune, minilm_folder
from training.config import load_config
from training.data import TaskData, Texts
from training.encoders.teachers import MPNET_TEACHER, encoder_teacher
from training.locks import alone
from training.study.system import Lesson, Soft
from training.study.teacher_system import MINILM_LOOP
from training.study.workshop import AskTeacher
from training.teacher import teach

_CONFIGS = Path(__file__).parents[1] / "configs" / "frozen"
_SMOLLM2_PARAMETERS = 134_515_008


def smollm2(task: str, data: TaskData, cache: Path) -> Soft:
    """SmolLM2-135M with LoRA, as the task's configuration has it; read from the cache where `qdtrain teach` ran."""
    config = load_config(_CONFIGS / f"{task}.toml").teacher
    # The ensemble asks it too, and has a lock of its own in the workshop.
    lock = cache / "locks" / f"teach-smollm2-{task}"
    with alone(lock):
        teacher = teach(data.train, config, cache / "teachers", progress=False)

    def answer(texts: Texts) -> np.ndarray:
        with alone(lock):
            return teacher.logits(texts, progress=False)

    return Soft("SmolLM2", answer(data.train), answer(data.validation), _SMOLLM2_PARAMETERS, answer)


def minilm(task: str, data: TaskData, cache: Path) -> Soft:
    """MiniLM, fine-tuned whole on the labels."""
    classifier, outcome = fine_tune(minilm_folder(), Lesson(data, None, 0, cache), MINILM_LOOP, progress=False)
    folder = cache / "teachers" / f"minilm-{weights_sha256(classifier.model)[:16]}"
    answer = partial(_kept, folder, classifier.logits)
    return Soft("MiniLM", answer(data.train), answer(data.validation), outcome.n_total, answer)


def mpnet(task: str, data: TaskData, cache: Path) -> Soft:
    """all-mpnet-base-v2, its upper two thirds fine-tuned on the labels."""
    return encoder_teacher("mpnet", MPNET_TEACHER, task, data, cache)


def ensemble(members: tuple[AskTeacher, ...], task: str, data: TaskData, cache: Path) -> Soft:
    """The mean of its members' probabilities, as logits; without an answer where one of them has none."""
    said = [member(task, data, cache) for member in members]

    def together(logits: list[np.ndarray]) -> np.ndarray:
        probabilities = np.mean([softmax(z.astype(np.float64), axis=1) for z in logits], axis=0)
        found: np.ndarray = np.log(np.maximum(probabilities, 1e-12)).astype(np.float32)
        return found

    answers = [soft.answer for soft in said if soft.answer is not None]

    def answer(texts: Texts) -> np.ndarray:
        return together([ask(texts) for ask in answers])

    return Soft(
        "ensemble",
        together([soft.train for soft in said]),
        together([soft.validation for soft in said]),
        sum(soft.n_parameters for soft in said),
        answer if len(answers) == len(said) else None,
    )


def _kept(folder: Path, ask: Callable[[Texts], np.ndarray], texts: Texts) -> np.ndarray:
    """A teacher's logits, from the cache or asked once: every cell of the study wants the same."""
    path = folder / f"logits-{texts.sha256[:16]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partly = path.with_suffix(f".{os.getpid()}")
        save_file({"logits": np.ascontiguousarray(ask(texts), dtype=np.float32)}, partly)
        partly.replace(path)
    return load_file(path)["logits"]


TEACHERS: dict[str, AskTeacher] = {
    "SmolLM2": smollm2,
    "MiniLM": minilm,
    "mpnet": mpnet,
    "ensemble": partial(ensemble, (smollm2, minilm)),
}
