"""`qdserve serve`: listens, serves the app, and runs beside it what hardware needs where nothing else provides it."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import uvicorn
from opentelemetry.trace import Tracer
from pydantic import SecretStr
from redis.exceptions import RedisError

from service.app import create_app
from service.children import Children
from service.control.keys import KeyState, KeyStore, is_exposed
from service.embedded import embedded_redis
from service.errors import AddressError, StartupError
from service.hardware.connection import connect
from service.listening import LOOPBACK, bind, free_ports, refused, url_of
from service.providers.make import make_provider
from service.settings import Settings
from service.state import AppState
from service.tracing import tracing

logger = logging.getLogger(__name__)


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ServiceError: If it cannot start.
        StudentError: If a bundle must not be served.
    """
    # The address is taken before the bundles are loaded: one that is in use is known at once.
    with refused(_refusal(settings)):
        listener = bind(settings.host, settings.port)
    with listener:
        async with _hardware(settings) as (complete, worker_metrics):
            await _require_keys(complete)
            with tracing(complete, "qd-service") as tracer:
                await _listen_and_serve(listener, complete, worker_metrics, tracer)


async def _require_keys(settings: Settings) -> None:
    """Do nothing if only those may come in that are let in.

    While Redis does not answer, it is not known whether there are keys; until it does, the app answers 503.

    Raises:
        StartupError: If other machines reach the service, and there is no key that opens it for them.
    """
    if settings.allow_anonymous or not is_exposed(settings.host):
        return
    refusal = f"other machines reach {settings.host}, and there are no API keys"
    if settings.redis_url is None:
        raise StartupError(f"{refusal}, as there is no Redis: set QD_REDIS_URL, or QD_ALLOW_ANONYMOUS=true")
    redis = connect(settings.redis_url.get_secret_value())
    try:
        if not any(key.state is KeyState.ACTIVE for key in await KeyStore(redis).all()):
            raise StartupError(
                f"{refusal}: make one with `qdserve keys create NAME --scope classify`, or set QD_ALLOW_ANONYMOUS=true"
            )
    except RedisError as exc:
        logger.warning("redis does not answer, so no key opens anything yet", extra={"fields": {"detail": str(exc)}})
    finally:
        await redis.aclose()


async def _listen_and_serve(
    listener: socket.socket, settings: Settings, worker_metrics: str | None, tracer: Tracer
) -> None:
    app = create_app(settings, tracer)
    config = uvicorn.Config(
        app,
        # Run here and not by uvicorn, so that an error of it arrives as what it is.
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_grace_seconds,
    )
    url = url_of(settings.host, listener.getsockname()[1])
    async with app.router.lifespan_context(app):
        _listen(listener, settings)
        addresses = {"url": url} | ({"worker_metrics": worker_metrics} if worker_metrics else {})
        with _address_file(settings.state_dir, addresses):
            await _Server(config, app.state.parts, addresses).serve([listener])


@asynccontextmanager
async def _hardware(settings: Settings) -> AsyncIterator[tuple[Settings, str | None]]:
    """The settings with a Redis to use, if there is one: the one given, or one of our own with a worker beside it.

    With them comes where that worker's metrics are. Without a token it speaks to the emulator, which needs
    MindQuantum.
    """
    emulated = not settings.has_token and settings.quafu_url is None
    if settings.redis_url is not None or not settings.embedded:
        yield settings, None
    elif emulated and find_spec("mindquantum") is None:
        logger.warning(
            "no backend baihua: set QD_QUAFU_TOKEN, or use Python 3.11, for which there is mindquantum, which the "
            "emulator runs on"
        )
        yield settings, None
    else:
        async with embedded_redis(settings.state_dir) as redis_url, Children() as children:
            emulator_port, free_port = free_ports(2)
            metrics_port = settings.worker_metrics_port or free_port
            own = {
                # The command line may stand in for values that are not allowed, which children would fail on.
                "QD_HOST": settings.host,
                "QD_PORT": str(settings.port),
                "QD_REDIS_URL": redis_url,
                "QD_WORKER_METRICS_PORT": str(metrics_port),
            }
            if not emulated:
                # What the worker would fail on again and again is better said once, here.
                await make_provider(
                    settings.quafu_provider, settings.quafu_url, settings.token(), settings.quafu_device
                ).close()
            else:
                own |= {
                    "QD_QUAFU_URL": url_of(LOOPBACK, emulator_port),
                    "QD_QUAFU_TOKEN": f"qf_{secrets.token_hex(16)}",
                }
                state = settings.state_dir / "emulator.sqlite"
                command = _command("emulator", "--port", str(emulator_port), "--state", str(state))
                await children.start("emulator", command, os.environ | own)
            await children.start("worker", _command("worker"), os.environ | own)
            update = {"redis_url": SecretStr(redis_url), "quafu_url": own.get("QD_QUAFU_URL", settings.quafu_url)}
            yield settings.model_copy(update=update), f"{url_of(settings.worker_metrics_host, metrics_port)}/metrics"


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service.cli", *arguments]


class _Server(uvicorn.Server):
    """Says where it listens once it does; on a signal readiness turns first, and the exit code stays 0."""

    def __init__(self, config: uvicorn.Config, state: AppState, addresses: Mapping[str, str]) -> None:
        super().__init__(config)
        self._state = state
        self._addresses = addresses

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(_welcome(self._addresses, self._state), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler also raises the signal again after the shutdown, which would end in -15 instead of 0.
        self._state.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _listen(listener: socket.socket, settings: Settings) -> None:
    # With SO_REUSEADDR two services that start together can both bind; the second learns of the first only here.
    with refused(_refusal(settings)):
        listener.listen()


def _refusal(settings: Settings) -> str:
    return f"cannot listen on {settings.host} port {settings.port}"


@contextmanager
def _address_file(folder: Path, addresses: Mapping[str, str]) -> Iterator[None]:
    """`serve.json` for as long as the service listens: how a script finds one that took a free port."""
    path = folder / "serve.json"
    content = json.dumps({"pid": os.getpid(), **addresses}) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    except OSError as exc:
        raise AddressError(f"QD_STATE_DIR: cannot write {path}: {exc.strerror}") from exc
    try:
        yield
    finally:
        # Another service on the same folder may have written its own by now.
        if path.is_file() and path.read_text() == content:
            path.unlink()


def _welcome(addresses: Mapping[str, str], state: AppState) -> str:
    url = addresses["url"]
    tasks = sorted(state.snapshot.bundles)
    classify = f"curl -s '{url}/classify/{tasks[0]}"
    body = """-H 'Content-Type: application/json' -d '{"inputs": "what a lovely day"}'"""
    on_hardware = f"\n  {classify}?backend=baihua&wait=30' {body}\n" if state.hardware else ""
    worker = addresses.get("worker_metrics")
    of_worker = f"\n  {worker}  its worker's" if worker else ""
    settings = state.settings
    anonymous = settings.allow_anonymous and is_exposed(settings.host)
    warning = "\nOther machines may classify without a key (QD_ALLOW_ANONYMOUS).\n" if anonymous else ""
    return f"""
Serving {", ".join(tasks)} on {url}. Try:

  {classify}' {body}
{on_hardware}
  {url}/          the console, to try both backends side by side
  {url}/docs      every endpoint, to read and to try
  {url}/tasks     labels, parameters and where each student came from
  {url}/jobs      what became of requests on hardware
  {url}/metrics   for Prometheus{of_worker}
{warning}
Ctrl-C stops it.
"""
