"""The space of a search: fields of a run configuration, each with the values that it may take, from TOML.

A lever stands where its value would stand in a run configuration:

    [student]
    features = { values = [["mean:4"], ["mean:4", "mean:6"]] }
    [loss]
    temperature = { low = 1.0, high = 8.0, log = true }
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from training.config import LossConfig, OptimiserConfig, RunConfig, StudentConfig
from training.errors import ConfigError
from training.study.cells import canonical
from training.toml import Section, read_toml

# A search holds the teacher fixed, and its students learn noise-free: other fields would change nothing.
SECTIONS: dict[str, type[BaseModel]] = {"student": StudentConfig, "loss": LossConfig, "optimiser": OptimiserConfig}


class Values(Section):
    """A lever that takes one of a few values.

    Samplers see each as JSON, `choices`: lists of layers are values too.
    """

    values: tuple[Any, ...] = Field(min_length=1)

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(canonical(value) for value in self.values)

    def suggest(self, trial: Any, name: str) -> None:
        """Have an Optuna trial draw one."""
        trial.suggest_categorical(name, self.choices)

    def encode(self, value: Any) -> Any:
        """What Optuna knows the value by; None where the lever does not take it."""
        return canonical(value) if canonical(value) in self.choices else None

    def decode(self, known: Any) -> Any:
        """The value that Optuna knows by this."""
        return json.loads(known)


class Range(Section):
    """A lever that takes any number of a range, its ends among them; `log` draws evenly in its logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ends(self) -> Range:
        if self.low >= self.high:
            raise ValueError("expected low < high")
        if self.log and self.low <= 0:
            raise ValueError("expected low > 0 where log = true")
        return self

    def suggest(self, trial: Any, name: str) -> None:
        """Have an Optuna trial draw one."""
        trial.suggest_float(name, self.low, self.high, log=self.log)

    def encode(self, value: Any) -> Any:
        """The number itself; None outside the range."""
        return value if self.low <= value <= self.high else None

    def decode(self, known: Any) -> Any:
        """The same number."""
        return known


class IntegerRange(Range):
    """A range of whole numbers."""

    low: int
    high: int

    def suggest(self, trial: Any, name: str) -> None:
        """Have an Optuna trial draw one."""
        trial.suggest_int(name, self.low, self.high, log=self.log)


Lever = Values | Range


@dataclass(frozen=True)
class Space:
    """Levers by the fields that they move, `section.field`."""

    levers: Mapping[str, Lever]

    def suggest(self, trial: Any) -> None:
        """Have an Optuna trial draw a value of every lever."""
        for name, lever in self.levers.items():
            lever.suggest(trial, name)

    def encode(self, config: RunConfig) -> dict[str, Any] | None:
        """What Optuna knows a configuration by; None where it lies outside the space."""
        document = config.model_dump(mode="json")
        found = {}
        for name, lever in self.levers.items():
            section, field = name.split(".")
            found[name] = lever.encode(document[section][field])
        return None if None in found.values() else found

    def decode(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the fields that they belong to, from what Optuna knows them by."""
        return {name: lever.decode(known[name]) for name, lever in self.levers.items()}

    def to_json(self) -> dict[str, Any]:
        return {name: lever.model_dump(mode="json") for name, lever in self.levers.items()}


def configure(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The base configuration with values in place of its own.

    Args:
        base: Any run.
        values: By `section.field`.

    Raises:
        ConfigError: If values do not go together or a field does not take its own; names the field.
    """
    document = base.model_dump()
    for name, value in values.items():
        section, field = name.split(".")
        document[section][field] = value
    try:
        return RunConfig.model_validate(document)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the run"
        raise ConfigError(f"{where}: {first['msg']}, found {dict(values)!r}") from exc


def load_space(path: Path, base: RunConfig) -> Space:
    """Read the space of a search around a configuration.

    Raises:
        ConfigError: If the file is missing or not TOML, names a field that there is not or that a search holds fixed,
            or gives it a value that it does not take; names the field.
    """
    document = read_toml(path, "the TOML space of a search")
    try:
        levers = {name: _lever(name, table, base) for name, table in _tables(document)}
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    if not levers:
        raise ConfigError(f"{path}: expected at least one field with values, such as loss.temperature, found none")
    return Space(levers)


def _tables(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, fields in document.items():
        if section not in SECTIONS:
            raise ConfigError(f"{section}: a search has levers in {', '.join(SECTIONS)} alone")
        if not isinstance(fields, dict):
            raise ConfigError(f"{section}: expected a table of fields, found {fields!r}")
        for field, table in fields.items():
            yield f"{section}.{field}", table


def _lever(name: str, table: Any, base: RunConfig) -> Lever:
    section, field = name.split(".", 1)
    known = SECTIONS[section].model_fields
    if field not in known:
        raise ConfigError(f"{name}: no such field, expected one of {sorted(known)}")
    if not isinstance(table, dict):
        raise ConfigError(f"{name}: expected {{ values = [...] }} or {{ low = ..., high = ... }}, found {table!r}")
    lever = _parse(name, table, _kind(name, table, known[field].annotation))
    if isinstance(lever, Range):
        for end in (lever.low, lever.high):
            _taken(name, end, base)
        return lever
    # As the configuration writes them, so that 2 and 2.0 are one value of a real field.
    values = Values(values=tuple(_taken(name, value, base) for value in lever.values))
    if len(set(values.choices)) < len(values.choices):
        raise ConfigError(f"{name}.values: expected every value once, found {list(values.values)}")
    return values


def _kind(name: str, table: dict[str, Any], field: Any) -> type[Lever]:
    if "values" in table:
        return Values
    if field not in (int, float):
        raise ConfigError(f"{name}: not a number, expected {{ values = [...] }}, found {table!r}")
    return IntegerRange if field is int else Range


def _parse(name: str, table: dict[str, Any], kind: type[Lever]) -> Lever:
    try:
        return kind.model_validate(table)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        raise ConfigError(f"{where}: {first['msg']}, found {first['input']!r}") from exc


def _taken(name: str, value: Any, base: RunConfig) -> Any:
    """The value as its field keeps it, in JSON.

    Rules between fields are left for the point of the search that breaks them: a value may be wrong with the base's
    others and right with those of another lever.
    """
    section, field = name.split(".")
    try:
        found = SECTIONS[section].model_validate({**getattr(base, section).model_dump(), field: value})
    except ValidationError as exc:
        first = exc.errors()[0]
        raise ConfigError(f"{name}: {first['msg']}, found {value!r}") from exc
    return found.model_dump(mode="json")[field]
