"""The record of one training sample: the only place that reads, writes and checks it.

A shard is a plain WebDataset tar. One sample is two members, ``KEY.jpg`` (or .png/.webp) and ``KEY.json``; the JSON
is the record below. Every field but one caption may be missing, and a missing field stays missing: ``None`` or an
empty tuple here, no key in the JSON. Boxes are normalised ``(x1, y1, x2, y2)`` with ``0 <= x1 < x2 <= 1``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.constants import LANGUAGES

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_TEXT_LENGTH = 20_000  # characters; assumption: two hundred times a long caption is damage, not language


class SampleError(ValueError):
    """A record breaks a rule. ``kind`` is the short name that faults are counted under."""

    def __init__(self, kind: str, message: str, *, key: str = "?", shard: str = "?") -> None:
        super().__init__(f"{shard}: sample {key}: {message}")
        self.kind, self.key, self.shard = kind, key, shard


@dataclass(frozen=True)
class Region:
    """One object: its box, the phrase that is true of it, and phrases that are not."""

    box: tuple[float, float, float, float]
    phrase: str
    long_phrase: str | None = None
    category: str | None = None  # class name, for box classification
    score: float | None = None  # confidence of the detector that proposed the box
    negatives: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"box": [round(float(v), 6) for v in self.box], "phrase": self.phrase}
        for name in ("long_phrase", "category", "score"):
            if getattr(self, name) is not None:
                record[name] = getattr(self, name)
        if self.negatives:
            record["negatives"] = list(self.negatives)
        return record


@dataclass(frozen=True)
class Sample:
    """One image's record. ``width`` and ``height`` are those of the stored image, in pixels."""

    language: str
    width: int
    height: int
    short_caption: str | None = None
    long_caption: str | None = None
    regions: tuple[Region, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"language": self.language, "width": self.width, "height": self.height}
        if self.short_caption is not None:
            record["short_caption"] = self.short_caption
        if self.long_caption is not None:
            record["long_caption"] = self.long_caption
        if self.regions:
            record["regions"] = [region.to_json() for region in self.regions]
        if self.source:
            record["source"] = self.source
        return record

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def parse_sample(
    data: bytes | dict[str, Any], *, key: str = "?", shard: str = "?", captions_required: bool = True
) -> Sample:
    """Read and check one record. The shard builder reads samples on their way to a caption without requiring one.

    Raises:
        SampleError: with ``kind`` one of ``bad_utf8``, ``bad_json``, ``bad_field``, ``bad_box``, ``empty_caption``,
            ``long_text``; the message names the shard, the key, the value and the rule.
    """

    def fail(kind: str, message: str) -> SampleError:
        return SampleError(kind, message, key=key, shard=shard)

    def text(record: dict[str, Any], name: str, where: str) -> str | None:
        value = record.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise fail("bad_field", f"{where}{name} is {value!r:.80}; it must be a string")
        if not value.strip():
            raise fail("empty_caption", f"{where}{name} is empty; leave the field out instead")
        if len(value) > MAX_TEXT_LENGTH:
            raise fail("long_text", f"{where}{name} has {len(value)} characters; at most {MAX_TEXT_LENGTH} are allowed")
        return value

    if isinstance(data, bytes):
        try:
            decoded = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise fail("bad_utf8", f"the JSON member is not UTF-8 ({error})") from error
        try:
            data = json.loads(decoded)
        except (json.JSONDecodeError, RecursionError) as error:
            raise fail("bad_json", f"the JSON member does not parse ({error})") from error
    if not isinstance(data, dict):
        raise fail("bad_field", f"the record is a {type(data).__name__}; it must be a JSON object")

    language = data.get("language")
    if language not in LANGUAGES:
        raise fail("bad_field", f"language is {language!r:.80}; it must be one of {', '.join(LANGUAGES)}")
    sizes = []
    for name in ("width", "height"):
        value = data.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise fail("bad_field", f"{name} is {value!r:.80}; it must be a whole number of pixels, at least 1")
        sizes.append(value)
    short_caption, long_caption = text(data, "short_caption", ""), text(data, "long_caption", "")
    if captions_required and short_caption is None and long_caption is None:
        raise fail("empty_caption", "it has neither short_caption nor long_caption; at least one is needed")
    regions = data.get("regions", [])
    if not isinstance(regions, list):
        raise fail("bad_field", f"regions is a {type(regions).__name__}; it must be a list")
    source = data.get("source", {})
    if not isinstance(source, dict):
        raise fail("bad_field", f"source is a {type(source).__name__}; it must be an object")

    parsed = []
    for number, region in enumerate(regions):
        where = f"regions[{number}]."
        if not isinstance(region, dict):
            raise fail("bad_field", f"regions[{number}] is a {type(region).__name__}; it must be an object")
        problem = box_problem(region.get("box"))
        if problem:
            raise fail("bad_box", f"{where}box is {region.get('box')!r:.120}; {problem}")
        phrase = text(region, "phrase", where)
        if phrase is None:
            raise fail("bad_field", f"{where}phrase is missing; a region needs the phrase that is true of it")
        negatives = region.get("negatives", [])
        if not isinstance(negatives, list) or not all(isinstance(n, str) and n.strip() for n in negatives):
            raise fail("bad_field", f"{where}negatives is {negatives!r:.80}; it must be a list of non-empty strings")
        score = region.get("score")
        if score is not None and not (_is_number(score) and math.isfinite(score)):
            raise fail("bad_field", f"{where}score is {score!r:.80}; it must be a finite number")
        x1, y1, x2, y2 = map(float, region["box"])
        parsed.append(
            Region(
                box=(x1, y1, x2, y2),
                phrase=phrase,
                long_phrase=text(region, "long_phrase", where),
                category=text(region, "category", where),
                score=score,
                negatives=tuple(negatives),
            )
        )
    return Sample(language, sizes[0], sizes[1], short_caption, long_caption, tuple(parsed), source)


def box_problem(box: Any) -> str | None:
    """The rule that a normalised xyxy box breaks, or None."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(_is_number(v) for v in box):
        return "it must be four numbers x1, y1, x2, y2"
    if not all(math.isfinite(v) for v in box):
        return "it must be finite"
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        return "0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 must hold (fractions of width and height)"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
