"""Why the emulated platform refuses a request, in the platform's own codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Code -> HTTP status of the quafu-sdk protocol, as `quafu.errors.from_response` reads them. Others start with
# `precheck.` and are 422.
_STATUS: Mapping[str, int] = {
    "invalid_request": 400,
    "invalid_api_key": 401,
    "not_found": 404,
    "unknown_device": 404,
    "runtime.deviceUnavailable": 409,
    "job_too_large": 413,
    "runtime.quotaExhausted": 429,
    "internal": 500,
}
_PRECHECK = 422


class RefusedError(Exception):
    """A request that the platform does not carry out.

    Args:
        code: One of the platform's, such as `precheck.shotsOutOfRange`.
        detail: For people.
        variables: The code's figures, such as `max_shots`.
    """

    def __init__(self, code: str, detail: str, **variables: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.variables = variables

    @property
    def status(self) -> int:
        """HTTP status in the quafu-sdk protocol."""
        return _PRECHECK if self.code.startswith("precheck.") else _STATUS[self.code]

    def to_json(self) -> dict[str, Any]:
        """Body in the quafu-sdk protocol."""
        body: dict[str, Any] = {"error": self.detail, "code": self.code, "vars": self.variables}
        if "." in self.code:
            body["error_category"] = self.code
        return body
