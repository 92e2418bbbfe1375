"""Start a program so that it ends with the process that started it, however that ends.

Run as a script, `child.py PARENT_PID PROGRAM ARGUMENT...`, this file asks the kernel for SIGTERM at the end of its
parent and becomes the program, which keeps the process id and the request (prctl(2), PR_SET_PDEATHSIG). That is Linux
only: elsewhere the script just becomes the program, which then outlives a parent that is killed by SIGKILL.

The kernel's "parent" is the thread that started the process: start children from one that lives as long as they should.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def child_command(command: Sequence[str]) -> list[str]:
    """The command that runs `command` as a child which ends with the calling process.

    Args:
        command: Absolute path of the program and its arguments.
    """
    # By path and isolated: in any folder, under any PYTHON* variable, and with no imports but the few above.
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> str:
    """Become the program; returns only if that is not possible, with the reason."""
    parent, *command = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM)) != 0:
            return f"cannot tie {command[0]} to its parent: {os.strerror(ctypes.get_errno())}"
    # A parent that ended before the request will send no signal.
    if os.getppid() != int(parent):
        return f"{command[0]} is not started: its parent, process {parent}, has ended"
    try:
        os.execv(command[0], command)
    except OSError as exc:
        return f"cannot run {command[0]}: {exc.strerror}"


if __name__ == "__main__":
    # A string is printed on stderr, and the exit code is 1.
    sys.exit(main(sys.argv[1:]))
