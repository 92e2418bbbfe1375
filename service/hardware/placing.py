"""How circuits are laid on the chip: a layout is `chain`, `server`, or physical qubits such as `chain:124,125,126`.

It is part of what counts are kept under, and travels with a run: whoever takes the run to the provider obeys it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from models.circuit import Circuit
from models.device import Device, best_chain
from models.errors import StudentError
from models.native import placed
from service.hardware.records import Run
from service.providers.base import Program
from service.settings import CHAIN_QUBITS

logger = logging.getLogger(__name__)

SERVER = "server"
_CHAIN = "chain"


def layout(compiler: str, chain: tuple[int, ...] | None) -> str:
    """The layout that the settings ask for.

    Args:
        compiler: `chain` or `server`.
        chain: Physical qubits to use instead of the best chain.
    """
    if compiler != _CHAIN or chain is None:
        return compiler
    return f"{_CHAIN}:{','.join(map(str, chain))}"


def path_of(asked: str, device: Device | None) -> tuple[int, ...] | None:
    """The physical qubits, each coupled to the next, that a layout means on a device.

    Returns:
        None where the provider places the circuits: it was asked to, or there is no chain on the device.
    """
    if asked == SERVER:
        return None
    _, _, fixed = asked.partition(":")
    if fixed:
        return tuple(int(qubit) for qubit in fixed.split(","))
    if device is None:
        return None
    try:
        return best_chain(device, CHAIN_QUBITS)
    except StudentError as exc:
        logger.warning("no chain on the device", extra={"fields": {"detail": str(exc)}})
        return None


def programs(runs: Sequence[Run], parts: Sequence[Sequence[int]], best: tuple[int, ...] | None) -> list[Program]:
    """Every run's pieces, one run after the other.

    Args:
        runs: What is to be run.
        parts: Shots of the pieces of each.
        best: The device's best chain, as it was when they were first sent.
    """
    found = []
    for run, pieces in zip(runs, parts, strict=True):
        circuit = Circuit.from_json(json.loads(run.circuit))
        path = best if run.layout == _CHAIN else path_of(run.layout, None)
        chain = None if path is None else placed(circuit, path)
        found += [Program(circuit, shots, chain) for shots in pieces]
    return found
