"""Who is let in by real services, on addresses that other machines reach and on this machine's own."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
from processes import COMMAND, ROOT, Valkey, environment, refused, serving, until
from redis.asyncio import Redis

from service.control.keys import KeyStore, Scope

EXPOSED = "0.0.0.0"
BODY = {"inputs": "what a lovely day"}
# A provider that is not there: its worker waits, and nothing needs MindQuantum.
EMBEDDED = {"QD_EMBEDDED": "true", "QD_QUAFU_URL": "http://127.0.0.1:1", "QD_QUAFU_TOKEN": "qf_test"}


def key(bundles_dir: Path, state_dir: Path, *scopes: str, **settings: str) -> dict[str, str]:
    """The header with a new key."""
    arguments = [part for scope in scopes for part in ("--scope", scope)]
    run = subprocess.run(
        [*COMMAND, "keys", "create", "a", *arguments],
        cwd=ROOT,
        env=environment(bundles_dir, state_dir, **settings),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return {"Authorization": f"Bearer {run.stdout.strip()}"}


def classify(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{url}/classify/emotion", json=BODY, headers=headers)


def test_service_that_other_machines_reach_does_not_start_without_keys(
    bundles_dir: Path, tmp_path: Path, valkey: Valkey
) -> None:
    with_redis = refused(bundles_dir, tmp_path, "--host", EXPOSED, QD_REDIS_URL=valkey.url)
    assert with_redis.startswith("qdserve: other machines reach 0.0.0.0, and there are no API keys: ")
    assert "`qdserve keys create NAME --scope classify`" in with_redis
    assert "QD_ALLOW_ANONYMOUS=true" in with_redis
    without = refused(bundles_dir, tmp_path, "--host", EXPOSED)
    assert "set QD_REDIS_URL, or QD_ALLOW_ANONYMOUS=true" in without
    assert not (tmp_path / "serve.json").exists()


def test_keys_that_open_nothing_do_not_count(bundles_dir: Path, tmp_path: Path, valkey: Valkey) -> None:
    async def make() -> None:
        async with Redis.from_url(valkey.url, decode_responses=True) as redis:
            store = KeyStore(redis)
            await store.create("expired", [Scope.CLASSIFY], expires_at=1.0)
            key, _ = await store.create("revoked", [Scope.CLASSIFY])
            await store.revoke(key.id)

    asyncio.run(make())
    assert "no API keys" in refused(bundles_dir, tmp_path, "--host", EXPOSED, QD_REDIS_URL=valkey.url)


def test_with_a_key_it_starts_and_lets_in_who_has_it(bundles_dir: Path, tmp_path: Path, valkey: Valkey) -> None:
    env = {"QD_REDIS_URL": valkey.url}
    headers = key(bundles_dir, tmp_path, "classify", **env)
    with serving(bundles_dir, tmp_path, QD_HOST=EXPOSED, **env) as (process, url):
        assert "without a key" not in process.stdout.read_text()
        assert classify(url).status_code == 401
        answer = classify(url, headers)
        assert answer.status_code == 200
        assert answer.headers["RateLimit-Policy"] == '"requests";q=600;w=60'
        assert httpx.get(f"{url}/livez").status_code == 200
        until(lambda: len([line for line in process.lines("request") if line["key"]]) == 1)
    secret = headers["Authorization"].rpartition("_")[2]
    assert secret not in process.stderr.read_text()


def test_key_that_may_only_classify_reaches_no_hardware(bundles_dir: Path, tmp_path: Path, valkey: Valkey) -> None:
    env = {"QD_REDIS_URL": valkey.url}
    headers = key(bundles_dir, tmp_path, "classify", **env)
    with serving(bundles_dir, tmp_path, **env) as (_, url):
        answer = httpx.post(f"{url}/classify/emotion?backend=baihua", json=BODY, headers=headers)
        assert answer.status_code == 403
        assert answer.json()["scope"] == "hardware"


def test_told_so_it_lets_everybody_classify_and_nobody_administer(bundles_dir: Path, tmp_path: Path) -> None:
    with serving(bundles_dir, tmp_path, QD_HOST=EXPOSED, QD_ALLOW_ANONYMOUS="true") as (process, url):
        assert "\n\nOther machines may classify without a key (" in process.stdout.read_text()
        assert classify(url).status_code == 200
        answer = httpx.post(f"{url}/admin/reload", json={})
        assert answer.status_code == 403
        assert answer.json()["scope"] == "admin"


def test_while_redis_is_away_it_starts_and_lets_nobody_in_until_it_knows_its_keys(
    bundles_dir: Path, tmp_path: Path, valkey: Valkey
) -> None:
    env = {"QD_REDIS_URL": valkey.url}
    headers = key(bundles_dir, tmp_path, "classify", **env)
    valkey.kill()
    with serving(bundles_dir, tmp_path, QD_HOST=EXPOSED, **env) as (_, url):
        for shown in (None, headers):
            answer = classify(url, shown)
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:qd:problem:store-unavailable"
            assert int(answer.headers["Retry-After"]) > 0
        valkey.start()
        until(lambda: classify(url).status_code == 401)
        assert classify(url, headers).status_code == 200
        # Keys that are known stay so.
        valkey.kill()
        until(lambda: "qd_redis_up 0.0" in httpx.get(f"{url}/metrics").text)
        assert classify(url).status_code == 401
        answer = classify(url, headers)
        assert answer.status_code == 200
        assert "RateLimit" in answer.headers


def test_embedded_redis_holds_keys_too_and_serve_tells_where_its_worker_answers(
    bundles_dir: Path, tmp_path: Path
) -> None:
    assert "no API keys" in refused(bundles_dir, tmp_path, QD_HOST=EXPOSED, **EMBEDDED)
    headers = key(bundles_dir, tmp_path, "classify", **EMBEDDED)
    with serving(bundles_dir, tmp_path, QD_HOST=EXPOSED, **EMBEDDED) as (process, url):
        assert classify(url).status_code == 401
        assert classify(url, headers).status_code == 200
        found: dict[str, Any] = json.loads((tmp_path / "serve.json").read_text())
        worker = found["worker_metrics"]
        assert httpx.URL(worker).host == "127.0.0.1"
        assert httpx.URL(worker).path == "/metrics"
        printed = process.stdout.read_text()
        assert f"  {worker}  " in printed
        assert f"  {url}/ " in printed
        until(lambda: _answers(worker))
        # A command finds the Valkey that runs.
        another = key(bundles_dir, tmp_path, "classify", **EMBEDDED)
        until(lambda: classify(url, another).status_code == 200, 5)


def test_children_take_the_port_of_the_command_line_for_that_of_the_environment(
    bundles_dir: Path, tmp_path: Path
) -> None:
    with serving(bundles_dir, tmp_path, "--port", "0", **EMBEDDED | {"QD_PORT": "abc"}) as (process, _):
        worker = json.loads((tmp_path / "serve.json").read_text())["worker_metrics"]
        until(lambda: _answers(worker) or process.lines("child ended"))
        assert process.lines("child ended") == []


def _answers(url: str) -> bool:
    try:
        return "qd_worker_steps" in httpx.get(url).text
    except httpx.TransportError:
        return False
