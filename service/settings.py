"""Every setting of the service, read from `QD_*` environment variables by `load_settings` and nowhere else."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.bundle import SHIPPED
from service.backends.base import BackendName
from service.errors import SettingsError

_PREFIX = "QD_"


class Settings(BaseSettings):
    """The settings; an empty variable counts as unset."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    state_dir: Path = Field(
        default=Path("state"),
        description="Folder for what a running service keeps on disk. While it is up, `serve.json` in it holds its "
        "process id and URL.",
    )
    bundles_dir: Path = Field(
        default=SHIPPED, description="Folder whose sub-folders are the bundles to serve, one a task."
    )
    engine: Literal["compiled", "mindquantum"] = Field(
        default="compiled",
        description="How `simulator` computes: `compiled` (exact, fast) or `mindquantum` (state vector, slow; needs "
        "the package).",
    )
    precision: Literal["float64", "float32"] = Field(
        default="float64", description="Arithmetic of the `compiled` engine: `float64` or `float32`."
    )
    default_backend: BackendName = Field(
        default=BackendName.SIMULATOR, description="Backend of requests that do not name one: `simulator`."
    )
    max_texts: int = Field(default=128, ge=1, le=10_000, description="Most texts in one request.")
    max_body_bytes: int = Field(
        default=2_000_000, ge=1_000, le=100_000_000, description="Largest request body, in bytes."
    )
    max_queued_texts: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Most texts that wait for the encoder; a request beyond them is answered 429. At least "
        "`QD_MAX_TEXTS`.",
    )
    max_batch_texts: int = Field(
        default=32, ge=1, le=1024, description="Most texts in one forward pass of the encoder."
    )
    threads: int = Field(default=0, ge=0, le=256, description="Threads of one forward pass; 0 takes every core.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines written: `debug`, `info`, `warning` or `error`."
    )
    shutdown_grace_seconds: int = Field(
        default=30, ge=1, le=3600, description="How long requests in flight may take to finish after SIGTERM."
    )

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.max_queued_texts < self.max_texts:
            raise ValueError(
                f"QD_MAX_QUEUED_TEXTS is {self.max_queued_texts}, expected at least QD_MAX_TEXTS ({self.max_texts})"
            )
        return self


def load_settings(**overrides: Any) -> Settings:
    """The settings of the environment, with `overrides` (from the command line) before it.

    Raises:
        SettingsError: If a value is not allowed or a variable with the prefix is no setting; one line that names it.
    """
    known = [_variable(name) for name in Settings.model_fields]
    for name in sorted(os.environ):
        # A misspelt variable would be passed over in silence.
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise SettingsError(f"{name} is no setting" + (f", did you mean {near[0]}?" if near else f": {known}"))
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        raise SettingsError(
            "; ".join(_line(error["loc"], error["msg"], error["input"]) for error in exc.errors())
        ) from exc


def settings_table() -> str:
    """The settings as a Markdown table: variable, default, meaning."""
    rows = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        # The installed path of the shipped bundles would differ on every machine.
        default = SHIPPED.relative_to(SHIPPED.parents[1]) if field.default == SHIPPED else field.default
        rows.append(f"| `{_variable(name)}` | `{default}` | {field.description} |")
    return "\n".join(rows)


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _line(location: tuple[int | str, ...], message: str, found: Any) -> str:
    # A check across fields has no location and names its variables itself.
    if not location:
        return message.removeprefix("Value error, ")
    return f"{_variable(str(location[0]))} is {str(found)!r}: {message[:1].lower()}{message[1:]}"
