"""Curves of one run or several over each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from pipeline.drawing.boxes import COLOURS
from pipeline.drawing.fonts import drawable, replace_unknown
from pipeline.drawing.sampling import Curves

# What a reader looks at first; curves of other names are drawn when they are asked for.
FIRST_METRICS = (
    "loss/total",
    "loss/global_short",
    "loss/global_long",
    "loss/fgv",
    "loss/fgt",
    "loss/cmr",
    "loss/tic",
    "region/cmr_margin",
    "health/gradient_norm",
    "speed/images_per_second",
    "data/wait_share",
)


def draw_curves(runs: Mapping[str, Curves], names: Sequence[str] | None = None, most: int = 12) -> Figure:
    """One panel a metric, one line a run.

    Args:
        runs: curves by the run's name.
        names: metrics to draw, ``most`` of them; by default the losses and what a reader looks at first.

    Raises:
        ValueError: no run has any of the metrics.
    """
    present = {name for curves in runs.values() for name in curves}
    usual = [name for name in FIRST_METRICS if name in present] or sorted(present)
    chosen = [name for name in (names or usual) if name in present][:most]
    if not chosen:
        raise ValueError(f"none of {list(names or [])} was logged; the runs have {sorted(present)}")
    num_columns = min(3, len(chosen))
    num_rows = math.ceil(len(chosen) / num_columns)
    _, font_path = drawable("".join([*runs, *chosen]))
    font = FontProperties(fname=font_path, size=8)
    figure = Figure(figsize=(4.2 * num_columns, 2.8 * num_rows), layout="constrained", dpi=110)
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for panel, name in zip(panels, chosen, strict=False):
        for number, (run, curves) in enumerate(runs.items()):
            if name in curves:
                steps, values = curves[name]
                colour, marker = COLOURS[number % len(COLOURS)], "." if len(steps) < 3 else ""
                name_shown = replace_unknown(run, font_path)
                panel.plot(steps, values, label=name_shown, linewidth=1.2, color=colour, marker=marker)
        panel.set_title(replace_unknown(name, font_path), fontproperties=font)
        panel.set_xlabel("optimizer step", fontsize=8)
        panel.grid(alpha=0.3)
    for panel in panels[len(chosen) :]:
        panel.set_visible(False)
    panels[0].legend(prop=font)
    return figure
