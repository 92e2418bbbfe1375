"""How the problem documents of `service.errors` appear in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.errors import (
    MEDIA_TYPE,
    PROBLEMS,
    BackendNotConfiguredError,
    BodyTooLargeError,
    BudgetExhaustedError,
    BundlesRejectedError,
    CircuitFailedError,
    CircuitRejectedError,
    DeadlineExceededError,
    ForbiddenError,
    InternalError,
    InvalidRequestError,
    MalformedBodyError,
    NoRedisError,
    NotReadyError,
    OverloadedError,
    ProblemError,
    RateLimitedError,
    ShotsError,
    ShuttingDownError,
    StoreUnavailableError,
    TooManyTextsError,
    UnauthenticatedError,
    UnknownBackendError,
    UnknownJobError,
    UnknownProviderError,
    UnknownTaskError,
    UnknownVersionError,
    UnsupportedMediaTypeError,
    problem_document,
)

_PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457 problem details; each type may add members of its own, as in the examples.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Identifies the kind of problem; stable."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong with this request."},
    },
}

_EXAMPLES: dict[type[ProblemError], ProblemError] = {
    type(error): error
    for error in (
        MalformedBodyError("the body is not JSON: Expecting ',' delimiter at character 12"),
        UnknownTaskError("no task 'emotions', expected one of ['emotion', 'hiding']", tasks=["emotion", "hiding"]),
        BodyTooLargeError("the body is longer than 2000000 bytes", limit=2_000_000),
        UnsupportedMediaTypeError("Content-Type is 'text/plain', expected application/json"),
        InvalidRequestError(
            "1 error in the request: Expected at least one text",
            errors=[{"detail": "Expected at least one text", "pointer": "#/inputs"}],
        ),
        TooManyTextsError("inputs holds 200 texts, expected at most 128", limit=128, found=200),
        UnknownBackendError("backend is 'sim', expected one of ['simulator']", backends=["simulator"]),
        OverloadedError("1024 texts are waiting and 8 more were sent, expected at most 1024 together", 3, limit=1024),
        InternalError("the service failed; its log has the cause under this request id", request_id="0f3c9a"),
        BackendNotConfiguredError("the backend baihua is not configured here", backends=["simulator"]),
        NotReadyError(
            "not ready: shutdown", 1, parts={"bundles": "ready", "batching": "ready", "shutdown": "draining"}
        ),
        ShuttingDownError("the service stopped before it could answer", 1),
        UnknownJobError("no job '4f1c'; jobs are kept for some days after they end"),
        UnknownProviderError("provider is 'ibm', expected 'quafu' (QD_QUAFU_PROVIDER)", providers=["quafu"]),
        ShotsError("shots is 1000, expected a multiple of 1024 up to 102400", step=1024),
        CircuitRejectedError("the provider refused a circuit of this request just now: too many qubits"),
        CircuitFailedError("runtime.hardware: the run was interrupted"),
        DeadlineExceededError("no counts within 24 h (QD_JOB_DEADLINE_SECONDS)"),
        UnauthenticatedError("the request has no key, expected `Authorization: Bearer qd_...`"),
        ForbiddenError("the key has the scope 'classify', expected 'hardware'", scope="hardware"),
        UnknownVersionError("emotion has no version '00000000', expected one of ['1f0c9a2b']", versions=["1f0c9a2b"]),
        NoRedisError("the default backend is kept in Redis, and QD_REDIS_URL is unset"),
        BundlesRejectedError("models/bundles/emotion/weights.safetensors: sha256 differs from manifest.json"),
        RateLimitedError("600 requests a minute are the most for this key", 12, limit=600),
        BudgetExhaustedError(
            "10240 shots are asked for and 0 of 1024000 are left until 00:00 UTC", 3600, limit=1_024_000
        ),
        StoreUnavailableError("Redis, which holds jobs and counts, does not answer", 5),
    )
}


def problems(*errors: type[ProblemError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        problem = PROBLEMS[error]
        empty = {"description": problem.title, "content": {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA, "examples": {}}}}
        response = responses.setdefault(problem.status, empty)
        if problem.title not in response["description"]:
            response["description"] += f", or: {problem.title}"
        example = {"summary": problem.title, "value": problem_document(_EXAMPLES[error])}
        response["content"][MEDIA_TYPE]["examples"][problem.slug] = example
        if "Retry-After" in _EXAMPLES[error].headers:
            response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return responses


ANY_PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {"description": "Any other problem", "content": {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}}}
}
