"""quafu.com.cn, through quafu-sdk as it is: its calls block, so each runs in a thread.

The SDK draws the name of a submission (`client_ref`) itself; a transport of ours, for which it has a place, puts the
token of `submit` there, so that a repeated submission finds the first job. Address and token are always passed, so
that it reads no saved login, opens no browser and heeds none of its environment variables.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, TypeVar

import quafu
from quafu import config, credentials, transport
from quafu import errors as sdk

from models.device import Device
from models.native import to_native
from models.qasm import to_physical_qasm2, to_qasm2
from service.errors import SettingsError
from service.providers.answers import shown
from service.providers.base import (
    Health,
    JobState,
    Limits,
    MalformedAnswerError,
    Outcome,
    Program,
    RejectedError,
)
from service.providers.quafu_answers import device_of, error_of, health_of, limits_of, outcome_of, state_of

T = TypeVar("T")

_THREADS = 8
_LIMITS_SECONDS = 600.0
# What the SDK lets through when it parses an answer of another form than it expects.
_PARSING = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_JOB_ID = re.compile(r"[\w.:-]{1,128}")


class QuafuProvider:
    """Runs programs on one device of the platform.

    Args:
        url: Scheme and host; None is the platform's own. Plain http only on a loopback address.
        token: An API key.
        device: As the platform calls it.
        timeout_seconds: How long a call may go without an answer; the SDK repeats requests meanwhile.
        submit_timeout_seconds: The same for `submit`, which waits while the platform checks the circuits.

    Raises:
        SettingsError: If the SDK takes the url or the token for impossible.
    """

    repeatable = True

    def __init__(
        self,
        url: str | None,
        token: str,
        device: str,
        *,
        timeout_seconds: float = 30.0,
        submit_timeout_seconds: float = 60.0,
    ) -> None:
        # Its messages are quoted in ours; a saved setting of some user could turn them Chinese.
        quafu.set_language("en")
        try:
            self._url: str = config.check_base_url(quafu.DEFAULT_BASE_URL if url is None else url)
        except quafu.QuafuError as exc:
            raise SettingsError(f"QD_QUAFU_URL: {exc}") from exc
        try:
            self._token: str = credentials.check_token(token)
        except quafu.QuafuError as exc:
            raise SettingsError(f"QD_QUAFU_TOKEN: {exc}") from exc
        self._device = device
        self._timeout_seconds = timeout_seconds
        self._submit_timeout_seconds = submit_timeout_seconds
        self.submit_seconds = submit_timeout_seconds
        self._http = transport.HTTPTransport()
        self._threads = ThreadPoolExecutor(_THREADS, "quafu")
        self._closed = threading.Event()
        self._limits: tuple[float, Limits] | None = None
        self._calibration: Device | None = None

    async def limits(self) -> Limits:
        """The limits of the device's metadata, at most ten minutes old."""
        if self._limits is None or self._limits[0] < monotonic():
            metadata = await self._call(lambda client: client.metadata(self._device))
            self._limits = (monotonic() + _LIMITS_SECONDS, limits_of(metadata))
        return self._limits[1]

    async def device(self) -> Device | None:
        """The current calibration; fetched when the device's `calibration_id` is another."""

        def ask(client: Any) -> Device | None:
            current = client.device(self._device).calibration_id
            if self._calibration is not None and self._calibration.calibration_id == current:
                return self._calibration
            try:
                payload = client.device_calibration(self._device).raw
            except quafu.BadRequest as exc:
                if exc.status == 404:
                    return None
                raise
            return device_of(self._device, payload)

        self._calibration = await self._call(ask)
        return self._calibration

    async def health(self) -> Health:
        """Asks for the account, the device and the quota of chips."""

        def ask(client: Any) -> Health:
            return health_of(client.whoami(), client.device(self._device).raw, client.stats(days=1))

        return await self._call(ask)

    async def submit(self, programs: Sequence[Program], token: str) -> str:
        """Submit programs as one job; on their chains, not compiled, if each has one."""
        physical = all(program.chain is not None for program in programs)
        circuits = await self._in_thread(lambda: [{"qasm": _qasm(p, physical), "shots": p.shots} for p in programs])

        def send(client: Any) -> str:
            job = client.submit(
                circuits,
                self._device,
                shots=programs[0].shots,
                compiler="none" if physical else "qiskit",
                name=f"qd-{token}",
            )
            if not _JOB_ID.fullmatch(job.id):
                raise MalformedAnswerError(f"the job's id is {shown(job.id)}, expected letters and digits")
            return str(job.id)

        try:
            return await self._call(send, token)
        except RejectedError:
            # Perhaps for limits that are new.
            self._limits = None
            raise

    async def status(self, job_id: str) -> JobState:
        """The platform's word in ours; a job with failures among its tasks has ended too."""
        return state_of(await self._call(lambda client: quafu.Job(client, job_id).status()))

    async def result(self, job_id: str, programs: Sequence[Program]) -> list[Outcome]:
        """The outcome of every task of a job that has ended."""

        def ask(client: Any) -> list[Outcome]:
            job = client.job(job_id)
            if job.n_tasks != len(programs):
                raise MalformedAnswerError(f"the job has {shown(job.n_tasks)} tasks, expected {len(programs)}")
            results = job.results(timeout=self._timeout_seconds)
            return [outcome_of(*pair, index) for index, pair in enumerate(zip(results, programs, strict=True))]

        return await self._call(ask)

    async def cancel(self, job_id: str) -> None:
        """Cancel the tasks that can still be cancelled."""

        def ask(client: Any) -> None:
            try:
                quafu.Job(client, job_id).cancel()
            except sdk.NotCancellable:
                # It ran; that is what a late cancel finds.
                return

        await self._call(ask)

    async def close(self) -> None:
        """Send nothing more; a request on its way is left to its thread."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, work: Callable[[Any], T], client_ref: str | None = None) -> T:
        return await self._in_thread(lambda: self._work(work, client_ref))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _work(self, work: Callable[[Any], T], client_ref: str | None) -> T:
        """What work does with a client of its own, its errors turned into ours."""
        seconds = self._timeout_seconds if client_ref is None else self._submit_timeout_seconds
        own = _Transport(self._http, self._token, seconds, self._closed, client_ref)
        client = quafu.Client(api_key=self._token, base_url=self._url, _transport=own)
        try:
            return work(client)
        except quafu.QuafuError as exc:
            raise error_of(exc) from exc
        except _PARSING as exc:
            raise MalformedAnswerError(f"quafu-sdk cannot read the platform's answer: {exc!r}") from exc


class _Transport:
    """What the SDK sends the requests of one call through.

    Args:
        http: Sends them.
        token: Erased from every answer, so that no message can quote it.
        timeout_seconds: How long to go without an answer; a 5xx is none.
        closed: Set when nothing more is to be sent.
        client_ref: The name of the submission, if the call is one.
    """

    def __init__(
        self, http: Any, token: str, timeout_seconds: float, closed: threading.Event, client_ref: str | None
    ) -> None:
        self._http = http
        self._token = token
        self._timeout_seconds = timeout_seconds
        self._closed = closed
        self._client_ref = client_ref
        self._until = monotonic() + timeout_seconds

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        connect_timeout: float,
        read_timeout: float,
    ) -> Any:
        """Called by the SDK, for every attempt."""
        left = self._until - monotonic()
        # Unlike `ServerUnavailable`, this error is not answered with another attempt.
        if self._closed.is_set():
            raise quafu.Timeout("the provider was closed meanwhile")
        if left <= 0:
            raise quafu.Timeout(f"no answer within {self._timeout_seconds:g} s")
        if body is not None and self._client_ref is not None:
            body = json.dumps(json.loads(body) | {"client_ref": self._client_ref}).encode()
        answer = self._http.request(method, url, headers, body, min(connect_timeout, left), min(read_timeout, left))
        if answer.status < 500:
            self._until = monotonic() + self._timeout_seconds
        hidden = {name: value.replace(self._token, "***") for name, value in answer.headers.items()}
        return transport.Response(answer.status, hidden, answer.body.replace(self._token.encode(), b"***"))


def _qasm(program: Program, physical: bool) -> str:
    """A program measured c[i] <- its qubit i in ascending order, as chips demand.

    Args:
        physical: Whether to write it on its chain, in the chip's gates, as a circuit that is not compiled must be.
    """
    if not physical or program.chain is None:
        return to_qasm2(program.circuit)
    at = program.chain
    return to_physical_qasm2(to_native(program.circuit), at, max(at) + 1, range(len(at)))
