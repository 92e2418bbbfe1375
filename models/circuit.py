"""A circuit as data: frozen gates, the feature map, the ansatz presets and the circuit's JSON.

Qubit 0 is the leftmost bit of every bitstring and the slowest axis of every state. Angles are radians. Every engine
and exporter interprets these gates and nothing else, so an ansatz is written once, here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from models.errors import BundleSchemaError, CircuitError, ShapeError, UnboundParameterError

SCHEMA_VERSION = 1

# Gate name -> (number of qubits, takes an angle). R_P(a) = exp(-i a P / 2), eq. 5, 8, 9, 11; cx as in eq. 12.
GATES: Mapping[str, tuple[int, bool]] = {
    "rx": (1, True),
    "ry": (1, True),
    "rz": (1, True),
    "rzz": (2, True),
    "cx": (2, False),
    "cz": (2, False),
}
_MERGEABLE = frozenset({"rx", "ry", "rz", "rzz"})


@dataclass(frozen=True)
class Symbol:
    """An angle that is not a number yet: element `index` of the text's angles or of the ansatz parameters."""

    kind: Literal["input", "ansatz"]
    index: int


Angle = float | Symbol


@dataclass(frozen=True)
class Gate:
    """One gate. For `cx`, `qubits` is (control, target); `angle` is None exactly for gates that take none."""

    name: str
    qubits: tuple[int, ...]
    angle: Angle | None = None

    def __post_init__(self) -> None:
        if self.name not in GATES:
            raise CircuitError(f"unknown gate {self.name!r}, expected one of {sorted(GATES)}")
        n_qubits, takes_angle = GATES[self.name]
        if len(self.qubits) != n_qubits or len(set(self.qubits)) != n_qubits:
            raise CircuitError(f"{self.name} acts on {self.qubits}, expected {n_qubits} different qubits")
        if takes_angle != (self.angle is not None):
            raise CircuitError(f"{self.name} has the angle {self.angle!r}, expected {'one' if takes_angle else 'none'}")
        if self.angle is not None and not isinstance(self.angle, Symbol):
            # An int or numpy scalar is a number too; interpreters ask `isinstance(angle, float)`.
            try:
                object.__setattr__(self, "angle", float(self.angle))
            except (TypeError, ValueError) as exc:
                raise CircuitError(f"{self.name} has the angle {self.angle!r}, expected a number or symbol") from exc
        if isinstance(self.angle, float) and not math.isfinite(self.angle):
            raise CircuitError(f"{self.name} on {self.qubits} has the angle {self.angle}, expected a finite number")


@dataclass(frozen=True)
class Circuit:
    """Gates on `n_qubits` qubits that start in |0...0> and are all measured in the Z basis."""

    n_qubits: int
    gates: tuple[Gate, ...]

    def __post_init__(self) -> None:
        if self.n_qubits < 1:
            raise CircuitError(f"a circuit has {self.n_qubits} qubits, expected at least 1")
        for gate in self.gates:
            if not all(0 <= qubit < self.n_qubits for qubit in gate.qubits):
                raise CircuitError(f"{gate.name} acts on {gate.qubits}, expected qubits in [0, {self.n_qubits})")

    @property
    def n_inputs(self) -> int:
        """How many angles a text must bring."""
        return self._count("input")

    @property
    def n_parameters(self) -> int:
        """How many trainable ansatz parameters the gates refer to."""
        return self._count("ansatz")

    @property
    def is_bound(self) -> bool:
        return not any(isinstance(gate.angle, Symbol) for gate in self.gates)

    def bind(self, inputs: Sequence[float] | None = None, ansatz: Sequence[float] | None = None) -> Circuit:
        """Replace symbols by numbers; a kind that is None stays symbolic.

        Raises:
            CircuitError: If a given vector does not have the length that the circuit refers to.
        """
        values: dict[str, Sequence[float]] = {}
        for kind, vector, expected in (("input", inputs, self.n_inputs), ("ansatz", ansatz, self.n_parameters)):
            if vector is None:
                continue
            if len(vector) != expected:
                raise CircuitError(f"{len(vector)} {kind} angles given, the circuit takes {expected}")
            values[kind] = vector

        def bound(gate: Gate) -> Gate:
            if isinstance(gate.angle, Symbol) and gate.angle.kind in values:
                return Gate(gate.name, gate.qubits, float(values[gate.angle.kind][gate.angle.index]))
            return gate

        return Circuit(self.n_qubits, tuple(bound(gate) for gate in self.gates))

    def fused(self) -> Circuit:
        """Merge successive rotations about one axis, their angles numbers, into one rotation by the sum (eq. 7, 10).

        Successive means that no other gate touches the qubits in between.
        """
        gates: list[Gate] = []
        last: dict[int, int] = {}  # qubit -> position in `gates` of the last gate on it
        for gate in self.gates:
            before = {last.get(qubit, -1) for qubit in gate.qubits}
            position = before.pop()
            if not before and position >= 0 and gate.name in _MERGEABLE:
                earlier = gates[position]
                same = earlier.name == gate.name and set(earlier.qubits) == set(gate.qubits)
                if same and isinstance(earlier.angle, float) and isinstance(gate.angle, float):
                    gates[position] = Gate(gate.name, earlier.qubits, earlier.angle + gate.angle)
                    continue
            last.update(dict.fromkeys(gate.qubits, len(gates)))
            gates.append(gate)
        return Circuit(self.n_qubits, tuple(gates))

    def angle(self, gate: Gate) -> float:
        """The gate's angle as a number.

        Raises:
            UnboundParameterError: If it is still symbolic; exporting it as 0 would run another circuit.
        """
        if isinstance(gate.angle, Symbol):
            raise UnboundParameterError(
                f"{gate.name} on {gate.qubits} has the unbound angle {gate.angle.kind}[{gate.angle.index}]; "
                "bind() it first"
            )
        if gate.angle is None:
            raise CircuitError(f"{gate.name} takes no angle")
        return gate.angle

    def require_bound(self) -> None:
        """Raise `UnboundParameterError` for the first angle that is still symbolic."""
        for gate in self.gates:
            if isinstance(gate.angle, Symbol):
                self.angle(gate)

    def to_json(self) -> dict[str, Any]:
        """The circuit as JSON values; `from_json` gives back an equal circuit."""
        return {
            "schema_version": SCHEMA_VERSION,
            "n_qubits": self.n_qubits,
            "n_inputs": self.n_inputs,
            "n_parameters": self.n_parameters,
            "gates": [_gate_to_json(gate) for gate in self.gates],
        }

    @classmethod
    def from_json(cls, value: Any) -> Circuit:
        """Read what `to_json` wrote.

        Raises:
            BundleSchemaError: If the schema version is another or a field is missing or of the wrong type.
            CircuitError: If a gate is impossible.
        """
        version = value.get("schema_version") if isinstance(value, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleSchemaError(f"circuit schema_version is {version!r}, expected {SCHEMA_VERSION}")
        try:
            circuit = cls(int(value["n_qubits"]), tuple(_gate_from_json(gate) for gate in value["gates"]))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise BundleSchemaError(f"circuit JSON does not have the expected form: {exc!r}") from exc
        for field in ("n_inputs", "n_parameters"):
            if value.get(field) != getattr(circuit, field):
                raise BundleSchemaError(
                    f"circuit {field} is {value.get(field)!r}, its gates need {getattr(circuit, field)}"
                )
        return circuit

    def _count(self, kind: str) -> int:
        return 1 + max(
            (gate.angle.index for gate in self.gates if isinstance(gate.angle, Symbol) and gate.angle.kind == kind),
            default=-1,
        )


def feature_map(n_qubits: int) -> tuple[Gate, ...]:
    """R_X(z_i) on qubit i (eq. 5-6)."""
    return tuple(Gate("rx", (qubit,), Symbol("input", qubit)) for qubit in range(n_qubits))


def student_circuit(preset: str, n_qubits: int, n_layers: int) -> Circuit:
    """The feature map followed by `n_layers` identical ansatz layers of a preset.

    Args:
        preset: One of `PRESETS`.
        n_qubits: At least 2.
        n_layers: p of the paper, at least 1.

    Raises:
        CircuitError: If the preset is unknown or a number is too small.
    """
    if preset not in PRESETS:
        raise CircuitError(f"unknown preset {preset!r}, expected one of {sorted(PRESETS)}")
    if n_qubits < 2 or n_layers < 1:
        raise CircuitError(f"n_qubits={n_qubits}, n_layers={n_layers}; expected at least 2 qubits and 1 layer")
    new = _ParameterCounter()
    gates = list(feature_map(n_qubits))
    for _ in range(n_layers):
        gates += PRESETS[preset](n_qubits, new)
    return Circuit(n_qubits, tuple(gates))


class _ParameterCounter:
    """Hands out ansatz symbols in order."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self) -> Symbol:
        self._next += 1
        return Symbol("ansatz", self._next - 1)


def _paper_layer(n: int, new: _ParameterCounter) -> Iterable[Gate]:
    """U_Y, R_ZZ on neighbours, U_Z, CNOT on neighbours; 7n - 1 parameters.

    Read as an operator product eq. 13 would apply CNOT first. The text applies U_Y first, and so does this.
    """
    for q in range(n):
        yield from (Gate("ry", (q,), new()) for _ in range(3))
    for q in range(n - 1):
        yield Gate("rzz", (q, q + 1), new())
    for q in range(n):
        yield from (Gate("rz", (q,), new()) for _ in range(3))
    for q in range(n - 1):
        yield Gate("cx", (q, q + 1))


def _released_layer(n: int, new: _ParameterCounter) -> Iterable[Gate]:
    """The layer of the authors' public code, for any n; 3(n-1) + (n-2) + 3n parameters, 72 for n = 11 (Table 3).

    R_Y on all qubits but the last, R_ZZ between neighbours from qubit 1 on, R_Z on all, then CNOTs along the line
    (n-1)-0-1-...-(n-2). R_ZZ on (n-2, n-1) closes that line to a ring. Qubit n-1 is only ever a control or diagonal:
    its <Z> stays cos z.
    """
    for q in range(n - 1):
        yield from (Gate("ry", (q,), new()) for _ in range(3))
        if q <= n - 3:
            yield Gate("rzz", (q + 1, q + 2), new())
    for q in range(n):
        yield from (Gate("rz", (q,), new()) for _ in range(3))
    yield Gate("cx", (n - 1, 0))
    for q in range(1, n - 2):
        yield Gate("cx", (q, q + 1))
        yield Gate("cx", (q, q - 1))


def _chain_layer(n: int, new: _ParameterCounter) -> Iterable[Gate]:
    """For hardware whose native two-qubit gate is CZ: n - 1 CZ in depth 2 along the chain 0-1-...-(n-1); 3n parameters.

    R_Z R_Y on every qubit, CZ on even then on odd bonds, and a closing R_Y without which the last CZ gates, diagonal
    as they are, would not reach a Z measurement.
    """
    for q in range(n):
        yield Gate("rz", (q,), new())
        yield Gate("ry", (q,), new())
    for first in (0, 1):
        yield from (Gate("cz", (q, q + 1)) for q in range(first, n - 1, 2))
    for q in range(n):
        yield Gate("ry", (q,), new())


PRESETS: Mapping[str, Callable[[int, _ParameterCounter], Iterable[Gate]]] = {
    "paper": _paper_layer,
    "released": _released_layer,
    "chain": _chain_layer,
}


def trainable_parameters(embedding_size: int, circuit: Circuit, n_classes: int) -> dict[str, int]:
    """Count the student's trainable parameters by part, and their total (Table 3).

    Args:
        embedding_size: m, the length of a text's embedding.
        circuit: The unbound student circuit.
        n_classes: Number of labels.
    """
    n = circuit.n_qubits
    parts = {
        "reducer": embedding_size * n + n,
        "ansatz": circuit.n_parameters,
        "head": n * n_classes + n_classes,
    }
    return {**parts, "total": sum(parts.values())}


def as_angles(angles: np.ndarray, n_inputs: int) -> np.ndarray:
    """Check a batch of angles, shape (batch, n_inputs), and return it as finite float64.

    Raises:
        ShapeError: If the shape differs or a value is not finite.
    """
    angles = np.asarray(angles, dtype=np.float64)
    if angles.ndim != 2 or angles.shape[1] != n_inputs:
        raise ShapeError(f"angles have shape {angles.shape}, expected (batch, {n_inputs})")
    if not np.isfinite(angles).all():
        raise ShapeError("angles hold a value that is not finite")
    return angles


def _gate_to_json(gate: Gate) -> dict[str, Any]:
    value: dict[str, Any] = {"gate": gate.name, "qubits": list(gate.qubits)}
    if isinstance(gate.angle, Symbol):
        value["angle"] = {gate.angle.kind: gate.angle.index}
    elif gate.angle is not None:
        value["angle"] = gate.angle
    return value


def _gate_from_json(value: Mapping[str, Any]) -> Gate:
    angle = value.get("angle")
    if isinstance(angle, dict):
        ((kind, index),) = angle.items()
        if kind not in ("input", "ansatz") or not isinstance(index, int) or index < 0:
            raise ValueError(f"angle {angle!r}")
        angle = Symbol(kind, index)
    elif angle is not None:
        angle = float(angle)
    return Gate(str(value["gate"]), tuple(int(qubit) for qubit in value["qubits"]), angle)
