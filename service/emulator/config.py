"""What an emulator is told once, when it starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import AddressError, SettingsError

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")

# quafu-sdk sends no other.
_TOKEN = re.compile(r"qf_[0-9A-Za-z]+")
_AT_LEAST = {
    "queue_seconds": 0,
    "execution_seconds": 0,
    "min_shots": 1,
    "max_shots": 1,
    "shots_step": 1,
    "max_tasks_per_job": 1,
    "max_qubits": 1,
    "daily_quota": 0,
}


@dataclass(frozen=True)
class EmulatorConfig:
    """The emulated device, account and address.

    Attributes:
        token: What clients must bring, as bearer token to the quafu-sdk protocol and in the header `token` to SQC:
            `qf_` and then letters and digits.
        host: Address to listen on; a loopback one.
        name: The device's name in both protocols.
        exact: Whether gates and readout are free of noise.
        seed: Of the samples and of the calibrations after the first.
        state: sqlite3 file that outlives the process; None keeps everything in memory.
        queue_seconds: From the submission of a job to the earliest start of its first circuit.
        execution_seconds: Wall time of a circuit in addition to computing its counts.
        min_shots, max_shots, shots_step: What the quafu-sdk protocol takes for one circuit. SQC takes every multiple
            of the step.
        max_tasks_per_job: Most circuits in one job.
        max_qubits: Most qubits that the gates of a circuit may touch.
        daily_quota: Most circuits between two resets, which are at 23:00 Beijing time.
        recalibrate_seconds: Age at which a calibration is replaced.

    Raises:
        AddressError: If the host is not a loopback one.
        SettingsError: If another value is not allowed.
    """

    token: str
    host: str = "127.0.0.1"
    name: str = "Baihua"
    exact: bool = False
    seed: int = 0
    state: Path | None = None
    queue_seconds: float = 1.0
    execution_seconds: float = 0.0
    min_shots: int = 1024
    max_shots: int = 8192
    shots_step: int = 1024
    max_tasks_per_job: int = 50
    max_qubits: int = 16
    daily_quota: int = 1_000_000
    recalibrate_seconds: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK_HOSTS:
            # Its token is no secret and its results are not a chip's: nobody else may take it for one.
            raise AddressError(f"the emulator cannot listen on {self.host}, expected one of {LOOPBACK_HOSTS}")
        if not _TOKEN.fullmatch(self.token):
            raise SettingsError("the emulator's token must be qf_ and then letters and digits, as quafu-sdk expects")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                raise SettingsError(f"the emulator's {name} is {value}, expected at least {least}")
        if self.max_shots < self.min_shots:
            raise SettingsError(f"max_shots is {self.max_shots}, expected at least min_shots ({self.min_shots})")
        if not self.recalibrate_seconds > 0:
            raise SettingsError(f"recalibrate_seconds is {self.recalibrate_seconds}, expected more than 0")
