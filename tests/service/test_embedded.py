"""Processes that run beside the service: restarts, the order of their end, and Valkey with its data."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from needs import on_linux
from processes import runs
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from service.children import Child, Children
from service.embedded import _until_ready, embedded_redis
from service.errors import AddressError, StartupError

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]

# The alarm ends what a failed test leaves behind.
FOREVER = [sys.executable, "-c", "import signal; signal.alarm(120); signal.pause()"]
# Says when it is up, and at SIGTERM writes its name into a file.
NAMED = """
import signal, sys
def handle(number, frame):
    print(sys.argv[1], file=open(sys.argv[2], "a"))
    sys.exit()
signal.signal(signal.SIGTERM, handle)
signal.alarm(120)
print("up", flush=True)
signal.pause()
"""
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.alarm(120)
print("up", flush=True)
signal.pause()
"""
# A service reduced to what runs beside it; prints the process ids once all is up.
SERVICE = """
import asyncio, json, os, sys
from pathlib import Path
from redis.asyncio import Redis
from service.children import Children
from service.embedded import embedded_redis

async def main():
    async with embedded_redis(Path(sys.argv[1])) as url, Children() as children:
        await children.start("worker", [sys.executable, "-c", "import signal; signal.alarm(120); signal.pause()"])
        async with Redis.from_url(url) as client:
            await client.set("key", "of the service that was killed")
            valkey = (await client.info("server"))["process_id"]
        print(json.dumps({"valkey": valkey, **children.pids}), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def eventually(condition: Callable[[], Any]) -> None:
    """Poll other processes; the test fails if the condition does not come true."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def events(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.message == message]


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "service.children")
    return caplog


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0)) as client:
        yield client


@contextmanager
def service(state_dir: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(state_dir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


async def test_child_that_ends_is_started_again_and_each_event_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Children(first_delay_seconds=0.01) as children:
        child = await children.start("sleeper", FOREVER)
        first = children.pids["sleeper"]
        assert os.getsid(first) != os.getsid(0)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: children.pids.get("sleeper", first) != first)
        second = children.pids["sleeper"]
    assert child.exit_codes == [-signal.SIGKILL]
    assert not runs(second)
    assert children.pids == {}
    assert events(caplog, "child started") == [{"child": "sleeper", "pid": pid} for pid in (first, second)]
    assert events(caplog, "child ended") == [
        {"child": "sleeper", "pid": first, "exit_code": -signal.SIGKILL, "restart_in_seconds": 0.01}
    ]
    assert [fields["pid"] for fields in events(caplog, "child stopped")] == [second]


async def test_pause_before_a_restart_doubles(caplog: pytest.LogCaptureFixture) -> None:
    async with Children(first_delay_seconds=0.001) as children:
        child = await children.start("broken", [sys.executable, "-c", "raise SystemExit(3)"])
        await eventually(lambda: len(child.exit_codes) >= 4)
    assert [fields["restart_in_seconds"] for fields in events(caplog, "child ended")][:4] == [
        0.001,
        0.002,
        0.004,
        0.008,
    ]
    assert set(child.exit_codes) == {3}


async def test_pause_after_a_long_run_is_the_first_again(caplog: pytest.LogCaptureFixture) -> None:
    async with Children(first_delay_seconds=0.001, longest_delay_seconds=0.05) as children:
        child = await children.start("sleeper", [sys.executable, "-c", "import time; time.sleep(0.1)"])
        await eventually(lambda: len(child.exit_codes) >= 3)
    assert {fields["restart_in_seconds"] for fields in events(caplog, "child ended")} == {0.001}


async def test_restart_that_fails_is_tried_again_after_pauses_up_to_the_longest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    async with Children(first_delay_seconds=0.001, longest_delay_seconds=0.004) as children:
        await children.start("sleeper", FOREVER, log=folder / "log")
        folder.rename(tmp_path / "elsewhere")
        os.kill(children.pids["sleeper"], signal.SIGKILL)
        await eventually(lambda: len(events(caplog, "child not started")) >= 4)
        folder.mkdir()
        await eventually(lambda: children.pids)
    failures = events(caplog, "child not started")
    assert [fields["restart_in_seconds"] for fields in failures[:4]] == [0.002, 0.004, 0.004, 0.004]
    assert "No such file" in failures[0]["error"]


async def test_output_and_environment_are_those_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import os, signal, sys; print(os.environ, flush=True); print('error', file=sys.stderr); signal.pause()"
    async with Children() as children:
        await children.start("talker", [sys.executable, "-S", "-c", code], {"LC_CTYPE": "C.UTF-8"}, log=log)
        await eventually(lambda: "error" in log.read_text())
    assert log.read_text() == "before\nenviron({'LC_CTYPE': 'C.UTF-8'})\nerror\n"


async def test_children_are_stopped_last_started_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    async with Children() as children:
        for name in ("first", "second", "third"):
            await children.start(name, [sys.executable, "-c", NAMED, name, str(order)], log=tmp_path / "log")
        await eventually(lambda: (tmp_path / "log").read_text().count("up") == 3)
    assert order.read_text().split() == ["third", "second", "first"]


async def test_child_that_ignores_sigterm_is_killed_and_the_others_are_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Children(grace_seconds=0.1) as children:
        await children.start("sleeper", FOREVER)
        await children.start("deaf", [sys.executable, "-c", DEAF], log=tmp_path / "log")
        await eventually(lambda: "up" in (tmp_path / "log").read_text())
        pids = children.pids
    assert [fields["child"] for fields in events(caplog, "child killed")] == ["deaf"]
    assert [(fields["child"], fields["exit_code"]) for fields in events(caplog, "child stopped")] == [
        ("deaf", -signal.SIGKILL),
        ("sleeper", -signal.SIGTERM),
    ]
    assert not any(runs(pid) for pid in pids.values())


async def test_stop_that_is_cancelled_kills_the_child_at_once_and_stops_the_others(tmp_path: Path) -> None:
    async def run() -> None:
        async with Children(grace_seconds=600) as children:
            await children.start("sleeper", FOREVER)
            await children.start("deaf", [sys.executable, "-c", DEAF], log=tmp_path / "log")
            await eventually(lambda: "up" in (tmp_path / "log").read_text())
            pids.update(children.pids)

    pids: dict[str, int] = {}
    task = asyncio.create_task(run())
    await eventually(lambda: pids)
    # `run` has come to its end by now and waits for the one that is deaf.
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: not any(runs(pid) for pid in pids.values()))


async def test_child_that_cannot_be_started_is_a_startup_error(tmp_path: Path) -> None:
    async with Children() as children:
        with pytest.raises(StartupError, match=r"cannot start worker: .*absent"):
            await children.start("worker", FOREVER, log=tmp_path / "absent" / "log")
        assert children.pids == {}


async def test_valkey_keeps_an_append_only_file_and_listens_for_this_user_alone(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url:
        path = tmp_path / "valkey" / "valkey.sock"
        assert url == f"unix://{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        async with client_of(url) as client:
            assert await client.ping()
            expected = {
                "appendonly": "yes",
                "appendfsync": "everysec",
                "aof-load-truncated": "yes",
                "maxmemory-policy": "noeviction",
                "port": "0",
                "save": "",
            }
            assert await client.config_get(*expected) == expected


async def test_stop_leaves_the_data_and_neither_process_nor_socket(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        pid = (await client.info("server"))["process_id"]
        await client.set("key", "kept")
    assert not runs(pid)
    assert not (tmp_path / "valkey" / "valkey.sock").exists()
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        assert await client.get("key") == "kept"


async def test_socket_that_a_killed_valkey_left_is_removed(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url:
        async with client_of(url) as client:
            pid = (await client.info("server"))["process_id"]
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not runs(pid))
        assert (tmp_path / "valkey" / "valkey.sock").exists()
    assert not (tmp_path / "valkey" / "valkey.sock").exists()


async def test_valkey_that_is_killed_comes_back_with_its_data(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        pid = (await client.info("server"))["process_id"]
        await client.set("key", "written")
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while True:
                try:
                    assert (await client.info("server"))["process_id"] != pid
                    break
                except RedisConnectionError:
                    await asyncio.sleep(0.01)
        assert await client.get("key") == "written"


@on_linux
async def test_sigkill_of_the_service_ends_valkey_and_worker_and_loses_nothing(tmp_path: Path) -> None:
    with service(tmp_path) as (process, pids):
        assert set(pids) == {"valkey", "worker"}
        process.kill()
        process.wait()
        await eventually(lambda: not any(runs(pid) for pid in pids.values()))
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        assert await client.get("key") == "of the service that was killed"


@on_linux
async def test_service_waits_for_the_valkey_of_one_that_was_killed(tmp_path: Path) -> None:
    with service(tmp_path) as (process, pids):
        os.kill(pids["valkey"], signal.SIGSTOP)
        process.kill()
        process.wait()

    async def value() -> Any:
        async with embedded_redis(tmp_path) as url, client_of(url) as client:
            return await client.get("key")

    try:
        with (tmp_path / "valkey" / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        successor = asyncio.create_task(value())
        # Long enough to find the lock taken, but nothing depends on it.
        await asyncio.sleep(0.1)
    finally:
        os.kill(pids["valkey"], signal.SIGCONT)
    assert await successor == "of the service that was killed"
    assert not runs(pids["valkey"])


async def test_second_service_on_a_state_folder_is_refused_and_the_first_unharmed(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        with pytest.raises(AddressError, match=f"^QD_STATE_DIR: {tmp_path} is in use by process {os.getpid()} "):
            async with embedded_redis(tmp_path):
                pass
        assert await client.ping()


async def test_socket_of_a_state_folder_with_a_long_path_is_in_a_private_folder_elsewhere(
    tmp_path: Path,
) -> None:
    state_dir = tmp_path / ("x" * 100)
    async with embedded_redis(state_dir) as url, client_of(url) as client:
        path = Path(url.removeprefix("unix://"))
        assert state_dir not in path.parents
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        await client.set("key", "kept")
    assert not path.parent.exists()
    async with embedded_redis(state_dir) as url, client_of(url) as client:
        assert await client.get("key") == "kept"


async def test_path_may_have_any_characters_and_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What URLs, Valkey's configuration and glob patterns would take for something else.
    monkeypatch.chdir(tmp_path)
    state_dir = Path("a \"'%2f#é[?*\\")
    async with embedded_redis(state_dir) as url, client_of(url) as client:
        assert (state_dir / "valkey" / "valkey.sock").is_socket()
        assert await client.config_get("port", "appendonly") == {"port": "0", "appendonly": "yes"}
        await client.set("key", "kept")
    assert append_only_file(state_dir).read_bytes().endswith(b"kept\r\n")


def append_only_file(state_dir: Path) -> Path:
    (path,) = (state_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    return path


async def test_append_only_file_that_ends_in_the_middle_of_a_command_is_loaded_up_to_it(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        await client.set("whole", "1")
        await client.set("cut", "2")
    path = append_only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        assert await client.mget("whole", "cut") == ["1", None]


async def test_valkey_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url, client_of(url) as client:
        await client.set("key", "value")
    path = append_only_file(tmp_path)
    path.write_bytes(b"broken\n" + path.read_bytes())
    log = tmp_path / "valkey" / "valkey.log"
    with pytest.raises(StartupError) as info:
        async with embedded_redis(tmp_path):
            pass
    assert str(info.value).startswith(f"Valkey ended with exit code 1; {log} ends: ")
    assert "Bad file format reading the append only file" in str(info.value)
    assert "\n" not in str(info.value)
    assert "Ready to accept connections" not in str(info.value)


async def test_valkey_that_is_loading_is_waited_for(tmp_path: Path) -> None:
    replies = [b"-LOADING Valkey is loading the dataset in memory\r\n", b"", b"+PONG\r\n"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"PING\r\n"
        writer.write(replies.pop(0))
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "socket")
    async with server:
        await _until_ready(Child("valkey", FOREVER), tmp_path / "socket")
    assert replies == []


async def test_state_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AddressError, match=f"^QD_STATE_DIR: cannot write {tmp_path}/file/valkey: Not a directory$"):
        async with embedded_redis(tmp_path / "file"):
            pass
    (tmp_path / "valkey" / "valkey.log").mkdir(parents=True)
    with pytest.raises(AddressError, match=f"^QD_STATE_DIR: cannot write {tmp_path}/valkey/valkey.log: Is a dir"):
        async with embedded_redis(tmp_path):
            pass
