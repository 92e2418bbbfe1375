"""Commands of ours that run beside this process, are started again when they end, and end with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Self

from service.child import child_command
from service.errors import StartupError

logger = logging.getLogger(__name__)

_STDERR = 2


@dataclass
class Child:
    """A command that is kept running.

    Attributes:
        command: Absolute path of the program and its arguments.
        env: Its whole environment; None for ours.
        log: File that its output is appended to; None for our stderr, as stdout is for the user of `qdserve`.
        pass_fds: File descriptors that it inherits besides.
        exit_codes: Of its processes that ended though they should run; negative for the number of a signal.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] | None = None
    log: Path | None = None
    pass_fds: Sequence[int] = ()
    exit_codes: list[int] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The latest process."""
        assert self._process is not None
        return self._process

    async def spawn(self) -> None:
        """Start a process for it.

        Raises:
            OSError: If that is not possible, or its log cannot be written.
        """
        with ExitStack() as stack:
            output = _STDERR if self.log is None else stack.enter_context(self.log.open("ab"))
            self._process = await asyncio.create_subprocess_exec(
                *child_command(self.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.env,
                pass_fds=self.pass_fds,
                start_new_session=True,
            )
        self.say(logging.INFO, "child started", pid=self._process.pid)

    def say(self, level: int, message: str, **fields: Any) -> None:
        """Log an event of it."""
        logger.log(level, message, extra={"fields": {"child": self.name, **fields}})


class Children:
    """Commands that run for as long as this context is entered, each started again when it ends.

    A child is in a session of its own, so Ctrl-C and the end of the terminal reach only this process, which stops its
    children when it leaves the context: last started first, by SIGTERM, and by SIGKILL if that does not do. If this
    process is itself killed by SIGKILL, they get SIGTERM (on Linux, see `service.child`).

    Args:
        first_delay_seconds: Pause before a restart. Each further one is twice as long, until the child has run for
            `longest_delay_seconds`.
        longest_delay_seconds: Longest pause.
        grace_seconds: How long a child may take to end after SIGTERM.
    """

    def __init__(
        self, *, first_delay_seconds: float = 1.0, longest_delay_seconds: float = 30.0, grace_seconds: float = 10.0
    ) -> None:
        self._first_delay_seconds = first_delay_seconds
        self._longest_delay_seconds = longest_delay_seconds
        self._grace_seconds = grace_seconds
        self._children: list[Child] = []
        self._stops = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        # If this is cancelled on the way, the stack still goes on to the next child.
        await self._stops.aclose()

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each child that runs at the moment, by name."""
        return {child.name: child.process.pid for child in self._children if child.process.returncode is None}

    async def start(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        log: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Start a command and keep it running; the arguments are the attributes of `Child`.

        Raises:
            StartupError: If no process can be started.
        """
        child = Child(name, command, env, log, pass_fds)
        try:
            await child.spawn()
        except OSError as exc:
            raise StartupError(f"cannot start {name}: {exc}") from exc
        self._children.append(child)
        self._stops.push_async_callback(self._stop, child, asyncio.create_task(self._keep_running(child)))
        return child

    async def _keep_running(self, child: Child) -> None:
        delay_seconds = self._first_delay_seconds
        while True:
            started = monotonic()
            exit_code = await child.process.wait()
            child.exit_codes.append(exit_code)
            if monotonic() - started >= self._longest_delay_seconds:
                delay_seconds = self._first_delay_seconds
            fields = {"pid": child.process.pid, "exit_code": exit_code, "restart_in_seconds": delay_seconds}
            child.say(logging.WARNING, "child ended", **fields)
            while True:
                await asyncio.sleep(delay_seconds)
                delay_seconds = min(2 * delay_seconds, self._longest_delay_seconds)
                try:
                    await child.spawn()
                    break
                except OSError as exc:
                    child.say(logging.ERROR, "child not started", error=str(exc), restart_in_seconds=delay_seconds)

    async def _stop(self, child: Child, keeping: asyncio.Task[None]) -> None:
        # From here on nothing starts it again; a start that is under way is undone by asyncio.
        keeping.cancel()
        process = child.process
        ended_by_itself = process.returncode is not None
        try:
            if not ended_by_itself:
                process.terminate()
            async with asyncio.timeout(self._grace_seconds):
                await asyncio.wait([keeping])
                await process.wait()
        except TimeoutError:
            child.say(logging.WARNING, "child killed", pid=process.pid, grace_seconds=self._grace_seconds)
        finally:
            if process.returncode is None:
                process.kill()
        exit_code = await process.wait()
        if not ended_by_itself:
            child.say(logging.INFO, "child stopped", pid=process.pid, exit_code=exit_code)
