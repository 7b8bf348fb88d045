"""COCO's, LVIS's and FG-OVD's annotation files, gathered by image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PixelBox = tuple[float, ...]  # x, y, width, height


@dataclass(frozen=True)
class Entry:
    """Everything said about one image. ``width`` and ``height`` are the annotation's, 0 where it has none."""

    key: str
    image_id: int | str
    file_name: str
    width: int
    height: int
    captions: tuple[str, ...]
    instances: tuple[tuple[PixelBox, str, bool], ...]  # box, category, crowd
    fgovd: tuple[tuple[PixelBox, str, tuple[str, ...]], ...]  # box, phrase, negatives


def read_entries(captions: Path, instances: Path, fgovd: list[Path]) -> tuple[list[Entry], int]:
    """The images that have a caption, by key, and the number of images that have none.

    Raises:
        ValueError: a file is missing, is not JSON, lacks a part, or two images would share a key.
    """
    caption_file, instance_file = (
        _load(captions, ("images", "annotations")),
        _load(instances, ("images", "annotations")),
    )
    images = {image["id"]: image for document in (instance_file, caption_file) for image in document["images"]}
    texts: dict[Any, list[str]] = {}
    for annotation in _in_order(caption_file["annotations"]):
        text = " ".join(str(annotation.get("caption", "")).split())
        if text:
            texts.setdefault(annotation["image_id"], []).append(text)
    names = {c["id"]: c["name"].replace("_", " ") for c in instance_file.get("categories", [])}
    objects: dict[Any, list[tuple[PixelBox, str, bool]]] = {}
    for annotation in instance_file["annotations"]:
        category = names.get(annotation["category_id"])
        if category is None:
            raise ValueError(f"{instances}: annotation {annotation.get('id')}: category {annotation['category_id']} is "
                             "not among the file's categories; give the file whole")  # fmt: skip
        entry = (tuple(annotation["bbox"]), category, bool(annotation.get("iscrowd", 0)))
        objects.setdefault(annotation["image_id"], []).append(entry)
    rows: dict[str, list[tuple[PixelBox, str, tuple[str, ...]]]] = {}
    for path in fgovd:
        for stem, row in _fgovd_rows(path):
            rows.setdefault(stem, []).append(row)
    entries: dict[str, Entry] = {}
    for image_id in sorted(images, key=str):
        if image_id not in texts:
            continue
        image = images[image_id]
        name = _file_name(image, captions)
        key = Path(name).stem.replace(".", "_")
        if key in entries:
            raise ValueError(f"images {entries[key].file_name} and {name} would share the key {key!r}; rename one")
        entries[key] = Entry(
            key,
            image_id,
            name,
            image.get("width") or 0,
            image.get("height") or 0,
            tuple(texts[image_id]),
            tuple(objects.get(image_id, ())),
            tuple(rows.get(Path(name).stem, ())),
        )
    if not entries:
        raise ValueError(f"no image of {captions} has a caption; give COCO's captions_*.json")
    return [entries[key] for key in sorted(entries)], sum(image_id not in texts for image_id in images)


def _in_order(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By id, so that which caption is the first does not depend on the file's order."""
    return sorted(annotations, key=lambda annotation: annotation.get("id", 0))


def _file_name(image: dict[str, Any], path: Path) -> str:
    if image.get("file_name"):
        return image["file_name"]
    if image.get("coco_url"):  # LVIS
        return "/".join(image["coco_url"].split("/")[-2:])
    raise ValueError(f"{path}: image {image['id']} has neither file_name nor coco_url; one of them is needed")


def _load(path: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    def lighter(record: dict[str, Any]) -> dict[str, Any]:
        record.pop("segmentation", None)  # nine tenths of COCO's instance file, and nothing here reads it
        return record

    if not path.is_file():
        raise ValueError(f"annotation file {path} does not exist; give an existing COCO JSON file")
    try:
        with open(path, encoding="utf-8") as stream:
            document = json.load(stream, object_hook=lighter)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); give a COCO annotation file") from error
    for part in parts:
        if not isinstance(document, dict) or not isinstance(document.get(part), list):
            raise ValueError(f"{path} has no list {part!r}; give a COCO annotation file")
    return document


def _fgovd_rows(path: Path) -> Iterator[tuple[str, tuple[PixelBox, str, tuple[str, ...]]]]:
    """(image's stem, (box, phrase, negatives)) of JSON lines, or of the public benchmark's COCO-like JSON."""
    if not path.is_file():
        raise ValueError(f"FG-OVD file {path} does not exist; give an existing file")
    if path.suffix == ".json":
        document = _load(path, ("images", "annotations", "categories"))
        names = {category["id"]: category["name"] for category in document["categories"]}
        stems = {image["id"]: Path(_file_name(image, path)).stem for image in document["images"]}
        for annotation in document["annotations"]:
            negatives = tuple(names[number] for number in annotation["neg_category_ids"])
            image_id, category = annotation["image_id"], annotation["category_id"]
            yield stems[image_id], (tuple(annotation["bbox"]), names[category], negatives)
        return
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                phrase, negatives = row["pos_expression"][0], tuple(row["neg_expression"])
                yield Path(row["img_path"]).stem, (tuple(row["bbox"]), phrase, negatives)
            except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
                raise ValueError(
                    f"{path}, line {number}: {type(error).__name__} {error}; each line must be a JSON object with "
                    "img_path, bbox, pos_expression and neg_expression"
                ) from error
