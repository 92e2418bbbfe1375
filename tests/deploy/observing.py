"""A service with a worker and the emulator, traffic on them, and a Prometheus that watches."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

import httpx
import yaml

from deploy.generate import FOLDER
from models.bundle import SHIPPED
from tests.service.processes import COMMAND, ROOT, environment, started

# As fast as everything goes: each of these is felt in a test.
FAST = {
    "QD_EMBEDDED": "true",
    "QD_QUAFU_TOKEN": "qf_test",
    "QD_EMULATOR_QUEUE_SECONDS": "0",
    "QD_MICRO_BATCH_SECONDS": "0.05",
    "QD_SHOTS": "1024",
}
MAKE_KEY = ["keys", "create", "watcher", "--scope", "classify", "--scope", "hardware", "--scope", "admin"]
MAKE_KEY += ["--requests-per-minute", "0", "--shots-per-day", "0"]
TASKS = ("emotion", "hiding")


@dataclass(frozen=True)
class Watched:
    """A service: where it, its worker and the emulator answer, the folder of its bundles, and a key for everything."""

    url: str
    worker_metrics: str
    emulator: str
    bundles: Path
    key: str


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """A service alone on its machine, with a noisy chip, once it is ready for hardware."""
    bundles = folder / "bundles"
    for task in TASKS:
        shutil.copytree(SHIPPED / task, bundles / task)
    env = environment(bundles, folder, **FAST)
    with ExitStack() as stack:
        # Not the service's own one, whose address nobody is told: faults are set there.
        emulator = stack.enter_context(started(folder, "emulator", [*COMMAND, "emulator", "--port", "0"], env))
        env["QD_QUAFU_URL"] = emulator.wait_for_output("\n").split("QD_QUAFU_URL=")[1].split()[0]
        process = stack.enter_context(started(folder, "serve", [*COMMAND, "serve"], env))
        process.wait_for_output("Ctrl-C")
        addresses = json.loads((folder / "serve.json").read_text())
        run = subprocess.run([*COMMAND, *MAKE_KEY], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        key = run.stdout.strip()
        yield Watched(addresses["url"], addresses["worker_metrics"], env["QD_QUAFU_URL"], bundles, key)


class Prometheus:
    """A Prometheus with the rules of the repository, which asks and evaluates every second."""

    def __init__(self, http: httpx.Client) -> None:
        self.url = str(http.base_url)
        self._http = http

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API.

        Raises:
            RuntimeError: If it answers with an error.
        """
        answer = self._http.get(f"/api/v1/{path}", params=parameters).json()
        if answer["status"] != "success":
            raise RuntimeError(answer["error"])
        return answer["data"]

    def values(self, expression: str) -> list[float]:
        """What an expression is now, of each series; without those that are no number."""
        result = self.get("query", query=expression)["result"]
        return [value for each in result if math.isfinite(value := float(each["value"][1]))]


@contextmanager
def prometheus(folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Debian's Prometheus on a free port, once it answers; `targets` are jobs and the URLs of their metrics."""
    rules = yaml.safe_load((FOLDER / "prometheus" / "rules.yml").read_text())
    for group in rules["groups"]:
        group["interval"] = "1s"
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    # The jobs keep their names, by which rules and dashboards know them.
    config["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": [targets[job["job_name"]].split("/")[2]]}]}
        for job in config["scrape_configs"]
        if job["job_name"] in targets
    ]
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    with started(folder, "prometheus", command) as process:
        deadline = monotonic() + 60
        while not _is_ready(f"http://{address}"):
            assert process.runs, process.stderr.read_text()
            assert monotonic() < deadline
            sleep(0.05)
        with httpx.Client(base_url=f"http://{address}", timeout=30) as http:
            yield Prometheus(http)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Traffic:
    """Requests of every kind, round after round, in a thread of its own, until it is left.

    Attributes:
        answers: How often each kind of request was answered with each status.
        n_rounds: How many rounds are over.
        failure: What ended it before it was told to.
    """

    service: Watched
    answers: dict[tuple[str, int], int] = field(default_factory=dict)
    n_rounds: int = 0
    failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._http = httpx.Client(
            base_url=self.service.url, timeout=60, headers={"Authorization": f"Bearer {self.service.key}"}
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._http.close()

    def stop(self) -> None:
        """End after the round that is under way."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            # With a worker at work, and not before: the first circuits would wait for it.
            while self._http.get("/readyz").json()["status"] != "ready":
                sleep(0.1)
            body = {"backend": "simulator", "shadow_percent": 100}
            self._send("switch", "PUT", f"/admin/tasks/{TASKS[0]}/backend", json=body)
            for number in count():
                if self._ending.is_set():
                    return
                self._round(number)
                self.n_rounds += 1
        except BaseException as exc:
            self.failure = exc
            raise

    def _round(self, number: int) -> None:
        for task in TASKS:
            self._classify("simulator", task, ["what a lovely day", f"text {number}"])
            self._classify("cached", task, "what a lovely day", backend="baihua", wait="20")
        self._classify("hardware", TASKS[0], f"text {number} for hardware", backend="baihua")
        job = self._classify("cancelled", TASKS[1], f"text {number} that nobody wants", backend="baihua").json()
        self._send("cancel", "DELETE", f"/jobs/{job.get('id')}")
        self._classify("invalid", TASKS[0], [])
        self._classify("unknown", "no-such-task", "text")
        self._send("denied", "GET", "/jobs", headers={"Authorization": "Bearer qd_00000000_" + "x" * 43})
        if number % 5 == 2:
            faults = [{"on": "submit", "fault": fault, "times": 1} for fault in ("offline_409", "fail_job")]
            self._send("faults", "PUT", f"{self.service.emulator}/emulator/faults", json=faults)
        if number % 5 == 4:
            self._send("reload", "POST", "/admin/reload", json={})
            weights = self.service.bundles / TASKS[1] / "weights.safetensors"
            good = weights.read_bytes()
            weights.write_bytes(good[:-1])
            self._send("broken", "POST", "/admin/reload", json={})
            weights.write_bytes(good)
        sleep(0.2)

    def _classify(self, kind: str, task: str, inputs: Any, **query: str) -> httpx.Response:
        return self._send(kind, "POST", f"/classify/{task}", params=query, json={"inputs": inputs})

    def _send(self, kind: str, method: str, path: str, **arguments: Any) -> httpx.Response:
        answer = self._http.request(method, path, **arguments)
        self.answers[kind, answer.status_code] = self.answers.get((kind, answer.status_code), 0) + 1
        return answer
