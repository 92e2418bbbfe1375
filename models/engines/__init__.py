"""The ways to evaluate a student's circuit, one file each, behind `Engine`."""

from models.engines.base import Engine

__all__ = ["Engine"]
