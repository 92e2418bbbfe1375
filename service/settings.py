"""Every setting of the service, read from `QD_*` environment variables by `load_settings` and nowhere else."""

from __future__ import annotations

import difflib
import os
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.bundle import SHIPPED
from service.errors import SettingsError
from service.providers.base import ProviderName

# What every Quafu device is reported to take; its own limits are read before anything is sent.
SHOTS_STEP = 1024
MAX_SHOTS = 102_400
# Circuits of fewer qubits use the front of the chain, so that the readout errors of these are known to all of them.
CHAIN_QUBITS = 11
_MAX_DIGITS = 6
_PREFIX = "QD_"
# Tokens, and addresses that may hold a password.
_SECRETIVE = frozenset({"redis_url", "quafu_url", "otlp_endpoint", "quafu_token", "quafu_token_file"})


class BackendName(StrEnum):
    """Every backend a caller may name."""

    SIMULATOR = "simulator"
    """The exact expectation values, computed here."""
    BAIHUA = "baihua"
    """The Baihua processor, through Quafu."""


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
        default=BackendName.SIMULATOR,
        description="Backend of requests that do not name one: `simulator` or `baihua`.",
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
    allow_anonymous: bool = Field(
        default=False,
        description="Whether callers without a key may classify on an address that other machines reach. Without it "
        "the service does not start on such an address until `qdserve keys create` has made a key.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="OpenTelemetry collector that traces are sent to over HTTP, such as `http://127.0.0.1:4318`; "
        "unset, there are none.",
    )
    trace_ratio: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Share of traces that are recorded; a caller's `traceparent` says so for its own.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines written: `debug`, `info`, `warning` or `error`."
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis or Valkey, 7 or newer, for jobs, counts and keys: `redis://`, `rediss://` or `unix://`; "
        "`redis+sentinel://[user:password@]host[:port],…/service[/db]` for the master that Sentinels name, or "
        "`redis+cluster://host[:port]` for a Cluster (`rediss+…` with TLS). Unset, the service starts its own Valkey "
        "under `QD_STATE_DIR`, with a worker and, without a token, the emulator.",
    )
    embedded: bool = Field(
        default=True,
        description="Whether to start them where `QD_REDIS_URL` is unset; if false, `baihua` is not configured then.",
    )
    quafu_provider: ProviderName = Field(
        default=ProviderName.QUAFU,
        description="Whose API reaches the chip: `quafu` (quafu.com.cn) or `quafu_sqc` (quafu-sqc.baqis.ac.cn).",
    )
    quafu_url: str | None = Field(default=None, description="The provider's address, if not its own; an emulator's.")
    quafu_token: SecretStr | None = Field(default=None, description="Token of the provider's account.")
    quafu_token_file: Path | None = Field(default=None, description="File that holds the token instead.")
    quafu_device: str = Field(default="Baihua", min_length=1, description="Device at the provider.")
    quafu_compiler: Literal["chain", "server"] = Field(
        default="chain",
        description="How circuits are laid on the chip: `chain` sends them on the best chain of qubits of the current "
        "calibration, `server` lets the provider place them.",
    )
    quafu_chain: str = Field(
        default="",
        description="Physical qubits to use instead of the best chain, in its order: `124,125,...`.",
    )
    shots: int = Field(
        default=10_240, ge=1024, le=MAX_SHOTS, multiple_of=SHOTS_STEP, description="Shots of a circuit on `baihua`."
    )
    micro_batch_seconds: float = Field(
        default=0.25,
        ge=0.05,
        le=60.0,
        description="How long circuits are gathered before they travel to the provider in one job.",
    )
    max_queued_circuits: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Most circuits that wait to be sent; a request beyond them is answered 429.",
    )
    job_deadline_seconds: int = Field(
        default=86_400,
        ge=1,
        le=2_592_000,
        description="How long a circuit may take from the queue to its counts, before its jobs fail.",
    )
    job_ttl_seconds: int = Field(
        default=259_200, ge=60, le=2_592_000, description="How long a job is kept once it has ended."
    )
    cache_ttl_seconds: int = Field(
        default=604_800, ge=60, le=31_536_000, description="How long counts are kept, give or take a tenth."
    )
    cache_by_calibration: bool = Field(
        default=False, description="Whether counts of an earlier calibration of the device count as absent."
    )
    readout_seconds: int = Field(
        default=3600,
        ge=0,
        le=604_800,
        description="How old measured readout errors may become before they are measured again, with two circuits; "
        "0 measures none, and nothing is corrected. A new calibration of the device is followed by a measurement too. "
        "Without a chain (`server`, or no calibration and no `QD_QUAFU_CHAIN`) there is none.",
    )
    worker_concurrency: int = Field(
        default=20, ge=1, le=90, description="Most steps that one worker has under way at once."
    )
    worker_lease_seconds: int = Field(
        default=10, ge=1, le=3600, description="How long the step of a worker that has died is left alone."
    )
    worker_metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address at which a worker answers Prometheus."
    )
    worker_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="Its port; 0 takes a free one, which the worker's log names."
    )
    emulator_exact: bool = Field(default=False, description="Whether the emulator samples without noise.")
    emulator_queue_seconds: float = Field(
        default=1.0, ge=0.0, le=86_400.0, description="How long a job waits in the emulator's queue at least."
    )
    shutdown_grace_seconds: int = Field(
        default=30, ge=1, le=3600, description="How long requests in flight may take to finish after SIGTERM."
    )

    @property
    def chain(self) -> tuple[int, ...] | None:
        """`quafu_chain` as numbers; None if it is unset."""
        return tuple(int(qubit) for qubit in self.quafu_chain.split(",")) if self.quafu_chain else None

    @property
    def has_token(self) -> bool:
        return self.quafu_token is not None or self.quafu_token_file is not None

    def token(self) -> str:
        """The provider's token.

        Raises:
            SettingsError: If there is none, or its file cannot be read.
        """
        if self.quafu_token is not None:
            return self.quafu_token.get_secret_value()
        if self.quafu_token_file is None:
            raise SettingsError("expected a token in QD_QUAFU_TOKEN or QD_QUAFU_TOKEN_FILE, found neither")
        try:
            token = self.quafu_token_file.read_text().strip()
        except OSError as exc:
            # Not which file: a token that was put there by mistake would be shown.
            raise SettingsError(f"QD_QUAFU_TOKEN_FILE: cannot read the file: {exc.strerror}") from exc
        if not token:
            raise SettingsError("QD_QUAFU_TOKEN_FILE: the file is empty")
        return token

    @field_validator("quafu_chain")
    @classmethod
    def _is_a_chain(cls, value: str) -> str:
        qubits = value.split(",") if value else []
        numbers = {int(qubit) for qubit in qubits if qubit.isdecimal() and len(qubit) <= _MAX_DIGITS}
        if value and (len(numbers) < CHAIN_QUBITS or len(numbers) < len(qubits)):
            raise ValueError(f"expected at least {CHAIN_QUBITS} different numbers of qubits with commas between them")
        return value

    @field_validator("quafu_url", "otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "https://default")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as https://host or http://127.0.0.1:8010")
        return value

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.quafu_token is not None and self.quafu_token_file is not None:
            raise ValueError("QD_QUAFU_TOKEN and QD_QUAFU_TOKEN_FILE are both set, expected one of them")
        return self

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
    """An error in one line; what was found is left out where it may hold a secret."""
    # A check across fields has no location and names its variables itself.
    if not location:
        return message.removeprefix("Value error, ")
    said = message.removeprefix("Value error, ")
    name = str(location[0])
    shown = "" if name in _SECRETIVE else f" is {str(found)!r}"
    return f"{_variable(name)}{shown}: {said[:1].lower()}{said[1:]}"
