"""Faults on demand: rules say which requests go wrong and how.

Faults of the wire act here, before or after the app; faults of content are taken by whoever makes the content.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SQC_PREFIX = "/task/"
OFFLINE = "offline"


class Operation(StrEnum):
    """What a request asks for, in either protocol."""

    SUBMIT = "submit"
    STATUS = "status"
    RESULT = "result"
    CANCEL = "cancel"
    DEVICE = "device"
    """Devices, calibrations, limits and queue lengths."""
    ACCOUNT = "account"
    """Whose token it is, and the quota."""
    ANY = "any"


class Fault(StrEnum):
    """What goes wrong."""

    HTTP_500 = "http_500"
    QUOTA_429 = "quota_429"
    """With `retry_after` seconds and `resets_at`, if the rule has them."""
    OFFLINE_409 = "offline_409"
    """On `device` the answer is good and says that the device is offline."""
    HANG = "hang"
    """The request is carried out and answered `seconds` later, even if the client has gone by then."""
    DROP = "drop"
    """The connection closes and nothing is done."""
    DROP_AFTER = "drop_after"
    """It is done, and the connection closes without the answer."""
    NOT_JSON = "not_json"
    """A page of HTML with status 200, and nothing is done."""
    MALFORMED = "malformed"
    """A result of the wrong form, as `form` says."""
    PARTIAL_RESULT = "partial_result"
    """A result that holds half of the bitstrings, and so fewer shots than were asked for."""
    FAIL_JOB = "fail_job"
    """Every task of the job that is submitted will fail."""
    PARTIAL_JOB = "partial_job"
    """The last task of the job that is submitted will fail."""


_OF_RESULT = frozenset({Fault.MALFORMED, Fault.PARTIAL_RESULT})
_OF_SUBMIT = frozenset({Fault.FAIL_JOB, Fault.PARTIAL_JOB})
_OF_WIRE = frozenset(Fault) - _OF_RESULT - _OF_SUBMIT

# The first that matches says what a request asks for.
_OPERATIONS: Sequence[tuple[str, re.Pattern[str], Operation]] = tuple(
    (method, re.compile(pattern), operation)
    for method, pattern, operation in [
        ("POST", r"/api/v1/jobs", Operation.SUBMIT),
        ("POST", r"/task/run/", Operation.SUBMIT),
        ("GET", r"/task/status/0", Operation.DEVICE),
        ("GET", r"/api/v1/jobs/[^/]+/status|/task/status/[^/]+", Operation.STATUS),
        ("GET", r"/api/v1/jobs/[^/]+/(tasks/[^/]+|results)|/task/result/[^/]+", Operation.RESULT),
        ("POST", r"/api/v1/jobs/[^/]+/cancel", Operation.CANCEL),
        ("GET", r"/task/cancel/[^/]+", Operation.CANCEL),
        ("GET", r"/api/v1/(devices|calibrations|backends)(/.*)?", Operation.DEVICE),
        ("GET", r"/api/v1/(auth|stats)/me|/task/verify", Operation.ACCOUNT),
    ]
)


class Rule(BaseModel):
    """One fault.

    Attributes:
        on: The requests it meets.
        times: How many of them; null for all, until the rules are deleted.
        seconds: Of `hang`.
        retry_after: Seconds, of `quota_429`.
        resets_at: ISO 8601, of `quota_429`.
        form: Of `malformed`: `wrong_width` (each bitstring lacks a bit) or `no_counts`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: Operation
    fault: Fault
    times: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0
    retry_after: Annotated[int, Field(ge=0)] | None = None
    resets_at: str | None = None
    form: Literal["wrong_width", "no_counts"] = "wrong_width"

    @model_validator(mode="after")
    def _fault_fits_request(self) -> Self:
        for faults, operation in ((_OF_RESULT, Operation.RESULT), (_OF_SUBMIT, Operation.SUBMIT)):
            if self.fault in faults and self.on is not operation:
                raise ValueError(f"{self.fault} is on {self.on}, expected on {operation}")
        return self


class Faults:
    """The rules in force; the first that fits a request meets it."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    def take(self, operation: Operation, faults: frozenset[Fault]) -> Rule | None:
        """The rule that meets a request, counted as used; None if none does."""
        for position, rule in enumerate(self.rules):
            if rule.fault in faults and rule.on in (operation, Operation.ANY):
                if rule.times is not None:
                    left = rule.times - 1
                    self.rules[position : position + 1] = [rule.model_copy(update={"times": left})] if left else []
                return rule
        return None

    def take_of_result(self) -> Rule | None:
        """The fault of a result that is about to be answered."""
        return self.take(Operation.RESULT, _OF_RESULT)

    def doom(self, n_tasks: int) -> list[bool]:
        """Which tasks of a job that is about to be accepted are to fail."""
        rule = self.take(Operation.SUBMIT, _OF_SUBMIT)
        if rule is None:
            return [False] * n_tasks
        return [rule.fault is Fault.FAIL_JOB] * (n_tasks - 1) + [True]


class FaultMiddleware:
    """Carries out the faults of the wire."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _operation(scope) if scope["type"] == "http" else None
        rule = self._faults.take(operation, _OF_WIRE) if operation is not None else None
        if rule is None:
            await self._app(scope, receive, send)
            return
        # Once the client has gone the body can no longer be read; and a connection that closes on an unread one is
        # reset, which takes an answer with it.
        receive = _replay(await _whole(receive), receive)
        if rule.fault is Fault.HANG:
            await asyncio.sleep(rule.seconds)
            await self._app(scope, receive, send)
        elif rule.fault is Fault.DROP:
            await _drop(send)
        elif rule.fault is Fault.DROP_AFTER:
            await self._app(scope, receive, _nowhere)
            await _drop(send)
        elif rule.fault is Fault.OFFLINE_409 and operation is Operation.DEVICE:
            scope.setdefault("state", {})[OFFLINE] = True
            await self._app(scope, receive, send)
        else:
            await _answer(rule, scope["path"].startswith(SQC_PREFIX))(scope, receive, send)


def _operation(scope: Scope) -> Operation | None:
    for method, pattern, operation in _OPERATIONS:
        if scope["method"] == method and pattern.fullmatch(scope["path"]):
            return operation
    return None


async def _whole(receive: Receive) -> Message:
    """The request with its whole body, in one message."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return {"type": "http.request", "body": body, "more_body": False}


def _replay(request: Message, receive: Receive) -> Receive:
    messages = [request]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _drop(send: Send) -> None:
    """Announce a body that never comes: the server then closes the connection, which ASGI has no other way to ask."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


async def _nowhere(message: Message) -> None:
    pass


def _answer(rule: Rule, sqc: bool) -> Response:
    if rule.fault is Fault.NOT_JSON:
        return Response("<html><title>502 Bad Gateway</title></html>", media_type="text/html")
    if rule.fault is Fault.HTTP_500:
        return _refused(500, "internal", "fault injected: internal error", {}, sqc)
    if rule.fault is Fault.OFFLINE_409:
        return _refused(409, "runtime.deviceUnavailable", "fault injected: the device is offline", {}, sqc)
    variables: dict[str, Any] = {}
    if rule.resets_at is not None:
        variables["resets_at"] = rule.resets_at
    response = _refused(429, "runtime.quotaExhausted", "fault injected: the quota is used up", variables, sqc)
    if rule.retry_after is not None:
        response.headers["Retry-After"] = str(rule.retry_after)
    return response


def _refused(status: int, code: str, detail: str, variables: dict[str, Any], sqc: bool) -> Response:
    if sqc:
        return JSONResponse(detail, status)
    return JSONResponse({"error": detail, "code": code, "vars": variables}, status)
