"""Annotation files that evaluation reads: COCO and LVIS instances, captions in their forms, FG-OVD's rows."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from pipeline.evaluation.formats.captions import READERS, read_captions, recognise
from pipeline.evaluation.formats.detection import read_detection
from pipeline.evaluation.formats.fgovd import read_fgovd
from pipeline.evaluation.formats.paths import ImageFinder
from pipeline.evaluation.formats.regions import read_instances
from pipeline.evaluation.results import EvaluationError
from tests.border.damage import Damage, damage_document
from tests.border.formats import Format
from tests.data.shards import image_bytes

IMAGES = ("a.jpg", "b.jpg", "c.jpg")
INSTANCES, FGOVD = "instances.json", "fgovd.jsonl"


def make_images(folder: Path) -> None:
    for number, name in enumerate(IMAGES):
        (folder / name).write_bytes(image_bytes(number))


def make_instances(folder: Path) -> None:
    make_images(folder)
    images = [{"id": number, "file_name": name, "width": 64, "height": 48} for number, name in enumerate(IMAGES)]
    images[2] = {"id": 2, "coco_url": "http://images.cocodataset.org/val2017/c.jpg"}
    categories = [{"id": 1, "name": "fire_hydrant"}, {"id": 7, "name": "猫"}]
    annotations = [
        {
            "id": n,
            "image_id": n % 3,
            "category_id": (1, 7)[n % 2],
            "bbox": [1, 2, 10 + n, 20.5],
            "iscrowd": n // 4,
            "area": 5,
        }
        for n in range(5)
    ]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / INSTANCES).write_text(json.dumps(content), encoding="utf-8")


def damage_instances(rng: random.Random, base: Path) -> Damage:
    return damage_document(rng, INSTANCES, (base / INSTANCES).read_bytes())


def read_both(folder: Path) -> Any:
    path = folder / INSTANCES
    return read_instances(path, ImageFinder(folder, path)), read_detection(path, folder, None)


def check_both(found: Any) -> str | None:
    regions, detection = found
    for row in regions.rows:
        if not all(0 <= value <= 1 for value in row.box) or not 0 <= row.label < len(regions.classes):
            return f"the row {row}"
    for annotation in detection.truth["annotations"]:
        if annotation.get("bbox") is not None and not all(map(math.isfinite, annotation["bbox"])):
            return f"the annotation {annotation}"
    return None


def make_captions(folder: Path) -> None:
    make_images(folder)
    rows = [{"image": name, "caption": f"a cat {name}", "long_caption": "一只猫"} for name in IMAGES]
    images = [{"id": number, "file_name": name} for number, name in enumerate(IMAGES)]
    sentences = [{"filename": n, "filepath": ".", "split": "test", "sentences": [{"raw": "a cat"}]} for n in IMAGES]
    turns = [
        {"image": n, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]} for n in IMAGES
    ]
    files = {
        "coco": {"images": images, "annotations": [{"image_id": n, "caption": "a cat"} for n in range(3)]},
        "flickr30k": {"images": sentences},
        "sharegpt4v": turns,
        "list": rows,
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def damage_captions(rng: random.Random, base: Path) -> Damage:
    file = rng.choice(("coco.json", "flickr30k.json", "sharegpt4v.json", "list.json", "lines.jsonl"))
    return damage_document(rng, file, (base / file).read_bytes())


def read_all_captions(folder: Path) -> Any:
    """Each file in the format that it has and in the one that it is taken for."""
    found = []
    for path in [*sorted(folder.glob("*.json")), folder / "lines.jsonl"]:
        forms = [path.stem] if path.stem in READERS else []
        for form in (*forms, recognise(path)):
            for kind in ("short", "long"):
                found.append(read_captions(path, form, kind, "test", ImageFinder(folder, path)))
    return found


def check_captions(found: Any) -> str | None:
    wrong = [one.text for pairs in found for one in pairs.captions if not one.text.strip()]
    return f"the captions {wrong[:3]}" if wrong else None


def make_fgovd(folder: Path) -> None:
    make_images(folder)
    row = {"bbox": [1, 2, 30, 20], "width": 64, "height": 48, "pos_expression": ["a red cat"]}
    row |= {"neg_expression": ["a blue cat", "一只猫"], "language": "en", "combination": "color"}
    lines = [json.dumps(row | {"img_path": name}) + "\n" for name in IMAGES]
    (folder / FGOVD).write_text("".join(lines), encoding="utf-8")


def damage_fgovd(rng: random.Random, base: Path) -> Damage:
    return damage_document(rng, FGOVD, (base / FGOVD).read_bytes())


def read_rows(folder: Path) -> Any:
    """Rows that do not fit are counted: a case with one counts as named."""
    found = read_fgovd(folder / FGOVD, ImageFinder(folder, folder / FGOVD))
    if found.accounting.skipped:
        raise EvaluationError(f"left out: {dict(found.accounting.skipped)}")
    return found


def check_rows(found: Any) -> str | None:
    wrong = [row for row in found.rows if not all(0 <= v <= 1 for v in row.box) or not all(map(str.strip, row.texts))]
    return f"the row {wrong[0]}" if wrong else None


ERRORS = (EvaluationError,)
FORMATS = {
    "instances": Format(
        "COCO and LVIS instances", make_instances, damage_instances, read_both, ERRORS, check_both, 1024
    ),
    "captions": Format(
        "lists of captions", make_captions, damage_captions, read_all_captions, ERRORS, check_captions, 1024
    ),
    "fgovd": Format("FG-OVD's rows", make_fgovd, damage_fgovd, read_rows, ERRORS, check_rows, 1024),
}
