"""What a chip makes of a student's expectation values: emulated, summed up as a channel, put into training.

Gate errors and relaxation shrink <Z_q> and pull it towards |0>; readout errors do so once more and are corrected; shots
are few. For one circuit, whatever the text's angles, that is close to an affine map of each qubit's value, and noise:

    <Z_q> -> scale_q <Z_q> + offset_q + noise_q,    Var(noise_q) = (1 - r_q^2) / (shots slope_q^2).

r_q = slope_q (scale_q <Z_q> + offset_q) + p01_q - p10_q is the value before readout correction, slope_q =
1 - p01_q - p10_q, p10 = P(read 1 | prepared 0), p01 = P(read 0 | prepared 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.baihua import published
from models.circuit import Circuit
from models.device import Device, best_chain
from models.engines.noisy import sample_counts
from models.errors import DeviceError
from models.native import routed, to_native
from models.observables import Counts, correct_readout, expvals_from_counts
from models.student import Student

CountsSampler = Callable[[Circuit, int, Device, Sequence[int], int], Counts]
"""(circuit in native gates, shots, device, chain, seed) -> counts."""


@dataclass(frozen=True)
class Measured:
    """Expectation values from counts, and the readout errors of the physical qubits behind them.

    Attributes:
        raw: As counted, shape (n_circuits, n_qubits).
        p10: P(read 1 | prepared 0), shape (n_circuits, n_qubits).
        p01: P(read 0 | prepared 1), shape (n_circuits, n_qubits).
        shots: Of each circuit.
    """

    raw: np.ndarray
    p10: np.ndarray
    p01: np.ndarray
    shots: int

    @property
    def corrected(self) -> np.ndarray:
        """After readout correction, as the service answers; shape (n_circuits, n_qubits)."""
        return correct_readout(self.raw, self.p10, self.p01)


@dataclass(frozen=True)
class Chip:
    """An emulated chain of qubits.

    Attributes:
        device: Its calibration.
        chain: Physical qubits, neighbours coupled.
        shots: Of each circuit.
        sample: How counts are drawn.
    """

    device: Device
    chain: tuple[int, ...]
    shots: int
    sample: CountsSampler = sample_counts

    @classmethod
    def baihua(cls, n_qubits: int, shots: int) -> Chip:
        """The best chain of Baihua as published."""
        device = published()
        return cls(device, best_chain(device, n_qubits), shots)

    def measure(self, circuits: Sequence[Circuit], seed: int) -> Measured:
        """Run bound circuits; circuit i is drawn with the seed `seed + i`."""
        rows = []
        for i, circuit in enumerate(circuits):
            on_chain, ends = routed(circuit)
            counts = self.sample(to_native(on_chain), self.shots, self.device, self.chain, seed + i)
            errors = [self._readout_errors(self.chain[end]) for end in ends]
            rows.append((expvals_from_counts(counts, len(ends))[list(ends)], *zip(*errors, strict=True)))
        raw, p10, p01 = (np.array(column) for column in zip(*rows, strict=True))
        return Measured(raw, p10, p01, self.shots)

    def _readout_errors(self, number: int) -> tuple[float, float]:
        qubit = self.device.qubits[number]
        if qubit.readout_0 is None or qubit.readout_1 is None:
            raise DeviceError(
                f"{self.device.name} has no measured readout of qubit {number}, expected P(0|0) and P(1|1)"
            )
        return 1.0 - qubit.readout_0, 1.0 - qubit.readout_1


@dataclass(frozen=True)
class Channel:
    """The affine map and the noise of the module's docstring, for training; every array has the shape (n_qubits,)."""

    scale: np.ndarray
    offset: np.ndarray
    p10: np.ndarray
    p01: np.ndarray
    shots: int

    def to_json(self) -> dict[str, Any]:
        """The channel as JSON values, for the manifest."""
        arrays = {name: getattr(self, name).tolist() for name in ("scale", "offset", "p10", "p01")}
        return {**arrays, "shots": self.shots}

    def __call__(self, expvals: torch.Tensor) -> torch.Tensor:
        """A draw of what the chip gives for exact expvals (batch, n_qubits), after readout correction.

        The noise is taken as Gaussian, and its size as a constant: no gradient flows through it. The service's cut to
        [-1, 1] is left out, which would stop gradients.
        """
        scale, offset, p10, p01 = (
            torch.as_tensor(values, dtype=expvals.dtype) for values in (self.scale, self.offset, self.p10, self.p01)
        )
        mean = scale * expvals + offset
        slope = 1.0 - p01 - p10
        raw = slope * mean.detach() + p01 - p10
        deviation = ((1.0 - raw**2).clamp(min=0.0) / self.shots).sqrt() / slope
        return mean + deviation * torch.randn_like(expvals)


def fit_channel(exact: np.ndarray, measured: Measured) -> Channel:
    """Least squares, for each qubit, of readout-corrected on exact expvals (n_circuits, n_qubits)."""
    scale, offset = np.empty(exact.shape[1]), np.empty(exact.shape[1])
    for qubit, (values, corrected) in enumerate(zip(exact.T, measured.corrected.T, strict=True)):
        design = np.stack([values, np.ones_like(values)], axis=1)
        scale[qubit], offset[qubit] = np.linalg.lstsq(design, corrected, rcond=None)[0]
    return Channel(scale, offset, measured.p10.mean(axis=0), measured.p01.mean(axis=0), measured.shots)


def measure_channel(student: Student, chip: Chip, embeddings: np.ndarray, seed: int) -> Channel:
    """The channel of a student's circuit, fitted on the circuits of some texts; embeddings (n, embedding_size)."""
    angles = student.angles(embeddings)
    return fit_channel(student.expvals(angles), chip.measure([student.bound_circuit(row) for row in angles], seed))


def predict_on_chip(student: Student, chip: Chip, embeddings: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Class indices (n,) of the same texts from `exact`, `raw` and readout-`corrected` expectation values."""
    angles = student.angles(embeddings)
    measured = chip.measure([student.bound_circuit(row) for row in angles], seed)
    expvals = {"exact": student.expvals(angles), "raw": measured.raw, "corrected": measured.corrected}
    return {name: student.logits_from_expvals(values).argmax(axis=1) for name, values in expvals.items()}


def draw_rows(n: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of n row numbers, drawn without replacement, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])
