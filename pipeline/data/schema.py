"""The record of one training sample: the only place that reads, writes and checks it.

A shard is a plain WebDataset tar. One sample is two members, ``KEY.jpg`` (or .png/.webp) and ``KEY.json``; the JSON
is the record below. Every field but one caption may be missing, and a missing field stays missing: ``None`` or an
empty tuple here, no key in the JSON. Boxes are normalised ``(x1, y1, x2, y2)`` with ``0 <= x1 < x2 <= 1``.

A clip is a sample with frames: ``KEY.000.jpg``, ``KEY.001.jpg`` … of one size, their times in ``frames``, and for each
region a box or null a frame.

Records are parsed and checked in one pass by pydantic, from bytes, at a quarter of the time that ``json`` and checks by
hand take.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, FailFast, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pipeline.base.border import describe, shown
from pipeline.base.constants import MAX_FRAMES
from pipeline.base.languages import RULE as LANGUAGE_RULE
from pipeline.base.languages import Language

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_TEXT_LENGTH = 20_000  # characters; assumption: two hundred times a long caption is damage, not language
MAX_RECORD_BYTES = 4 << 20  # assumption: ten times a record of 200 regions with long phrases and ten negatives each
HALF_CHARACTER = "half of a character (a lone surrogate, as a cut emoji leaves it)"
MAX_SIDE_PIXELS = 2**31 - 1  # what an index holds; the image itself is bounded by its pixels


class SampleError(ValueError):
    """A record breaks a rule. ``kind`` is the short name that faults are counted under."""

    def __init__(self, kind: str, message: str, *, key: str = "?", shard: str = "?") -> None:
        super().__init__(f"{shown(shard)}: sample {shown(key)}: {message}")
        self.kind, self.key, self.shard, self.message = kind, key, shard, message


def _ordered(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if not (box[0] < box[2] and box[1] < box[3]):
        raise PydanticCustomError("box_order", BOX_RULE)
    return box


BOX_RULE = "0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 must hold (fractions of width and height)"
# With a character that is no space; \x1c to \x1f are spaces to str.strip, which later code uses.
Text = Annotated[str, StringConstraints(strict=True, max_length=MAX_TEXT_LENGTH, pattern=r"[^\s\x1c-\x1f]")]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Box = Annotated[tuple[Fraction, Fraction, Fraction, Fraction], AfterValidator(_ordered)]
Score = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE_PIXELS)]
Seconds = Annotated[float, Field(strict=True)]
Flag = Annotated[int, Field(strict=True, ge=0, le=1)]


@dataclass(frozen=True)
class Region:
    """One object: its box, the phrase that is true of it, and phrases that are not.

    An image's region has ``box``, a clip's ``boxes``; ``parse_sample`` sees to it.
    """

    box: Annotated[Box | None, Field(default=None)]
    phrase: Text
    long_phrase: Text | None = None
    category: Text | None = None  # class name, for box classification
    score: Score | None = None  # confidence of the detector that proposed the box
    negatives: Annotated[tuple[Text, ...], FailFast()] = ()
    boxes: Annotated[tuple[Box | None, ...] | None, FailFast()] = None  # one a frame; None where it is not there

    @property
    def image_box(self) -> tuple[float, float, float, float]:
        """The box of an image's region. Raises ``ValueError`` for a clip's."""
        if self.box is None:
            raise ValueError(f"the region {shown(self.phrase)!r} is of a clip, which has a box a frame; read images")
        return self.box

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {}
        if self.box is not None:
            record["box"] = _rounded(self.box)
        if self.boxes is not None:
            record["boxes"] = [box and _rounded(box) for box in self.boxes]
        record["phrase"] = self.phrase
        for name in ("long_phrase", "category", "score"):
            if getattr(self, name) is not None:
                record[name] = getattr(self, name)
        if self.negatives:
            record["negatives"] = list(self.negatives)
        return record


def _rounded(box: tuple[float, float, float, float]) -> list[float]:
    return [round(float(value), 6) for value in box]


@dataclass(frozen=True)
class Sample:
    """One image's or clip's record. ``width`` and ``height`` are those of the stored images, in pixels."""

    language: Language
    width: Side
    height: Side
    short_caption: Text | None = None
    long_caption: Text | None = None
    regions: Annotated[tuple[Region, ...], FailFast()] = ()  # one fault is enough to name the record
    source: dict[str, Any] = field(default_factory=dict)
    frames: Annotated[tuple[Seconds, ...] | None, FailFast()] = None  # of a clip: seconds from its beginning
    anomaly: Annotated[tuple[Flag, ...] | None, FailFast()] = None  # of a clip: a label a frame, for evaluation alone

    @property
    def num_frames(self) -> int:
        """1 for an image."""
        return 1 if self.frames is None else len(self.frames)

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"language": self.language, "width": self.width, "height": self.height}
        if self.short_caption is not None:
            record["short_caption"] = self.short_caption
        if self.long_caption is not None:
            record["long_caption"] = self.long_caption
        if self.regions:
            record["regions"] = [region.to_json() for region in self.regions]
        if self.frames is not None:
            record["frames"] = [round(float(seconds), 6) for seconds in self.frames]
        if self.anomaly is not None:
            record["anomaly"] = list(self.anomaly)
        if self.source:
            record["source"] = self.source
        return record

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode("utf-8")


_SAMPLE = TypeAdapter(Sample)


def parse_sample(
    data: bytes | dict[str, Any], *, key: str = "?", shard: str = "?", captions_required: bool = True
) -> Sample:
    """Read and check one record. The shard builder reads samples on their way to a caption without requiring one.

    Raises:
        SampleError: with ``kind`` one of ``bad_utf8``, ``bad_unicode``, ``bad_json``, ``bad_field``, ``bad_box``,
            ``empty_caption``, ``long_text``, ``long_record``, and of clips ``no_frames``, ``too_many_frames``,
            ``frame_times``, ``frame_boxes``; the message names the shard, the key, the value and the rule.
    """
    if isinstance(data, bytes) and len(data) > MAX_RECORD_BYTES:
        message = f"the JSON member has {len(data)} bytes; at most {MAX_RECORD_BYTES} are allowed"
        raise SampleError("long_record", message, key=key, shard=shard)
    try:
        sample = _SAMPLE.validate_json(data) if isinstance(data, bytes) else _SAMPLE.validate_python(data)
    except ValidationError as error:
        kind, message = _fault(error.errors(include_url=False)[0], data)
        raise SampleError(kind, message, key=key, shard=shard) from error
    if (found := _image_fault(sample) if sample.frames is None else _clip_fault(sample, sample.frames)) is not None:
        raise SampleError(*found, key=key, shard=shard)
    if captions_required and sample.short_caption is None and sample.long_caption is None:
        message = "it has neither short_caption nor long_caption; at least one is needed"
        raise SampleError("empty_caption", message, key=key, shard=shard)
    return sample


def _image_fault(sample: Sample) -> tuple[str, str] | None:
    """Kind and message of what an image's record must not hold."""
    for number, region in enumerate(sample.regions):
        if region.boxes is not None:
            message = f"regions[{number}].boxes is given, but the record has no frames; an image's region has one box"
            return "frame_boxes", message
        if region.box is None:
            return "bad_box", f"regions[{number}].box is missing"
    return None if sample.anomaly is None else ("bad_field", "anomaly is given, but the record has no frames")


def _clip_fault(sample: Sample, times: tuple[float, ...]) -> tuple[str, str] | None:
    """Kind and message of what breaks the rules of a clip."""
    if not times:
        return "no_frames", "frames is empty; leave it out for an image, or write the time of each frame"
    if len(times) > MAX_FRAMES:
        return "too_many_frames", f"it has {len(times)} frames; at most {MAX_FRAMES} are allowed: cut it into clips"
    for number, (before, after) in enumerate(pairwise((-math.inf, *times))):
        if not (0 <= after < math.inf and before < after):
            rule = "seconds from the beginning must be finite, not negative and ascending"
            return "frame_times", f"frames[{number}] is {after}; {rule}"
    for number, region in enumerate(sample.regions):
        place = f"regions[{number}]"
        if region.box is not None or region.boxes is None:
            return "frame_boxes", f"{place} is of a clip: it needs boxes, one or null a frame, and no box"
        if len(region.boxes) != len(times):
            return (
                "frame_boxes",
                f"{place} has {len(region.boxes)} boxes for {len(times)} frames; give one or null each",
            )
    if sample.anomaly is not None and len(sample.anomaly) != len(times):
        return "bad_field", f"anomaly has {len(sample.anomaly)} labels for {len(times)} frames; give one each"
    return None


def box_problem(box: object) -> str | None:
    """The rule that a normalised xyxy box breaks, or None."""
    try:
        _BOX.validate_python(box)
    except ValidationError as error:
        return _box_rule(error.errors(include_url=False)[0])
    return None


_BOX: TypeAdapter[tuple[float, float, float, float]] = TypeAdapter(Box)


def _box_rule(fault: ErrorDetails) -> str:
    if fault["type"] in ("greater_than_equal", "less_than_equal", "box_order"):
        return BOX_RULE
    return "it must be finite" if fault["type"] == "finite_number" else "it must be four numbers x1, y1, x2, y2"


def _fault(fault: ErrorDetails, data: bytes | dict[str, Any]) -> tuple[str, str]:
    """Kind and message of the first rule that a record breaks."""
    kind, place = fault["type"], fault["loc"]
    if kind == "json_invalid":
        return _json_fault(data, shown(fault["msg"]))
    if kind == "string_unicode":
        return "bad_unicode", describe({**fault, "msg": f"it holds {HALF_CHARACTER}"})
    if place[:1] == ("frames",):
        return "frame_times", describe(fault)
    if {"box", "boxes"} & set(place[:3]):
        return "bad_box", describe({**fault, "type": "value_error", "msg": _box_rule(fault)})
    if kind == "string_too_long":
        rule = f"it has {len(str(fault['input']))} characters; at most {MAX_TEXT_LENGTH} are allowed"
        return "long_text", describe({**fault, "msg": rule})
    if kind in ("string_pattern_mismatch", "string_too_short") and "negatives" not in place:
        return "empty_caption", describe({**fault, "msg": "it is empty; leave the field out instead"})
    if kind == "string_pattern_mismatch":
        fault = {**fault, "msg": "it must be a string that is not empty"}
    if place == ("language",) and kind != "missing":
        fault = {**fault, "type": "value_error", "msg": LANGUAGE_RULE}
    return "bad_field", describe(fault)


def _json_fault(data: bytes | dict[str, Any], message: str) -> tuple[str, str]:
    try:
        (data if isinstance(data, bytes) else b"").decode("utf-8")
    except UnicodeDecodeError as error:
        return "bad_utf8", f"the JSON member is not UTF-8 ({error})"
    if "hex escape" in message or "surrogate" in message:
        return "bad_unicode", f"the JSON member holds {HALF_CHARACTER} ({message})"
    return "bad_json", f"the JSON member does not parse ({message})"
