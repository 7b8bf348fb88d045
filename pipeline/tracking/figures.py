"""Pictures: curves of one run or several over each other, and an image with its boxes and the phrases' scores."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image, ImageDraw, ImageFont

from pipeline.tracking.fonts import drawable, replace_unknown
from pipeline.tracking.local_log import read_curves

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # name -> (steps, values)
# What a reader looks at first; curves of other names are drawn when they are asked for.
FIRST_METRICS = (
    "loss",
    "global_short",
    "global_long",
    "fgv",
    "fgt",
    "cmr",
    "tic",
    "cmr/margin",
    "gradient_norm",
    "images_per_second",
    "data_wait_share",
)
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
MIN_PICTURE_SIDE = 384  # pixels; small scenes are enlarged so that their boxes can be told apart
PANEL_WIDTH = 460


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
                style = {"color": COLOURS[number % len(COLOURS)], "marker": "." if len(steps) < 3 else ""}
                panel.plot(steps, values, label=replace_unknown(run, font_path), linewidth=1.2, **style)
        panel.set_title(replace_unknown(name, font_path), fontproperties=font)
        panel.set_xlabel("optimizer step", fontsize=8)
        panel.grid(alpha=0.3)
    for panel in panels[len(chosen) :]:
        panel.set_visible(False)
    panels[0].legend(prop=font)
    return figure


def draw_losses(*run_folders: str | Path, names: Sequence[str] | None = None) -> Figure:
    """The curves of run folders, each named as its folder."""
    return draw_curves({Path(folder).name: read_curves(folder) for folder in run_folders}, names)


def default_metrics(present: set[str]) -> list[str]:
    """Names in the order a reader wants them; counts and learning rates last."""
    first = [name for name in FIRST_METRICS if name in present]
    return first + sorted(present - set(first), key=lambda name: (bool(re.match("count/|replaced/", name)), name))


def save_figure(figure: Figure | Image.Image, path: str | Path) -> Path:
    """Write a PNG, aside first and then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part.png")
    figure.savefig(aside) if isinstance(figure, Figure) else figure.save(aside)
    os.replace(aside, path)
    return path


def draw_regions(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str | Sequence[tuple[str, float]]],
    true_phrases: Sequence[str | None] | None = None,
) -> Image.Image:
    """The image with numbered boxes, and beside it each box's phrases with their scores.

    Args:
        boxes: [R, 4] normalised x1, y1, x2, y2.
        labels: for each box a text, or (phrase, score) pairs; scores between 0 and 1 get a bar.
        true_phrases: for each box the phrase that is true of it, drawn in bold colour; None where unknown.

    Raises:
        ValueError: boxes, labels and true phrases differ in number.
    """
    truths = [None] * len(boxes) if true_phrases is None else list(true_phrases)
    if not len(boxes) == len(labels) == len(truths):
        raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels, {len(truths)} true phrases; give one a box")
    scale = max(1, math.ceil(MIN_PICTURE_SIDE / max(image.size)))
    picture = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    lines = [(number, *line) for number, label in enumerate(labels) for line in _lines(label, truths[number])]
    panel = Image.new("RGB", (PANEL_WIDTH, max(picture.height, 26 * len(lines) + 16 + 8 * len(boxes))), "white")
    _draw_panel(ImageDraw.Draw(panel), lines)
    _draw_boxes(ImageDraw.Draw(picture), picture.size, boxes)
    result = Image.new("RGB", (picture.width + panel.width, panel.height), "white")
    result.paste(picture, (0, 0))
    result.paste(panel, (picture.width, 0))
    return result


def _lines(label: str | Sequence[tuple[str, float]], truth: str | None) -> list[tuple[str, float | None, bool]]:
    """(phrase, score, is true) of each line of a label."""
    if isinstance(label, str):
        return [(label, None, label == truth)]
    return [(phrase, float(score), phrase == truth) for phrase, score in label]


def _draw_boxes(draw: ImageDraw.ImageDraw, size: tuple[int, int], boxes: Sequence[Sequence[float]]) -> None:
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        corner = (x1 * size[0], y1 * size[1])
        draw.rectangle((*corner, x2 * size[0], y2 * size[1]), outline=colour, width=3)
        draw.rectangle((*corner, corner[0] + 20, corner[1] + 20), fill=colour)
        _write(draw, (corner[0] + 5, corner[1] + 1), str(number + 1), "white")


def _draw_panel(draw: ImageDraw.ImageDraw, lines: Sequence[tuple[int, str, float | None, bool]]) -> None:
    y, before = 8, None
    for number, phrase, score, is_true in lines:
        colour = COLOURS[number % len(COLOURS)]
        if number != before:
            y += 8 if before is not None else 0
            draw.rectangle((8, y, 28, y + 20), fill=colour)
            _write(draw, (13, y + 1), str(number + 1), "white")
            before = number
        x = 36
        if score is not None:
            share = min(1.0, max(0.0, score))
            draw.rectangle((x, y + 3, x + 60, y + 17), outline="#bbbbbb")
            draw.rectangle((x, y + 3, x + round(60 * share), y + 17), fill=colour if is_true else "#bbbbbb")
            _write(draw, (x + 66, y + 1), f"{score:.2f}", "#333333")
            x += 104
        _write(draw, (x, y + 1), phrase, colour if is_true else "#333333", PANEL_WIDTH - x - 6)
        y += 26


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str, width: float | None = None
) -> None:
    """Write one line, cut with … where it is wider than ``width`` pixels."""
    text, path = drawable(text)
    font = ImageFont.truetype(path, 15)
    while width is not None and len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text.removesuffix("…")[:-1] + "…"
    draw.text(at, text, fill=colour, font=font)
