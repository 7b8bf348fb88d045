"""Curves of run folders as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.drawing.curves import draw_curves
from pipeline.tracking.local_log import read_curves


def draw_losses(*run_folders: str | Path, names: Sequence[str] | None = None) -> Figure:
    """The curves of run folders, each named as its folder."""
    return draw_curves({Path(folder).name: read_curves(folder) for folder in run_folders}, names)
