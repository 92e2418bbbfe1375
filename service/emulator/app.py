"""The emulator as an app, and as a server of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from models.baihua import published
from service.emulator import control, quafu_api, sqc_api
from service.emulator.calibration import Calibrations
from service.emulator.chip import run_circuit
from service.emulator.config import EmulatorConfig
from service.emulator.faults import FaultMiddleware, Faults
from service.emulator.machine import Machine
from service.emulator.refusals import RefusedError
from service.emulator.sampling import ProcessSampler, Sampler
from service.emulator.sqc_api import BadTokenError
from service.emulator.store import Store
from service.errors import StartupError
from service.listening import listen, refused, url_of

_STOP_SECONDS = 1


def create_emulator(
    config: EmulatorConfig, sampler: Sampler | None = None, clock: Callable[[], float] = time.time
) -> FastAPI:
    """The app for a configuration; circuits run only within its lifespan.

    Args:
        sampler: Runs the circuits; the default needs MindQuantum.
        clock: Seconds since the epoch.

    Raises:
        StartupError: If MindQuantum is needed and not installed, or the state file cannot be used.
    """
    if sampler is None:
        if find_spec("mindquantum") is None:
            raise StartupError(
                "the emulator needs the package mindquantum==0.12.0, which has wheels for Python 3.11 and no newer one"
            )
        sampler = ProcessSampler(run_circuit)
    running = sampler
    store = Store(config.state)
    faults = Faults()
    calibrations = Calibrations(
        store,
        published(),
        name=config.name,
        interval_seconds=config.recalibrate_seconds,
        seed=config.seed,
    )
    machine = Machine(config, store, calibrations, running, faults, clock)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await running.start()
        work = asyncio.create_task(machine.run())
        try:
            yield
        finally:
            work.cancel()
            await running.close()
            with suppress(asyncio.CancelledError):
                await work
            store.close()

    app = FastAPI(
        title="Baihua, emulated",
        version=version("qd-students"),
        lifespan=lifespan,
        middleware=[Middleware(FaultMiddleware, faults=faults)],
        redirect_slashes=False,
        openapi_url=None,
    )
    app.state.machine = machine
    app.state.faults = faults
    for module in (quafu_api, sqc_api, control):
        app.include_router(module.router)

    @app.exception_handler(RefusedError)
    async def _(request: Request, exc: RefusedError) -> JSONResponse:
        headers = {}
        if wait := exc.variables.get("wait_s"):
            headers["Retry-After"] = str(wait)
        return JSONResponse(exc.to_json(), exc.status, headers)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, exc: RequestValidationError) -> JSONResponse:
        first = exc.errors()[0]
        refusal = RefusedError("invalid_request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        return JSONResponse(refusal.to_json(), refusal.status)

    @app.exception_handler(BadTokenError)
    async def _(request: Request, exc: BadTokenError) -> JSONResponse:
        return JSONResponse({"detail": "the token is missing, wrong or expired"}, 401)

    return app


def run(
    config: EmulatorConfig, port: int, ready: Callable[[str], None] | None = None, sampler: Sampler | None = None
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        port: 0 takes a free one.
        ready: Called with the URL once it listens.
        sampler: As `create_emulator` takes it.

    Raises:
        AddressError: If the address is taken.
        StartupError: As `create_emulator` does.
    """
    app = create_emulator(config, sampler)
    with refused(f"cannot listen on {config.host} port {port}"):
        # `localhost` is 127.0.0.1, whatever else it resolves to.
        listener = listen(config.host, port, socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    with listener:
        url = url_of(config.host, listener.getsockname()[1])
        server = _Server(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                # A request that hangs on purpose does not hold up the end.
                timeout_graceful_shutdown=_STOP_SECONDS,
            ),
            url,
            ready,
        )
        asyncio.run(server.serve([listener]))


class _Server(uvicorn.Server):
    """Says where it listens once it does; a signal ends it with exit code 0."""

    def __init__(self, config: uvicorn.Config, url: str, ready: Callable[[str], None] | None) -> None:
        super().__init__(config)
        self._url = url
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None:
            self._ready(self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler also raises the signal again after the shutdown, which would end in -15 instead of 0.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
