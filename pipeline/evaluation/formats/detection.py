"""True boxes for detection, as a COCO or LVIS file's content, with the places of the images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.formats.coco import read_coco
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.formats.language import the_one_language
from pipeline.evaluation.formats.paths import ImageFinder
from pipeline.evaluation.formats.regions import class_name, image_name, image_size
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.results import Accounting


@dataclass
class DetectionSet:
    """Images (in the order of ``image_ids``) and the truth that the library scores against.

    ``true_boxes``: of scenes, ``(boxes [Q, 4] normalised xyxy, labels [Q])`` by image, to make proposals from.
    """

    images: list[ImageItem]
    image_ids: list[Any]
    classes: list[str]
    label_of: dict[Any, int]  # category id -> class number
    truth: dict[str, Any]
    accounting: Accounting
    true_boxes: list[tuple[Tensor, Tensor]] | None = None

    def sizes(self) -> dict[Any, tuple[int, int]]:
        """Width and height by image id."""
        known = [image for image in self.truth["images"] if image.get("width") and image.get("height")]
        return {image["id"]: (image["width"], image["height"]) for image in known}

    def count_of(self, image_id: Any) -> int:
        return sum(annotation["image_id"] == image_id for annotation in self.truth["annotations"])

    def limited(self, max_images: int | None) -> DetectionSet:
        """The first ``max_images``; the truth of the others is left out and counted in the notes."""
        if max_images is None or max_images >= len(self.images):
            return self
        kept = set(self.image_ids[:max_images])
        annotations = [one for one in self.truth["annotations"] if one["image_id"] in kept]
        left_out = sum(one["image_id"] not in kept for one in self.truth["annotations"])
        self.accounting.rows -= left_out
        self.accounting.evaluated -= left_out
        self.accounting.note("instances_outside_the_chosen_images", "max_images", left_out)
        return replace(
            self,
            images=self.images[:max_images],
            image_ids=self.image_ids[:max_images],
            truth=self.truth | {"annotations": annotations},
        )

    def drop_image(self, number: int, reason: str) -> None:
        """Count an image's instances as skipped; the caller leaves the image out of the evaluated ones."""
        self.accounting.retract(reason, self.images[number].key, self.count_of(self.image_ids[number]))

    def result_rows(self, number: int, boxes: Tensor, scores: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        """COCO results rows of one image, boxes in pixels."""
        width, height = self.sizes_of[number]
        pixels = boxes * torch.tensor([width, height, width, height], dtype=torch.float64)
        pixels[:, 2:] -= pixels[:, :2]
        return [
            {"image_id": self.image_ids[number], "category_id": self.categories[label], "bbox": box, "score": score}
            for box, score, label in zip(pixels.tolist(), scores.tolist(), labels.tolist(), strict=True)
        ]

    def __post_init__(self) -> None:
        sizes = self.sizes()
        self.sizes_of = [sizes[image_id] for image_id in self.image_ids]
        self.categories = {label: category for category, label in self.label_of.items()}


def read_detection(
    path: Path, images: Path | None, names: dict[int, str] | None, image_folder: str | None = None
) -> DetectionSet:
    """COCO or LVIS instances. Images that are not there are left out, their instances counted as skipped.

    With ``image_folder``, images in other folders are no part of the set. Crowds stay in the truth, as the library's
    rules want them, and count as evaluated.
    """
    accounting = Accounting("instances")
    content = read_coco(path, accounting)
    find = ImageFinder(images, path)
    categories = sorted(content["categories"], key=lambda one: (isinstance(one["id"], str), one["id"]))
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    classes = [(names or {}).get(category["id"], class_name(category)) for category in categories]
    per_image = Counter(annotation["image_id"] for annotation in content["annotations"])
    items, ids = [], []
    for image in content["images"]:
        count = per_image.pop(image["id"], 0)
        if image_folder is not None and image_folder not in Path(image_name(image)).parts[:-1]:
            accounting.note("instances_in_other_folders", image_name(image), count)
            continue
        item = find(image_name(image))
        if item is None or image_size(image, item) is None:
            reason = "missing_image" if item is None else "unreadable_image"
            accounting.skip(reason, image_name(image), count)
            accounting.note(f"{reason}_without_a_box", image_name(image), int(not count))
            continue
        accounting.take(count)
        accounting.note("images_without_a_box", image_name(image), int(not count))
        items.append(item)
        ids.append(image["id"])
    for image_id, count in per_image.items():
        accounting.skip("unknown_image", f"image_id {image_id}", count)
    unknown = [one for one in content["annotations"] if one["category_id"] not in label_of]
    accounting.retract("unknown_class", f"category_id {unknown[0]['category_id']}" if unknown else "", len(unknown))
    known = [one for one in content["annotations"] if one["category_id"] in label_of]
    if image_folder is not None:
        kept = set(ids)
        known = [one for one in known if one["image_id"] in kept]
    return DetectionSet(items, ids, classes, label_of, content | {"annotations": known}, accounting)


def scene_detection(path: Path, language: str) -> DetectionSet:
    """The objects of the scenes of one language as COCO truth.

    The classes are the objects' whole phrases ("large red striped circle"), some hundreds: an open vocabulary of
    things that differ by one attribute.
    """
    folder = read_shards(path)
    language = the_one_language(language, (one.sample.language for one in folder.samples), str(path))
    mine = [one for one in folder.samples if one.sample.language == language]
    classes = sorted({region.phrase for one in mine for region in one.sample.regions})
    accounting = Accounting(f"objects ({language})")
    for reason, where in folder.faults:
        accounting.skip(reason, where)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    true_boxes: list[tuple[Tensor, Tensor]] = []
    for number, one in enumerate(mine):
        width, height = one.sample.width, one.sample.height
        images.append({"id": number, "file_name": one.image.key, "width": width, "height": height})
        boxes, labels = [], []
        for region in one.sample.regions:
            accounting.take()
            x1, y1, x2, y2 = region.image_box
            bbox = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
            label = classes.index(region.phrase)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": bbox, "iscrowd": 0}
                | {"area": bbox[2] * bbox[3]}
            )
            boxes.append(region.box)
            labels.append(label)
        true_boxes.append((torch.tensor(boxes).view(-1, 4), torch.tensor(labels, dtype=torch.long)))
    categories = [{"id": label, "name": name} for label, name in enumerate(classes)]
    truth = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    label_of = {label: label for label in range(len(classes))}
    items = [one.image for one in mine]
    return DetectionSet(items, list(range(len(mine))), classes, label_of, truth, accounting, true_boxes)
