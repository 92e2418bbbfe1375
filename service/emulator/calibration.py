"""The device's calibrations: the published figures first, then, at intervals, the same with a little jitter."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from models.device import Device, Qubit
from service.emulator.store import Store

BASIS_GATES = ("h", "rx", "ry", "rz", "cz")

# Relative standard deviation from one calibration to the next, of error rates and of times.
_JITTER = 0.1
_PERFECT = 1e-6


class Calibrations:
    """Every calibration there was, each kept under its id for ever.

    Args:
        first: The published figures; its id is not used.
        name: The device's.
        interval_seconds: Age at which the current one is replaced.
        seed: Of the jitter.
    """

    def __init__(self, store: Store, first: Device, *, name: str, interval_seconds: float, seed: int) -> None:
        self._store = store
        self._first = first
        self._name = name
        self._interval = interval_seconds
        self._seed = seed

    def current(self, now: float) -> dict[str, Any]:
        """The calibration in force, as the quafu-sdk protocol has it.

        Args:
            now: Seconds since the epoch.
        """
        latest = self._store.latest_calibration()
        if latest is not None and now < _seconds(latest["calibrated_at"]) + self._interval:
            return latest
        number = self._store.n_calibrations()
        moment = datetime.fromtimestamp(int(now), UTC)
        calibration_id = f"{self._name}-emulated-{number}-{moment:%Y%m%dT%H%M%SZ}"
        figures = jittered(self._first, np.random.default_rng([self._seed, number])) if number else self._first
        payload = to_payload(Device(self._name, calibration_id, figures.qubits, figures.couplers), moment.isoformat())
        self._store.add_calibration(calibration_id, moment.timestamp(), payload)
        return payload

    def get(self, calibration_id: str) -> dict[str, Any] | None:
        return self._store.calibration(calibration_id)


def jittered(device: Device, rng: np.random.Generator) -> Device:
    """The device with error rates and times multiplied by log-normal factors around 1; what is None stays None."""

    def factor() -> float:
        return float(np.exp(rng.normal(0.0, _JITTER)))

    def fidelity(value: float | None) -> float | None:
        # Above one half, and so never read as the opposite.
        return None if value is None else 1.0 - min(max((1.0 - value) * factor(), _PERFECT), 0.49)

    def qubit(old: Qubit) -> Qubit:
        t1 = None if old.t1_us is None else old.t1_us * factor()
        t2 = None if old.t2_us is None else old.t2_us * factor()
        if t1 is not None and t2 is not None:
            t2 = min(t2, 2.0 * t1)
        return Qubit(t1, t2, fidelity(old.gate_fidelity), fidelity(old.readout_0), fidelity(old.readout_1))

    return Device(
        device.name,
        device.calibration_id,
        {number: qubit(old) for number, old in sorted(device.qubits.items())},
        {pair: fidelity(value) for pair, value in sorted(device.couplers.items())},
    )


def to_payload(device: Device, calibrated_at: str) -> dict[str, Any]:
    """A calibration as the quafu-sdk protocol has it; readout is in its layer `measured`."""
    return {
        "id": device.calibration_id,
        "chip": device.name,
        "calibrated_at": calibrated_at,
        "source": "emulator",
        "emulated": True,
        "basis_gates": list(BASIS_GATES),
        "qubits": [
            {"index": number, "t1_us": qubit.t1_us, "t2_us": qubit.t2_us, "gate_fidelity": qubit.gate_fidelity}
            for number, qubit in sorted(device.qubits.items())
        ],
        "couplers": [
            {"qubits": list(pair), "cz_fidelity": fidelity} for pair, fidelity in sorted(device.couplers.items())
        ],
        "measured": {
            "qubits": [
                {
                    "index": number,
                    "readout_status": "measured",
                    "readout_fidelity_0": qubit.readout_0,
                    "readout_fidelity_1": qubit.readout_1,
                }
                for number, qubit in sorted(device.qubits.items())
                if qubit.readout_0 is not None or qubit.readout_1 is not None
            ],
            "couplers": [],
        },
    }


def from_payload(payload: Mapping[str, Any]) -> Device:
    """The device that `to_payload` wrote."""
    readout = {row["index"]: row for row in payload["measured"]["qubits"]}
    return Device(
        payload["chip"],
        payload["id"],
        {
            row["index"]: Qubit(
                row["t1_us"],
                row["t2_us"],
                row["gate_fidelity"],
                readout.get(row["index"], {}).get("readout_fidelity_0"),
                readout.get(row["index"], {}).get("readout_fidelity_1"),
            )
            for row in payload["qubits"]
        },
        {(row["qubits"][0], row["qubits"][1]): row["cz_fidelity"] for row in payload["couplers"]},
    )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
