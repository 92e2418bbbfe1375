"""What `qdtrain search` does: from a configuration, a space around it and a teacher to the best configuration."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import ConfigError

if TYPE_CHECKING:
    from training.study.system import Soft
    from training.study.workshop import AskTeacher

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `run` reads."""
    parser.add_argument(
        "config", type=Path, help="configuration to search around, such as training/configs/frozen/emotion.toml"
    )
    parser.add_argument("--space", type=Path, required=True, help="levers, such as training/configs/search.toml")
    parser.add_argument("--data", type=Path, required=True, help="folder of the task's texts; test texts take no part")
    parser.add_argument(
        "--trials", type=int, required=True, help="configurations in all, those of an earlier call among them"
    )
    parser.add_argument("--seconds", type=float, help="no trial starts after so many")
    parser.add_argument("--seeds", type=int, default=3, help="runs of a configuration (default 3)")
    parser.add_argument("--teacher", default="SmolLM2", help="a teacher of the study (default SmolLM2)")
    parser.add_argument("--name", help="of the search's files (default: TASK-TEACHER)")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="teachers, embeddings, runs and searches (default .cache)"
    )


def run(options: argparse.Namespace, teachers: Mapping[str, AskTeacher] | None = None) -> str:
    """Search, and write `<cache>/search/<name>.json`, `.toml` and `.png`.

    Args:
        options: What `add_arguments` reads.
        teachers: By name; None for those of the study.

    Returns:
        The best configurations, and where the files are.

    Raises:
        ConfigError: If the configuration, the space, the teacher or a number is wrong; before anything is trained.
        DataError: If the texts cannot be learned from.
        StudyError: If no trial was done.
    """
    # torch, transformers and Optuna take seconds to import; the parser of all commands does without them.
    from training.config import load_config
    from training.data import load_task
    from training.pipeline import MAX_PARAMETERS
    from training.search.results import plot, table
    from training.search.run import Search
    from training.search.space import load_space
    from training.search.trainee import StudentTrainee, embedders
    from training.study.registry import TEACHERS
    from training.study.system import Lesson

    for option in ("trials", "seeds"):
        if getattr(options, option) < 1:
            raise ConfigError(f"--{option} {getattr(options, option)}: expected at least 1")
    if options.seconds is not None and not options.seconds > 0:
        raise ConfigError(f"--seconds {options.seconds}: expected more than 0")
    base = load_config(options.config)
    space = load_space(options.space, base)
    hashes = embedders(space, base, options.cache)
    known = TEACHERS if teachers is None else teachers
    teacher = options.teacher
    if teacher not in known:
        raise ConfigError(f"--teacher {teacher}: expected one of {', '.join(sorted(known))}")
    name = options.name or re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{base.task}-{teacher}")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name}: expected letters, digits and . _ + - alone")
    data = load_task(options.data)
    soft = known[teacher](base.task, data, options.cache)
    about = {
        "teacher": teacher,
        "embedders": hashes,
        "texts": {"train": data.train.sha256, "validation": data.validation.sha256},
        "logits": _digest(soft),
    }
    folder = options.cache / "search"
    trainee = StudentTrainee(Lesson(data, soft, base.seed, options.cache))
    search = Search(name, base, space, trainee, folder, about, options.seeds, MAX_PARAMETERS)
    found = search.run(options.trials, options.seconds)
    plot(found, folder / f"{name}.png")
    return f"{table(found)}\n\n{folder / name}.toml, .json, .png"


def _digest(soft: Soft) -> str:
    """Hash of what the teacher says of train and validation texts."""
    digest = hashlib.sha256()
    for logits in (soft.train, soft.validation):
        digest.update(logits.tobytes())
    return digest.hexdigest()
