"""The systems and teachers that a grid may name, and how a cell's options set them up."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from models.embedder import find_embedder
from models.errors import EmbedderError
from training.baselines.bertqtc import BertQtc
from training.baselines.distilbert import DistilBERT
from training.baselines.hitin import HiTin
from training.baselines.loop import LoopConfig
from training.baselines.lsfls import Lsfls
from training.baselines.minillm import MiniLLM
from training.baselines.pkd import PKD
from training.baselines.textrcnn import TextRcnn
from training.baselines.tinybert import TinyBERT
from training.baselines.transformer import TunedTeacher, minilm_folder
from training.config import RunConfig, load_config
from training.errors import ConfigError
from training.study.cells import Cell, Options, Track, digest
from training.study.controls import LogisticRegressionControl, MlpControl, SurrogateControl, UntaughtStudent
from training.study.noise import SYSTEMS as NOISY_SYSTEMS
from training.study.noise import Noise, noisy_student
from training.study.student import EMBEDDERS, StudentSystem
from training.study.system import System
from training.study.teacher_system import MINILM_LOOP, TeacherSystem
from training.study.teachers import TEACHERS
from training.study.workshop import MakeSystem
from training.toml import checked

__all__ = ["SYSTEMS", "TEACHERS", "configured", "setup_digest"]

_CONFIGS = Path(__file__).parents[1] / "configs"
# The shipped students are those of the adapted track, so theirs are the configurations in front.
_FOLDERS: dict[Track, Path] = {"frozen": _CONFIGS / "frozen", "adapted": _CONFIGS, "adapted-large": _CONFIGS / "large"}
_END_TO_END: Track = "end-to-end"
# Of a run configuration these read no more than the features.
_ON_FEATURES_ALONE = {LogisticRegressionControl.name, BertQtc.name}
# Sections of a run configuration that options set; the others are a cell's own fields, or read by no system.
_OPTIONS = {"student", "loss", "optimiser"}
# Of a baseline; no option says where its encoder lies or what the tables call it.
_NO_OPTIONS = {"encoder", "teacher", "features", "config", "transfer", "progress", "name"}


def configured(cell: Cell) -> RunConfig:
    """The track's configuration of the task, noise-free, with the cell's options in it: `student.n_qubits` and so on.

    `[hardware]` is left out: a student of the study learns from exact expectation values, as the paper's do, and noise
    is measured on top of it.

    Raises:
        ConfigError: If the track has no features, its configuration names another embedder, an option is no field or
            the field does not take its value; names it.
    """
    if cell.track not in _FOLDERS:
        raise ConfigError(f"{cell.system}: track {cell.track!r}, expected one of {sorted(_FOLDERS)}")
    path = _FOLDERS[cell.track] / f"{cell.task}.toml"
    found: dict[str, Any] = load_config(path).model_dump() | {"hardware": None}
    for option, value in cell.options.items():
        section, _, name = option.partition(".")
        place: Any = found[section] if section in _OPTIONS else {}
        if name not in place:
            raise ConfigError(f"option {option!r}: expected a field of a run configuration, such as student.n_qubits")
        place[name] = value
    config = checked(RunConfig, found, f"options of {cell.id}", "the run")
    if config.student.embedder != EMBEDDERS[cell.track]:
        raise ConfigError(
            f"{path}: student.embedder is {config.student.embedder!r}, expected {EMBEDDERS[cell.track]!r} on the track "
            f"{cell.track}"
        )
    return config


def setup_digest(cell: Cell, cache: Path) -> str:
    """`Cell.setup`: of the run configuration and the embedder's files, so that a change of either makes other cells.

    Empty on the track `end-to-end`, which reads neither, and where one of them is not there yet: whoever runs such a
    cell is told what is wrong.

    Args:
        cell: Which.
        cache: Folder of the cache: embedders that are not shipped are in its folder `embedders`.
    """
    if cell.track == _END_TO_END:
        return ""
    try:
        config = configured(replace(cell, options=Options()))
        info = find_embedder(config.student.embedder, cache) / "embedder.json"
    except (ConfigError, EmbedderError):
        return ""
    # Fields at their defaults do not count: a new field leaves finished cells finished.
    if cell.system in _ON_FEATURES_ALONE:
        stated: dict[str, Any] = {"features": list(config.student.features)}
    else:
        stated = config.model_dump(mode="json", exclude_defaults=True, exclude={"teacher", "hardware", "seed"})
    return digest([stated, json.loads(info.read_text(encoding="utf-8"))["files"]])


@dataclass(frozen=True)
class _Configured:
    """Makes a system of a configuration; unlike a closure, it can be sent to workers."""

    kind: type[Any]

    def __call__(self, cell: Cell) -> System:
        system: System = self.kind(configured(cell))
        return system


def _on_chip(cell: Cell) -> System:
    """A student on the emulated chip: options `noise.*` say what the chip has other than published."""
    noise, others = Noise.split(cell.options)
    return noisy_student(cell.system, configured(replace(cell, options=others)), noise)


@dataclass(frozen=True)
class _Baseline:
    """Makes a baseline; options are its fields and, behind `loop.`, those of its training loop.

    Attributes:
        kind: Its class.
        encoder: Whether it starts from MiniLM.
        taught: Whether it copies states of a MiniLM that is fine-tuned on the task.
        two_stages: Whether `loop.` sets up a stage before the last as well.
    """

    kind: type[Any]
    encoder: bool = False
    taught: bool = False
    two_stages: bool = False

    def __call__(self, cell: Cell) -> System:
        if cell.track != _END_TO_END:
            raise ConfigError(f"{cell.system}: track {cell.track!r}, expected {_END_TO_END!r}")
        return make_baseline(self.kind, cell, self._given(cell))

    def _given(self, cell: Cell) -> dict[str, Any]:
        given: dict[str, Any] = {"encoder": _minilm()} if self.encoder else {}
        if self.taught:
            if cell.teacher != "MiniLM":
                raise ConfigError(f"{cell.system}: teacher {cell.teacher!r}, expected 'MiniLM', whose states it copies")
            given["teacher"] = TunedTeacher(_minilm(), MINILM_LOOP, progress=False)
        if self.two_stages:
            given["transfer"] = _loop(self.kind, "transfer", cell)
        return given


def _bert_qtc(cell: Cell) -> System:
    """Its encoder is frozen, so it has the student's tracks and features; `config.loss` and the like are not its."""
    shape = configured(replace(cell, options=Options())).student
    return make_baseline(BertQtc, cell, {"features": shape})


def make_baseline(kind: type[Any], cell: Cell, given: dict[str, Any]) -> System:
    """A baseline with the cell's options in it.

    Args:
        kind: Its class, a dataclass with a field `config` for the training loop.
        cell: Whose options.
        given: Fields that no option sets.

    Raises:
        ConfigError: If an option is no field of the baseline or of its loop, or the field does not take its value;
            names it.
    """
    known = {field.name for field in fields(kind)} - _NO_OPTIONS
    own = {}
    for option, value in cell.options.items():
        if option.startswith("loop."):
            continue
        if option not in known:
            loop = sorted(f"loop.{field.name}" for field in fields(LoopConfig))
            raise ConfigError(f"{cell.system}: option {option!r}, expected one of {sorted(known) + loop}")
        own[option] = _checked(kind, option, tuple(value) if isinstance(value, list) else value, cell, option)
    system: System = kind(config=_loop(kind, "config", cell), progress=False, **given, **own)
    return system


def _loop(kind: type[Any], name: str, cell: Cell) -> LoopConfig:
    """A baseline's own default for a stage of training, with the cell's `loop.` options in it."""
    (field,) = (field for field in fields(kind) if field.name == name)
    default: Any = field.default if field.default_factory is MISSING else field.default_factory()
    known = {field.name for field in fields(LoopConfig)}
    chosen = {option.removeprefix("loop."): v for option, v in cell.options.items() if option.startswith("loop.")}
    for option in chosen:
        if option not in known:
            raise ConfigError(f"{cell.system}: option 'loop.{option}', expected one of {sorted(known)}")
    checked = {field: _checked(LoopConfig, field, value, cell, f"loop.{field}") for field, value in chosen.items()}
    found: LoopConfig = replace(default, **checked)
    return found


def _checked(kind: type[Any], field: str, value: Any, cell: Cell, option: str) -> Any:
    """A value for a field of a dataclass, refused where it is of another type; nothing is converted."""
    adapter: TypeAdapter[Any] = TypeAdapter(
        get_type_hints(kind)[field], config=ConfigDict(strict=True, arbitrary_types_allowed=True)
    )
    try:
        adapter.validate_python(value)
    except ValidationError as exc:
        raise ConfigError(f"{cell.system}: option {option!r}: {exc.errors()[0]['msg']}, found {value!r}") from exc
    return value


@cache
def _minilm() -> Path:
    """Once a process, for the package's file is hashed."""
    return minilm_folder()


def _teacher(cell: Cell) -> System:
    """A teacher as a system: its own accuracy beside its students'."""
    if cell.teacher is None or cell.options:
        raise ConfigError(
            f"{cell.system}: expected the name of a teacher and no options, found {cell.teacher!r} and "
            f"{sorted(cell.options)}"
        )
    return TeacherSystem()


SYSTEMS: dict[str, MakeSystem] = {
    **{
        kind.name: _Configured(kind)
        for kind in (StudentSystem, UntaughtStudent, LogisticRegressionControl, MlpControl, SurrogateControl)
    },
    TeacherSystem.name: _teacher,
    TinyBERT.name: _Baseline(TinyBERT, encoder=True, taught=True, two_stages=True),
    MiniLLM.name: _Baseline(MiniLLM, encoder=True),
    DistilBERT.name: _Baseline(DistilBERT, encoder=True, taught=True),
    PKD.name: _Baseline(PKD, encoder=True, taught=True),
    TextRcnn.name: _Baseline(TextRcnn),
    HiTin.name: _Baseline(HiTin),
    Lsfls.name: _Baseline(Lsfls, encoder=True),
    BertQtc.name: _bert_qtc,
    **dict.fromkeys(NOISY_SYSTEMS, _on_chip),
}
