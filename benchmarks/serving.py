"""A service of its own for whatever is measured through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def serving(settings: Mapping[str, str]) -> Iterator[str]:
    """The URL of a service on a free port, with no settings but these; it ends with the context.

    Raises:
        RuntimeError: If it does not start; its error is on stderr.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QD_")}
    with tempfile.TemporaryDirectory() as folder:
        service = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--port", "0"],
            cwd=ROOT,
            env={**environment, "QD_STATE_DIR": folder, **settings},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert service.stdout is not None
        try:
            if not any(line.startswith("Ctrl-C") for line in service.stdout):
                raise RuntimeError("the service did not start; its error is above")
            yield json.loads((Path(folder) / "serve.json").read_text())["url"]
        finally:
            service.terminate()
            service.wait()
            service.stdout.close()
