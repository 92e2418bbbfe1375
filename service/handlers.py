"""How errors raised by routes and by the framework become problems."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from service.errors import (
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    MethodNotAllowedError,
    ProblemError,
    StoreUnavailableError,
    UnknownPathError,
    problem_response,
)
from service.guard import admit
from service.state import app_state

_BODY_EXAMPLE = '{"inputs": "text"}'
_BODY_EXAMPLES = {"/admin/tasks/{task}/backend": '{"backend": "simulator"}', "/admin/reload": "{}"}
_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_MAX_ERRORS = 10
_MAX_NAME = 100
_STORE_RETRY_SECONDS = 5

logger = logging.getLogger(__name__)


def add_handlers(app: FastAPI) -> None:
    """Answer every expected error of an app with its problem; `RequestMiddleware` answers the unexpected."""

    @app.exception_handler(ProblemError)
    async def _(request: Request, exc: ProblemError) -> Response:
        return problem_response(exc)

    @app.exception_handler(RedisError)
    async def _(request: Request, exc: RedisError) -> Response:
        logger.warning("redis does not answer", extra={"fields": {"detail": str(exc)}})
        return problem_response(
            StoreUnavailableError("Redis, which holds jobs and counts, does not answer", _STORE_RETRY_SECONDS)
        )

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, exc: RequestValidationError) -> Response:
        route = getattr(request.scope.get("route"), "path", "")
        error = from_validation(exc.errors(), _BODY_EXAMPLES.get(route, _BODY_EXAMPLE))
        return await _unless_denied(request, error)

    @app.exception_handler(HTTPException)
    async def _(request: Request, exc: HTTPException) -> Response:
        return await _unless_denied(request, _from_http(request, exc))


async def _unless_denied(request: Request, error: ProblemError) -> Response:
    """The answer to an error; of a body that cannot be read, only to those who may send one.

    The framework reads the body before any guard is asked, so that such a request has met none.
    """
    if isinstance(error, MalformedBodyError):
        try:
            await admit(request, app_state(request))
        except ProblemError as exc:
            error = exc
    return problem_response(error)


def from_validation(errors: Sequence[Mapping[str, Any]], example: str) -> ProblemError:
    """The problem that pydantic's errors amount to; says where and what, never the values found.

    Args:
        errors: At least one.
        example: A body of the form expected.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return MalformedBodyError(f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    found = [_located(error, example) for error in errors[:_MAX_ERRORS]]
    count = f"{len(errors)} error{'s' if len(errors) > 1 else ''} in the request"
    place = found[0].get("pointer") or found[0].get("parameter")
    return InvalidRequestError(f"{count}: {place}: {found[0]['detail']}", errors=found)


def _located(error: Mapping[str, Any], example: str) -> dict[str, str]:
    """A member of `errors`: `pointer` is a JSON pointer into the body, `parameter` the name of one in the query."""
    where, *path = error["loc"]
    # A name from the body may be of any length and hold lone surrogates, which no UTF-8 answer can carry.
    names = [str(part)[:_MAX_NAME].encode("utf-8", "backslashreplace").decode() for part in path]
    detail = _in_words(error, where, example)
    if where == "body":
        return {"detail": detail, "pointer": "#" + "".join(f"/{_escape(name)}" for name in names)}
    return {"detail": detail, "parameter": ".".join(names)}


def _in_words(error: Mapping[str, Any], where: str, example: str) -> str:
    """What was expected and what was found, for the errors that callers make most; pydantic's words for the rest."""
    found, limits = error.get("input"), error.get("ctx", {})
    kind = _JSON_NAMES.get(type(found), "a number")
    match error["type"]:
        case "missing" if where == "body" and len(error["loc"]) == 1:
            return f"the body is empty, expected {example}"
        case "missing":
            return "missing, expected a value"
        case "extra_forbidden":
            return f"unknown {'field' if where == 'body' else 'parameter'}; /docs lists the known ones"
        case "model_attributes_type" | "model_type" | "dict_type":
            return f"expected an object such as {example}, found {kind}"
        case "string_type":
            return f"expected a string, found {kind}"
        case "float_type":
            return f"expected a number, found {kind}"
        case "finite_number":
            return f"expected a number, found {found}"
        case "int_type":
            return f"expected an integer, found {kind}"
        case "greater_than_equal":
            return f"expected at least {limits['ge']:.15g}, found {found}"
        case "less_than_equal":
            return f"expected at most {limits['le']:.15g}, found {found}"
        case "int_parsing" | "int_from_float":
            return f"expected an integer, found {str(found)[:_MAX_NAME]!r}"
        case "literal_error":
            return f"expected {limits['expected']}, found another value"
        case _:
            return str(error["msg"])


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _from_http(request: Request, exc: HTTPException) -> ProblemError:
    """The framework's own errors: the router's 404 and 405, and 400 for a body that it could not parse."""
    error: ProblemError
    if exc.status_code == 404:
        error = UnknownPathError("nothing is at this path; /docs lists what there is")
    elif exc.status_code == 405:
        allowed = _allowed(request) or "GET"  # the files of /docs
        error = MethodNotAllowedError(f"the method is {request.method[:16]}, expected {allowed}")
        error.headers["Allow"] = allowed
        return error
    elif exc.status_code == 400:
        error = MalformedBodyError("the body is not JSON in UTF-8, or nested too deeply")
    else:
        error = InternalError(f"unexpected status {exc.status_code}")
    error.headers |= exc.headers or {}
    return error


def _allowed(request: Request) -> str:
    """Every method of the path (RFC 9110, 10.2.1); the framework names those of the first route that it finds."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]

    def takes(method: str) -> bool:
        # A copy for each: a router that matches writes into its scope.
        return any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)

    return ", ".join(filter(takes, _METHODS))
