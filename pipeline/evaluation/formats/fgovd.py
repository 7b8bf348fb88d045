"""FG-OVD's JSONL (and FineHARD-like rows of the same form): a box, one true phrase, up to K altered ones.

One row: ``{"img_path", "bbox": [x, y, w, h] in pixels, "pos_expression": [..], "neg_expression": [..], "width",
"height"}`` and, in the scenes' files, ``language``, ``combination``, ``category`` and ``neg_attribute``: what each
altered phrase changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.border import BorderError, parse_json, quoted, read_lines
from pipeline.evaluation.formats.items import ImageItem, RegionRow, RegionSet, normalise_box
from pipeline.evaluation.results import Accounting, EvaluationError

MAX_PIXEL = 1e9  # of a coordinate; no image is as large


def json_rows(file: Path, accounting: Accounting) -> Iterator[tuple[str, Any]]:
    """Each line's place, as ``hard.jsonl:3``, and what it holds; lines that are no JSON are skipped as ``not_json``."""
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        try:
            record = parse_json(line)
        except BorderError as error:
            accounting.skip("not_json", f"{where}: {error}")
            continue
        yield where, record


def read_fgovd(file: str | Path, find_image: Callable[[str], ImageItem | None]) -> RegionSet:
    """Every row of ``file``; ``find_image`` turns an ``img_path`` into the image's place, or None where it is missing.

    Rows that cannot be scored are skipped under a reason: ``not_json``, ``missing_field``, ``bad_box``,
    ``missing_image``, ``empty_phrase``, ``no_negatives``, ``box_outside_image``.
    """
    file = Path(file)
    if not file.is_file():
        raise EvaluationError(f"{file} does not exist; give an FG-OVD file in JSONL form")
    accounting = Accounting("FG-OVD rows")
    images: dict[str, int] = {}
    items: list[ImageItem] = []
    rows: list[RegionRow] = []
    for where, record in json_rows(file, accounting):
        row = _row(record, where, accounting)
        if row is None:
            continue
        name = record["img_path"]
        if name not in images:
            item = find_image(name)
            images[name] = -1 if item is None else len(items)
            if item is not None:
                items.append(item)
        if images[name] < 0:
            accounting.skip("missing_image", f"{where}: {name}")
            continue
        accounting.take()
        rows.append(RegionRow(images[name], row.box, row.texts, tags=row.tags))
    return RegionSet(items, rows, accounting)


def _row(record: Any, where: str, accounting: Accounting) -> RegionRow | None:
    """The row without its image number; None, and counted, where it cannot be scored."""
    if not isinstance(record, dict):
        accounting.skip("missing_field", f"{where}: a {type(record).__name__} instead of an object")
        return None
    needed = ("img_path", "bbox", "pos_expression", "neg_expression", "width", "height")
    absent = [name for name in needed if record.get(name) is None]
    absent += [] if isinstance(record.get("img_path"), str) else ["img_path as a text"]
    if absent:
        accounting.skip("missing_field", f"{where}: {', '.join(absent)}")
        return None
    if not is_pixel_box(record["bbox"]) or not all(is_size(record[name]) for name in ("width", "height")):
        accounting.skip(
            "bad_box", f"{where}: {quoted(record['bbox'])} of {quoted(record['width'])}x{quoted(record['height'])}"
        )
        return None
    phrases = row_phrases(record, where, accounting)
    if phrases is None:
        return None
    box, clipped = normalise_box(record["bbox"], record["width"], record["height"])
    if box is None:
        accounting.skip("box_outside_image", f"{where}: {record['bbox']} of {record['width']}x{record['height']}")
        return None
    phrases.note(where, accounting)
    accounting.note("box_clipped", f"{where}: {record['bbox']}", int(clipped))
    return RegionRow(-1, box, phrases.texts, tags=phrases.tags)


@dataclass(frozen=True)
class Phrases:
    """The phrases of a row, the true one first. ``num_empty``: wrong ones that were left out; ``tags``: its groups."""

    texts: tuple[str, ...]
    num_empty: int
    tags: dict[str, Any]

    def note(self, where: str, accounting: Accounting) -> None:
        """Count what of the row is not as published."""
        accounting.note("empty_negatives_left_out", where, self.num_empty)
        accounting.note("fewer_than_10_negatives", where, int(len(self.texts) < 11))


def row_phrases(record: dict[str, Any], where: str, accounting: Accounting) -> Phrases | None:
    """The phrases of a row; None, and counted, where it lacks the true one or all wrong ones."""
    true, wrong = _texts(record["pos_expression"]), _texts(record["neg_expression"])
    if not true or not true[0].strip():
        accounting.skip("empty_phrase", f"{where}: pos_expression")
        return None
    kept = [text for text in wrong if text.strip()]
    if not kept:
        accounting.skip("no_negatives", where)
        return None
    tags: dict[str, Any] = {
        name: record[name] for name in ("language", "combination") if isinstance(record.get(name), str)
    }
    changed = record.get("neg_attribute")
    if isinstance(changed, list) and len(changed) == len(wrong) and all(isinstance(name, str) for name in changed):
        tags["changed"] = tuple(name for name, text in zip(changed, wrong, strict=True) if text.strip())
    return Phrases((true[0], *kept), len(wrong) - len(kept), tags)


def is_pixel_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_pixel(v) for v in value)


def _is_pixel(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_PIXEL


def is_size(value: Any) -> bool:
    return _is_pixel(value) and value > 0


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [text for text in texts if isinstance(text, str)]
