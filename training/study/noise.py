"""The student on an emulated chip, one figure of which may be another than Baihua's: CZ fidelity, readout, shots.

Every text is answered. Its expectation values are those of the circuit with all gate errors and relaxation in it,
exact (`training.study.noisy_circuit`), and its counts are drawn from them: readout errors and shots are those of the
chip. Each qubit is drawn by itself; that the qubits of one shot are correlated is left out: it changes how far a
text's logits scatter, not their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from models.baihua import CZ_US
from models.circuit import Circuit, student_circuit
from models.device import Qubit
from models.engines.compiled import CompiledEngine, compile_circuit
from models.native import routed
from models.noise import pair
from models.observables import correct_readout, readout_slope
from models.student import Student
from training.config import HardwareConfig, RunConfig
from training.data import Texts
from training.distil import Distilled, Examples, distil
from training.errors import ConfigError
from training.hardware import Channel, Chip, Measured, draw_rows, fit_channel
from training.study.cells import Options
from training.study.noisy_circuit import compile_on_chip
from training.study.student import Features, examples, run_config, run_facts, validation_accuracies
from training.study.system import Lesson, Outcome

Reading = Literal["simulator", "raw", "corrected"]
PREFIX = "noise."  # of the options that are read here

_CHANNEL_TEXTS = 512  # training texts to which the channel for training is fitted; nothing is sampled for it
_BATCH = 256  # texts that are evaluated at a time: an 11-qubit tensor takes 0.1 MB for each
_DECIMALS = 6  # of a channel, so that another order of summation does not make another run


@dataclass(frozen=True)
class Noise:
    """What is other than published; None leaves a figure as it is.

    Attributes:
        cz_fidelity: Of every coupler, average gate fidelity. Relaxation during the gate is part of it: figures above
            what T1 and T2 allow are not attained, see `relaxation_limit`.
        readout_error: P(read 1 | prepared 0) and P(read 0 | prepared 1) of every qubit.
        shots: Of each text's circuit.
    """

    cz_fidelity: float | None = None
    readout_error: float | None = None
    shots: int | None = None

    def __post_init__(self) -> None:
        if self.cz_fidelity is not None and not 0.25 < self.cz_fidelity <= 1:
            raise ConfigError(f"{PREFIX}cz_fidelity is {self.cz_fidelity}, expected a value in (0.25, 1]")
        if self.readout_error is not None and not 0 <= self.readout_error < 0.5:
            raise ConfigError(f"{PREFIX}readout_error is {self.readout_error}, expected a value in [0, 0.5)")
        if self.shots is not None and (self.shots < 1 or self.shots != int(self.shots)):
            raise ConfigError(f"{PREFIX}shots is {self.shots}, expected a whole number of at least 1")

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[Noise, Options]:
        """A cell's options `noise.*`, and all others.

        Raises:
            ConfigError: If there is no such figure or it does not take the value.
        """
        ours = {name.removeprefix(PREFIX): value for name, value in options.items() if name.startswith(PREFIX)}
        known = {field.name for field in fields(cls)}
        for name, value in ours.items():
            if name not in known:
                raise ConfigError(f"option {PREFIX}{name}: expected one of {sorted(PREFIX + n for n in known)}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"option {PREFIX}{name}: expected a number, found {value!r}")
        return cls(**ours), Options({name: value for name, value in options.items() if not name.startswith(PREFIX)})

    def chip(self, n_qubits: int, shots: int) -> Chip:
        """Baihua's best chain as published, with these figures; `shots` where there are none."""
        chip = Chip.baihua(n_qubits, shots if self.shots is None else int(self.shots))
        qubits, couplers = chip.device.qubits, chip.device.couplers
        if self.readout_error is not None:
            right = 1 - self.readout_error
            qubits = {number: replace(qubit, readout_0=right, readout_1=right) for number, qubit in qubits.items()}
        if self.cz_fidelity is not None:
            couplers = dict.fromkeys(couplers, self.cz_fidelity)
        # The chain stays the one that is best as published: a sweep has all its points on the same qubits.
        return replace(chip, device=replace(chip.device, qubits=qubits, couplers=couplers))


@dataclass(frozen=True)
class NoisyStudent:
    """A student that learns, with the chip's noise in the loop or without, and answers on the chip.

    With the noise in the loop it is distilled twice, as by `training.pipeline`: noise-free, then with the channel that
    Baihua as published makes of that student's expectation values. `noise` takes no part in learning, so that all
    points of a sweep are one student, whose runs are read from the cache.

    Attributes:
        config: `hardware.shots` are the shots in the loop, and on the chip where `noise` has none.
        name: As tables say it.
        in_the_loop: Whether the noise takes part in training.
        reading: What is read: counts corrected for readout errors as the service answers, raw counts, or the
            simulator's exact values.
        noise: What the chip has other than published.
    """

    config: RunConfig
    name: str
    in_the_loop: bool
    reading: Reading
    noise: Noise = Noise()

    def learn(self, lesson: Lesson) -> Outcome:
        """Distil, then put the student on the chip.

        Raises:
            DivergedError: If the loss is no number; the last finished epoch stays in `lesson.cache / "runs"`.
        """
        features = Features.of(self.config.student, lesson)
        shape = self.config.student
        circuit = student_circuit(shape.preset, shape.n_qubits, shape.n_layers)
        shots = (self.config.hardware or HardwareConfig()).shots
        train, validation = examples(lesson, features)
        config = run_config(self.config, lesson)
        learning: dict[str, Any] = {}
        # Points of a sweep that run side by side: the first of them distils, the others read its run.
        learn = partial(distil, config, circuit, train, validation, lesson.cache / "runs", progress=False)
        distilled = learn()
        if self.in_the_loop:
            published = Noise().chip(circuit.n_qubits, shots)
            channel = channel_for_training(distilled, circuit, published, train, lesson.seed)
            distilled = learn(channel=channel)
            learning["channel"] = channel.to_json()
        chip = self.noise.chip(circuit.n_qubits, shots)
        bound = circuit.bind(ansatz=distilled.weights.ansatz.tolist())
        tensor = compile_circuit(bound) if self.reading == "simulator" else compile_on_chip(bound, chip)
        student = Student(circuit, distilled.weights, CompiledEngine(tensor))
        counts = student.parameter_counts
        return Outcome(
            OnChip(features, student, chip, self.reading, lesson.seed),
            counts["total"],
            counts["total"] + features.n_parameters,
            validation_accuracies(distilled.history),
            {
                "parameters": counts,
                "noise": {**_facts(chip), "reading": self.reading, **learning},
                **features.facts,
                **run_facts(distilled.history, distilled.best_epoch, distilled.seconds),
                "inference_us": None,  # how long an emulation takes says nothing of the chip
            },
        )


@dataclass(frozen=True)
class OnChip:
    """A student that answers from counts, or from the simulator's values; its engine knows the gates' noise.

    Counts are the same for the same texts and seed.
    """

    features: Features
    student: Student
    chip: Chip
    reading: Reading
    seed: int

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of shape (n_texts, n_classes)."""
        expvals = expvals_of(self.student, self.features(texts))
        if self.reading != "simulator":
            rng = np.random.default_rng([self.seed, int(texts.sha256[:8], 16)])
            p10, p01 = readout_errors(self.student.circuit, self.chip)
            expvals = draw_raw(expvals, p10, p01, self.chip.shots, rng)
            if self.reading == "corrected":
                expvals = correct_readout(expvals, p10, p01)
        return self.student.logits_from_expvals(expvals)


SYSTEMS: dict[str, tuple[bool, Reading]] = {
    "QD-LLM on Baihua": (False, "corrected"),
    "QD-LLM on Baihua, raw counts": (False, "raw"),
    "QD-LLM trained for Baihua": (True, "corrected"),
    "QD-LLM trained for Baihua, raw counts": (True, "raw"),
    "QD-LLM trained for Baihua, simulator": (True, "simulator"),
}
"""By name: whether the noise takes part in training, and what is read. Noise-free on the simulator is `QD-LLM`."""


def noisy_student(name: str, config: RunConfig, noise: Noise) -> NoisyStudent:
    """One of `SYSTEMS`."""
    in_the_loop, reading = SYSTEMS[name]
    return NoisyStudent(config, name, in_the_loop, reading, noise)


def expvals_of(student: Student, embeddings: np.ndarray) -> np.ndarray:
    """<Z_q> of texts by the student's engine, some texts at a time; shape (n_texts, n_qubits)."""
    angles = student.angles(embeddings)
    return np.concatenate([student.expvals(angles[i : i + _BATCH]) for i in range(0, len(angles), _BATCH)])


def draw_raw(expvals: np.ndarray, p10: np.ndarray, p01: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """<Z_q> as counted, for exact values (n_texts, n_qubits) before readout: binomial, each qubit by itself.

    P(read 1) = (1 - z) / 2 (1 - p01) + (1 + z) / 2 p10.
    """
    ones = (1 - expvals) / 2 * (1 - p01) + (1 + expvals) / 2 * p10
    # A value may be beyond 1 by rounding.
    return np.asarray(1 - 2 * rng.binomial(shots, ones.clip(0, 1)) / shots)


def readout_errors(circuit: Circuit, chip: Chip) -> tuple[np.ndarray, np.ndarray]:
    """P(read 1 | prepared 0) and P(read 0 | prepared 1) of the circuit's qubits where they end, shape (n_qubits,)."""
    _, ends = routed(circuit)
    qubits = [chip.device.qubits[chip.chain[end]] for end in ends]
    zeros, ones = np.array([(qubit.readout_0, qubit.readout_1) for qubit in qubits], dtype=float).T
    return 1 - zeros, 1 - ones


def channel_for_training(distilled: Distilled, circuit: Circuit, chip: Chip, train: Examples, seed: int) -> Channel:
    """The affine channel of a student's circuit, as `training.hardware.measure_channel`, but from exact values."""
    bound = circuit.bind(ansatz=distilled.weights.ansatz.tolist())
    exact, noisy = (
        Student(circuit, distilled.weights, CompiledEngine(tensor))
        for tensor in (compile_circuit(bound), compile_on_chip(bound, chip))
    )
    some = train.embeddings[draw_rows(len(train.embeddings), _CHANNEL_TEXTS, seed)]
    on_chip = expvals_of(noisy, some)
    p10, p01 = (np.broadcast_to(errors, on_chip.shape) for errors in readout_errors(circuit, chip))
    raw = readout_slope(p10, p01) * on_chip + p01 - p10
    channel = fit_channel(expvals_of(exact, some), Measured(raw, p10, p01, chip.shots))
    return replace(
        channel, **{name: getattr(channel, name).round(_DECIMALS) for name in ("scale", "offset", "p10", "p01")}
    )


def relaxation_limit(a: Qubit, b: Qubit) -> float:
    """The average fidelity of a CZ that suffers from nothing but the relaxation of its qubits.

    (4 F_e + 1) / 5 with F_e the product of (1 + 2 exp(-t/T2) + exp(-t/T1)) / 4 over the two, T2 at most T1.
    """
    entanglement = 1.0
    for qubit in (a, b):
        kept = 1.0 if qubit.t1_us is None else math.exp(-CZ_US / qubit.t1_us)
        coherent = kept if qubit.t2_us is None else min(kept, math.exp(-CZ_US / qubit.t2_us))
        entanglement *= (1 + 2 * coherent + kept) / 4
    return (4 * entanglement + 1) / 5


def _facts(chip: Chip) -> dict[str, Any]:
    """What the chip's figures are, in the mean over its chain."""
    qubits = [chip.device.qubits[number] for number in chip.chain]
    stated = [chip.device.couplers[pair(*link)] for link in pairwise(chip.chain)]
    limits = [relaxation_limit(*link) for link in pairwise(qubits)]
    return {
        "device": chip.device.name,
        "calibration": chip.device.calibration_id,
        "chain": list(chip.chain),
        "shots": chip.shots,
        "cz_fidelity": _mean(stated),
        "cz_relaxation_limit": _mean(limits),
        "readout_0": _mean([qubit.readout_0 for qubit in qubits]),
        "readout_1": _mean([qubit.readout_1 for qubit in qubits]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
