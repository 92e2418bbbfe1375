"""The emulator in a process of its own, and the child in which it runs circuits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import quafu
from emulating import CRASHES, REFUSED, TOKEN, ended, qasm, until

NAME = "Baihua"
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from emulating import QUICK, by_hand_in_a_child
from dataclasses import replace
from service.emulator.app import run
from service.emulator.sampling import ProcessSampler

config = replace(QUICK, state=Path(sys.argv[1]) / "state.sqlite3")
run(config, 0, lambda url: print(url, flush=True), ProcessSampler(by_hand_in_a_child))
"""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], quafu.Client]]:
    """An emulator whose circuits run while there is no file `hold` in a folder, and a client of it."""
    paths = [str(ROOT), str(ROOT / "tests/service"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "EMULATOR_TEST_DIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, quafu.Client(api_key=TOKEN, base_url=process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def children(folder: Path) -> list[int]:
    """Process ids of the children that were given a circuit."""
    return [int(path.name.removeprefix("child-")) for path in folder.glob("child-*")]


def alive(pid: int) -> bool:
    # A process that nobody has waited for yet is dead all the same.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_emulator_goes_on_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    with serving(tmp_path) as (process, client):
        job = client.submit([qasm([0]), qasm([1])], NAME)
        until(lambda: job.status() == "Running" and len(children(tmp_path)) == 1)
        (child,) = children(tmp_path)
        assert alive(child)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # It was in the middle of a circuit.
        until(lambda: not alive(child))
    (tmp_path / "hold").unlink()
    with serving(tmp_path) as (_, client):
        again = client.job(job.id)
        assert ended(again) == "Finished"
        assert [result.counts for result in again.results()] == [{"001": 1024}, {"010": 1024}]


def test_http_is_answered_while_a_circuit_runs_and_sigterm_ends_both(tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    with serving(tmp_path) as (process, client):
        job = client.submit(qasm(), NAME)
        until(lambda: job.status() == "Running" and len(children(tmp_path)) == 1)
        # A request that hangs does not hold it up either.
        httpx.put(f"{client.base_url}/emulator/faults", json=[{"on": "device", "fault": "hang", "seconds": 3600}])
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{client.base_url}/api/v1/devices", timeout=0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        (child,) = children(tmp_path)
        assert not alive(child)


def test_circuit_that_kills_its_process_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, client):
        job = client.submit([{"qasm": qasm(), "shots": shots} for shots in (CRASHES, REFUSED, 1024)], NAME)
        assert ended(job) == "PartiallyFinished"
        crashed, refused, good = job.results()
        assert "died twice" in crashed.error["detail"]
        assert refused.error["detail"] == "refused by hand"
        assert good.counts == {"000": 1024}
        assert len(children(tmp_path)) == 3
