"""Pictures of dense maps and of detections, with text in any script that a font of this machine can draw.

Where no font has a text's characters, the text is not drawn as boxes: the picture shows a number, and the text stands
in the file's name and in ``pictures.json`` beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.base.border import read_object
from pipeline.base.files import write_json
from pipeline.drawing.boxes import draw_boxes
from pipeline.drawing.fonts import can_draw, drawable, load_font
from pipeline.drawing.save import save_picture

TEXT_HEIGHT = 14  # pixels
NUM_COLOURS = 256  # of a written picture
LARGEST_SIDE = 480  # pixels of a panel, so that a page of pictures stays small


def file_part(text: str) -> str:
    """A text as part of a file name; letters of every script stay."""
    return re.sub(r"[^\w]+", "-", text.strip(), flags=re.UNICODE).strip("-")[:60] or "phrase"


def panel_of(image: Image.Image) -> Image.Image:
    """The image at the size in which pictures show it."""
    scale = LARGEST_SIDE / max(image.size)
    return image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def heat_overlay(image: Image.Image, similarity: np.ndarray) -> Image.Image:
    """The image under a map [h, w] of cosines; colours run from the least to the greatest."""
    from matplotlib import colormaps  # only pictures need it, and scores come without

    low, high = float(similarity.min()), float(similarity.max())
    scaled = ((similarity - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    smooth = Image.fromarray(scaled).resize(image.size, Image.Resampling.BICUBIC)
    colours = (colormaps["turbo"](np.asarray(smooth) / 255.0)[..., :3] * 255).astype(np.uint8)
    return Image.blend(image, Image.fromarray(colours), 0.55)


def heat_picture(image: Image.Image, similarity: np.ndarray, phrase: str, number: int) -> Image.Image:
    """The image beside itself under its map. ``similarity``: [h, w] cosines; colours run from least to greatest."""
    panel = panel_of(image)
    low, high = float(similarity.min()), float(similarity.max())
    overlay = heat_overlay(panel, similarity)
    head = TEXT_HEIGHT + 10
    picture = Image.new("RGB", (2 * panel.width + 4, panel.height + head), "white")
    picture.paste(panel, (0, head))
    picture.paste(overlay, (panel.width + 4, head))
    draw = ImageDraw.Draw(picture)
    shown = phrase if can_draw(phrase) else f"phrase {number}, see the file name"
    for left, text in ((4, shown), (panel.width + 8, f"cosine {low:.2f} to {high:.2f}")):
        text, font_path = drawable(text)
        draw.text((left, 4), text, fill="black", font=load_font(font_path, TEXT_HEIGHT))
    return picture


def detection_picture(image: Image.Image, boxes: Sequence[tuple[Sequence[float], str]], path: Path) -> None:
    """Boxes (x, y, width, height in pixels) with their labels; labels also go into ``pictures.json`` beside it."""
    panel = panel_of(image)
    normalised = [
        (x / image.width, y / image.height, (x + wide) / image.width, (y + high) / image.height)
        for (x, y, wide, high), _ in boxes
    ]
    shown = [label if can_draw(label) else str(number) for number, (_, label) in enumerate(boxes, start=1)]
    draw_boxes(panel, normalised, shown)
    save_picture(panel, path, NUM_COLOURS)
    labels = [{"number": number, "label": text} for number, (_, text) in enumerate(boxes, start=1)]
    add_to_index(path.parent, {path.name: {"boxes": labels}})


def add_to_index(folder: Path, entries: dict[str, Any]) -> None:
    """What pictures show, by their file names, in ``pictures.json`` of their folder. One process at a time."""
    index = folder / "pictures.json"
    known = read_object(index) if index.is_file() else {}
    write_json(index, known | entries)
