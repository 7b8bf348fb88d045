"""A scene as pixels: antialiased shapes with patterns on a plain, slightly noisy background; boxes and class mask."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from data_tools.scenes.attributes import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, Look
from data_tools.scenes.layout import PlacedObject, Scene

OVERSAMPLING = 4  # shapes are drawn this much larger and reduced: antialiasing
NOISE_DEVIATION = 4.0  # grey levels of 255, the same in all three channels
COLOUR_JITTER = 10  # grey levels a channel, so that a colour is a region and not a point
JPEG_QUALITY = 90
PATTERN_PERIOD = {"striped": 8, "dotted": 8, "checkered": 12}  # pixels; two dots or stripes fit a patch of 16
OUTLINE_PIXELS = 1.8  # in the object's colour, so that a pattern does not eat the shape's edge
LIGHT = 252.0  # the second tone of every pattern


@dataclass(frozen=True)
class Drawing:
    """``boxes`` are normalised xyxy in the order of the scene's objects; ``mask`` is a PNG of ``mask_value``."""

    jpeg: bytes
    boxes: tuple[tuple[float, float, float, float], ...]
    mask: bytes | None


def draw_scene(scene: Scene, random: np.random.Generator, with_mask: bool = False) -> Drawing:
    """Draw one scene. Pixels are equal for equal arguments, on any machine of one Pillow version."""
    canvas = blank(scene.width, scene.height, BACKGROUNDS[scene.background][1], random)
    classes = np.zeros((scene.height, scene.width), np.uint8)
    boxes = []
    for placed in scene.objects:
        inside, share = stencil(placed, random)
        side = inside.shape[0]
        top, left = placed.y - side // 2, placed.x - side // 2
        set_down(canvas, inside, share, drawn_colour(placed.look, random), top, left)
        solid = inside >= 0.5
        classes[top : top + side, left : left + side][solid] = mask_value(placed.look.shape, placed.look.colour)
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        boxes.append(
            (
                (left + int(columns[0])) / scene.width,
                (top + int(rows[0])) / scene.height,
                (left + int(columns[-1]) + 1) / scene.width,
                (top + int(rows[-1]) + 1) / scene.height,
            )
        )
    return Drawing(
        encoded_jpeg(canvas, random),
        tuple(boxes),
        _encoded(Image.fromarray(classes), "PNG") if with_mask else None,
    )


def blank(width: int, height: int, tint: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """A background [height, width, 3] of grey levels, its tint a little changed."""
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = np.array(tint, np.float32) + random.integers(-3, 4, 3)
    return canvas


def drawn_colour(look: Look, random: np.random.Generator) -> np.ndarray:
    """The look's colour, a little changed: [3] grey levels."""
    return np.array(COLOURS[look.colour][1], np.float32) + random.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)


def set_down(
    canvas: np.ndarray, inside: np.ndarray, share: np.ndarray, colour: np.ndarray, top: int, left: int
) -> None:
    """Paint what ``stencil`` gave onto ``canvas``, its upper left corner at those pixels."""
    side = inside.shape[0]
    window = (slice(top, top + side), slice(left, left + side))
    surface = colour * share[..., None] + LIGHT * (1 - share[..., None])
    canvas[window] += (surface - canvas[window]) * inside[..., None]


def encoded_jpeg(canvas: np.ndarray, random: np.random.Generator) -> bytes:
    """The canvas under noise as a JPEG; the canvas is changed."""
    canvas += random.normal(0, NOISE_DEVIATION, canvas.shape[:2]).astype(np.float32)[..., None]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return _encoded(image, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def mask_value(shape: int, colour: int) -> int:
    """A pixel's value where an object of that shape and colour is; 0 is background."""
    return 1 + shape * len(COLOURS) + colour


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def stencil(placed: PlacedObject, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel the object covers, and how much of that is in its own colour: two [side, side] arrays."""
    side = placed.diameter + placed.diameter % 2  # even, so that the centre falls between pixels
    radius = placed.diameter / 2
    shape, pattern = SHAPES[placed.look.shape].en, PATTERNS[placed.look.pattern].en
    inside = _filled(shape, radius, placed.rotation, side)
    if pattern == "solid":
        return inside, np.ones_like(inside)
    core = _filled(shape, radius, placed.rotation, side, OUTLINE_PIXELS)
    field = _pattern_field(pattern)
    period = PATTERN_PERIOD[pattern]
    down, right = (int(offset) for offset in random.integers(0, period, 2))
    share = field[down : down + side, right : right + side]
    return inside, 1 - core * (1 - share)


def _filled(shape: str, radius: float, rotation: float, side: int, inset: float = 0.0) -> np.ndarray:
    """Coverage [side, side] in 0…1 of a shape of that radius about the middle, its edge moved inwards by ``inset``."""
    large = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING), 0)
    pen = ImageDraw.Draw(large)
    points = [
        ((side / 2 + x) * OVERSAMPLING, (side / 2 + y) * OVERSAMPLING) for x, y in _outline(shape, radius, rotation)
    ]
    pen.polygon(points, fill=255)
    if inset:
        pen.line([*points, points[0], points[1]], fill=0, width=round(2 * inset * OVERSAMPLING), joint="curve")
    return np.asarray(large.reduce(OVERSAMPLING), np.float32) / 255


def _outline(shape: str, radius: float, rotation: float) -> list[tuple[float, float]]:
    """Corners about (0, 0), within ``radius`` of it in x and y."""
    turn = math.radians(0 if shape == "circle" else rotation)
    unit = _unit_outline(shape)
    cos, sin = math.cos(turn), math.sin(turn)
    turned = [(x * cos - y * sin, x * sin + y * cos) for x, y in unit]
    # Every shape fills its square: the word "large" must not depend on the shape.
    left, right = min(x for x, _ in turned), max(x for x, _ in turned)
    top, bottom = min(y for _, y in turned), max(y for _, y in turned)
    scale = 2 * radius / max(right - left, bottom - top)
    return [((x - (left + right) / 2) * scale, (y - (top + bottom) / 2) * scale) for x, y in turned]


@cache
def _unit_outline(shape: str) -> tuple[tuple[float, float], ...]:
    def round_trip(count: int, radius: float = 1.0, start: float = -90.0) -> list[tuple[float, float]]:
        angles = [math.radians(start + 360 * i / count) for i in range(count)]
        return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]

    if shape == "circle":
        return tuple(round_trip(48))
    if shape == "square":
        return ((-1, -1), (1, -1), (1, 1), (-1, 1))
    if shape == "triangle":
        return tuple(round_trip(3))
    if shape == "star":
        outer, inner = round_trip(5), round_trip(5, 0.5, -90 + 36)
        return tuple(point for pair in zip(outer, inner, strict=True) for point in pair)
    if shape == "cross":
        arm = 0.42
        return (
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        )  # fmt: skip
    if shape == "heart":
        angles = [2 * math.pi * i / 48 for i in range(48)]
        return tuple(
            (16 * math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)))
            for a in angles
        )
    raise ValueError(f"shape {shape!r} has no outline; it must be one of {', '.join(term.en for term in SHAPES)}")


@cache
def _pattern_field(pattern: str) -> np.ndarray:
    """[96, 96] share of the object's own colour, large enough for the largest object at any phase."""
    side, period = 96, PATTERN_PERIOD[pattern]
    fine = (np.arange(side * OVERSAMPLING) + 0.5) / OVERSAMPLING
    y, x = np.meshgrid(fine % period, fine % period, indexing="ij")
    if pattern == "striped":
        own = y < period / 2
    elif pattern == "dotted":
        own = (x - period / 2) ** 2 + (y - period / 2) ** 2 > (0.3 * period) ** 2
    else:
        own = (x < period / 2) == (y < period / 2)
    blocks = own.astype(np.float32).reshape(side, OVERSAMPLING, side, OVERSAMPLING)
    return blocks.mean(axis=(1, 3))
