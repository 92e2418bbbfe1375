"""Structured logs: one JSON object a line on stderr, each with the id of the request it belongs to and of its trace.

Texts never reach a log: the request line has their number only, and paths are logged as templates.
"""

from __future__ import annotations

import json
import logging
import logging.config
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from service.tracing import exemplar


@dataclass
class RequestFacts:
    """What is known of the request in hand; handlers fill it in for its log line, its metrics and its answer.

    Attributes:
        key: Id of the API key it came with.
        is_denied: Whether it was refused for its key: who it is, what it may do, or how much.
        headers: For the answer, whether it becomes a result or a problem.
    """

    request_id: str
    key: str | None = None
    backend: str | None = None
    n_texts: int | None = None
    is_denied: bool = False
    headers: dict[str, str] = field(default_factory=dict)


request_facts: ContextVar[RequestFacts | None] = ContextVar("request_facts", default=None)


class JsonFormatter(logging.Formatter):
    """Writes a record as JSON; what is passed as `extra={"fields": {...}}` becomes members of its own."""

    def format(self, record: logging.LogRecord) -> str:
        facts = request_facts.get()
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if facts is not None:
            line["request_id"] = facts.request_id
        line |= exemplar() or {}  # the `trace_id`, where a trace is recorded
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str) -> None:
    """Send every logger of the process, uvicorn's among them, to stderr as JSON."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            # One line for each request to a provider says nothing that its answer does not.
            "loggers": {"httpx": {"level": "WARNING"}},
        }
    )
