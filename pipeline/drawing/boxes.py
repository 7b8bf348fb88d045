"""Boxes on an image, numbered or with their phrases, and beside it each box's phrases with their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from pipeline.drawing.fonts import drawable, load_font

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
MIN_PICTURE_SIDE = 384  # pixels; small scenes are enlarged so that their boxes can be told apart
PANEL_WIDTH = 460
TEXT_HEIGHT = 15  # pixels
LINE_WIDTH = 3

Box = Sequence[float]  # x1, y1, x2, y2, normalised


def draw_boxes(picture: Image.Image, boxes: Sequence[Box], labels: Sequence[str] | None = None) -> None:
    """Draw boxes into ``picture``, each with a tag at its upper left corner, moved to where all of it fits.

    Args:
        labels: the tags' texts; by default the boxes' numbers from 1.

    Raises:
        ValueError: boxes and labels differ in number.
    """
    texts = [str(number) for number in range(1, len(boxes) + 1)] if labels is None else list(labels)
    if len(texts) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes, {len(texts)} labels; give one a box")
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    for number, ((x1, y1, x2, y2), text) in enumerate(zip(boxes, texts, strict=True)):
        left, top = x1 * width, y1 * height
        right, bottom = max(x2 * width, left + 1), max(y2 * height, top + 1)
        draw.rectangle((left, top, right, bottom), outline=COLOURS[number % len(COLOURS)], width=LINE_WIDTH)
        draw_tag(draw, (left, top), text, number, picture.width)


def draw_tag(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, number: int, room: float | None = None
) -> None:
    """A filled tag in the colour of box ``number`` (from 0); ``room``: the right edge that it must not cross."""
    text, path = drawable(text)
    font = load_font(path, TEXT_HEIGHT)
    wide = max(20.0, draw.textlength(text, font=font) + 10)
    left = corner[0] if room is None else max(0.0, min(corner[0], room - wide))
    draw.rectangle((left, corner[1], left + wide, corner[1] + 20), fill=COLOURS[number % len(COLOURS)])
    draw.text((left + 5, corner[1] + 1), text, fill="white", font=font)


def draw_regions(
    image: Image.Image,
    boxes: Sequence[Box],
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
    truths: list[str | None] = [None] * len(boxes) if true_phrases is None else list(true_phrases)
    if not len(boxes) == len(labels) == len(truths):
        raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels, {len(truths)} true phrases; give one a box")
    scale = max(1, math.ceil(MIN_PICTURE_SIDE / max(image.size)))
    picture = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    lines = [(number, *line) for number, label in enumerate(labels) for line in _lines(label, truths[number])]
    panel = Image.new("RGB", (PANEL_WIDTH, max(picture.height, 26 * len(lines) + 16 + 8 * len(boxes))), "white")
    _draw_panel(ImageDraw.Draw(panel), lines)
    draw_boxes(picture, boxes)
    result = Image.new("RGB", (picture.width + panel.width, panel.height), "white")
    result.paste(picture, (0, 0))
    result.paste(panel, (picture.width, 0))
    return result


def _lines(label: str | Sequence[tuple[str, float]], truth: str | None) -> list[tuple[str, float | None, bool]]:
    """(phrase, score, is true) of each line of a label."""
    if isinstance(label, str):
        return [(label, None, label == truth)]
    return [(phrase, float(score), phrase == truth) for phrase, score in label]


def _draw_panel(draw: ImageDraw.ImageDraw, lines: Sequence[tuple[int, str, float | None, bool]]) -> None:
    y, before = 8, -1
    for number, phrase, score, is_true in lines:
        colour = COLOURS[number % len(COLOURS)]
        if number != before:
            y += 8 if before >= 0 else 0
            draw_tag(draw, (8, y), str(number + 1), number)
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
    font = load_font(path, TEXT_HEIGHT)
    while width is not None and len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text.removesuffix("…")[:-1] + "…"
    draw.text(at, text, fill=colour, font=font)
