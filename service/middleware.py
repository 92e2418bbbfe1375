"""What surrounds every request: its id, span, log line and metrics, and the limit on its body."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, NoOpTracer, Span, SpanKind, Status, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, InternalError, problem_response
from service.logs import RequestFacts, request_facts
from service.metrics import NONE, outcome_of
from service.state import AppState
from service.tracing import context_of

CLASSIFY_ROUTE = "/classify/{task}"

_CLIENT_GONE = 499
# Asked every few seconds by machines that nobody waits for.
_UNTRACED = frozenset({"/metrics", "/livez", "/readyz"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

logger = logging.getLogger(__name__)


class RequestMiddleware:
    """Gives each request an id and a span, makes a problem of what nobody expected, writes its log line and metrics."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        span = self._span(scope)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            await self._answer(scope, receive, send, span)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, span: Span) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        facts = RequestFacts(given if _SANE_ID.fullmatch(given) else secrets.token_hex(8))
        token = request_facts.set(facts)
        scope.setdefault("state", {})["arrived_at"] = perf_counter()
        status = _CLIENT_GONE  # of a request that is cancelled before it answers
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                MutableHeaders(scope=message).update({"X-Request-ID": facts.request_id} | facts.headers)
            await send(message)

        self._state.metrics.requests_in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as exc:
            logger.exception("unexpected error")
            span.set_attribute("error.type", type(exc).__qualname__)
            if started:
                raise
            error = InternalError(
                "the service failed; its log has the cause under this request id", request_id=facts.request_id
            )
            await problem_response(error)(scope, receive, send_with_id)
        finally:
            self._state.metrics.requests_in_flight.dec()
            self._record(scope, status, facts, span)
            request_facts.reset(token)

    def _span(self, scope: Scope) -> Span:
        """The server's span of a request, which continues the caller's trace."""
        tracer = self._state.tracer
        if isinstance(tracer, NoOpTracer) or scope["path"] in _UNTRACED:
            return INVALID_SPAN
        return tracer.start_span(
            _name(scope),
            context_of(Headers(scope=scope).get("traceparent")),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": _method(scope), "url.scheme": scope["scheme"]},
        )

    def _record(self, scope: Scope, status: int, facts: RequestFacts, span: Span) -> None:
        seconds = perf_counter() - scope["state"]["arrived_at"]
        route: str | None = getattr(scope.get("route"), "path", None)
        # Without the version, of which callers may name any.
        task = scope.get("path_params", {}).get("task", "").partition("@")[0]
        if task not in self._state.snapshot.bundles:
            task = None
        fields: dict[str, Any] = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "task": task,
            "key": facts.key,
            "backend": facts.backend,
            "texts": facts.n_texts,
            "duration_ms": round(seconds * 1e3, 3),
        }
        logger.info("request", extra={"fields": fields})
        if span.is_recording():
            _describe(span, scope, fields | {"request": facts.request_id})
        metrics = self._state.metrics
        metrics.http_responses.labels(route or NONE, status).inc()
        if route == CLASSIFY_ROUTE:
            metrics.observe_request(
                task or NONE,
                facts.backend or NONE,
                # A 429 of one key says nothing of how busy the service is.
                "denied" if facts.is_denied else outcome_of(status),
                seconds,
                facts.n_texts or 0,
            )


def _describe(span: Span, scope: Scope, fields: Mapping[str, Any]) -> None:
    """Name a request's span and say how it ended, by OpenTelemetry's semantic conventions for HTTP."""
    if fields["route"] is not None:
        span.update_name(f"{_name(scope)} {fields['route']}")
        span.set_attribute("http.route", fields["route"])
    span.set_attribute("http.response.status_code", fields["status"])
    for name in ("request", "task", "backend", "texts"):
        if fields[name] is not None:
            span.set_attribute(f"qd.{name}", fields[name])
    if fields["status"] >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _method(scope: Scope) -> str:
    """The request's method; `_OTHER`, as the conventions have it, for one that a caller has made up."""
    return scope["method"] if scope["method"] in _METHODS else "_OTHER"


def _name(scope: Scope) -> str:
    """What a request's span is called before its route is known, by the same conventions."""
    return scope["method"] if scope["method"] in _METHODS else "HTTP"


class BodyLimitMiddleware:
    """Reads the whole body before the app runs and refuses one that is too large, declared or not.

    Every endpoint needs its body whole, so nothing is lost by it, and the app never sees a body that grows too large.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        chunks: list[bytes] = []
        n_bytes = 0
        more = True
        while more and n_bytes <= self._limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunk = message.get("body", b"")
            n_bytes += len(chunk)
            more = message.get("more_body", False)
            chunks.append(chunk)
        if n_bytes > self._limit:
            error = BodyTooLargeError(f"the body is longer than {self._limit} bytes", limit=self._limit)
            await problem_response(error)(scope, receive, send)
            return
        body: Message | None = {"type": "http.request", "body": b"".join(chunks), "more_body": False}

        async def replay() -> Message:
            nonlocal body
            message, body = body, None
            return await receive() if message is None else message

        await self._app(scope, replay, send)
