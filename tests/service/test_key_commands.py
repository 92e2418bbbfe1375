"""`qdserve keys` in processes of their own, on a given Redis and on the embedded one."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from processes import COMMAND, ROOT, Valkey, environment, serving, until
from redis.asyncio import Redis

from service.control.audit import Entry, Ledger
from service.control.commands import expiry
from service.control.keys import Key, KeyRing, KeyStore, Scope
from service.embedded import embedded_redis, reach_redis
from service.errors import AddressError, CommandError


def keys(tmp_path: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = environment(tmp_path / "bundles", tmp_path / "state", **settings)
    return subprocess.run([*COMMAND, "keys", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def made(tmp_path: Path, *arguments: str, **settings: str) -> str:
    """A new key, the only thing on stdout."""
    run = keys(tmp_path, "create", *arguments, **settings)
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"qd_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n", run.stdout)
    assert run.stdout.strip() not in run.stderr
    return run.stdout.strip()


def refusal(tmp_path: Path, *arguments: str, **settings: str) -> str:
    """The one line with which a command that cannot do what it was asked to ends."""
    run = keys(tmp_path, *arguments, **settings)
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    return line


def stored(url: str) -> list[Key]:
    async def read() -> list[Key]:
        async with Redis.from_url(url, decode_responses=True) as redis:
            return await KeyStore(redis).all()

    return asyncio.run(read())


async def audit(url: str) -> list[Entry]:
    async with Redis.from_url(url, decode_responses=True) as redis:
        return await Ledger(redis).entries(10)


def test_key_is_made_listed_and_revoked(tmp_path: Path, valkey: Valkey) -> None:
    env = {"QD_REDIS_URL": valkey.url}
    options = ["--scope", "hardware", "--scope", "classify", "--expires", "30d", "--requests-per-minute", "7"]
    shown = made(tmp_path, "alice's laptop", *options, "--shots-per-day", "2048", **env)
    (key,) = stored(valkey.url)
    assert key.name == "alice's laptop"
    assert key.scopes == (Scope.CLASSIFY, Scope.HARDWARE)
    assert (key.requests_per_minute, key.shots_per_day) == (7, 2048)
    assert key.expires_at == pytest.approx(key.created_at + 30 * 86_400, abs=60)
    ring = KeyRing(exposed=True, allow_anonymous=False)
    ring.replace([key])
    assert ring.caller(f"Bearer {shown}").key == key.id

    made(tmp_path, "ops", "--scope", "admin", "--requests-per-minute", "0", **env)
    listed = keys(tmp_path, "list", **env)
    heading, alice, ops = listed.stdout.splitlines()
    assert heading.split() == ["ID", "NAME", "SCOPES", "CREATED", "EXPIRES", "STATE", "REQUESTS/MIN", "SHOTS/DAY"]
    in_columns = [cell.strip() for cell in re.split(r"  +", alice)]
    assert in_columns[:3] == [key.id, "alice's laptop", "classify,hardware"]
    assert in_columns[5:] == ["active", "7", "2048"]
    assert re.split(r"  +", ops)[4:] == ["never", "active", "any", "1024000"]
    for secret in (shown.rpartition("_")[2], key.sha256):
        assert secret not in listed.stdout + listed.stderr

    revoked = keys(tmp_path, "revoke", key.id, **env)
    assert (revoked.returncode, revoked.stdout) == (0, "")
    assert revoked.stderr.startswith(f"Key {key.id} (alice's laptop) is revoked since ")
    assert "revoked" in keys(tmp_path, "list", **env).stdout.splitlines()[1]
    assert not (tmp_path / "state").exists()

    entries = asyncio.run(audit(valkey.url))
    assert [(entry.action, entry.by, entry.after["key"]["name"]) for entry in entries] == [
        ("revoke-key", "qdserve", "alice's laptop"),
        ("create-key", "qdserve", "ops"),
        ("create-key", "qdserve", "alice's laptop"),
    ]
    assert key.sha256 not in repr(entries)


def test_first_key_says_that_the_service_is_open_no_longer(tmp_path: Path, valkey: Valkey) -> None:
    says = [
        "from now on the service asks"
        in keys(tmp_path, "create", "a", "--scope", "admin", QD_REDIS_URL=valkey.url).stderr
        for _ in range(2)
    ]
    assert says == [True, False]


def test_budget_that_no_circuit_fits_into_is_said(tmp_path: Path, valkey: Valkey) -> None:
    for shots, is_said in (("10239", True), ("10240", False), ("0", False)):
        run = keys(tmp_path, "create", "a", "--scope", "hardware", "--shots-per-day", shots, QD_REDIS_URL=valkey.url)
        assert run.returncode == 0
        said = f"\nNot even one circuit of QD_SHOTS (10240) fits into its {shots} shots a day."
        assert (said in run.stderr) == is_said


def test_what_is_wrong_is_said_in_one_line_and_nothing_is_made(tmp_path: Path, valkey: Valkey) -> None:
    env = {"QD_REDIS_URL": valkey.url}
    scope = ["--scope", "classify"]
    for arguments, expected in (
        (["a", "--scope", "root"], "--scope is 'root', expected one of classify, hardware, admin"),
        (["a", *scope, "--expires", "soon"], "--expires is 'soon', expected a period such as 30d"),
        (["a", *scope, "--expires", "2020-01-01"], "--expires is '2020-01-01', which is over already"),
        (["a\nb", *scope], "NAME is 'a\\nb', expected 1 to 64 printable characters"),
        (["a", *scope, "--shots-per-day", "-1"], "--shots-per-day is -1, expected at least 0"),
    ):
        assert refusal(tmp_path, "create", *arguments, **env).startswith(f"qdserve: {expected}")
    assert refusal(tmp_path, "revoke", "0badc0de", **env).startswith("qdserve: there is no key '0badc0de'")
    assert stored(valkey.url) == []


def test_redis_that_is_away_is_said_in_one_line(tmp_path: Path) -> None:
    env = {"QD_REDIS_URL": "redis://:a-password@127.0.0.1:1"}
    for arguments in (["create", "a", "--scope", "admin"], ["list"], ["revoke", "0badc0de"]):
        line = refusal(tmp_path, *arguments, **env)
        assert line.startswith("qdserve: Redis, which holds the keys, does not answer: ")
        assert "a-password" not in line
    assert "set QD_REDIS_URL" in refusal(tmp_path, "list", QD_EMBEDDED="false")


def test_without_a_redis_the_embedded_one_runs_for_the_command(tmp_path: Path) -> None:
    run = keys(tmp_path, "create", "a", "--scope", "classify", QD_EMBEDDED="true")
    assert f"\nIt is kept in {tmp_path / 'state'} (QD_STATE_DIR).\n" in run.stderr
    listed = keys(tmp_path, "list", QD_EMBEDDED="true").stdout
    assert listed.splitlines()[1].startswith(run.stdout.split("_")[1])
    assert not (tmp_path / "state" / "valkey" / "valkey.sock").exists()


def test_where_no_service_ever_was_nothing_is_listed_revoked_or_left_behind(tmp_path: Path) -> None:
    # As somebody sees it who is in another folder than the service.
    state_dir = os.path.relpath(tmp_path / "state", ROOT)
    for arguments in (["list"], ["revoke", "0badc0de"]):
        line = refusal(tmp_path, *arguments, QD_EMBEDDED="true", QD_STATE_DIR=state_dir)
        assert line.startswith(f"qdserve: no service has kept anything in {ROOT / state_dir}; set QD_STATE_DIR ")
    assert list(tmp_path.iterdir()) == []


def test_service_without_redis_has_no_keys(tmp_path: Path, bundles_dir: Path) -> None:
    env = {"QD_EMBEDDED": "true", "QD_STATE_DIR": str(tmp_path)}
    with serving(bundles_dir, tmp_path):
        for arguments in (["create", "a", "--scope", "admin"], ["list"], ["revoke", "0badc0de"]):
            line = refusal(tmp_path, *arguments, **env)
            assert line.startswith(f"qdserve: the service in {tmp_path} has no Redis of its own, ")
            assert line.endswith("; set QD_REDIS_URL")
        assert not (tmp_path / "valkey").exists()
    # It was killed, and left its file: there may be a key before the next start.
    assert (tmp_path / "serve.json").exists()
    made(tmp_path, "a", "--scope", "admin", **env)


@pytest.mark.anyio
async def test_valkey_of_a_service_that_hangs_is_said_to(tmp_path: Path) -> None:
    async with embedded_redis(tmp_path) as url:
        async with Redis.from_url(url) as client:
            pid = (await client.info("server"))["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            said = rf"^the Valkey of the service in {tmp_path} \(process {os.getpid()}\) does not answer$"
            with pytest.raises(AddressError, match=said):
                async with reach_redis(tmp_path, may_begin=True):
                    pass
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["state", "x" * 100], ids=["short path", "path too long for a socket"])
async def test_valkey_of_a_running_service_is_reached_and_not_started_again(tmp_path: Path, name: str) -> None:
    async with embedded_redis(tmp_path / name) as url:
        async with reach_redis(tmp_path / name, may_begin=False) as reached, Redis.from_url(reached) as client:
            assert reached == url
            assert await client.ping()
        # It is the service's, and goes on.
        async with Redis.from_url(url) as client:
            assert await client.ping()
    assert list((tmp_path / name / "valkey").glob("*.sock")) == []


@pytest.mark.anyio
async def test_link_to_the_socket_of_a_valkey_that_was_killed_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    (folder / "valkey").mkdir(parents=True)
    (folder / "valkey" / "valkey.sock").symlink_to(tmp_path / "gone" / "valkey.sock")
    async with reach_redis(folder, may_begin=False) as url, Redis.from_url(url) as client:
        assert await client.ping()
        assert stat.S_ISLNK((folder / "valkey" / "valkey.sock").lstat().st_mode)


def test_key_counts_in_a_running_service_at_once_and_its_end_too(
    tmp_path: Path, bundles_dir: Path, valkey: Valkey
) -> None:
    env = {"QD_REDIS_URL": valkey.url}
    with serving(bundles_dir, tmp_path, **env) as (_, url):
        assert httpx.get(f"{url}/tasks").status_code == 200
        headers = {"Authorization": f"Bearer {made(tmp_path, 'a', '--scope', 'classify', **env)}"}
        until(lambda: httpx.get(f"{url}/tasks").status_code == 401, 5)
        assert httpx.get(f"{url}/tasks", headers=headers).status_code == 200
        keys(tmp_path, "revoke", headers["Authorization"].split("_")[1], **env)
        until(lambda: httpx.get(f"{url}/tasks", headers=headers).status_code == 401, 5)
        assert httpx.get(f"{url}/tasks", headers=headers).json()["reason"] == "revoked"


def test_expiry_is_a_period_from_now_or_a_time() -> None:
    now = datetime.now(UTC).timestamp()
    assert expiry("12h") == pytest.approx(now + 43_200, abs=60)
    assert expiry("30d") == pytest.approx(now + 30 * 86_400, abs=60)
    assert expiry("2999-01-31") == datetime(2999, 1, 31, tzinfo=UTC).timestamp()
    assert expiry("2999-01-31T12:00") == datetime(2999, 1, 31, 12, tzinfo=UTC).timestamp()
    assert expiry("2999-01-31T12:00+02:00") == datetime(2999, 1, 31, 10, tzinfo=UTC).timestamp()
    assert expiry((datetime.now(UTC) + timedelta(minutes=5)).isoformat()) > now


@pytest.mark.parametrize(
    "text", ["", "0d", "-1d", "30", "30y", "9999999d", "999999d9", "2020-01-01", "2030-02-30", "9999-12-31T23:59-23:00"]
)
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(CommandError, match="--expires is"):
        expiry(text)
