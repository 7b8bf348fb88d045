"""Pictures of dense maps and of detections, with text in any script that a font of this machine can draw.

Where no font has a text's characters, the text is not drawn as boxes: the picture shows a number, and the text stands
in the file's name and in ``pictures.json`` beside it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluation.results import write_json

TEXT_HEIGHT = 14  # pixels
PALETTE = ((230, 60, 60), (40, 130, 230), (30, 160, 80), (230, 150, 20), (150, 70, 200), (20, 160, 170))
LARGEST_SIDE = 480  # pixels of a panel, so that a page of pictures stays small


@lru_cache(maxsize=256)
def font_for(characters: str) -> ImageFont.FreeTypeFont | None:
    """A font of this machine that has all of ``characters``; None where there is none."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    own = Path(font_manager.__file__).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    needed = {ord(character) for character in characters if not character.isspace()}
    for path in [str(own), *sorted(font_manager.findSystemFonts())]:
        try:
            if needed <= set(FT2Font(path).get_charmap()):
                return ImageFont.truetype(path, TEXT_HEIGHT)
        except (OSError, RuntimeError):  # a damaged font, or a kind that FreeType does not read
            continue
    return None


def drawable(text: str) -> bool:
    return font_for("".join(sorted(set(text)))) is not None


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, fallback: str, colour) -> None:
    shown = text if drawable(text) else fallback
    font = font_for("".join(sorted(set(shown))))
    draw.text(place, shown, fill=colour, font=font)


def save_picture(picture: Image.Image, path: Path) -> None:
    """A PNG of 256 colours, written aside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    picture.quantize(256).save(aside, format="PNG", optimize=True)
    os.replace(aside, path)


def file_part(text: str) -> str:
    """A text as part of a file name; letters of every script stay."""
    return re.sub(r"[^\w]+", "-", text.strip(), flags=re.UNICODE).strip("-")[:60] or "phrase"


def _panel(image: Image.Image) -> Image.Image:
    scale = LARGEST_SIDE / max(image.size)
    return image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def heat_picture(image: Image.Image, similarity: np.ndarray, phrase: str, number: int) -> Image.Image:
    """The image beside itself under its map. ``similarity``: [h, w] cosines; colours run from least to greatest."""
    from matplotlib import colormaps

    panel = _panel(image)
    low, high = float(similarity.min()), float(similarity.max())
    scaled = ((similarity - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    smooth = Image.fromarray(scaled).resize(panel.size, Image.Resampling.BICUBIC)
    colours = (colormaps["turbo"](np.asarray(smooth) / 255.0)[..., :3] * 255).astype(np.uint8)
    overlay = Image.blend(panel, Image.fromarray(colours), 0.55)
    head = TEXT_HEIGHT + 10
    picture = Image.new("RGB", (2 * panel.width + 4, panel.height + head), "white")
    picture.paste(panel, (0, head))
    picture.paste(overlay, (panel.width + 4, head))
    draw = ImageDraw.Draw(picture)
    _write(draw, (4, 4), phrase, f"phrase {number}, see the file name", "black")
    _write(draw, (panel.width + 8, 4), f"cosine {low:.2f} to {high:.2f}", "", "black")
    return picture


def detection_picture(image: Image.Image, boxes: Sequence[tuple[Sequence[float], str]], path: Path) -> None:
    """Boxes (x, y, width, height in pixels) with their labels; labels also go into ``pictures.json`` beside it."""
    panel = _panel(image)
    scale = panel.width / image.width
    draw = ImageDraw.Draw(panel)
    for number, ((x, y, wide, high), label) in enumerate(boxes, start=1):
        colour = PALETTE[(number - 1) % len(PALETTE)]
        left, top, right, bottom = (value * scale for value in (x, y, x + wide, y + high))
        draw.rectangle((left, top, max(right, left + 1), max(bottom, top + 1)), outline=colour, width=2)
        shown = label if drawable(label) else f"{number}"
        font = font_for("".join(sorted(set(shown))))
        room = panel.width - draw.textlength(shown, font=font) - 2  # a label begins where all of it fits
        place = (max(min(int(left) + 3, int(room)), 0), max(int(top) - TEXT_HEIGHT - 4, 0))
        draw.rectangle(draw.textbbox(place, shown, font=font), fill="white")
        _write(draw, place, label, f"{number}", colour)
    save_picture(panel, path)
    labels = [{"number": at, "label": text} for at, (_, text) in enumerate(boxes, start=1)]
    add_to_index(path.parent, {path.name: {"boxes": labels}})


def add_to_index(folder: Path, entries: dict[str, Any]) -> None:
    """What pictures show, by their file names, in ``pictures.json`` of their folder. One process at a time."""
    index = folder / "pictures.json"
    known = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    write_json(index, known | entries)
