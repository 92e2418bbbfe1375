"""Emulators on a real socket, with a sampler that computes by hand."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import httpx
import quafu
import uvicorn
from fastapi import FastAPI
from quafu import _limits

from models.qasm import from_qasm2
from service.emulator.app import create_emulator
from service.emulator.config import EmulatorConfig
from service.emulator.sampling import Measurement, Sample, SamplingError, Work

TOKEN = "qf_0tests"
QUICK = EmulatorConfig(token=TOKEN, queue_seconds=0.0)
# Qubits of the published chain that are coupled.
PAIR = (124, 125)
# Numbers of shots with which the child process does not return counts.
CRASHES, REFUSED = 7168, 6144


def qasm(flipped: Sequence[int] = (), n_qubits: int = 3) -> str:
    """A circuit that turns some qubits over and measures all."""
    lines = ["OPENQASM 2.0;", 'include "qelib1.inc";', f"qreg q[{n_qubits}];", f"creg c[{n_qubits}];"]
    lines += [f"rx({math.pi:.12f}) q[{qubit}];" for qubit in flipped]
    lines += [f"measure q[{qubit}] -> c[{qubit}];" for qubit in range(n_qubits)]
    return "\n".join(lines) + "\n"


def by_hand(work: Work) -> Sample:
    """Takes every gate for a bit flip; qubit q is qubit 100 + q of the chip."""
    submitted = from_qasm2(work.qasm)
    flips = [gate.qubits[0] for gate in submitted.circuit.gates]
    bits = "".join(str(flips.count(qubit) % 2) for qubit in submitted.measured.values())
    at = submitted.register
    measurements = tuple(Measurement(bit, 100 + at[qubit], at[qubit]) for bit, qubit in submitted.measured.items())
    return Sample({bits: work.shots}, measurements, work.qasm)


def by_hand_in_a_child(work: Work) -> Sample:
    """`by_hand` once the file `hold` is gone; the folder `EMULATOR_TEST_DIR` holds it and the process ids that ran."""
    folder = Path(os.environ["EMULATOR_TEST_DIR"])
    (folder / f"child-{os.getpid()}").touch()
    if work.shots == CRASHES:
        os._exit(1)
    if work.shots == REFUSED:
        raise SamplingError("refused by hand")
    while (folder / "hold").exists():
        sleep(0.01)
    return by_hand(work)


class HandSampler:
    """Computes `by_hand`.

    Attributes:
        works: What it was asked to run.
        released: While clear, every circuit keeps running.
        broken: Whether every circuit fails.
    """

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.released = threading.Event()
        self.released.set()
        self.broken = False

    async def start(self) -> None:
        pass

    async def sample(self, work: Work) -> Sample:
        self.works.append(work)
        while not self.released.is_set():
            await asyncio.sleep(0.002)
        if self.broken:
            raise SamplingError("broken by hand")
        return by_hand(work)

    async def close(self) -> None:
        self.released.set()


@dataclass
class Running:
    """An emulator that listens."""

    url: str
    app: FastAPI
    sampler: HandSampler
    clock: Clock

    def client(self, token: str = TOKEN) -> quafu.Client:
        return quafu.Client(api_key=token, base_url=self.url)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"token": TOKEN}, timeout=30)

    def set_faults(self, *rules: dict[str, Any]) -> None:
        assert httpx.put(f"{self.url}/emulator/faults", json=list(rules)).status_code == 200

    def ledger(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/emulator/ledger").json()["submissions"]
        return found


@dataclass
class Clock:
    """Wall time, moved on by hand."""

    ahead: float = field(default=0.0)

    def __call__(self) -> float:
        return time() + self.ahead


@contextmanager
def emulator(config: EmulatorConfig = QUICK, **changes: Any) -> Iterator[Running]:
    """An emulator on a free port; `changes` are fields of its configuration."""
    sampler, clock = HandSampler(), Clock()
    app = create_emulator(replace(config, **changes), sampler, clock)
    with listening(app) as url:
        # The client keeps limits by URL, and a port may come back.
        _limits.clear_cache()
        yield Running(url, app, sampler, clock)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """An app in a server of its own thread, and its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def ended(job: quafu.Job) -> str:
    """Wait until a job has ended, asking more often than the client would; returns its status."""
    until(lambda: job.status() in ("Finished", "PartiallyFinished", "Failed", "Cancelled"))
    return str(job.status())


def until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 30
    while not condition():
        assert monotonic() < deadline
        sleep(0.005)
