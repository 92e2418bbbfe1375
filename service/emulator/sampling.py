"""What running a circuit takes and gives, and the child process that does it.

The child computes, so the HTTP side stays responsive, and only the child ever loads MindQuantum.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from models.device import Device


class SamplingError(Exception):
    """A circuit that could not be run."""


@dataclass(frozen=True)
class Work:
    """One circuit to run.

    Attributes:
        qasm: OpenQASM 2.0 as it was submitted.
        physical: Whether its qubits are the chip's and its gates native.
        target_qubits: Physical qubit of each of its qubits; empty lets the compiler choose.
        shots: At least 1.
        seed: Of the samples.
        exact: Whether to leave out all noise.
        device: The calibration to run under.
    """

    qasm: str
    physical: bool
    target_qubits: tuple[int, ...]
    shots: int
    seed: tuple[int, ...]
    exact: bool
    device: Device


@dataclass(frozen=True)
class Measurement:
    """Which qubit a classical bit was measured from."""

    cbit: int
    physical_qubit: int
    virtual_qubit: int


@dataclass(frozen=True)
class Sample:
    """What running a circuit gave.

    Attributes:
        counts: Bitstring, classical bit 0 leftmost, to number of shots.
        measurements: By ascending classical bit.
        executed: OpenQASM 2.0 of the circuit as it ran, on physical qubits.
    """

    counts: Mapping[str, int]
    measurements: tuple[Measurement, ...]
    executed: str


class Sampler(Protocol):
    """Runs circuits, one at a time."""

    async def start(self) -> None:
        """Get ready; may be left out."""

    async def sample(self, work: Work) -> Sample:
        """Run a circuit.

        Raises:
            SamplingError: If it cannot be run.
        """

    async def close(self) -> None:
        """Stop at once, whatever is running."""


class ProcessSampler:
    """Runs circuits by a function in a child process, which ends with this one, however this one ends.

    Args:
        run: Importable by the child; a `SamplingError` of it arrives here.
    """

    def __init__(self, run: Callable[[Work], Sample]) -> None:
        self._run = run
        self._context = multiprocessing.get_context("spawn")
        self._child: BaseProcess | None = None
        self._connection: Connection | None = None
        self._closed = False

    async def start(self) -> None:
        await asyncio.to_thread(self._connect)

    async def sample(self, work: Work) -> Sample:
        return await asyncio.to_thread(self._ask, work)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._stop)

    def _ask(self, work: Work) -> Sample:
        try:
            answer = self._exchange(work)
        except (EOFError, OSError):
            # Somebody killed the child: one more try with a new one.
            self._stop()
            try:
                answer = self._exchange(work)
            except (EOFError, OSError) as exc:
                self._stop()
                raise SamplingError("the process that runs circuits died twice on this one") from exc
        if isinstance(answer, str):
            raise SamplingError(answer)
        return answer

    def _exchange(self, work: Work) -> Sample | str:
        connection = self._connect()
        connection.send(work)
        answer: Sample | str = connection.recv()
        return answer

    def _connect(self) -> Connection:
        if self._closed:
            raise SamplingError("the emulator is stopping")
        if self._connection is None:
            self._connection, theirs = self._context.Pipe()
            self._child = self._context.Process(
                target=_child, args=(theirs, self._run), name="emulator-chip", daemon=True
            )
            self._child.start()
            # Only the child holds its end now, so that its death ends a `recv`.
            theirs.close()
        return self._connection

    def _stop(self) -> None:
        child, self._child = self._child, None
        connection, self._connection = self._connection, None
        if child is not None:
            child.kill()
            child.join()
        if connection is not None:
            connection.close()


def _child(connection: Connection, run: Callable[[Work], Sample]) -> None:
    # Ctrl-C reaches the whole process group; the parent ends this process when it has stopped.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            work: Work = connection.recv()
        except EOFError:
            return
        answer: Sample | str
        try:
            answer = run(work)
        except SamplingError as exc:
            answer = str(exc)
        except Exception as exc:
            # The child lives on, and the job says what happened.
            answer = f"{type(exc).__name__}: {exc}"
        connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        # A circuit may be running: nobody will read its counts.
        os._exit(1)
