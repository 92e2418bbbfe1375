"""A chip as its calibration describes it: qubits, couplers, and the best chain of them.

Fidelities are in [0, 1], times in microseconds; what was not measured is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from models.errors import DeviceError

_ROUNDING = 1e-12
# Steps of the search, about a second; a chain of 11 of 156 qubits takes hundreds.
_MAX_STEPS = 100_000
_Key = TypeVar("_Key", int, tuple[int, int])


@dataclass(frozen=True)
class Qubit:
    """One physical qubit.

    Attributes:
        t1_us: Relaxation time.
        t2_us: Coherence time, at most 2 t1.
        gate_fidelity: Of a single-qubit gate.
        readout_0: P(read 0 | prepared 0).
        readout_1: P(read 1 | prepared 1).
    """

    t1_us: float | None = None
    t2_us: float | None = None
    gate_fidelity: float | None = None
    readout_0: float | None = None
    readout_1: float | None = None


@dataclass(frozen=True)
class Device:
    """One calibration of a chip.

    Attributes:
        name: As providers call it.
        calibration_id: Changes with every calibration.
        qubits: By physical number.
        couplers: CZ fidelity of each coupled pair (a, b), a < b.
    """

    name: str
    calibration_id: str
    qubits: Mapping[int, Qubit]
    couplers: Mapping[tuple[int, int], float | None]

    def to_json(self) -> dict[str, Any]:
        """The calibration as JSON values; `from_json` gives back an equal one."""
        return {
            "name": self.name,
            "calibration_id": self.calibration_id,
            "qubits": [{"qubit": number, **asdict(qubit)} for number, qubit in sorted(self.qubits.items())],
            "couplers": [{"qubits": list(pair), "cz_fidelity": f} for pair, f in sorted(self.couplers.items())],
        }

    @classmethod
    def from_json(cls, value: Any) -> Device:
        """Read what `to_json` wrote.

        Raises:
            DeviceError: If a field is missing or of the wrong form.
        """
        try:
            qubits = {int(q["qubit"]): Qubit(**{k: q[k] for k in Qubit.__dataclass_fields__}) for q in value["qubits"]}
            couplers = {(int(c["qubits"][0]), int(c["qubits"][1])): c["cz_fidelity"] for c in value["couplers"]}
            return cls(str(value["name"]), str(value["calibration_id"]), qubits, couplers)
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            raise DeviceError(f"calibration JSON does not have the expected form: {exc!r}") from exc


def best_chain(device: Device, length: int) -> tuple[int, ...]:
    """The path of coupled qubits with the largest product of CZ fidelities and readout fidelities.

    A qubit's readout fidelity is (P(0|0) + P(1|1)) / 2. What was not measured counts as the worst of its kind that
    was; a coupler or readout of fidelity 0 is out of use. A depth-first search, cut where even the best walk onwards,
    free to visit qubits again, cannot beat the best path found: exact unless it takes so many steps, as it does for
    chains of more than 20 qubits, that the best path found by then is returned. Deterministic; a path starts at its
    end of lower number.

    Args:
        device: Its calibration.
        length: Number of qubits, at least 1.

    Raises:
        DeviceError: If the length is less than 1 or no path of that length is found.
    """
    if length < 1:
        raise DeviceError(f"a chain of {length} qubits, expected at least 1")
    gains = _log_gains({number: _readout(qubit) for number, qubit in device.qubits.items()})
    links: dict[int, dict[int, float]] = {number: {} for number in sorted(gains)}
    for (a, b), gain in sorted(_log_gains(device.couplers).items()):
        if a in gains and b in gains:
            links[a][b] = links[b][a] = gain
    walks = _best_walks(gains, links, length)
    best: tuple[float, tuple[int, ...]] = (-math.inf, ())
    steps = 0

    def extend(path: tuple[int, ...], gain: float) -> None:
        nonlocal best, steps
        steps += 1
        if len(path) == length:
            # Each path is met from both ends, in sums that may differ by rounding.
            if path[0] <= path[-1] and gain > best[0] + _ROUNDING:
                best = (gain, path)
            return
        remaining = length - len(path)
        last = path[-1]
        onwards = [
            (gain + link + gains[near] + walks[remaining - 1][near], near, gain + link + gains[near])
            for near, link in links[last].items()
            if near not in path
        ]
        for bound, near, reached in sorted(onwards, key=lambda step: (-step[0], step[1])):
            if bound > best[0] + _ROUNDING and steps < _MAX_STEPS:
                extend((*path, near), reached)

    for start in sorted(links, key=lambda number: (-gains[number] - walks[length - 1][number], number)):
        if gains[start] + walks[length - 1][start] > best[0] + _ROUNDING and steps < _MAX_STEPS:
            extend((start,), gains[start])
    if not best[1]:
        raise DeviceError(f"{device.name} has {len(device.qubits)} qubits; found no chain of {length} among them")
    return best[1]


def _readout(qubit: Qubit) -> float | None:
    if qubit.readout_0 is None or qubit.readout_1 is None:
        return None
    return (qubit.readout_0 + qubit.readout_1) / 2


def _log_gains(fidelities: Mapping[_Key, float | None]) -> dict[_Key, float]:
    """Logarithms of fidelities, those of 0 left out."""
    usable = {key: fidelity for key, fidelity in fidelities.items() if fidelity != 0}
    worst = min((fidelity for fidelity in usable.values() if fidelity is not None), default=1.0)
    return {key: math.log(worst if fidelity is None else fidelity) for key, fidelity in usable.items()}


def _best_walks(
    gains: Mapping[int, float], links: Mapping[int, Mapping[int, float]], length: int
) -> list[dict[int, float]]:
    """The best gain of `k` steps onwards from each qubit, k = 0 ... length - 1; -inf where there is no step."""
    walks = [dict.fromkeys(links, 0.0)]
    for _ in range(1, length):
        before = walks[-1]
        walks.append(
            {
                number: max((link + gains[near] + before[near] for near, link in near_links.items()), default=-math.inf)
                for number, near_links in links.items()
            }
        )
    return walks
