"""A table of scenes that the demo's model has not seen: other colours, two other shapes, and German beside English.

Small JPEGs in a Parquet file, as a user's own table would hold them: for ``benchmarks.finetune`` and docs/finetune.md.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline.base.files import write_aside

COLOURS = {"brown": ("braun", (122, 72, 30)), "olive": ("oliv", (120, 124, 20)), "navy": ("marineblau", (18, 26, 96))}
SHAPES = {"hexagon": "Sechseck", "arrow": "Pfeil", "circle": "Kreis", "square": "Quadrat"}
BACKGROUNDS = {
    "white": ("weiss", (250, 250, 250)),
    "pink": ("rosa", (250, 206, 214)),
    "grey": ("grau", (196, 196, 200)),
}
PLACES = {"on the left": "links", "on the right": "rechts"}
WIDTH, HEIGHT, OVERSAMPLING = 128, 96, 4
ROWS_AT_ONCE = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune_scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m benchmarks.finetune_scenes --rows 2000 --out scenes.parquet",
    )
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file")
    parser.add_argument("--rows", type=int, default=20_000, help="default: 20000")
    arguments = parser.parse_args(argv)
    write_table(arguments.out, arguments.rows)
    print(f"{arguments.out}: {arguments.rows} rows; columns image, title, description, language")
    return 0


def write_table(path: Path, rows: int, seed: int = 0) -> None:
    """``image`` (bytes), ``title``, ``description``, ``language``; written aside and renamed."""
    with write_aside(path) as partial:
        writer = None
        for start in range(0, rows, ROWS_AT_ONCE):
            found = [_row(seed, number) for number in range(start, min(start + ROWS_AT_ONCE, rows))]
            table = pa.Table.from_pylist(found)
            writer = writer or pq.ParquetWriter(partial, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _row(seed: int, number: int) -> dict[str, object]:
    random = np.random.default_rng([seed, number])
    background = list(BACKGROUNDS)[random.integers(len(BACKGROUNDS))]
    count = 2 if random.random() < 0.9 else 1  # two things in two places: few descriptions are alike
    things = []
    for place in random.permutation(list(PLACES))[:count]:
        colour, shape = (list(known)[random.integers(len(known))] for known in (COLOURS, SHAPES))
        things.append((str(place), colour, shape, "large" if random.random() < 0.5 else "small"))
    language = "en" if number % 2 else "de"
    return {
        "image": _drawn(background, things, random),
        "title": _listed(language, [_phrase(language, *thing[1:]) for thing in things]),
        "description": _description(language, background, things),
        "language": language,
    }


def _phrase(language: str, colour: str, shape: str, size: str) -> str:
    if language == "en":
        return f"a {size} {colour} {shape}"
    article = "eine" if SHAPES[shape].endswith("e") else "ein"
    return f"{article} {SHAPES[shape]}, {'gross' if size == 'large' else 'klein'} und {COLOURS[colour][0]}"


def _listed(language: str, phrases: list[str]) -> str:
    return (" and " if language == "en" else " sowie ").join(phrases)


def _description(language: str, background: str, things: list[tuple[str, str, str, str]]) -> str:
    said = [f"{_phrase(language, *thing[1:])} {thing[0] if language == 'en' else PLACES[thing[0]]}" for thing in things]
    if language == "en":
        return f"on a {background} background: {_listed(language, said)}."
    return f"auf {BACKGROUNDS[background][0]}em Hintergrund: {_listed(language, said)}."


def _drawn(background: str, things: list[tuple[str, str, str, str]], random: np.random.Generator) -> bytes:
    canvas = Image.new("RGB", (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING), BACKGROUNDS[background][1])
    pen = ImageDraw.Draw(canvas)
    for place, colour, shape, size in things:
        radius = (26 if size == "large" else 15) + random.uniform(-2, 2)
        x = (WIDTH / 4 if place == "on the left" else 3 * WIDTH / 4) + random.uniform(-4, 4)
        y = HEIGHT / 2 + random.uniform(-15, 15)
        jitter = tuple(int(np.clip(level + random.integers(-8, 9), 0, 255)) for level in COLOURS[colour][1])
        corners = [((x + radius * dx) * OVERSAMPLING, (y + radius * dy) * OVERSAMPLING) for dx, dy in _outline(shape)]
        pen.polygon(corners, fill=jitter)
    stream = io.BytesIO()
    canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _outline(shape: str) -> Iterator[tuple[float, float]]:
    if shape == "arrow":
        yield from ((-1, -0.35), (0.1, -0.35), (0.1, -0.9), (1, 0), (0.1, 0.9), (0.1, 0.35), (-1, 0.35))
    elif shape == "square":
        yield from ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
    else:
        corners = 6 if shape == "hexagon" else 48
        for number in range(corners):
            angle = 2 * math.pi * number / corners
            yield math.cos(angle), math.sin(angle)


if __name__ == "__main__":
    sys.exit(main())
