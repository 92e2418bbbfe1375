"""The parts of the emulator that need no server."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from emulating import TOKEN

from models.device import Device, Qubit
from service.emulator.app import create_emulator
from service.emulator.calibration import from_payload, jittered, to_payload
from service.emulator.config import EmulatorConfig
from service.emulator.machine import job_status
from service.emulator.quota import last_reset, next_reset
from service.emulator.store import Status, Store
from service.errors import AddressError, SettingsError, StartupError

DEVICE = Device(
    "Chip",
    "calibration",
    {0: Qubit(70.0, 30.0, 0.999, 0.97, 0.91), 1: Qubit(60.0, 119.0, 0.998, None, None), 2: Qubit()},
    {(0, 1): 0.985, (1, 2): None},
)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_address_that_others_reach_is_refused(host: str) -> None:
    with pytest.raises(AddressError, match="expected one of"):
        EmulatorConfig(token=TOKEN, host=host)


@pytest.mark.parametrize(
    "change",
    [
        {"token": ""},
        {"token": "secret"},
        {"token": "qf_!"},
        {"queue_seconds": -1.0},
        {"queue_seconds": float("nan")},
        {"max_shots": 512},
        {"shots_step": 0},
        {"recalibrate_seconds": 0.0},
    ],
)
def test_value_that_is_not_allowed_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        EmulatorConfig(**({"token": TOKEN} | change))  # type: ignore[arg-type]


def test_without_mindquantum_it_does_not_start_and_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.emulator.app.find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"mindquantum==0\.12\.0.*3\.11"):
        create_emulator(EmulatorConfig(token=TOKEN))


def test_emulator_itself_does_not_load_mindquantum() -> None:
    code = "import sys, service.emulator.app; sys.exit('mindquantum' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_state_file_of_another_program_or_emulator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and long enough to be read as one" * 100)
    with pytest.raises(StartupError, match="text"):
        Store(tmp_path / "text")
    first = Store(tmp_path / "state")
    with pytest.raises(StartupError, match="locked"):
        Store(tmp_path / "state")
    first.close()
    Store(tmp_path / "state").close()


def test_jitter_depends_on_the_seed_alone_and_keeps_figures_possible() -> None:
    first, again, other = (jittered(DEVICE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
    for seed in range(50):
        device = jittered(DEVICE, np.random.default_rng(seed))
        for qubit in (device.qubits[0], device.qubits[1]):
            assert 0 < qubit.t2_us <= 2 * qubit.t1_us
            assert 0.5 < qubit.gate_fidelity < 1
        assert 0.5 < device.couplers[0, 1] < 1
        assert device.qubits[2] == Qubit()
        assert device.couplers[1, 2] is None
        assert device.couplers[0, 1] != DEVICE.couplers[0, 1]


def test_calibration_survives_the_wire() -> None:
    assert from_payload(to_payload(DEVICE, "2026-09-01T00:00:00+00:00")) == DEVICE


@pytest.mark.parametrize(
    ("now", "reset"),
    [
        ("2026-09-01T22:59:59+08:00", "2026-08-31T23:00:00+08:00"),
        ("2026-09-01T23:00:00+08:00", "2026-09-01T23:00:00+08:00"),
        ("2026-09-01T15:00:00+00:00", "2026-09-01T23:00:00+08:00"),
    ],
)
def test_quota_resets_at_23_in_beijing(now: str, reset: str) -> None:
    moment = datetime.fromisoformat(now).timestamp()
    assert last_reset(moment).isoformat() == reset
    assert next_reset(moment) - last_reset(moment) == timedelta(days=1)


@pytest.mark.parametrize(
    ("statuses", "job"),
    [
        ("Queued Queued", "Queued"),
        ("Finished Queued", "Running"),
        ("Running Queued", "Running"),
        ("Finished Finished", "Finished"),
        ("Finished Cancelled", "PartiallyFinished"),
        ("Failed Finished", "PartiallyFinished"),
        ("Failed Cancelled", "Failed"),
        ("Cancelled Cancelled", "Cancelled"),
    ],
)
def test_status_of_a_job_follows_from_its_tasks(statuses: str, job: str) -> None:
    assert job_status([Status(status) for status in statuses.split()]) == job
