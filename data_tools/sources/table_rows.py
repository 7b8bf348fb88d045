"""One row of a table as a record: which column is what, and every reason for which a row is left out."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from data_tools.execution.shards import Drop
from data_tools.shards import Record
from data_tools.sources.boxes import BoxProblem, usable_box
from data_tools.sources.images import ImageProblem, check_image
from data_tools.sources.pairs import sample_key
from data_tools.text.detection import AUTO, detect
from pipeline.base.border import BorderError, parse_json, quoted, shown
from pipeline.base.languages import UNDETERMINED, canonical
from pipeline.data.images import ImageFault, image_size
from pipeline.data.schema import SampleError, parse_sample


class RowProblem(ValueError):
    """A row cannot be used; ``kind`` is what it is counted under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Columns:
    """The column of each part of a record; None: the table has none."""

    image: str | None = "image"
    short_caption: str | None = "short_caption"
    long_caption: str | None = "long_caption"
    language: str | None = "language"
    regions: str | None = "regions"
    boxes: str | None = None
    phrases: str | None = None
    negatives: str | None = None
    categories: str | None = None
    key: str | None = "key"
    source: str | None = "source"
    keep: tuple[str, ...] = ()

    @classmethod
    def chosen(cls, asked: Mapping[str, str | None], keep: Sequence[str], present: Sequence[str]) -> Self:
        """What was asked for, and for the rest the columns that have a part's own name.

        Raises:
            ValueError: a column is not there, with the nearest name; or there is neither image nor caption.
        """
        check_present({**asked, **{f"keep {column}": column for column in keep}}, present)
        own = {field.name: field.default for field in fields(cls) if field.name != "keep"}
        found: dict[str, Any] = {
            part: asked.get(part) or (name if name in present else None) for part, name in own.items()
        }
        columns = cls(**found, keep=tuple(keep))
        columns.check(present)
        return columns

    def check(self, present: Sequence[str]) -> None:
        """Raises ValueError where what every row needs has no column."""
        if self.image is None:
            raise ValueError(f"which column holds the images? Give --image COLUMN; the table has: {', '.join(present)}")
        self.check_captions(present)
        if (self.boxes is None) != (self.phrases is None):
            raise ValueError("--boxes and --phrases go together: a box without a phrase cannot be trained on")

    def check_captions(self, present: Sequence[str]) -> None:
        """Raises ValueError where no column holds captions."""
        if self.short_caption is None and self.long_caption is None:
            raise ValueError(
                "which column holds the captions? Give --short-caption or --long-caption COLUMN; the table has: "
                f"{', '.join(present)}"
            )


def check_present(asked: Mapping[str, str | None], present: Sequence[str]) -> None:
    """Raises ValueError, with the nearest name, where a column that was asked for a part is not in the table."""
    for part, name in asked.items():
        if name is not None and name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"column {name!r} for {part} is not in the table; {meant}It has: {', '.join(present)}")


@dataclass(frozen=True)
class RowReader:
    """Makes records of rows. ``box_unit`` is ``pixels`` or ``fractions``, ``box_format`` ``xyxy`` or ``xywh``."""

    columns: Columns
    dataset: str
    images: Path
    language: str | None
    among: tuple[str, ...]
    box_unit: str
    box_format: str

    def record(self, row: Mapping[str, Any], number: int) -> Record | Drop:
        """The record of a row, or why it is left out."""
        key = self._key(row, number)
        try:
            return self._record(key, row, number)
        except (RowProblem, ImageProblem, ImageFault, SampleError) as problem:
            return Drop(key, problem.kind, f"row {number}: {shown(problem)}")

    def image_name(self, row: Mapping[str, Any]) -> bytes:
        """What tells a row's image from others: its path, or a hash of its bytes."""
        value = self._image_value(row)
        return hashlib.sha256(value).digest() if isinstance(value, bytes) else str(value).encode("utf-8", "replace")

    def image_bytes(self, row: Mapping[str, Any]) -> int | None:
        """The size of a row's image; None where there is none."""
        value = self._image_value(row)
        try:
            return len(value) if isinstance(value, bytes) else os.stat(self.images / str(value)).st_size
        except (OSError, ValueError):
            return None

    def _image_value(self, row: Mapping[str, Any]) -> Any:
        value = row[self.columns.image or ""]
        if isinstance(value, dict):  # the Image feature of datasets, not decoded
            value = value.get("bytes") or value.get("path")
        return value

    def _key(self, row: Mapping[str, Any], number: int) -> str:
        value = row.get(self.columns.key) if self.columns.key is not None else None
        return sample_key(str(value)) if value not in (None, "") else f"{sample_key(self.dataset)}-{number:08d}"

    def _record(self, key: str, row: Mapping[str, Any], number: int) -> Record:
        image = check_image(self._image(row), f"row {number}", convert=True)
        width, height = image_size(image.data)
        captions = {name: self._text(row, name) for name in ("short_caption", "long_caption")}
        if not any(captions.values()):
            raise RowProblem("no_caption", "its captions are empty")
        document = {
            "language": self._language(row, captions["short_caption"] or captions["long_caption"] or ""),
            "width": width,
            "height": height,
            **{name: text for name, text in captions.items() if text},
            "regions": self._regions(row, width, height),
            "source": self._source(row, number),
        }
        sample = parse_sample(document, key=key, shard=self.dataset)
        return Record(key, image.data, image.extension, sample)

    def _image(self, row: Mapping[str, Any]) -> bytes:
        value = self._image_value(row)
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value.strip():
            raise RowProblem("missing_image", f"its image is {quoted(value)}")
        # By the names alone: links that the user put into the folder are the user's word.
        path = Path(os.path.abspath(self.images / value))
        if not path.is_relative_to(os.path.abspath(self.images)):
            raise RowProblem("image_outside", f"{shown(value)} lies outside of {self.images}; give --images")
        if "\0" in value or not path.is_file():
            raise RowProblem("missing_image", f"{shown(path)} does not exist")
        return path.read_bytes()

    def _text(self, row: Mapping[str, Any], part: str) -> str | None:
        column = getattr(self.columns, part)
        value = row[column] if column is not None else None
        if value is None:
            return None
        if not isinstance(value, str):
            raise RowProblem("caption_not_text", f"{column} is {quoted(value)}; a caption must be text")
        return value.strip() or None

    def _language(self, row: Mapping[str, Any], caption: str) -> str:
        if self.columns.language is not None:
            value = row[self.columns.language]
            if not isinstance(value, str) or not value.strip():
                raise RowProblem("no_language", f"{self.columns.language} is {quoted(value)}")
            try:
                return canonical(value.strip())
            except ValueError as error:
                raise RowProblem("no_language", f"{self.columns.language} is {quoted(value)}; {error}") from error
        if self.language != AUTO:
            return self.language or UNDETERMINED
        told = detect(caption, self.among)
        if told is None:
            raise RowProblem("language_unclear", f"{shown(caption, 80)!r} is in none of {' '.join(self.among)}")
        return told

    def _regions(self, row: Mapping[str, Any], width: int, height: int) -> list[dict[str, Any]]:
        names = self.columns
        if names.regions is not None:
            found = cell_list(row[names.regions], names.regions)
            return [{k: v for k, v in region.items() if v not in (None, [])} if isinstance(region, dict) else region
                    for region in found]  # fmt: skip
        if names.boxes is None or names.phrases is None:
            return []
        boxes, phrases = cell_list(row[names.boxes], names.boxes), cell_list(row[names.phrases], names.phrases)
        more = {part: cell_list(row[column], column) for part, column in
                (("negatives", names.negatives), ("category", names.categories)) if column is not None}  # fmt: skip
        for part, values in {"phrases": phrases, **more}.items():
            if len(values) != len(boxes) and values:
                raise RowProblem("regions_differ", f"{len(boxes)} boxes, but {len(values)} of {part}; one each")
        regions = []
        for number, (box, phrase) in enumerate(zip(boxes, phrases, strict=True)):
            extra = {part: values[number] for part, values in more.items() if values and values[number]}
            regions.append({"box": self._box(box, width, height), "phrase": phrase, **extra})
        return regions

    def _box(self, box: Any, width: int, height: int) -> tuple[float, float, float, float]:
        numbers = list(box) if isinstance(box, list | tuple) else []
        if len(numbers) != 4 or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
            raise RowProblem("box_malformed", f"a box is {quoted(box)}; it must be four numbers")
        if self.box_format == "xywh":
            numbers = [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]]
        scale = (width, height) * 2 if self.box_unit == "pixels" else (1, 1, 1, 1)
        try:
            return usable_box([number / side for number, side in zip(numbers, scale, strict=True)])
        except (BoxProblem, OverflowError) as problem:
            raise RowProblem(
                getattr(problem, "kind", "box_malformed"), f"a box is {quoted(box)}; {problem}"
            ) from problem

    def _source(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        if self.columns.source is not None and row[self.columns.source] not in (None, ""):
            value = row[self.columns.source]
            found = _parsed(value, self.columns.source) if isinstance(value, str) else value
            if not isinstance(found, dict):
                raise RowProblem("bad_source", f"{self.columns.source} is {quoted(value)}; it must be an object")
            return found
        kept = {name: row[name] for name in self.columns.keep if row[name] is not None}
        try:
            return parse_json(json.dumps({"dataset": self.dataset, "row": number, **kept}, default=str))
        except BorderError as error:
            raise RowProblem("bad_source", f"one of {', '.join(kept)} is {error}") from error


def cell_list(value: Any, column: str) -> list[Any]:
    """A list, or the JSON of one, as the cells of CSV hold it; nothing is the empty list."""
    if isinstance(value, str) and value.strip():
        value = _parsed(value, column)
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise RowProblem("regions_malformed", f"{column} is {quoted(value)}; it must be a list, or its JSON")
    return value


def _parsed(text: str, column: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"))  # half a character is invalid UTF-8, and named so
    except BorderError as error:
        raise RowProblem("bad_json", f"{column} is {error}") from error
