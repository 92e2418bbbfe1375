"""The Baihua chip as publicly recorded in its calibration snapshot of August 2026, for emulation.

Published are the layout, means and medians, the readout of two qubits, and one chain of 11 qubits with the range of its
CZ fidelities. Nothing is published qubit by qubit: see `published` for what stands in for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from models.device import Device, Qubit

N_ROWS, N_COLUMNS = 12, 13
SINGLE_QUBIT_GATE_US = 0.064
"""Length of an rx or ry. An rz is a change of the frame: it is assumed to take no time and to have no error."""
CZ_US = 0.224

RECORDED_CHAIN = (123, 124, 125, 126, 127, 128, 129, 142, 141, 140, 139)
"""The recorded chain along its couplers. The record lists 123 last: there it holds the last qubit of the `released`
circuit, whose line of CNOTs starts at its last qubit."""

_CHAIN_CZ = (0.982, 0.992)
_CZ_MEDIAN = 0.983
_GATE_MEDIAN, _GATE_MEAN = 0.999, 0.997
_T1_MEAN_US = 73.0
_T2_MEDIAN_US, _T2_MEAN_US = 24.0, 26.0
_READOUT_0 = (0.956, 0.978)
_READOUT_1 = (0.884, 0.913)

# No published figure: how far T1 scatters, as the standard deviation of its logarithm.
_T1_SPREAD = 0.3
# Above every other coupler, so that no chain is clearly better than the recorded one; above the median, 0.983, too.
_CZ_CAP = 0.985
# The mean to draw them from, for the cap lowers what comes out.
_OTHER_CZ_MEAN = 0.9715
_SEED = 20260801


def published() -> Device:
    """A chip with Baihua's layout and published statistics. Its single qubits and couplers are drawn, not measured.

    Drawn once, with a fixed seed, as quantiles in random order, so that mean and median are the published ones to
    within a few per cent of what is missing to 1:

    - single-qubit infidelity, CZ infidelity and T2: log-normal through the published mean and median;
    - T1: log-normal with the published mean and an assumed spread of 30 %;
    - readout: evenly between the two qubits on which it was measured, P(0|0) and P(1|1) together.

    The recorded chain has CZ fidelities spread evenly over its published range, and in T1, T2 and single-qubit fidelity
    it is drawn from the middle half of all qubits: typical, but without an outlier, or it would hardly have been
    recorded. That it is the best one is likely but not published, and the draw must not invent a better one: every
    other coupler is at most 0.985, below the chain's mean of 0.987, and the chain's readout is the upper half of the
    range, that of all others the lower half. `best_chain` finds the recorded chain.
    """
    rng = np.random.default_rng(_SEED)
    numbers = range(N_ROWS * N_COLUMNS)
    pairs = _couplers()
    t1 = _drawn_for_qubits(rng, _lognormal(_T1_MEAN_US * math.exp(-(_T1_SPREAD**2) / 2), _T1_MEAN_US))
    t2 = _drawn_for_qubits(rng, _lognormal(_T2_MEDIAN_US, _T2_MEAN_US))
    infidelity = _drawn_for_qubits(rng, _lognormal(1 - _GATE_MEDIAN, 1 - _GATE_MEAN))
    chain_pairs = [pair for pair in pairs if _in_chain(pair)]
    others = [pair for pair in pairs if not _in_chain(pair)]
    cz = dict(zip(chain_pairs, _drawn(rng, len(chain_pairs), _even(*_CHAIN_CZ)), strict=True))
    infidelities = _drawn(rng, len(others), _lognormal(1 - _CZ_MEDIAN, 1 - _OTHER_CZ_MEAN))
    cz |= dict(zip(others, np.minimum(1 - infidelities, _CZ_CAP), strict=True))
    inside = dict(zip(RECORDED_CHAIN, _drawn(rng, len(RECORDED_CHAIN), _even(0.5, 1.0)), strict=True))
    outside = [number for number in numbers if number not in inside]
    quality = inside | dict(zip(outside, _drawn(rng, len(outside), _even(0.0, 0.5)), strict=True))

    def qubit(number: int) -> Qubit:
        return Qubit(
            t1_us=round(t1[number], 2),
            t2_us=round(t2[number], 2),
            gate_fidelity=round(1 - infidelity[number], 5),
            readout_0=round(_between(_READOUT_0, quality[number]), 4),
            readout_1=round(_between(_READOUT_1, quality[number]), 4),
        )

    return Device(
        "Baihua",
        "published-2026-08",
        {number: qubit(number) for number in numbers},
        {pair: round(float(cz[pair]), 4) for pair in pairs},
    )


def _couplers() -> list[tuple[int, int]]:
    """The brick wall: all neighbours in a row, every other one between rows, shifted from row to row."""
    pairs = []
    for row in range(N_ROWS):
        for column in range(N_COLUMNS):
            number = row * N_COLUMNS + column
            if column + 1 < N_COLUMNS:
                pairs.append((number, number + 1))
            if row + 1 < N_ROWS and (row + column) % 2 == 1:
                pairs.append((number, number + N_COLUMNS))
    return pairs


def _in_chain(pair: tuple[int, int]) -> bool:
    return any(set(pair) == set(link) for link in pairwise(RECORDED_CHAIN))


def _drawn(rng: np.random.Generator, size: int, quantile: Callable[[float], float]) -> np.ndarray:
    """The quantiles at (i + 1/2) / size in random order, shape (size,)."""
    return rng.permutation([quantile((i + 0.5) / size) for i in range(size)])


def _drawn_for_qubits(rng: np.random.Generator, quantile: Callable[[float], float]) -> dict[int, float]:
    """One value a qubit as `_drawn`; those of the recorded chain from the middle half of the values."""
    values = sorted(_drawn(rng, N_ROWS * N_COLUMNS, quantile).tolist())
    quarter = len(values) // 4
    inside = rng.choice(np.arange(quarter, len(values) - quarter), len(RECORDED_CHAIN), replace=False).tolist()
    outside = rng.permutation([i for i in range(len(values)) if i not in inside]).tolist()
    others = [number for number in range(len(values)) if number not in RECORDED_CHAIN]
    return {number: values[i] for number, i in zip([*RECORDED_CHAIN, *others], inside + outside, strict=True)}


def _lognormal(median: float, mean: float) -> Callable[[float], float]:
    """Quantile function of the log-normal distribution: mean = median exp(sigma^2 / 2)."""
    sigma = math.sqrt(2 * math.log(mean / median))
    return lambda u: median * math.exp(sigma * NormalDist().inv_cdf(u))


def _even(low: float, high: float) -> Callable[[float], float]:
    return lambda u: low + (high - low) * u


def _between(bounds: tuple[float, float], share: float) -> float:
    return float(bounds[0] + (bounds[1] - bounds[0]) * share)
