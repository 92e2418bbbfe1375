"""A session of operating the service under load, from the simulator to the chip and back, with what was seen.

    python -m benchmarks.operating DATA [--seconds 20] [--json FILE] [--pictures FOLDER]

Starts Valkey, the emulator (Baihua's noise), two workers, two replicas and, where it is installed, Prometheus. Clients
send texts to both replicas without naming a backend, while one replica is told to switch the task: simulator, shadow,
baihua, simulator, then to load bundles anew. Every answer but 200 and 202 counts as failed. In the end come requests
that must change nothing: an unknown backend, a bad percentage, an expired key, a broken bundle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import numpy as np

from benchmarks.serving import ROOT
from models.bundle import SHIPPED
from service.children import Children
from service.embedded import embedded_redis
from service.listening import free_ports
from training.data import read_texts

TASK = "emotion"
SWITCHES: Sequence[tuple[str, dict[str, Any]]] = (
    ("simulator", {"backend": "simulator"}),
    ("shadow", {"backend": "simulator", "shadow_percent": 50}),
    ("baihua", {"backend": "baihua"}),
    ("simulator again", {"backend": "simulator"}),
)
# What every replica must have seen a switch within.
AGREEMENT_SECONDS = 2.0
_N_CLIENTS = 8
_PAUSE_SECONDS = 0.05
# Few enough that the emulator, which takes about a second a circuit, gets through them in a session.
_N_TEXTS = 40
_N_RELOADS = 5
_SEED = 0
_WAIT_SECONDS = 20


@dataclass(frozen=True)
class Answer:
    """One request of the load.

    Attributes:
        status: HTTP status; 0 if the connection broke.
        backend: What answered, as far as the answer says so.
    """

    phase: str
    replica: int
    status: int
    backend: str
    seconds: float


@dataclass
class Session:
    """A deployment under load.

    Attributes:
        replicas: A client for each; they have the key of an application.
        admin: Asks the first replica with the key of an operator.
    """

    replicas: list[httpx.AsyncClient]
    admin: httpx.AsyncClient
    folder: Path
    env: Mapping[str, str]
    texts: Sequence[str]
    phase: str = "warm-up"
    answers: list[Answer] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with a folder of CSV files for each task")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each phase (20)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of console and dashboards")
    options = parser.parse_args(argv)
    rng = np.random.default_rng(_SEED)
    every = read_texts(options.data / TASK / "validation.csv", None).texts
    texts = [every[i] for i in rng.permutation(len(every))[:_N_TEXTS]]
    figures = asyncio.run(run(texts, options.seconds, options.pictures))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(not is_as_promised(figures))


def is_as_promised(figures: Mapping[str, Any]) -> bool:
    """Whether no request failed, replicas agreed in time, and what is wrong was refused and changed nothing."""
    agreed = [each["seconds_until_the_other_replica_agreed"] for each in (*figures["phases"], *figures["reloads"])]
    return (
        figures["failed_requests"] == 0
        and max(agreed) <= AGREEMENT_SECONDS
        and all(each["status"] == 200 and each["last_version_pinned"] for each in figures["reloads"])
        and all(each["status"] >= 400 and each["unchanged"] for each in figures["wrong_inputs"])
    )


async def run(texts: Sequence[str], seconds: float, pictures: Path | None) -> dict[str, Any]:
    """The whole session."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with deployment(folder, texts) as (session, prometheus):
            stop = asyncio.Event()
            load = [asyncio.create_task(client(session, number, stop)) for number in range(_N_CLIENTS)]
            agreed = {}
            for phase, switch in SWITCHES:
                session.phase = "switching"  # either backend may answer
                agreed[phase] = await switch_to(session, switch)
                session.phase = phase
                await asyncio.sleep(seconds)
            session.phase = "reloads"
            reloads = [await reload(session, number) for number in range(_N_RELOADS)]
            stop.set()
            await asyncio.gather(*load)
            # Now: a request that waited longer than its phase lasted is part of that phase too.
            phases = [summary(session, phase, switch, agreed[phase]) for phase, switch in SWITCHES]
            wrong = await wrong_inputs(session)
            if pictures is not None:
                await take_pictures(session, prometheus, pictures)
    failed = [answer for answer in session.answers if answer.status not in (200, 202)]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "replicas": len(session.replicas),
        "workers": 2,
        "clients": _N_CLIENTS,
        "texts": len(texts),
        "requests": len(session.answers),
        "failed_requests": len(failed),
        "failures": dict(Counter(f"{answer.phase}: {answer.status}" for answer in failed)),
        "phases": phases,
        "reloads": reloads,
        "reload_requests": sum(answer.phase == "reloads" for answer in session.answers),
        "reload_failures": sum(answer.phase == "reloads" for answer in failed),
        "wrong_inputs": wrong,
    }


# --- the deployment ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def deployment(folder: Path, texts: Sequence[str]) -> AsyncIterator[tuple[Session, str | None]]:
    """Two replicas, two workers, emulator and Prometheus on one Valkey; with the URL of Prometheus, if there is one."""
    bundles = folder / "models" / "bundles"
    shutil.copytree(SHIPPED, bundles)
    (folder / "models" / "embedders").symlink_to(SHIPPED.parent / "embedders")
    names = ("emulator", "replica-0", "replica-1", "worker-0", "worker-1", "prometheus")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    async with embedded_redis(folder / "redis") as redis_url, Children() as children:
        env = {name: value for name, value in os.environ.items() if not name.startswith("QD_")} | {
            "OMP_NUM_THREADS": "1",
            "QD_BUNDLES_DIR": str(bundles),
            "QD_LOG_LEVEL": "warning",
            "QD_QUAFU_TOKEN": f"qf_{secrets.token_hex(16)}",
            "QD_QUAFU_URL": f"http://127.0.0.1:{ports['emulator']}",
            "QD_REDIS_URL": redis_url,
            "QD_THREADS": "1",
        }
        keys = {
            name: make_key(env, name, scopes)
            for name, scopes in (
                ("operator", ["classify", "hardware", "admin"]),
                ("application", ["classify", "hardware"]),
            )
        }
        emulator_env = {name: value for name, value in env.items() if name != "QD_QUAFU_URL"}
        await children.start("emulator", command("emulator", "--port", str(ports["emulator"])), emulator_env)
        for number in range(2):
            state = str(folder / f"state-{number}")
            port = {"QD_WORKER_METRICS_PORT": str(ports[f"worker-{number}"])}
            await children.start(f"worker-{number}", command("worker"), env | port)
            replica = command("serve", "--port", str(ports[f"replica-{number}"]))
            await children.start(f"replica-{number}", replica, env | {"QD_STATE_DIR": state})
        prometheus = await start_prometheus(children, folder, ports)
        async with (
            http_client(ports["replica-0"], keys["application"]) as first,
            http_client(ports["replica-1"], keys["application"]) as second,
            http_client(ports["replica-0"], keys["operator"]) as admin,
        ):
            for replica_client in (first, second):
                await until(lambda one=replica_client: is_ready(one))  # type: ignore[misc]
            yield Session([first, second], admin, folder, env, texts), prometheus


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service.cli", *arguments]


def make_key(env: Mapping[str, str], name: str, scopes: Sequence[str], *more: str) -> str:
    """A new API key, as `qdserve keys create` prints it."""
    flags = [part for scope in scopes for part in ("--scope", scope)]
    # A load that is meant to be answered needs no limit.
    limits = ["--requests-per-minute", "0", "--shots-per-day", "1000000000"]
    arguments = command("keys", "create", name, *flags, *limits, *more)
    return subprocess.run(arguments, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout.strip()


def http_client(port: int, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60.0
    )


async def is_ready(one: httpx.AsyncClient) -> bool:
    try:
        return bool((await one.get("/readyz")).json().get("status") == "ready")
    except httpx.TransportError:
        return False


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> float:
    """Seconds until a condition holds."""
    begun = monotonic()
    while not await condition():
        if monotonic() - begun > seconds:
            raise TimeoutError(f"waited {seconds} s in vain")
        await asyncio.sleep(0.02)
    return monotonic() - begun


async def start_prometheus(children: Children, folder: Path, ports: Mapping[str, int]) -> str | None:
    program = shutil.which("prometheus")
    if program is None:
        return None
    jobs = {"service": ("replica-0", "replica-1"), "worker": ("worker-0", "worker-1")}
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(ROOT / "deploy" / "prometheus" / "rules.yml")],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{ports[name]}" for name in names]}]}
            for job, names in jobs.items()
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    address = f"127.0.0.1:{ports['prometheus']}"
    options = {"config.file": path, "storage.tsdb.path": folder / "prometheus", "web.listen-address": address}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    await children.start("prometheus", [program, *arguments, "--log.level=error"])
    return f"http://{address}"


# --- load and switches ------------------------------------------------------------------------------------------------


async def client(session: Session, number: int, stop: asyncio.Event) -> None:
    """Send texts to one replica and the other in turn until told to stop."""
    rng = np.random.default_rng([_SEED, number])
    for turn in count(number):
        if stop.is_set():
            return
        replica = turn % len(session.replicas)
        phase, begun = session.phase, monotonic()
        body = {"inputs": session.texts[int(rng.integers(len(session.texts)))]}
        try:
            response = await session.replicas[replica].post(
                f"/classify/{TASK}", params={"wait": _WAIT_SECONDS}, json=body
            )
            status, backend = response.status_code, str(response.json().get("backend", "none"))
        except httpx.TransportError:
            status, backend = 0, "none"
        session.answers.append(Answer(phase, replica, status, backend, monotonic() - begun))
        await asyncio.sleep(_PAUSE_SECONDS)


async def switch_to(session: Session, switch: dict[str, Any]) -> float:
    """Switch the task through the first replica; seconds until the second says the same."""
    path = f"/admin/tasks/{TASK}/backend"
    (await session.admin.put(path, json=switch)).raise_for_status()
    headers = {"Authorization": session.admin.headers["Authorization"]}

    async def agrees() -> bool:
        found = (await session.replicas[1].get(path, headers=headers)).raise_for_status().json()
        return all(found[name] == value for name, value in ({"shadow_percent": 0} | switch).items())

    return await until(agrees)


def summary(session: Session, phase: str, switch: dict[str, Any], agreed: float) -> dict[str, Any]:
    answers = [answer for answer in session.answers if answer.phase == phase]
    seconds = sorted(answer.seconds for answer in answers)
    return {
        "phase": phase,
        "switch": switch,
        "seconds_until_the_other_replica_agreed": round(agreed, 3),
        "requests": len(answers),
        "by_status": dict(sorted(Counter(str(answer.status) for answer in answers).items())),
        "by_replica_and_backend": dict(
            sorted(Counter(f"{answer.replica}: {answer.backend}" for answer in answers).items())
        ),
        "median_ms": round(1e3 * seconds[len(seconds) // 2], 1),
        "p95_ms": round(1e3 * seconds[int(0.95 * (len(seconds) - 1))], 1),
    }


async def reload(session: Session, number: int) -> dict[str, Any]:
    """Put another version of the bundle into service while the load goes on, and leave the last one to be pinned."""
    served = session.folder / "models" / "bundles" / TASK
    last = (await session.replicas[0].get(f"/tasks/{TASK}")).raise_for_status().json()["bundle"]
    shutil.copytree(served, served.parent / "versions" / f"{TASK}-{number}")
    # Any other manifest is another version: the weights may stay.
    manifest = json.loads((served / "manifest.json").read_text(encoding="utf-8"))
    manifest["command"] += f" # reload {number}"
    (served / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    begun = monotonic()
    response = await session.admin.post("/admin/reload", json={})
    seconds = monotonic() - begun
    now = response.json()["changed"]

    async def follows() -> bool:
        found = (await session.replicas[1].get(f"/tasks/{TASK}")).raise_for_status().json()
        return found["bundle"] in now

    agreed = await until(follows)
    pinned = await session.replicas[1].post(f"/classify/{last}", json={"inputs": session.texts[0]})
    return {
        "status": response.status_code,
        "seconds": round(seconds, 3),
        "seconds_until_the_other_replica_agreed": round(agreed, 3),
        "last_version_pinned": pinned.status_code == 200 and pinned.json()["bundle"] == last,
    }


# --- what must change nothing -----------------------------------------------------------------------------------------


async def wrong_inputs(session: Session) -> list[dict[str, Any]]:
    """Requests that are refused, with what they are told and whether everything is as it was."""
    path = f"/admin/tasks/{TASK}/backend"
    soon = datetime.now(UTC) + timedelta(seconds=3)
    expired = make_key(session.env, "expired", ["admin"], "--expires", soon.isoformat())
    await asyncio.sleep(4)
    weights = session.folder / "models" / "bundles" / TASK / "weights.safetensors"
    whole = weights.read_bytes()
    found = []
    requests: list[tuple[str, str, str, dict[str, Any], dict[str, str]]] = [
        ("an unknown backend", "PUT", path, {"backend": "quantum"}, {}),
        ("a bad percentage", "PUT", path, {"backend": "simulator", "shadow_percent": 250}, {}),
        ("an expired key", "PUT", path, {"backend": "baihua"}, {"Authorization": f"Bearer {expired}"}),
        ("a broken bundle on reload", "POST", "/admin/reload", {}, {}),
    ]
    for what, method, where, body, headers in requests:
        before = await state_of(session)
        if "bundle" in what:
            weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        response = await session.admin.request(method, where, json=body, headers=headers)
        weights.write_bytes(whole)
        problem = response.json()
        found.append(
            {
                "input": what,
                "status": response.status_code,
                "type": problem.get("type"),
                "detail": str(problem.get("detail")).replace(f"{session.folder}/", ""),
                "unchanged": await state_of(session) == before,
            }
        )
    return found


async def state_of(session: Session) -> dict[str, Any]:
    """What a wrong request might have changed: the switch, the bundles, the audit, and an answer."""
    switch = (await session.admin.get(f"/admin/tasks/{TASK}/backend")).raise_for_status().json()
    audit = (await session.admin.get("/admin/audit")).raise_for_status().json()
    tasks = (await session.replicas[0].get("/tasks")).raise_for_status().json()
    answer = await session.replicas[0].post(f"/classify/{TASK}", json={"inputs": session.texts[0]})
    return {"switch": switch, "audit": audit, "tasks": tasks, "results": answer.raise_for_status().json()["results"]}


async def take_pictures(session: Session, prometheus: str | None, folder: Path) -> None:
    """Pictures of the console and, if there was a Prometheus, of what the dashboards show."""
    folder.mkdir(parents=True, exist_ok=True)
    key = session.admin.headers["Authorization"].removeprefix("Bearer ")
    commands = [["screenshots", str(session.replicas[0].base_url), str(folder), "--key", key, "--task", TASK]]
    if prometheus is not None:
        commands.insert(0, ["panels", prometheus, str(folder), "--minutes", "3"])
    for module, *arguments in commands:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"benchmarks.{module}", *arguments, cwd=ROOT
        )
        if await process.wait():
            raise RuntimeError(f"benchmarks.{module} ended with {process.returncode}; its error is above")


if __name__ == "__main__":
    sys.exit(main())
