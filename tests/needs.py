"""Marks of tests that need what not every machine has."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_mindquantum = pytest.mark.skipif(
    find_spec("mindquantum") is None, reason="needs mindquantum==0.12.0, which has no wheels for Python 3.12 and newer"
)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has ended")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's prometheus")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's prometheus")
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
needs_chromium = pytest.mark.skipif(
    find_spec("playwright") is None or not Path(CHROMIUM).exists(),
    reason="needs playwright and Debian's package chromium, or another Chromium at CHROMIUM",
)
