"""Configurations as TOML files: read, checked against a model, and refused by file and field."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A table of a configuration: it cannot be changed, has no unknown fields and only finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Checked = TypeVar("Checked", bound=BaseModel)


def read_toml(path: Path, expected: str) -> dict[str, Any]:
    """A file's tables.

    Args:
        path: The file.
        expected: What it should be, for the message: "a TOML grid".

    Raises:
        ConfigError: If there is no readable file or it is not TOML; names the file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: expected {expected}, found no readable file ({exc.strerror})") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not a TOML file: {exc}") from exc


def checked(model: type[Checked], found: Mapping[str, Any], about: str, whole: str) -> Checked:
    """The tables as a model has them.

    Args:
        model: What they are checked against.
        found: The tables.
        about: Where they come from, for the message.
        whole: What the message names where no single field is wrong.

    Raises:
        ConfigError: If a field is unknown or does not take its value; names the first.
    """
    try:
        return model.model_validate(found)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or whole
        raise ConfigError(f"{about}: {where}: {first['msg']}, found {first['input']!r}") from exc
