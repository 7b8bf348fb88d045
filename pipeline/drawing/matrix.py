"""A matrix of similarities with its numbers, one row and column a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from pipeline.drawing.fonts import drawable, replace_unknown

LONGEST_LABEL = 40  # characters


def matrix_figure(matrix: np.ndarray, texts: Sequence[str], title: str) -> Figure:
    """The matrix [N, N] as colours from 0 to 1 with its numbers; the texts stand at the rows, their numbers at both."""
    _, font_path = drawable("".join([*texts, title]))
    font = FontProperties(fname=font_path, size=8)
    count = len(texts)
    side = max(2.4, 0.5 * count)
    figure = Figure(figsize=(side + 4.0, side + 0.8), layout="constrained", dpi=110)
    panel = figure.subplots()
    panel.imshow(matrix, vmin=0.0, vmax=1.0, cmap="viridis")
    for row in range(count):
        for column in range(count):
            value = float(matrix[row, column])
            colour = "black" if value > 0.6 else "white"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    labels = [f"{_short(replace_unknown(text, font_path))}  {number}" for number, text in enumerate(texts, start=1)]
    panel.set_yticks(range(count), labels, fontproperties=font)
    panel.set_xticks(range(count), [str(number) for number in range(1, count + 1)], fontproperties=font)
    panel.set_title(replace_unknown(title, font_path), fontproperties=font)
    return figure


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
