"""Boxes of other formats as the record's: normalised xyxy inside the image, or the rule they break."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MAX_NUMBER = 1e12  # of a side's fractions or pixels; beyond it is damage, and neither nan nor inf is below it
Box = tuple[float, float, float, float]


class BoxProblem(ValueError):
    """A box cannot be used; ``kind`` is what it is counted under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def usable_box(box: Sequence[Any], max_overshoot: float = math.inf) -> Box:
    """``box`` (x1, y1, x2, y2 as fractions) cut at the image's edges.

    Args:
        max_overshoot: a corner further outside than this fraction is taken for a mistake and not for rounding.

    Raises:
        BoxProblem: ``box_malformed`` (not four finite numbers), ``box_without_area`` (also corners in the wrong order)
            or ``box_outside``.
    """
    numbers = [v for v in box if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= MAX_NUMBER]
    if len(box) != 4 or len(numbers) != 4:
        raise BoxProblem("box_malformed", "it must be four finite numbers")
    x1, y1, x2, y2 = (float(v) for v in numbers)
    if not (x1 < x2 and y1 < y2):
        raise BoxProblem("box_without_area", "x1 < x2 and y1 < y2 must hold")
    if x1 < -max_overshoot or y1 < -max_overshoot or x2 > 1 + max_overshoot or y2 > 1 + max_overshoot:
        raise BoxProblem("box_outside", f"it reaches outside the image by more than {max_overshoot:g} of its side")
    x1_cut, y1_cut, x2_cut, y2_cut = (round(min(1.0, max(0.0, v)), 6) for v in (x1, y1, x2, y2))
    cut = (x1_cut, y1_cut, x2_cut, y2_cut)
    if not (cut[0] < cut[2] and cut[1] < cut[3]):
        inside = x1 < 1 and y1 < 1 and x2 > 0 and y2 > 0
        raise BoxProblem("box_without_area" if inside else "box_outside", "nothing of it lies inside the image")
    return cut


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two xyxy boxes in one unit."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)
