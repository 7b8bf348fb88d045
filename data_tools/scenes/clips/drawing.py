"""A clip as pixels: the same shapes as the still scenes, drawn once and set down in every frame, noise in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_tools.scenes.attributes import BACKGROUNDS
from data_tools.scenes.clips.layout import SIDE, Clip, Mover
from data_tools.scenes.clips.motions import Place
from data_tools.scenes.drawing import blank, drawn_colour, encoded_jpeg, set_down, stencil
from data_tools.scenes.layout import PlacedObject

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ClipDrawing:
    """``frames`` are JPEGs; ``boxes``, of each object and frame, are normalised xyxy or None where it is not there."""

    frames: tuple[bytes, ...]
    boxes: tuple[tuple[Box | None, ...], ...]


def draw_clip(clip: Clip, random: np.random.Generator) -> ClipDrawing:
    """Draw every frame. Pixels are equal for equal arguments, on any machine of one Pillow version."""
    tint = blank(SIDE, SIDE, BACKGROUNDS[clip.background][1], random)
    stencils = []
    for mover in clip.movers:
        placed = PlacedObject(mover.look, mover.diameter, 0, 0, mover.rotation)
        stencils.append((*stencil(placed, random), drawn_colour(mover.look, random)))
    frames = []
    for number in range(len(clip.anomaly)):
        canvas = tint.copy()
        for mover, (inside, share, colour) in zip(clip.movers, stencils, strict=True):
            place = mover.places[number]
            if place is not None:
                set_down(canvas, inside, share, colour, *_corner(place, inside))
        frames.append(encoded_jpeg(canvas, random))
    boxes = tuple(_boxes(mover, inside) for mover, (inside, _, _) in zip(clip.movers, stencils, strict=True))
    return ClipDrawing(tuple(frames), boxes)


def _corner(place: Place, inside: np.ndarray) -> tuple[int, int]:
    """Top and left of an object's stencil."""
    side = inside.shape[0]
    return place[1] - side // 2, place[0] - side // 2


def _boxes(mover: Mover, inside: np.ndarray) -> tuple[Box | None, ...]:
    solid = inside >= 0.5
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    boxes: list[Box | None] = []
    for place in mover.places:
        if place is None:
            boxes.append(None)
            continue
        top, left = _corner(place, inside)
        edges = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        x1, y1, x2, y2 = (round(int(edge) / SIDE, 6) for edge in edges)
        boxes.append((x1, y1, x2, y2))
    return tuple(boxes)
