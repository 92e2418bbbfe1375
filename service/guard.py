"""What stands before the endpoints: the API key that they need, and the form of their body."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers

from service.control.keys import Caller, Scope
from service.errors import (
    BudgetExhaustedError,
    ForbiddenError,
    ProblemError,
    RateLimitedError,
    StoreUnavailableError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
)
from service.logs import request_facts
from service.metrics import Metrics
from service.state import AppState, State

# What any guarded endpoint may answer.
DENIALS: tuple[type[ProblemError], ...] = (
    UnauthenticatedError,
    ForbiddenError,
    RateLimitedError,
    StoreUnavailableError,
)

# A name that is longer is cut where it is shown.
_MAX_HOST = 64

# Only for the OpenAPI document, so that /docs can ask for a key; the header is read by the key ring.
_BEARER = HTTPBearer(
    scheme_name="key",
    bearerFormat="qd_<id>_<secret>",
    description="A key of `qdserve keys create`. None is needed where none was ever made.",
    auto_error=False,
)


@cache
def require(scope: Scope) -> Callable[..., AsyncIterator[Caller]]:
    """A dependency that lets only callers with a scope through, and is the caller.

    It answers 401, 403 or 429, and 503 while a key is needed and the keys are not known. Refusals that the endpoint
    raises itself are counted with its own.
    """

    async def guard(
        request: Request, state: State, bearer: Annotated[object, Security(_BEARER)]
    ) -> AsyncIterator[Caller]:
        try:
            caller = await _caller(request, state)
            caller.require(scope)
            yield caller
        except ProblemError as exc:
            _count(request, state.metrics, exc)
            raise

    return guard


def require_json(request: Request) -> None:
    """Refuse a body that is not declared as JSON.

    Raises:
        UnsupportedMediaTypeError: If it is declared as something else, or not at all.
    """
    found = request.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaTypeError(f"Content-Type is {found[:64]!r}, expected application/json")


async def admit(request: Request, state: AppState) -> None:
    """Ask who makes a request that no guard has seen, as its body could not even be read.

    Raises:
        ProblemError: If they must not come in, or come too often; counted.
    """
    try:
        await _caller(request, state)
    except ProblemError as exc:
        _count(request, state.metrics, exc)
        raise


async def _caller(request: Request, state: AppState) -> Caller:
    """Who makes the request; known, and counted, once, however many guards ask."""
    found: Caller | None = getattr(request.state, "caller", None)
    if found is None:
        found = state.keys.caller(request.headers.get("authorization"), foreign=_foreign(request.headers))
        request.state.caller = found
        facts = request_facts.get()
        if facts is not None:
            facts.key = found.key
        await state.limits.hit(found)
    return found


def _foreign(headers: Headers) -> str | None:
    """Why a request may come from elsewhere, in words; None if it was sent to an address, localhost or a dotless name.

    No web page elsewhere can have such a name. What a proxy passes on comes from others, whatever Host it says.
    """
    for header in ("Forwarded", "X-Forwarded-For"):
        if header in headers:
            return f"by its header {header} a proxy passed the request on"
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        if "." in name.removesuffix(".localhost"):
            return f"Host {name[:_MAX_HOST]!r} is neither an address nor localhost"
    return None


def _count(request: Request, metrics: Metrics, error: ProblemError) -> None:
    reason = _reason(error)
    # With two guards, the error passes both.
    if reason is not None and not getattr(request.state, "is_counted", False):
        request.state.is_counted = True
        facts = request_facts.get()
        if facts is not None:
            facts.is_denied = True
        metrics.denied.labels(reason).inc()


def _reason(error: ProblemError) -> str | None:
    match error:
        case UnauthenticatedError():
            return str(error.members["reason"])
        case ForbiddenError():
            return "scope"
        case RateLimitedError():
            return "rate"
        case BudgetExhaustedError():
            return "budget"
        case _:
            return None
