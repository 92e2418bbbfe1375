"""Ways to run cells: one after another, in processes, or as Ray tasks here or on a cluster.

Each cell has one CPU and one thread of torch's, so that the times of cells that run side by side can be compared; other
libraries have one thread too where the environment was set before they were loaded, which `Sequential` cannot do.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.study.cells import Cell
from training.study.run import Ran, Runner, record_failure

_Work = Callable[[Cell], Ran]
_CHECKOUT = Path(__file__).parents[2]
# What OpenMP, MKL and the tokenizers' library read before they start threads of their own.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# Of a Ray that is started here: nothing is reported, and cells are as nice as this process is, not by 15 nicer. What
# Ray would do with tokens and GPUs anyhow is asked for in words, for it warns of what it takes by default.
_LOCAL_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Sequential:
    """One cell after another, in this process.

    How many threads NumPy's BLAS has was decided when it was loaded: by the caller's OMP_NUM_THREADS.
    """

    def run(self, work: _Work, cells: list[Cell]) -> Iterator[Ran]:
        for cell in cells:
            yield _call(work, cell)


@dataclass(frozen=True)
class Processes:
    """Some cells at a time, in processes of their own.

    A process that dies (out of memory, say) fails the cells that were left; the next call runs them.

    Attributes:
        n_workers: Processes.
        root: Folder of all cells, for what a dead process could not write.
    """

    n_workers: int
    root: Path

    def run(self, work: _Work, cells: list[Cell]) -> Iterator[Ran]:
        # A process reads them as it starts, before anything of ours runs in it; what the caller chose stays.
        for name, value in _ONE_THREAD.items():
            os.environ.setdefault(name, value)
        # torch's threads do not survive a fork.
        pool = ProcessPoolExecutor(self.n_workers, multiprocessing.get_context("spawn"))
        try:
            running = {pool.submit(_call, work, cell): cell for cell in cells}
            for future in as_completed(running):
                error = future.exception()
                if error is None:
                    yield future.result()
                else:
                    yield record_failure(running[future], self.root, error)
        finally:
            # After ctrl-C what has not begun does not begin.
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Ray:
    """A Ray task for each cell; its workers import this checkout.

    Attributes:
        root: Folder of all cells; a cluster's machines see it, the texts and the checkout under the same paths.
        address: Of a cluster, or `auto`; None starts Ray on this machine, and stops it at the end.
        n_cpus: CPUs of this machine that are used; None takes all. A cluster knows its own.
    """

    root: Path
    address: str | None = None
    n_cpus: int | None = None

    def run(self, work: _Work, cells: list[Cell]) -> Iterator[Ran]:
        if not cells:
            return  # starting Ray takes seconds
        if self.address is None:
            for name, value in _LOCAL_RAY.items():
                os.environ.setdefault(name, value)
        ray: Any = importlib.import_module("ray")
        # "local" never joins a cluster that RAY_ADDRESS happens to name.
        here = {"address": "local", "num_cpus": self.n_cpus, "include_dashboard": False, "log_to_driver": False}
        ray.init(
            **(here if self.address is None else {"address": self.address}),
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {**_ONE_THREAD, "PYTHONPATH": _python_path()}},
        )
        try:
            # A crashed worker is a failed cell: it would crash the next one too.
            task = ray.remote(num_cpus=1, max_retries=0)(_call)
            shared = ray.put(work)
            running = {task.remote(shared, cell): cell for cell in cells}
            while running:
                (ready, *_), _rest = ray.wait(list(running), num_returns=1)
                cell = running.pop(ready)
                try:
                    yield ray.get(ready)
                except ray.exceptions.RayError as exc:
                    yield record_failure(cell, self.root, exc)
        finally:
            # After ctrl-C too: what is running ends with Ray, what is finished is in its folder.
            ray.shutdown()


def make_runner(root: Path, n_workers: int | None, ray_address: str | None) -> Runner:
    """Ray where an address is given, or where it is installed and no number of processes is asked for.

    Raises:
        ConfigError: If an address is given and Ray is not installed, or no process is asked for.
    """
    installed = find_spec("ray") is not None
    if ray_address is not None and not installed:
        raise ConfigError("--ray-address: expected the package ray, found none; `pip install ray`, or use --workers")
    if n_workers is not None and n_workers < 1:
        raise ConfigError(f"--workers: expected at least 1, found {n_workers}")
    if ray_address is not None or (installed and n_workers is None):
        return Ray(root, None if ray_address == "local" else ray_address)
    return Sequential() if n_workers in (None, 1) else Processes(n_workers or 1, root)


def _python_path() -> str:
    """The checkout, then whatever this process imports from besides Python's own folders."""
    own = Path(sys.prefix), Path(sys.base_prefix)
    paths = [Path(path).resolve() for path in sys.path if path]
    others = [path for path in paths if not any(path.is_relative_to(folder) for folder in own)]
    return os.pathsep.join(dict.fromkeys(str(path) for path in (_CHECKOUT, *others)))


def _call(work: _Work, cell: Cell) -> Ran:
    import torch

    torch.set_num_threads(1)
    # Read at the first batch, not when the library is loaded.
    os.environ["TOKENIZERS_PARALLELISM"] = _ONE_THREAD["TOKENIZERS_PARALLELISM"]
    return work(cell)
