"""What evaluation keeps or is told beside annotations: suites, scenes.json, results and features of earlier runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pipeline.evaluation.class_names import read_class_names
from pipeline.evaluation.formats.captions import read_captions, recognise
from pipeline.evaluation.formats.paths import ImageFinder
from pipeline.evaluation.formats.scenes import scene_classes, scene_masks, scene_templates
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.proposals import read_proposals
from pipeline.evaluation.results import Accounting, EvaluationError
from pipeline.evaluation.suites.specification import Suite, read_suite
from pipeline.evaluation.tasks.text_similarity import read_texts
from pipeline.evaluation.templates import read_templates
from tests.border.damage import Damage, damage_bytes, damage_document
from tests.border.formats import Format
from tests.data.shards import image_bytes, record, sample_members, write_tar

SUITE = "suite.yaml"
YAML = (
    *("rows: [!!python/object/apply:os.system [echo]]", "rows: [a", "rows: &a [*a]", "rows:\n\t- x", "[" * 5000),
    *("name: x\nrows: [{task: boxes}]", "rows: [{protocol: nowhere}]", "rows: [{protocol: 'fgclip2:nothing'}]"),
    *(
        "rows: [{task: [], name: {}}]",
        "rows: [{task: boxes, name: a}, {task: boxes, name: a}]",
        "rows: 5",
        "--- 1\n--- 2",
    ),
)


def make_suite(folder: Path) -> None:
    rows = [
        {"name": "场景", "task": "scenes", "data": "test", "scores": ["hard"]},
        {"name": "boxes", "task": "boxes", "data": ["a.json"], "language": "zh", "max_skipped_share": 0.5},
        {"protocol": "fgclip2:coco-boxes", "images": "coco"},
    ]
    (folder / SUITE).write_text(json.dumps({"name": "表", "root": ".", "rows": rows}), encoding="utf-8")


def damage_suite(rng: random.Random, base: Path) -> Damage:
    if rng.random() < 0.2:
        return Damage(SUITE, [["bytes", rng.choice(YAML)]])
    return damage_document(rng, SUITE, (base / SUITE).read_bytes())


def read_one_suite(folder: Path) -> Suite:
    suite = read_suite(str(folder / SUITE))
    for row in suite.rows:
        row.options()
    return suite


def check_suite(suite: Suite) -> str | None:
    wrong = [
        row for row in suite.rows if not isinstance(row.name, str) or not all(isinstance(s, str) for s in row.scores)
    ]
    return f"the row {wrong[0]}" if wrong else None


SUMMARY = "scenes.json"


def make_scenes(folder: Path) -> None:
    source = {"combination": "seen", "objects": [{"combination": "unseen", "shape": "star"}]}
    made = record(1, "zh", regions=1, source=source)
    write_tar(folder / "part-00000.tar", sample_members("k1", image_bytes(1), made))
    names = {"en": ["circle", "star"], "zh": ["圆", "星"]}
    masks = {"classes": names, "templates": {"en": ["a {}"], "zh": ["{}"]}, "class_of_value": [0, 1, 2]}
    summary = {"classes": names, "region_templates": {"en": ["a red {}"]}, "masks": {"shape": masks, "colour": masks}}
    (folder / SUMMARY).write_text(json.dumps(summary | {"settings": {"seed": 1}}), encoding="utf-8")


def damage_scenes(rng: random.Random, base: Path) -> Damage:
    if rng.random() < 0.2:
        return damage_bytes(rng, SUMMARY)
    return damage_document(rng, SUMMARY, (base / SUMMARY).read_bytes())


def read_scenes(folder: Path) -> dict[str, Any]:
    dataset, templates = scene_masks(folder)
    classes = scene_classes(read_shards(folder), folder)
    return {"names": dataset.classes, "masks": templates, "boxes": scene_templates(folder), "classes": classes}


def check_scenes(found: dict[str, Any]) -> str | None:
    for what, by_language in found.items():
        if not all(isinstance(text, str) for texts in by_language.values() for text in texts):
            return f"{what} {by_language!r:.100}"
    return None


LISTS = ("names.json", "list.json", "templates.json", "texts.json", "results.json", "names.tsv", "captions.tsv")


def make_lists(folder: Path) -> None:
    boxes = [{"image_id": n, "category_id": 1, "bbox": [1, 2, 8, 9.5], "score": 0.5} for n in (1, 2)]
    contents: list[Any] = [
        {"0": "a dog", "7": "猫"},
        ["a dog", "猫"],
        ["a photo of a {}", "一张{}"],
        ["一", "b"],
        boxes,
    ]
    for name, content in zip(LISTS, contents, strict=False):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "names.tsv").write_text("0\ta dog\n7\t猫\n", encoding="utf-8")
    (folder / "captions.tsv").write_text("image\tcaption\na.jpg\ta dog\na.jpg\t一只猫\n", encoding="utf-8")
    (folder / "a.jpg").write_bytes(image_bytes(1))


def damage_lists(rng: random.Random, base: Path) -> Damage:
    file = rng.choice(LISTS)
    if Path(file).suffix == ".tsv" or rng.random() < 0.2:
        return damage_bytes(rng, file)
    return damage_document(rng, file, (base / file).read_bytes())


def read_lists(folder: Path) -> list[str]:
    """Every text of them; rows that were left out are counted, and the case is named."""
    accounting = Accounting("detections")
    names = [n for file in ("names.json", "list.json", "names.tsv") for n in read_class_names(folder / file).values()]
    texts = read_templates(str(folder / "templates.json")) + read_texts(folder / "texts.json")
    sizes, labels = {1: (64, 48), 2: (64, 48)}, {1: 0}
    for one in read_proposals(folder / "results.json", sizes, labels, accounting).values():
        assert one.boxes.isfinite().all() and one.scores.isfinite().all()
    table = folder / "captions.tsv"
    captions = read_captions(table, recognise(table), "short", "test", ImageFinder(folder, table))
    if accounting.skipped or captions.accounting.skipped:
        raise EvaluationError(f"left out: {dict(accounting.skipped)} {dict(captions.accounting.skipped)}")
    return [*names, *texts, *(one.text for one in captions.captions)]


def check_lists(found: list[str]) -> str | None:
    return None if all(isinstance(text, str) for text in found) else f"the texts {found!r:.200}"


FORMATS = {
    "lists": Format(
        "lists of names, prompts, boxes", make_lists, damage_lists, read_lists, (EvaluationError,), check_lists, 1024
    ),
    "suite": Format("suites (YAML)", make_suite, damage_suite, read_one_suite, (EvaluationError, OSError), check_suite),
    "scenes": Format("scenes.json", make_scenes, damage_scenes, read_scenes, (EvaluationError,), check_scenes),
}
