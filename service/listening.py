"""Addresses: to listen on them, to reach what listens, and ports that are free."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from service.errors import AddressError

LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, and no other reaches it; a name other than localhost is not taken for it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def bind(host: str, port: int, family: socket.AddressFamily | None = None) -> socket.socket:
    """A TCP socket that has an address, 0 for a free port, and does not listen yet.

    Args:
        family: Of the host's addresses; None takes the first address, whatever its family.

    Raises:
        OSError: If the address cannot be had; likewise UnicodeError and OverflowError. See `refused`.
    """
    if family is None:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it, every answer on a connection
    # that is kept open waits for the client's delayed acknowledgement, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with _closed_on_error(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    return listener


def listen(host: str, port: int, family: socket.AddressFamily | None = None) -> socket.socket:
    """As `bind`, and it listens."""
    listener = bind(host, port, family)
    with _closed_on_error(listener):
        listener.listen()
    return listener


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever is raised when an address cannot be had becomes an `AddressError` that begins with `what`."""
    try:
        yield
    # UnicodeError: a host name that IDNA cannot carry. OverflowError: no port has this number.
    except (OSError, UnicodeError, OverflowError) as exc:
        raise AddressError(f"{what}: {getattr(exc, 'strerror', None) or exc}") from exc


def url_of(host: str, port: int) -> str:
    """A URL that reaches from this machine what listens on an address."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def free_ports(n: int) -> list[int]:
    """Different ports that nobody listens on; whoever gets one keeps it when it is started again."""
    with ExitStack() as probes:
        found = []
        for _ in range(n):  # all stay open until the last is found: no port is found twice
            probe = probes.enter_context(socket.socket())
            probe.bind((LOOPBACK, 0))
            found.append(int(probe.getsockname()[1]))
        return found


@contextmanager
def _closed_on_error(listener: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        listener.close()
        raise
