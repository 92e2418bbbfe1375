"""How a student's cost grows with its qubits, 2 to 14, measured in one run: `training.study.cost`.

    python -m benchmarks.cost [--json docs/bench-cost.json]

Every library runs on one thread. Minutes, most of them in compiling 12 qubits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.student import THREADS, cpu_model, progress
from training.study.cost import PRESETS, cost_table, measure_cost

_LIBRARIES = ("numpy", "mindquantum", "torch")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats (default: %(default)s)")
    options = parser.parse_args(argv)
    figures = {"machine": describe_machine(), **measure_cost(repeats=options.repeats, said=progress)}
    for preset in PRESETS:
        sys.stdout.write(f"{cost_table(figures, preset)}\n\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        progress(f"wrote {options.json}")
    return 0


def describe_machine() -> dict[str, Any]:
    """Processor, cores, load, thread settings and library versions."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average_1min": os.getloadavg()[0],
        "threads": {name: os.environ.get(name) for name in THREADS} | {"torch": torch.get_num_threads()},
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in THREADS.items()):
        # The libraries read these when they load, which has happened by now.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **THREADS})
    sys.exit(main())
