"""`qdserve`: the service on the command line.

Exit codes: 0 after a graceful stop, 2 if the service cannot start (one line on stderr says why), 130 if it is
interrupted before it is up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from models.errors import StudentError
from service.app import create_app
from service.errors import AddressError, ServiceError
from service.logs import configure_logging
from service.settings import Settings, load_settings
from service.state import AppState

_CANNOT_START = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    overrides = {name: value for name in ("host", "port") if (value := getattr(parsed, name)) is not None}
    try:
        settings = load_settings(**overrides)
        configure_logging(settings.log_level)
        asyncio.run(_serve(settings))
    except (ServiceError, StudentError) as exc:
        print(f"qdserve: {exc}", file=sys.stderr)
        return _CANNOT_START
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qdserve", description="Serve distilled quantum students over HTTP.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="answer HTTP requests",
        description="Answer HTTP requests. QD_* variables hold every other setting.",
    )
    serve.add_argument("--host", help="address to listen on (QD_HOST)")
    serve.add_argument("--port", help="port to listen on, 0 for a free one (QD_PORT)")
    return parser


async def _serve(settings: Settings) -> None:
    # The address is taken before the bundles are loaded: one that is in use is known at once.
    listener = _listener(settings.host, settings.port)
    with listener:
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


class _Server(uvicorn.Server):
    """Says where it listens once it does; on a signal readiness turns first, and the exit code stays 0."""

    def __init__(self, config: uvicorn.Config, state: AppState, url: str) -> None:
        super().__init__(config)
        self._state = state
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(_welcome(self._url, sorted(self._state.snapshot.bundles)), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler also raises the signal again after the shutdown, which would end in -15 instead of 0.
        self._state.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.socket(family)
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


def _welcome(url: str, tasks: list[str]) -> str:
    return f"""
Serving {", ".join(tasks)} on {url}. Try:

  curl -s {url}/classify/{tasks[0]} -H 'Content-Type: application/json' -d '{{"inputs": "what a lovely day"}}'

  {url}/docs      every endpoint, to read and to try
  {url}/tasks     labels, parameters and where each student came from
  {url}/metrics   for Prometheus

Ctrl-C stops it.
"""


if __name__ == "__main__":
    sys.exit(main())
