"""Shards from a folder of images in COCO's or LVIS's format, with FG-OVD's phrases where they name the same box.

examples:
  python -m data_tools build coco --images val2017 --captions captions_val2017.json \\
      --instances instances_val2017.json --out shards/coco
  python -m data_tools build coco --images coco-mini --captions coco-mini/captions.json \\
      --instances coco-mini/instances.json --fgovd coco-mini/fgovd/hard.jsonl --out shards/coco-mini

One sample an image: its first caption is the short caption, all of them are kept in source.captions for retrieval
scores. There are no long captions in COCO, so there are none in the shards. A region's phrase is its category's name,
or the phrase of the FG-OVD row that names the same box (by intersection over union), with that row's negatives. A row
whose box is no instance's becomes a region of its own, without a category. Of several rows for one box the first
counts, so name the files in order of preference. Crowds are left out, boxes are cut at the image's edges, and boxes
without area are left out; each is counted. Images without captions are left out and counted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.execution.command import print_summary
from data_tools.execution.interface import Shard, Step
from data_tools.execution.options import ExecutionOptions, options_from
from data_tools.execution.shards import Drop
from data_tools.execution.steps import run_shards
from data_tools.shard_size import ShardSize, add_shard_size_arguments, shard_size
from data_tools.shards import Record
from data_tools.sources.boxes import BoxProblem, iou, usable_box
from data_tools.sources.coco_files import Entry, read_entries
from data_tools.sources.images import ImageProblem, read_image
from pipeline.base.border import shown
from pipeline.base.languages import canonical
from pipeline.data.schema import MAX_TEXT_LENGTH, Region, Sample

SHAPE_TOLERANCE = 0.02  # relative difference of aspect ratio between file and annotation; rounding at resizing
LOST_IMAGE_KINDS = ("missing_image", "unreadable_image", "unsupported_format", "size_mismatch")


@dataclass(frozen=True)
class CocoOptions:
    """The files to read, and what counts as the same box and as too many missing images."""

    images: Path
    captions: Path
    instances: Path
    fgovd: tuple[Path, ...] = ()
    language: str = "en"
    box_iou: float = 0.9
    max_missing_share: float = 0.01
    size: ShardSize = ShardSize()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, type=Path, help="folder that the annotations' file names start from")
    parser.add_argument("--captions", required=True, type=Path, help="COCO caption annotations (JSON)")
    parser.add_argument("--instances", required=True, type=Path, help="COCO or LVIS instance annotations (JSON)")
    parser.add_argument("--fgovd", nargs="*", type=Path, default=[], metavar="FILE", help="FG-OVD rows (JSONL or JSON)")
    parser.add_argument("--language", default="en", metavar="TAG", help="of the texts (default: en, as COCO has them)")
    parser.add_argument("--box-iou", type=float, default=0.9, help="at which two boxes are the same (default 0.9)")
    parser.add_argument(
        "--max-missing-share", type=float, default=0.01, help="stop when more of the images are missing (default 0.01)"
    )
    add_shard_size_arguments(parser)


@dataclass(frozen=True)
class CocoShard:
    """The images of one shard to be, with everything said about them."""

    name: str
    images: Path
    entries: tuple[Entry, ...]
    language: str
    box_iou: float

    def identity(self) -> dict[str, Any]:
        return {"first": self.entries[0].key, "last": self.entries[-1].key, "images": len(self.entries)}

    def changed_at(self) -> float:
        return 0.0  # annotations are named in the step's settings; an image that appears later needs --overwrite

    def records(self) -> Iterator[Record | Drop]:
        for entry in self.entries:
            try:
                yield make_record(entry, self.images, self.language, self.box_iou)
            except ImageProblem as problem:
                yield Drop(entry.key, problem.kind, str(problem))


class CountRegions(Step):
    """Changes nothing; counts for the reports what became of boxes and phrases, and carries the settings."""

    name, version = "coco", "1"

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def settings(self) -> dict[str, Any]:
        return self._settings

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        for record in records:
            source = record.sample.source
            for kind, number in source["regions_counted"].items():
                shard.count(kind, number)
        return list(records)


def read_options(arguments: argparse.Namespace) -> CocoOptions:
    """The parsed options as a record.

    Raises:
        ValueError: a number is out of its range.
    """
    options = options_from(
        arguments, CocoOptions, fgovd=tuple(arguments.fgovd), language=canonical(arguments.language),
        size=shard_size(arguments),
    )  # fmt: skip
    for name, low, high in (("box_iou", 0, 1), ("max_missing_share", 0, 1)):
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be from {low} to {high}")
    return options


def build(options: CocoOptions, out: Path, execution: ExecutionOptions) -> int:
    """Write the annotated images to ``out`` as shards.

    Raises:
        ValueError: an annotation file cannot be used, or too many images cannot.
    """
    entries, without_caption = read_entries(options.captions, options.instances, options.fgovd)
    if without_caption:
        print(f"{without_caption} images have no caption in {options.captions} and are left out", file=sys.stderr)
    sizes = _check_images(entries, options)
    shards = [
        CocoShard(f"coco-{number:06d}", options.images, tuple(entries[cut]), options.language, options.box_iou)
        for number, cut in enumerate(options.size.cut(sizes))
    ]
    files = [options.captions, options.instances, *options.fgovd]
    settings = {
        "files": [{"name": path.name, "bytes": path.stat().st_size} for path in files],
        "language": options.language,
        "box_iou": options.box_iou,
    }
    summary = run_shards(
        shards,
        CountRegions(settings),
        out,
        executor=execution.make_executor(),
        retry_failed=execution.retry_failed,
        overwrite=execution.overwrite,
        title="coco",
    )
    status = print_summary(summary)
    lost = sum(summary.dropped[kind] for kind in LOST_IMAGE_KINDS)
    if lost > options.max_missing_share * len(entries):
        raise ValueError(_too_many(lost, len(entries), "missing or unusable", options.max_missing_share))
    return status


def _check_images(entries: list[Entry], options: CocoOptions) -> list[int]:
    """Bytes of each image, 0 where it is missing; stops before any work if too many are."""
    paths = [_find_image(options.images, entry.file_name) for entry in entries]
    missing = [entry for entry, path in zip(entries, paths, strict=True) if path is None]
    if len(missing) > options.max_missing_share * len(entries):
        reason = _too_many(len(missing), len(entries), "missing", options.max_missing_share)
        raise ValueError(f"{reason}; first: {missing[0].file_name}, looked for in {options.images}")
    return [path.stat().st_size if path is not None else 0 for path in paths]


def _too_many(lost: int, total: int, what: str, limit: float) -> str:
    return (
        f"{lost} of {total} images are {what} ({lost / total:.1%}); at most {limit:.1%} may be: "
        "check --images, or raise --max-missing-share"
    )


def _find_image(folder: Path, file_name: str) -> Path | None:
    """Below ``folder`` under its whole name or its last part: LVIS names val2017/x.jpg, COCO's folders hold x.jpg."""
    root = os.path.abspath(folder)
    for candidate in (folder / file_name, folder / Path(file_name).name, folder / "images" / Path(file_name).name):
        # An annotation that names /etc/x or ../x must not pack what lies outside of --images.
        if Path(os.path.abspath(candidate)).is_relative_to(root) and candidate.is_file():
            return candidate
    return None


def make_record(entry: Entry, images: Path, language: str, box_iou: float) -> Record:
    """Raises: ImageProblem."""
    path = _find_image(images, entry.file_name)
    if path is None:
        raise ImageProblem("missing_image", f"{shown(entry.file_name)} is not below {images}")
    image = read_image(path)
    width, height = entry.width or image.width, entry.height or image.height
    if abs(image.width * height - image.height * width) > SHAPE_TOLERANCE * image.width * height:
        raise ImageProblem(
            "size_mismatch",
            f"{path} is {image.width}x{image.height}, its annotation says {width}x{height}; its boxes would be wrong",
        )
    regions, counted = _regions(entry, width, height, box_iou)
    sample = Sample(
        language=language,
        width=image.width,
        height=image.height,
        short_caption=entry.captions[0],
        regions=tuple(regions),
        source={
            "dataset": "coco",
            "image_id": entry.image_id,
            "file_name": entry.file_name,
            "captions": list(entry.captions),
            "regions_counted": dict(sorted(counted.items())),
        },
    )
    return Record(entry.key, image.data, image.extension, sample)


def _is_phrase(text: str) -> bool:
    return bool(text.strip()) and len(text) <= MAX_TEXT_LENGTH


def _regions(entry: Entry, width: int, height: int, box_iou: float) -> tuple[list[Region], Counter[str]]:
    counted: Counter[str] = Counter()

    def normalised(bbox: Any) -> Any:
        """x, y, width, height in pixels to fractions, or None if unusable."""
        try:
            x, y, w, h = bbox
            return usable_box((x / width, y / height, (x + w) / width, (y + h) / height))
        except BoxProblem as problem:
            counted[problem.kind] += 1
        except (TypeError, ValueError, OverflowError):
            counted["box_malformed"] += 1
        return None

    boxes: list[tuple[Any, str | None]] = []
    for bbox, category, crowd in entry.instances:
        if crowd:
            counted["crowd"] += 1
        elif not _is_phrase(category):
            counted["category_without_words"] += 1
        elif (box := normalised(bbox)) is not None:
            boxes.append((box, category))
    rows: dict[int, tuple[str, tuple[str, ...]]] = {}
    for bbox, phrase, given in entry.fgovd:
        if not _is_phrase(phrase):
            counted["fgovd_phrase_without_words"] += 1
            continue
        box = normalised(bbox)
        if box is None:
            continue
        negatives = tuple(negative for negative in given if _is_phrase(negative))
        counted["fgovd_negative_without_words"] += len(given) - len(negatives)
        best = max(range(len(boxes)), key=lambda i: iou(boxes[i][0], box), default=None)
        if best is None or iou(boxes[best][0], box) < box_iou:
            boxes.append((box, None))
            best = len(boxes) - 1
            counted["fgovd_own_box"] += 1
        elif best in rows:
            counted["fgovd_box_taken"] += 1
            continue
        else:
            counted["fgovd_matched"] += 1
        rows[best] = (phrase, negatives)
    regions = []
    for i, (box, name) in enumerate(boxes):
        phrase, negatives = rows[i] if i in rows else (name or "", ())
        regions.append(Region(box=box, phrase=phrase, category=name, negatives=negatives))
    return regions, +counted  # without zeros
