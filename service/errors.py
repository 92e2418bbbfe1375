"""Every error of the service, and the one table that says what each is over HTTP.

ServiceError
├── StartupError                    the service cannot start; `qdserve` prints it and exits with 2
│   ├── SettingsError                   a setting is not allowed
│   ├── RegistryError                   the folder of bundles cannot be served as it is
│   └── AddressError                    the address to listen on or the state folder cannot be used
├── CommandError                    a command cannot do what it was asked to; `qdserve` prints it and exits with 2
└── ProblemError                    an answer, by the table `PROBLEMS`
    ├── MalformedBodyError
    ├── UnauthenticatedError
    ├── ForbiddenError
    ├── UnknownTaskError
    ├── UnknownVersionError
    ├── UnknownPathError
    ├── UnknownJobError
    ├── MethodNotAllowedError
    ├── BodyTooLargeError
    ├── UnsupportedMediaTypeError
    ├── InvalidRequestError
    ├── TooManyTextsError
    ├── UnknownBackendError
    ├── UnknownProviderError
    ├── ShotsError
    ├── BackendNotConfiguredError
    ├── NoRedisError
    ├── BundlesRejectedError
    ├── ClientGoneError
    ├── InternalError
    ├── HardwareError                   circuits gave no counts; also the error of a job
    │   ├── CircuitRejectedError            the provider refuses the circuit
    │   ├── CircuitFailedError              it ran and failed
    │   ├── LostByProviderError             the provider does not know its own job
    │   ├── SubmissionUncertainError        it may have been submitted, and is not sent again
    │   ├── MalformedResultError            the provider's result cannot be read
    │   └── DeadlineExceededError           it took too long
    └── RetryLaterError                 the same request may succeed later; says when
        ├── OverloadedError
        ├── RateLimitedError
        ├── BudgetExhaustedError
        ├── NotReadyError
        ├── StoreUnavailableError
        └── ShuttingDownError
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:qd:problem:"


class ServiceError(Exception):
    """Base of every error that `service` raises on purpose."""


class StartupError(ServiceError):
    """The service cannot start; the message is one line for the operator."""


class SettingsError(StartupError):
    """A setting is not allowed; names its variable."""


class RegistryError(StartupError):
    """The folder of bundles cannot be served as it is; names the folders."""


class AddressError(StartupError):
    """The address to listen on or the state folder cannot be used."""


class CommandError(ServiceError):
    """A command cannot do what it was asked to; the message is one line for the operator."""


class ProblemError(ServiceError):
    """An answer other than the one asked for.

    Args:
        detail: What is wrong with this request, for its author.
        members: Extension members of the problem document.
    """

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        self.headers: dict[str, str] = {}


class MalformedBodyError(ProblemError):
    """The body is not JSON in UTF-8."""


class UnauthenticatedError(ProblemError):
    """There is no API key, or not one that opens anything."""

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail, **members)
        self.headers["WWW-Authenticate"] = "Bearer"


class ForbiddenError(ProblemError):
    """The API key does not open this."""


class UnknownTaskError(ProblemError):
    """No bundle is loaded for the task."""


class UnknownVersionError(ProblemError):
    """The task has no bundle of this version."""


class UnknownPathError(ProblemError):
    """There is nothing at this path."""


class UnknownJobError(ProblemError):
    """There is no job of this id, or no longer."""


class MethodNotAllowedError(ProblemError):
    """The path exists, but not for this method."""


class BodyTooLargeError(ProblemError):
    """The body is longer than the limit."""


class UnsupportedMediaTypeError(ProblemError):
    """The body is not declared as JSON."""


class InvalidRequestError(ProblemError):
    """A field or parameter is missing, unknown or of the wrong form."""


class TooManyTextsError(ProblemError):
    """The request holds more texts than the limit."""


class UnknownBackendError(ProblemError):
    """There is no backend of this name."""


class UnknownProviderError(ProblemError):
    """The provider named is not the one that this service uses."""


class ShotsError(ProblemError):
    """The number of shots is not one that the backend takes."""


class BackendNotConfiguredError(ProblemError):
    """The backend is known, but this service does not run it."""


class NoRedisError(ProblemError):
    """What is asked for is kept in Redis, and this service has none."""


class BundlesRejectedError(ProblemError):
    """The folder of bundles cannot be served as it is; those that are served stay."""


class ClientGoneError(ProblemError):
    """The client closed the connection; nobody reads the answer."""


class InternalError(ProblemError):
    """A fault of the service."""


class HardwareError(ProblemError):
    """Circuits gave no counts."""


class CircuitRejectedError(HardwareError):
    """The provider refuses the circuit."""


class CircuitFailedError(HardwareError):
    """The device ran the circuit and gave no counts."""


class LostByProviderError(HardwareError):
    """The provider does not know its own job."""


class SubmissionUncertainError(HardwareError):
    """It may have been submitted; it is not sent again, as it may have been paid for."""


class MalformedResultError(HardwareError):
    """The provider's result cannot be read."""


class DeadlineExceededError(HardwareError):
    """There were no counts within the deadline."""


class RetryLaterError(ProblemError):
    """The same request may succeed after `retry_after_seconds`."""

    def __init__(self, detail: str, retry_after_seconds: int, **members: Any) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds, **members)
        self.headers["Retry-After"] = str(retry_after_seconds)


class OverloadedError(RetryLaterError):
    """The queue is full."""


class RateLimitedError(RetryLaterError):
    """The key has made its requests of this minute."""


class BudgetExhaustedError(RetryLaterError):
    """The key has spent its shots of this day."""


class NotReadyError(RetryLaterError):
    """A part of the service is not ready."""


class StoreUnavailableError(RetryLaterError):
    """Redis, which holds jobs and counts, does not answer."""


class ShuttingDownError(RetryLaterError):
    """The service stopped before it could answer."""


@dataclass(frozen=True)
class Problem:
    """The fixed members of a problem document (RFC 9457)."""

    slug: str
    status: int
    title: str

    @property
    def type(self) -> str:
        return TYPE_PREFIX + self.slug


PROBLEMS: Mapping[type[ProblemError], Problem] = {
    MalformedBodyError: Problem("malformed-json", 400, "The body is not JSON"),
    UnauthenticatedError: Problem("unauthenticated", 401, "An API key is needed"),
    ForbiddenError: Problem("forbidden", 403, "The API key does not open this"),
    UnknownTaskError: Problem("unknown-task", 404, "There is no such task"),
    UnknownVersionError: Problem("unknown-version", 404, "The task has no such version"),
    UnknownPathError: Problem("unknown-path", 404, "There is nothing at this path"),
    UnknownJobError: Problem("unknown-job", 404, "There is no such job"),
    MethodNotAllowedError: Problem("method-not-allowed", 405, "The path does not take this method"),
    BodyTooLargeError: Problem("body-too-large", 413, "The body is too large"),
    BundlesRejectedError: Problem("bundles-rejected", 409, "The bundles must not be served"),
    UnsupportedMediaTypeError: Problem("unsupported-media-type", 415, "The body must be application/json"),
    InvalidRequestError: Problem("invalid-request", 422, "The request is not of the expected form"),
    TooManyTextsError: Problem("too-many-texts", 422, "The request holds too many texts"),
    UnknownBackendError: Problem("unknown-backend", 422, "There is no such backend"),
    UnknownProviderError: Problem("unknown-provider", 422, "This is not the provider in use"),
    ShotsError: Problem("shots", 422, "The backend does not take this number of shots"),
    OverloadedError: Problem("overloaded", 429, "Too many texts are waiting"),
    RateLimitedError: Problem("rate-limited", 429, "The key makes too many requests"),
    BudgetExhaustedError: Problem("budget-exhausted", 429, "The key has spent its shots"),
    # nginx's code for a client that left; it is only ever seen in logs and metrics.
    ClientGoneError: Problem("client-gone", 499, "The client closed the connection"),
    InternalError: Problem("internal", 500, "The service failed"),
    BackendNotConfiguredError: Problem("backend-not-configured", 501, "The backend is not configured here"),
    NoRedisError: Problem("no-redis", 501, "The service has no Redis"),
    CircuitRejectedError: Problem("circuit-rejected", 502, "The provider refuses the circuit"),
    CircuitFailedError: Problem("circuit-failed", 502, "The device gave no counts"),
    LostByProviderError: Problem("lost-by-provider", 502, "The provider lost the job"),
    SubmissionUncertainError: Problem("submission-uncertain", 502, "The circuit may or may not have been submitted"),
    MalformedResultError: Problem("malformed-result", 502, "The provider's result cannot be read"),
    DeadlineExceededError: Problem("deadline-exceeded", 504, "There were no counts in time"),
    NotReadyError: Problem("not-ready", 503, "The service is not ready"),
    StoreUnavailableError: Problem("store-unavailable", 503, "Redis does not answer"),
    ShuttingDownError: Problem("shutting-down", 503, "The service is shutting down"),
}


def problem_document(error: ProblemError) -> dict[str, Any]:
    """The problem document of an error: `type`, `title`, `status`, `detail` and its extension members."""
    problem = PROBLEMS[type(error)]
    fixed = {"type": problem.type, "title": problem.title, "status": problem.status, "detail": error.detail}
    return fixed | error.members


def problem_response(error: ProblemError) -> Response:
    """The HTTP answer to an error."""
    return document_response(problem_document(error), error.headers)


def document_response(document: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    """The HTTP answer that a problem document is."""
    return Response(
        json.dumps(document, ensure_ascii=False), document["status"], headers=headers, media_type=MEDIA_TYPE
    )
