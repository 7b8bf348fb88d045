"""What is embedded: folders of shards, folders of images, single images, and lists of boxes, cut into parts.

A part is one output file: a tar, or so many images of a folder or lines of a list. It is read when its turn comes, so
that memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.base.border import read_lines
from pipeline.data.records import Fault, TarSample, walk_folder, walk_records
from pipeline.data.schema import Sample
from pipeline.evaluation.formats.clips import clip_item
from pipeline.evaluation.formats.items import ClipItem, ImageItem
from pipeline.evaluation.formats.paths import EXTENSIONS
from pipeline.evaluation.formats.shards import item_of
from pipeline.evaluation.results import EvaluationError

Box = tuple[float, float, float, float]  # normalised xyxy
LISTS = (".jsonl",)
MAX_LINE_BYTES = 1 << 20  # assumption: thousands of boxes of an image


@dataclass(frozen=True)
class Row:
    """An image, or a box of one; or a clip, or a region of one. ``text``: its short caption or phrase, if there is one.

    Of a clip ``image`` is the middle frame, and a region's ``box`` the middle one of the frames where it is there.
    """

    image: ImageItem
    box: Box | None = None
    text: str | None = None
    clip: ClipItem | None = None
    boxes: tuple[Box | None, ...] = ()


@dataclass(frozen=True)
class Part:
    """Rows of one output file. ``read`` gives them and (kind, place) of what is damaged."""

    name: str
    read: Callable[[], tuple[list[Row], list[tuple[str, str]]]]


class _Line(BaseModel):
    """A line of a list: ``{"image": "a/b.jpg", "boxes": [[x1, y1, x2, y2], …]}``; without boxes the whole image."""

    model_config = ConfigDict(strict=True, extra="ignore")

    image: Annotated[str, Field(min_length=1, max_length=4096)]
    boxes: list[Annotated[list[float], Field(min_length=4, max_length=4)]] | None = None


def parts_of(paths: Sequence[Path], rows_per_file: int, regions: bool) -> list[Part]:
    """The parts of all data, in order, with names that differ.

    Args:
        regions: of shards, one row a region in place of one an image.

    Raises:
        EvaluationError: a path is not there, or holds nothing that can be embedded.
    """
    found: list[Part] = []
    for number, path in enumerate(paths):
        found += _parts(path, f"{number:02d}-" if len(paths) > 1 else "", rows_per_file, regions)
    return found


def _parts(path: Path, prefix: str, rows_per_file: int, regions: bool) -> list[Part]:
    if path.suffix in LISTS and path.is_file():
        lines = list(read_lines(path, MAX_LINE_BYTES))
        starts = range(0, len(lines), rows_per_file)
        return [Part(f"{prefix}{s:09d}", partial(_read_list, path, lines[s : s + rows_per_file], s)) for s in starts]
    if path.is_file() and path.suffix.lower() in EXTENSIONS:
        return [Part(f"{prefix}{0:09d}", partial(_read_images, path.parent, [path]))]
    if not path.is_dir():
        raise EvaluationError(f"{path} is not there; give a folder of shards or images, an image, or a list (.jsonl)")
    if next(path.glob("*.tar"), None) is not None:
        return [Part(f"{prefix}{tar.stem}", partial(_read_tar, tar, regions)) for tar in walk_folder(path)]
    images = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    if not images:
        raise EvaluationError(f"{path} holds neither shards (*.tar) nor images ({', '.join(sorted(EXTENSIONS))})")
    starts = range(0, len(images), rows_per_file)
    return [Part(f"{prefix}{s:09d}", partial(_read_images, path, images[s : s + rows_per_file])) for s in starts]


def _read_images(folder: Path, images: Sequence[Path]) -> tuple[list[Row], list[tuple[str, str]]]:
    return [Row(ImageItem(image.relative_to(folder).as_posix(), image)) for image in images], []


def _read_tar(tar: Path, regions: bool) -> tuple[list[Row], list[tuple[str, str]]]:
    faults: list[tuple[str, str]] = []

    def note(fault: Fault) -> None:
        faults.append((fault.kind, str(fault)))

    rows = []
    for found, sample in walk_records(tar, note, clips=True):
        if sample.frames is not None:
            rows += _clip_rows(tar, found, sample, regions, faults)
            continue
        image = item_of(found.key, tar, found.image)
        if regions:
            rows += [Row(image, _box(region.image_box), region.phrase) for region in sample.regions]
        else:
            rows.append(Row(image, None, sample.short_caption or sample.long_caption))
    return rows, faults


def _clip_rows(tar: Path, found: TarSample, sample: Sample, regions: bool, faults: list[tuple[str, str]]) -> list[Row]:
    clip = clip_item(found, sample, tar)
    image = clip.frames[len(clip.frames) // 2]
    if not regions:
        return [Row(image, None, sample.short_caption or sample.long_caption, clip)]
    rows = []
    for region in sample.regions:
        there = [box for box in region.boxes or () if box is not None]
        if there:
            boxes = tuple(None if box is None else _box(box) for box in region.boxes or ())
            rows.append(Row(image, _box(there[len(there) // 2]), region.phrase, clip, boxes))
        else:
            faults.append(("absent_in_every_frame", f"{tar.name}: {found.key}: {region.phrase}"))
    return rows


def _read_list(path: Path, lines: Sequence[bytes], first: int) -> tuple[list[Row], list[tuple[str, str]]]:
    rows: list[Row] = []
    faults = []
    for number, line in enumerate(lines, start=first + 1):
        if not line.strip():
            continue
        try:
            record = _Line.model_validate_json(line)
        except ValidationError as error:
            faults.append(("damaged_line", f"{path.name} line {number}: {error.errors()[0]['msg']}"))
            continue
        image = ImageItem(record.image, path.parent / record.image)
        for box in record.boxes if record.boxes is not None else [None]:
            if box is not None and not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
                told = f"{path.name} line {number}: {box}; 0 <= x1 < x2 <= 1 must hold, and so for y"
                faults.append(("box_outside_image", told))
                continue
            rows.append(Row(image, None if box is None else _box(box)))
    return rows, faults


def _box(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = numbers
    return x1, y1, x2, y2
