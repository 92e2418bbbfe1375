"""Replicas of the service on a Redis that a test may stop, and waiting for what they follow."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr
from serving import client_of, running

from service.hardware.connection import connect
from service.settings import Settings

_devices = itertools.count()


def replica_settings(bundles_dir: Path, redis_url: str, **overrides: Any) -> Settings:
    """Settings of a service with hardware; its device is no other test's."""
    return Settings(
        bundles_dir=bundles_dir,
        threads=1,
        redis_url=SecretStr(redis_url),
        quafu_url="http://127.0.0.1:1",
        quafu_device=f"operated-device-{next(_devices)}",
        **overrides,
    )


@asynccontextmanager
async def replica(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    async with running(settings) as app, client_of(app) as client:
        yield app, client


async def emptied(url: str) -> str:
    """The URL of a Redis that held nothing a moment ago: control data is one for all that use it."""
    redis = connect(url)
    await redis.flushdb()
    await redis.aclose()
    return url


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


async def switch(client: httpx.AsyncClient, task: str, backend: str, **fields: Any) -> httpx.Response:
    return await client.put(f"/admin/tasks/{task}/backend", json={"backend": backend, **fields})


async def backend_of(client: httpx.AsyncClient, task: str) -> dict[str, Any]:
    """What a replica says of a task's default backend."""
    response = await client.get(f"/admin/tasks/{task}/backend")
    assert response.status_code == 200, response.text
    return dict(response.json())
