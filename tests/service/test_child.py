"""A program started as a child is the child itself, and ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from needs import on_linux

from service.child import child_command

ROOT = Path(__file__).parents[2]

# Starts a child that says on stdout that it is up and which signal ends it.
PARENT = """
import subprocess, sys
from service.child import child_command
child = subprocess.Popen(child_command([sys.executable, "-c", sys.argv[1]]), start_new_session=True)
child.wait()
"""
CHILD = """
import signal, sys
def handle(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, handle)
signal.alarm(120)
print("up", flush=True)
signal.pause()
"""


def test_program_takes_the_place_of_the_child_and_its_exit_code(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getpid(), sys.argv[1:], os.environ['PYTHONPATH'], os.getcwd()); sys.exit(7)"
    # Neither the folder nor the environment of the child may keep it from starting.
    process = subprocess.Popen(
        child_command([sys.executable, "-c", code, "--", "-x", ""]),
        cwd=tmp_path,
        env={"PYTHONPATH": "nowhere"},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=60)
    assert out == f"{process.pid} ['--', '-x', ''] nowhere {tmp_path}\n"
    assert process.returncode == 7


@on_linux
def test_child_is_told_to_end_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        parent.kill()
        # The pipe is at its end when the last process that could write to it has gone.
        assert parent.communicate(timeout=30)[0] == "SIGTERM\n"
    assert parent.returncode == -signal.SIGKILL


def test_child_whose_parent_has_ended_before_it_could_ask_does_not_start() -> None:
    command = child_command([sys.executable, "-c", "print('started')"])
    other = str(os.getppid())
    run = subprocess.run(
        [other if argument == str(os.getpid()) else argument for argument in command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"{sys.executable} is not started: its parent, process {other}, has ended\n"


def test_program_that_cannot_run_is_named(tmp_path: Path) -> None:
    run = subprocess.run(child_command([str(tmp_path / "absent")]), capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (1, f"cannot run {tmp_path / 'absent'}: No such file or directory\n")
