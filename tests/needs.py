"""Marks of tests that need what not every machine has."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

needs_mindquantum = pytest.mark.skipif(
    find_spec("mindquantum") is None, reason="needs mindquantum==0.12.0, which has no wheels for Python 3.12 and newer"
)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has ended")
