"""A loopback platform whose every answer a test can set, and programs to send it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from models.circuit import Circuit, Gate
from service.providers.base import Program

JOB = "job-1"
UUID = "6f1f8e9a-5f0e-4d4b-9a55-2b6a3f6f6c0a"


@dataclass(frozen=True)
class Reply:
    """What the stub answers.

    Attributes:
        body: JSON values, or bytes that are sent as they are.
        hang: Never answer.
        drop: Close the connection once the request was read.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    drop: bool = False


@dataclass(frozen=True)
class Received:
    """What the stub was sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Stub:
    """Answers each path with the replies set for it, one after the other, the last for ever.

    Attributes:
        received: Every request, oldest first.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[Received] = []
        self.released = threading.Event()
        self._replies: dict[tuple[str, str], list[Reply]] = {}

    def set(self, method: str, path: str, *replies: Reply) -> None:
        self._replies[method, path] = list(replies)

    def sent_to(self, method: str, path: str) -> list[Received]:
        return [request for request in self.received if (request.method, request.path) == (method, path)]

    def reply(self, request: Received) -> Reply:
        self.received.append(request)
        replies = self._replies.get((request.method, request.path), [Reply(404, {"error": "no such path"})])
        return replies.pop(0) if len(replies) > 1 else replies[0]


@contextmanager
def platform() -> Iterator[Stub]:
    """A stub that listens."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = stub.reply(Received(self.command, parts.path, parse_qs(parts.query), headers, body))
            if reply.hang:
                stub.released.wait()
            if reply.hang or reply.drop:
                self.close_connection = True
                return
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        # A connection too many would be tried again by the kernel, one second later.
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stub
    finally:
        stub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def program(n_qubits: int = 3, shots: int = 1024, chain: tuple[int, ...] | None = None) -> Program:
    """One rotation and one CZ, all bound."""
    return Program(Circuit(n_qubits, (Gate("rx", (0,), 0.5), Gate("cz", (0, 1)))), shots, chain)
