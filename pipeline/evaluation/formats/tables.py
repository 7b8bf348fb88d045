"""Lists of images and captions as people have them: tabs, commas or spaces, with a header or without, any suffix."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.border import BorderError, parse_json, quoted
from pipeline.evaluation.formats.paths import EXTENSIONS, read_json, text_lines
from pipeline.evaluation.results import EvaluationError

# Names under which lists keep images and captions; the first that a row has is read.
IMAGE_FIELDS = ("image_file", "image", "img_path", "image_path", "file_name", "filename", "f_path", "image_id", "id")
LONG_FIELDS = ("long_caption", "description", "caption_long", "captions", "caption", "text", "raw")
SHORT_FIELDS = ("short_caption", "captions", "caption", "text", "raw", "description")
# IMAGE#0 or IMAGE#zhm#0, as the lists of COCO-CN and Flickr30k write a caption's number
NUMBERED = re.compile(r"^(?P<image>[^\s#]+)#(?:[A-Za-z]+#)?\d+$")
NUMBERED_LINE = re.compile(r"^(?P<image>[^\s#]+#(?:[A-Za-z]+#)?\d+)[\t ]+(?P<text>.*)$")


@dataclass(frozen=True)
class CaptionTable:
    """The rows of a text list: image and text each, and how it was written."""

    rows: list[tuple[str, str]]
    delimiter: str  # "tab", "comma" or "space"
    numbered: bool  # IMAGE#0: several captions an image
    header: list[str] | None = None
    records: list[dict[str, str]] | None = None  # where there is a header: the rows by its names


def is_json_list(path: Path) -> bool:
    """Whether a file holds JSON, one object a line or one list, whatever its suffix."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        start = file.read(4096).lstrip()
    return start.startswith(("{", "[{", "[ {", "[\n"))


def read_table(path: Path) -> CaptionTable:
    """A text list.

    Raises:
        EvaluationError: the first line has no tab, comma or space that would part an image from its caption.
    """
    lines = text_lines(path)
    if not lines:
        raise EvaluationError(f"{path} is empty; give a list with an image and its caption a line")
    first = lines[0]
    if NUMBERED_LINE.match(first.strip()):
        matches = [NUMBERED_LINE.match(line.strip()) for line in lines]
        delimiter = "space"
        cells = [
            [match["image"], match["text"]] if match else [line.strip()]
            for match, line in zip(matches, lines, strict=True)
        ]
    elif "\t" in first:
        delimiter, cells = "tab", [_cells(line, "\t") for line in lines]
    elif "," in first:
        delimiter, cells = "comma", [_cells(line, ",") for line in lines]
    elif " " in first.strip():
        delimiter, cells = "space", [line.strip().split(maxsplit=1) for line in lines]
    else:
        raise EvaluationError(
            f"{path}: line 1 is {first!r:.80}; write the image, a tab or comma, and the caption, or name --format"
        )
    header = [cell.strip().lower() for cell in cells[0]]
    known = {*IMAGE_FIELDS, *LONG_FIELDS, *SHORT_FIELDS}
    if header[0] in known or (len(header) > 1 and known & set(header) and not _is_image(cells[0][0])):
        records = [dict(zip(header, row, strict=False)) for row in cells[1:]]
        return CaptionTable([], delimiter, False, header, records)
    glue = {"tab": "\t", "comma": ",", "space": " "}[delimiter]
    rows, numbered = [], False
    for image, *rest in cells:
        match = NUMBERED.match(image.strip())
        numbered = numbered or match is not None
        rows.append((match["image"] if match else image.strip(), glue.join(rest).strip()))
    return CaptionTable(rows, delimiter, numbered)


def _cells(line: str, delimiter: str) -> list[str]:
    """A line's cells; quotes are read only where they open a cell, as spreadsheets write them."""
    if delimiter == "\t" or '"' not in line:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter))


def _is_image(cell: str) -> bool:
    return cell.strip().lower().endswith(EXTENSIONS)


def json_records(path: Path) -> list[Any]:
    """The rows of a JSON list, of an object that holds one, or of a file with one object a line.

    Raises:
        EvaluationError: a line that is not JSON.
    """
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        start = file.read(4096).lstrip()
    if start.startswith("[") or path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, list):
            return content
        if not isinstance(content, dict):
            raise EvaluationError(f"{path} holds {quoted(content)}; it must be a list of images and captions")
        return next((value for value in content.values() if isinstance(value, list)), [content])
    return [_json_line(path, number, line) for number, line in enumerate(text_lines(path), start=1)]


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except BorderError as error:
        raise EvaluationError(f"{path}:{number} is not JSON ({error}); a JSONL file has one object a line") from error


def caption_rows(path: Path, kind: str, split: str) -> Iterator[tuple[str | None, Any, str]]:
    """``(image, text, place)`` of any of these lists; ``kind`` chooses among a row's texts."""
    if is_json_list(path) or path.suffix.lower() == ".json":
        yield from _record_rows(path, json_records(path), kind, split)
        return
    table = read_table(path)
    if table.records is not None:
        yield from _record_rows(path, table.records, kind, split)
        return
    for number, (image, text) in enumerate(table.rows, start=1):
        yield image, text, f"{path.name}:{number}"


def _record_rows(path: Path, records: list[Any], kind: str, split: str) -> Iterator[tuple[str | None, Any, str]]:
    fields = LONG_FIELDS if kind == "long" else SHORT_FIELDS
    for number, record in enumerate(records, start=1):
        place = f"{path.name}: row {number}"
        if not isinstance(record, dict):
            yield None, None, place  # counted as a row without an image
            continue
        if record.get("split", split) != split:
            continue
        name = next((str(record[field]) for field in IMAGE_FIELDS if record.get(field)), None)
        texts = next((record[field] for field in fields if record.get(field)), None)
        for text in texts if isinstance(texts, list) else [texts]:
            yield name, text, place
