"""Boxes with class names: COCO, LVIS and BoxClass-CN JSON (all of COCO's form), and the regions of our shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data.images import DECODE_ERRORS, FORMATS
from pipeline.evaluation.formats.coco import read_coco
from pipeline.evaluation.formats.items import ImageItem, RegionRow, RegionSet, normalise_box
from pipeline.evaluation.formats.language import the_one_language
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.results import Accounting


def class_name(category: dict[str, Any]) -> str:
    """The words of a category: LVIS writes ``fire_hydrant`` and ``bow_(weapon)``."""
    return str(category["name"]).replace("_", " ")


def image_name(image: dict[str, Any]) -> str:
    """COCO's ``file_name``; LVIS v1 has only a URL, whose last two parts are the folder and the file."""
    if image.get("file_name"):
        return image["file_name"]
    return "/".join(str(image.get("coco_url", image["id"])).split("/")[-2:])


def read_instances(
    path: Path,
    find: Callable[[str], ImageItem | None],
    names: dict[int, str] | None = None,
    *,
    crowds: bool = True,
    image_folder: str | None = None,
) -> RegionSet:
    """COCO or LVIS instances as labelled rows; ``names`` replaces the class names by category id.

    ``tags["category_id"]`` and ``tags["image_id"]`` are the file's own. Counted in the notes: images without a box, and
    rows that are not of the set that was asked for (``crowds`` False: those around a crowd; ``image_folder``: those of
    images in other folders). Reasons of skipped rows: ``unknown_image``, ``unknown_class``, ``missing_image``,
    ``unreadable_image``, ``box_outside_image``, ``missing_field``.
    """
    accounting = Accounting("instances")
    content = read_coco(path, accounting)
    categories = sorted(content["categories"], key=lambda one: (isinstance(one["id"], str), one["id"]))
    label = {category["id"]: number for number, category in enumerate(categories)}
    classes = [(names or {}).get(category["id"], class_name(category)) for category in categories]
    images = {image["id"]: image for image in content["images"]}
    items: list[ImageItem] = []
    rows: list[RegionRow] = []
    number: dict[Any, int] = {}
    with_boxes = set()
    for position, annotation in enumerate(content["annotations"]):
        where = f"{path.name}: annotations[{position}]"
        image = images.get(annotation.get("image_id"))
        with_boxes.add(annotation.get("image_id"))
        if image is None:
            accounting.skip("unknown_image", f"{where}: {annotation.get('image_id')}")
            continue
        if image_folder is not None and image_folder not in Path(image_name(image)).parts[:-1]:
            accounting.note("instances_in_other_folders", where)
            continue
        if annotation.get("iscrowd") and not crowds:
            accounting.note("crowds_left_out", where)
            continue
        if problem := _problem(annotation, label):
            accounting.skip(problem, f"{where}: {annotation.get('category_id')}")
            continue
        item = find(image_name(image))
        if item is None:
            accounting.skip("missing_image", f"{where}: {image_name(image)}")
            continue
        size = image_size(image, item)
        if size is None:
            accounting.skip("unreadable_image", f"{where}: {item.key}")
            continue
        box, clipped = normalise_box(annotation["bbox"], *size)
        if box is None:
            accounting.skip("box_outside_image", f"{where}: {annotation['bbox']}")
            continue
        if number.setdefault(image["id"], len(items)) == len(items):
            items.append(item)
        accounting.take()
        accounting.note("box_clipped", where, int(clipped))
        tags = {"image_id": image["id"], "category_id": annotation["category_id"]}
        rows.append(RegionRow(number[image["id"]], box, label=label[annotation["category_id"]], tags=tags))
    accounting.note("images_without_a_box", path.name, len(set(images) - with_boxes))
    return RegionSet(items, rows, accounting, classes)


def image_size(image: dict[str, Any], item: ImageItem) -> tuple[int, int] | None:
    """Width and height that the boxes are relative to: the file's, else the image's own; None: it has no header."""
    if not (image.get("width") and image.get("height")):
        try:
            with Image.open(item.path, formats=FORMATS) as opened:
                image["width"], image["height"] = opened.size
        except DECODE_ERRORS:
            return None
    return image["width"], image["height"]


def _problem(annotation: dict[str, Any], label: dict[int, int]) -> str | None:
    box = annotation.get("bbox")
    if box is None:
        return "missing_field"
    return "unknown_class" if annotation.get("category_id") not in label else None


def shard_objects(folder: Path, language: str) -> RegionSet:
    """Regions with a category of a folder of shards; the classes are all that its samples of ``language`` name."""
    shards = read_shards(folder)
    language = the_one_language(language, (one.sample.language for one in shards.samples), str(folder))
    mine = [one for one in shards.samples if one.sample.language == language]
    classes = sorted({r.category for one in mine for r in one.sample.regions if r.category is not None})
    regions = RegionSet([one.image for one in mine], [], Accounting("regions"), classes)
    for reason, place in shards.faults:
        regions.accounting.skip(reason, place)
    for image, one in enumerate(mine):
        regions.accounting.note("images_without_a_box", one.image.key, int(not one.sample.regions))
        for position, region in enumerate(one.sample.regions):
            if region.category is None:
                regions.accounting.skip("no_category", f"{one.image.key}: regions[{position}]")
            else:
                regions.accounting.take()
                regions.rows.append(RegionRow(image, region.image_box, label=classes.index(region.category)))
    return regions


def shard_phrases(folder: Path, language: str) -> RegionSet:
    """Regions with wrong phrases of a folder of shards, as FG-OVD rows."""
    shards = read_shards(folder)
    language = the_one_language(language, (one.sample.language for one in shards.samples), str(folder))
    mine = [one for one in shards.samples if one.sample.language == language]
    regions = RegionSet([one.image for one in mine], [], Accounting("regions"))
    for reason, place in shards.faults:
        regions.accounting.skip(reason, place)
    for image, one in enumerate(mine):
        for position, region in enumerate(one.sample.regions):
            if not region.negatives:  # not a row of this task: counted, so that the sum over the set holds
                regions.accounting.note("regions_without_negatives", f"{one.image.key}: regions[{position}]")
                continue
            regions.accounting.take()
            regions.rows.append(RegionRow(image, region.image_box, (region.phrase, *region.negatives)))
    return regions
