from __future__ import annotations

import json
from itertools import pairwise, permutations
from statistics import mean, median

import numpy as np
import pytest

from models.baihua import RECORDED_CHAIN, published
from models.device import Device, Qubit, best_chain
from models.errors import DeviceError


def product(device: Device, chain: tuple[int, ...]) -> float:
    cz = [device.couplers[min(pair), max(pair)] for pair in pairwise(chain)]
    readout = [(device.qubits[q].readout_0 + device.qubits[q].readout_1) / 2 for q in chain]
    return float(np.prod(cz + readout))


def grid(n_rows: int, n_columns: int, seed: int) -> Device:
    rng = np.random.default_rng(seed)
    numbers = range(n_rows * n_columns)
    couplers = {(n, n + 1): float(rng.uniform(0.9, 1)) for n in numbers if (n + 1) % n_columns}
    couplers |= {(n, n + n_columns): float(rng.uniform(0.9, 1)) for n in numbers if n + n_columns < len(numbers)}
    qubits = {n: Qubit(readout_0=float(rng.uniform(0.9, 1)), readout_1=float(rng.uniform(0.8, 1))) for n in numbers}
    return Device("grid", "1", qubits, couplers)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_best_chain_is_the_best_of_all_paths(seed: int, length: int) -> None:
    device = grid(2, 4, seed)
    paths = [
        p for p in permutations(device.qubits, length) if all(tuple(sorted(e)) in device.couplers for e in pairwise(p))
    ]
    assert product(device, best_chain(device, length)) == pytest.approx(max(product(device, p) for p in paths))


def test_unmeasured_couplers_count_as_the_worst_and_dead_ones_not_at_all() -> None:
    qubits = {n: Qubit() for n in range(6)}
    couplers = {(0, 1): 0.9, (1, 2): None, (2, 3): 0.95, (3, 4): 0.99, (4, 5): 0.0}
    device = Device("line", "1", qubits, couplers)
    assert best_chain(device, 2) == (3, 4)
    assert best_chain(device, 4) == (1, 2, 3, 4)
    assert best_chain(device, 5) == (0, 1, 2, 3, 4)
    with pytest.raises(DeviceError, match="line has 6 qubits; found no chain of 6"):
        best_chain(device, 6)


def test_chain_of_a_device_without_figures_starts_at_the_lowest_numbers() -> None:
    device = published()
    unknown = Device("new", "1", dict.fromkeys(device.qubits, Qubit()), dict.fromkeys(device.couplers))
    assert best_chain(unknown, 3) == best_chain(unknown, 3)
    assert all(tuple(sorted(pair)) in device.couplers for pair in pairwise(best_chain(unknown, 11)))


@pytest.mark.parametrize("length", [0, -1])
def test_chain_without_a_qubit_is_refused(length: int) -> None:
    with pytest.raises(DeviceError, match=f"a chain of {length} qubits, expected at least 1"):
        best_chain(grid(2, 2, 0), length)


def test_calibration_survives_json() -> None:
    device = published()
    assert Device.from_json(json.loads(json.dumps(device.to_json()))) == device


@pytest.mark.parametrize("value", [None, {}, {"name": "a", "calibration_id": "b", "qubits": [{}], "couplers": []}])
def test_calibration_of_another_form_is_refused(value: object) -> None:
    with pytest.raises(DeviceError, match="does not have the expected form"):
        Device.from_json(value)


def test_published_baihua_is_a_brick_wall_of_156_qubits() -> None:
    device = published()
    degree = dict.fromkeys(device.qubits, 0)
    for a, b in device.couplers:
        assert a < b
        degree[a] += 1
        degree[b] += 1
    assert sorted(degree) == list(range(156))
    assert max(degree.values()) == 3


def test_published_baihua_has_the_published_statistics() -> None:
    device = published()
    qubits = device.qubits.values()
    assert mean(q.gate_fidelity for q in qubits) == pytest.approx(0.997, abs=3e-4)
    assert median(q.gate_fidelity for q in qubits) == pytest.approx(0.999, abs=1e-4)
    assert mean(device.couplers.values()) == pytest.approx(0.970, abs=1e-3)
    assert median(device.couplers.values()) == pytest.approx(0.983, abs=1e-3)
    assert mean(q.t1_us for q in qubits) == pytest.approx(73, abs=0.5)
    assert mean(q.t2_us for q in qubits) == pytest.approx(26, abs=0.5)
    assert median(q.t2_us for q in qubits) == pytest.approx(24, abs=0.5)
    assert all(0.956 <= q.readout_0 <= 0.978 and 0.884 <= q.readout_1 <= 0.913 for q in qubits)
    assert all(q.t2_us <= 2 * q.t1_us for q in qubits)


def test_recorded_chain_is_coupled_with_the_recorded_fidelities() -> None:
    device = published()
    fidelities = [device.couplers[min(pair), max(pair)] for pair in pairwise(RECORDED_CHAIN)]
    assert all(0.982 <= fidelity <= 0.992 for fidelity in fidelities)
    # As the record lists them: the last one, 123, is coupled to the first.
    listed = (124, 125, 126, 127, 128, 129, 142, 141, 140, 139, 123)
    assert set(listed) == set(RECORDED_CHAIN)
    assert (123, 124) in device.couplers


def test_no_drawn_chain_is_clearly_better_than_the_recorded_one() -> None:
    device = published()
    best = best_chain(device, len(RECORDED_CHAIN))
    assert product(device, best) <= 1.01 * product(device, RECORDED_CHAIN)
    without = {pair: f for pair, f in device.couplers.items() if not set(pair) <= set(RECORDED_CHAIN)}
    elsewhere = Device(device.name, "elsewhere", device.qubits, without)
    assert product(device, best_chain(elsewhere, 11)) < product(device, RECORDED_CHAIN)


def test_published_baihua_is_the_same_every_time() -> None:
    assert published() == published()
