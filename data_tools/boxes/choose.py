"""Which of a detector's boxes become regions: score, area, aspect, overlap, number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MIN_SIDE_PIXELS = 4  # assumption: what is thinner than this holds no part of a patch that means anything


@dataclass(frozen=True)
class Detection:
    """``box``: normalised (x1, y1, x2, y2), as the model gave it, so it may reach out of the image."""

    phrase: int
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class BoxLimits:
    """Areas are shares of the image, aspects the longer side over the shorter in pixels, overlaps intersection over
    union. Scores of 0.4 and more, and an overlap that removes the weaker box, are the published recipe's; the other
    values are assumptions to be looked at in the report page."""

    min_score: float = 0.4
    min_area: float = 0.001
    max_area: float = 0.95
    max_aspect: float = 10.0
    phrase_overlap: float = 0.5  # between boxes of one phrase
    image_overlap: float = 0.9  # between boxes of different phrases: the same box twice would be its own negative
    max_boxes_per_phrase: int = 3

    def __post_init__(self) -> None:
        for name in ("min_score", "min_area", "max_area", "phrase_overlap", "image_overlap"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be from 0 to 1")
        if self.min_area >= self.max_area:
            raise ValueError(f"min_area is {self.min_area} and max_area {self.max_area}; no box could pass")
        if self.max_aspect < 1 or self.max_boxes_per_phrase < 1:
            raise ValueError("max_aspect and max_boxes_per_phrase must be at least 1")


def choose_boxes(
    detections: Sequence[Detection], width: int, height: int, limits: BoxLimits
) -> tuple[list[Detection], Counter[str]]:
    """The boxes to keep, cut at the image's edges, best first; and how many were left out by which rule.

    ``width`` and ``height`` are the image's, in pixels. A phrase's boxes that fail only for number count as
    ``boxes_over_limit``.
    """
    left_out: Counter[str] = Counter()
    usable: list[Detection] = []
    for detection in sorted(detections, key=lambda d: (-d.score, d.phrase, d.box)):
        box, problem = _limited(detection.box, width, height, limits)
        if detection.score < limits.min_score:
            problem = "boxes_low_score"
        if problem is not None:
            left_out[problem] += 1
        else:
            usable.append(Detection(detection.phrase, box, detection.score))
    after: list[Detection] = []
    for phrase in sorted({d.phrase for d in usable}):
        own = [d for d in usable if d.phrase == phrase]
        kept = _suppress(own, limits.phrase_overlap)
        left_out["boxes_overlap_same_phrase"] += len(own) - len(kept)
        left_out["boxes_over_limit"] += max(0, len(kept) - limits.max_boxes_per_phrase)
        after += kept[: limits.max_boxes_per_phrase]
    chosen = _suppress(sorted(after, key=lambda d: (-d.score, d.phrase, d.box)), limits.image_overlap)
    left_out["boxes_overlap_other_phrase"] += len(after) - len(chosen)
    return chosen, +left_out


def _limited(
    box: tuple[float, float, float, float], width: int, height: int, limits: BoxLimits
) -> tuple[tuple[float, float, float, float], str | None]:
    x1, y1, x2, y2 = (round(min(max(value, 0.0), 1.0), 6) for value in box)
    box = (x1, y1, x2, y2)
    wide, high = (x2 - x1) * width, (y2 - y1) * height
    if not (wide >= MIN_SIDE_PIXELS and high >= MIN_SIDE_PIXELS):  # so written that NaN fails too
        return box, "boxes_without_area"
    if (x2 - x1) * (y2 - y1) < limits.min_area:
        return box, "boxes_too_small"
    if (x2 - x1) * (y2 - y1) > limits.max_area:
        return box, "boxes_too_large"
    if max(wide / high, high / wide) > limits.max_aspect:
        return box, "boxes_bad_aspect"
    return box, None


def _suppress(detections: list[Detection], overlap: float) -> list[Detection]:
    """Non-maximum suppression by OpenCV; ``detections`` best first, and so the result."""
    try:
        from cv2.dnn import NMSBoxes
    except ImportError as error:
        raise ValueError("boxes need OpenCV; install the extra: pip install '.[boxes]'") from error
    if len(detections) < 2:
        return list(detections)
    corners = [[d.box[0], d.box[1], d.box[2] - d.box[0], d.box[3] - d.box[1]] for d in detections]
    kept = NMSBoxes(corners, [d.score for d in detections], 0.0, overlap)
    return [detections[number] for number in sorted(int(k) for k in kept)]
