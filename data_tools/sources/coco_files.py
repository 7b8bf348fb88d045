"""COCO's, LVIS's and FG-OVD's annotation files, checked as they are read and gathered by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import FailFast, Field, TypeAdapter
from typing_extensions import TypedDict

from pipeline.base.border import BorderError, read_bounded, shown, validated

PixelBox = Any  # x, y, width, height; checked where the image's size is known, so that one bad box costs one box
T = TypeVar("T")
MAX_FILE_BYTES = 8 << 30  # LVIS' training annotations have 1.1 GB
Id = Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Pixels = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]


class CocoImage(TypedDict):
    id: Id
    file_name: NotRequired[Text | None]
    coco_url: NotRequired[Text | None]  # LVIS
    width: NotRequired[Pixels | None]
    height: NotRequired[Pixels | None]


class Caption(TypedDict):
    image_id: Id
    id: NotRequired[Id]
    caption: Text


class Instance(TypedDict):
    image_id: Id
    category_id: Id
    id: NotRequired[Id]
    bbox: PixelBox
    iscrowd: NotRequired[Any]


class Category(TypedDict):
    id: Id
    name: Text


class CaptionFile(TypedDict):
    images: Annotated[list[CocoImage], FailFast()]
    annotations: Annotated[list[Caption], FailFast()]


class InstanceFile(TypedDict):
    images: Annotated[list[CocoImage], FailFast()]
    annotations: Annotated[list[Instance], FailFast()]
    categories: NotRequired[Annotated[list[Category], FailFast()]]


class FgovdAnnotation(TypedDict):
    image_id: Id
    category_id: Id
    neg_category_ids: list[Id]
    bbox: PixelBox


class FgovdFile(TypedDict):
    images: Annotated[list[CocoImage], FailFast()]
    annotations: Annotated[list[FgovdAnnotation], FailFast()]
    categories: Annotated[list[Category], FailFast()]


class FgovdRow(TypedDict):
    img_path: Text
    bbox: PixelBox
    pos_expression: Annotated[list[Text], Field(min_length=1)]
    neg_expression: list[Text]


_CAPTIONS: TypeAdapter[CaptionFile] = TypeAdapter(CaptionFile)
_INSTANCES: TypeAdapter[InstanceFile] = TypeAdapter(InstanceFile)
_FGOVD: TypeAdapter[FgovdFile] = TypeAdapter(FgovdFile)
_ROW: TypeAdapter[FgovdRow] = TypeAdapter(FgovdRow)


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


def read_entries(captions: Path, instances: Path, fgovd: Sequence[Path]) -> tuple[list[Entry], int]:
    """The images that have a caption, by key, and the number of images that have none.

    Raises:
        ValueError: a file is missing, is not JSON, or holds a value that does not fit (named with its place); or two
            images would share a key.
    """
    caption_file, instance_file = _load(captions, _CAPTIONS), _load(instances, _INSTANCES)
    images = {image["id"]: image for image in (*instance_file["images"], *caption_file["images"])}
    texts: dict[int | str, list[str]] = {}
    for annotation in _in_order(caption_file["annotations"]):
        if text := " ".join(annotation["caption"].split()):
            texts.setdefault(annotation["image_id"], []).append(text)
    objects = _objects(instance_file, instances)
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


def _objects(document: InstanceFile, path: Path) -> dict[int | str, list[tuple[PixelBox, str, bool]]]:
    names = {category["id"]: category["name"].replace("_", " ") for category in document.get("categories", [])}
    objects: dict[int | str, list[tuple[PixelBox, str, bool]]] = {}
    for annotation in document["annotations"]:
        category = names.get(annotation["category_id"])
        if category is None:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')}: category {shown(annotation['category_id'])} is not among "
                "the file's categories; give the file whole"
            )
        entry = (annotation["bbox"], category, bool(annotation.get("iscrowd", 0)))
        objects.setdefault(annotation["image_id"], []).append(entry)
    return objects


def _in_order(annotations: list[Caption]) -> list[Caption]:
    """By id, numbers before texts, so that which caption is the first does not depend on the file's order."""
    return sorted(annotations, key=lambda a: (isinstance(a.get("id", 0), str), a.get("id", 0)))


def _file_name(image: CocoImage, path: Path) -> str:
    name = image.get("file_name") or "/".join((image.get("coco_url") or "").split("/")[-2:])
    if not name or not Path(name).stem.strip("."):
        raise ValueError(f"{path}: image {image['id']} has neither file_name nor coco_url; one of them is needed")
    if "\0" in name:
        raise ValueError(f"{path}: image {image['id']} is called {shown(name)!r}; no file can be")
    return name


def _load(path: Path, adapter: TypeAdapter[T]) -> T:
    if not path.is_file():
        raise ValueError(f"annotation file {path} does not exist; give an existing COCO JSON file")
    return validated(adapter, read_bounded(path, MAX_FILE_BYTES), str(path), "give a COCO annotation file, whole")


def _fgovd_rows(path: Path) -> Iterator[tuple[str, tuple[PixelBox, str, tuple[str, ...]]]]:
    """(image's stem, (box, phrase, negatives)) of JSON lines, or of the public benchmark's COCO-like JSON."""
    if not path.is_file():
        raise ValueError(f"FG-OVD file {path} does not exist; give an existing file")
    if path.suffix == ".json":
        yield from _public_rows(path)
        return
    for number, line in enumerate(read_bounded(path, MAX_FILE_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        remedy = "each line must be a JSON object with img_path, bbox, pos_expression and neg_expression"
        row = validated(_ROW, line, f"{path}, line {number}", remedy)
        yield Path(row["img_path"]).stem, (row["bbox"], row["pos_expression"][0], tuple(row["neg_expression"]))


def _public_rows(path: Path) -> Iterator[tuple[str, tuple[PixelBox, str, tuple[str, ...]]]]:
    document = _load(path, _FGOVD)
    names = {category["id"]: category["name"] for category in document["categories"]}
    stems = {image["id"]: Path(_file_name(image, path)).stem for image in document["images"]}
    for number, annotation in enumerate(document["annotations"]):
        wanted = [annotation["category_id"], *annotation["neg_category_ids"]]
        strange = [shown(category) for category in wanted if category not in names]
        if strange or annotation["image_id"] not in stems:
            what = f"categories {', '.join(strange[:3])}" if strange else f"image {shown(annotation['image_id'])}"
            raise BorderError(f"{path}: annotations[{number}] names {what}, which the file does not; give it whole")
        phrase, *negatives = (names[category] for category in wanted)
        yield stems[annotation["image_id"]], (annotation["bbox"], phrase, tuple(negatives))
