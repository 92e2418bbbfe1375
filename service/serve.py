"""`qdserve serve`: listens, serves the app, and runs beside it what hardware needs where nothing else provides it."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import uvicorn
from pydantic import SecretStr

from service.app import create_app
from service.children import Children
from service.embedded import embedded_redis
from service.errors import AddressError
from service.providers.make import make_provider
from service.settings import Settings
from service.state import AppState

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ServiceError: If it cannot start.
        StudentError: If a bundle must not be served.
    """
    # The address is taken before the bundles are loaded: one that is in use is known at once.
    with _listener(settings.host, settings.port) as listener:
        async with _hardware(settings) as complete:
            await _listen_and_serve(listener, complete)


async def _listen_and_serve(listener: socket.socket, settings: Settings) -> None:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        # Run here and not by uvicorn, so that an error of it arrives as what it is.
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_grace_seconds,
    )
    url = _url(settings.host, listener.getsockname()[1])
    async with app.router.lifespan_context(app):
        _listen(listener, settings)
        with _address_file(settings.state_dir, url):
            await _Server(config, app.state.parts, url).serve([listener])


@asynccontextmanager
async def _hardware(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with a Redis to use, if there is one: the one given, or one of our own with a worker beside it.

    Without a token the worker speaks to the emulator, which needs MindQuantum.
    """
    emulated = not settings.has_token and settings.quafu_url is None
    if settings.redis_url is not None or not settings.embedded:
        yield settings
    elif emulated and find_spec("mindquantum") is None:
        logger.warning(
            "no backend baihua: set QD_QUAFU_TOKEN, or use Python 3.11, for which there is mindquantum, which the "
            "emulator runs on"
        )
        yield settings
    else:
        async with embedded_redis(settings.state_dir) as redis_url, Children() as children:
            own = {"QD_REDIS_URL": redis_url}
            if not emulated:
                # What the worker would fail on again and again is better said once, here.
                await make_provider(
                    settings.quafu_provider, settings.quafu_url, settings.token(), settings.quafu_device
                ).close()
            else:
                port = _free_port()
                own |= {"QD_QUAFU_URL": f"http://{_LOOPBACK}:{port}", "QD_QUAFU_TOKEN": f"qf_{secrets.token_hex(16)}"}
                state = settings.state_dir / "emulator.sqlite"
                command = _command("emulator", "--port", str(port), "--state", str(state))
                await children.start("emulator", command, os.environ | own)
            await children.start("worker", _command("worker"), os.environ | own)
            yield settings.model_copy(
                update={"redis_url": SecretStr(redis_url), "quafu_url": own.get("QD_QUAFU_URL", settings.quafu_url)}
            )


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service.cli", *arguments]


def _free_port() -> int:
    """A port that nobody listens on; the emulator keeps it when it is started again."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


class _Server(uvicorn.Server):
    """Says where it listens once it does; on a signal readiness turns first, and the exit code stays 0."""

    def __init__(self, config: uvicorn.Config, state: AppState, url: str) -> None:
        super().__init__(config)
        self._state = state
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(_welcome(self._url, self._state), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler also raises the signal again after the shutdown, which would end in -15 instead of 0.
        self._state.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it, every answer on a connection
        # that is kept open waits for the client's delayed acknowledgement, 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as exc:  # UnicodeError: a host name that IDNA cannot carry
        raise AddressError(f"cannot listen on {host} port {port}: {getattr(exc, 'strerror', None) or exc}") from exc
    return listener


def _listen(listener: socket.socket, settings: Settings) -> None:
    # With SO_REUSEADDR two services that start together can both bind; the second learns of the first only here.
    try:
        listener.listen()
    except OSError as exc:
        raise AddressError(f"cannot listen on {settings.host} port {settings.port}: {exc.strerror}") from exc


def _url(host: str, port: int) -> str:
    """A URL that reaches the listener from this machine."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


@contextmanager
def _address_file(folder: Path, url: str) -> Iterator[None]:
    """`serve.json` for as long as the service listens: how a script finds one that took a free port."""
    path = folder / "serve.json"
    content = json.dumps({"pid": os.getpid(), "url": url}) + "\n"
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


def _welcome(url: str, state: AppState) -> str:
    tasks = sorted(state.snapshot.bundles)
    classify = f"curl -s '{url}/classify/{tasks[0]}"
    body = """-H 'Content-Type: application/json' -d '{"inputs": "what a lovely day"}'"""
    on_hardware = f"\n  {classify}?backend=baihua&wait=30' {body}\n" if state.hardware else ""
    return f"""
Serving {", ".join(tasks)} on {url}. Try:

  {classify}' {body}
{on_hardware}
  {url}/docs      every endpoint, to read and to try
  {url}/tasks     labels, parameters and where each student came from
  {url}/jobs      what became of requests on hardware
  {url}/metrics   for Prometheus

Ctrl-C stops it.
"""
