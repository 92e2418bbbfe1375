"""Figures as PNG files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


def save(figure: Figure, path: Path, drawn: bool = True) -> bool:
    """Write a figure; where nothing was drawn, leave no file of an earlier one.

    Returns:
        Whether anything was drawn.
    """
    if drawn:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the version in it, equal figures give equal files.
        figure.savefig(path, dpi=120, metadata={"Software": None})
    else:
        path.unlink(missing_ok=True)
    return drawn
