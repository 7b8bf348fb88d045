"""The test split as a small FG-OVD: rows of one true and ten wrong phrases a box, in four degrees of difficulty.

hard: one attribute changed; medium: two; easy: three; trivial: phrases of other images' objects, of another shape and
colour. In the first three the shape, which is the object's class, is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.scenes.attributes import SHAPES, Look
from data_tools.scenes.language import ATTRIBUTES, NUM_NEGATIVES, changed_looks, short_phrase
from data_tools.scenes.layout import make_scene, scene_random
from pipeline.base.files import write_text
from pipeline.data.schema import Sample

CHANGES = {"hard": 1, "medium": 2, "easy": 3}
SETS = (*CHANGES, "trivial")
MIN_POOL_IMAGES = 200  # whose objects trivial's phrases are taken from


def fgovd_rows(samples: list[tuple[str, Sample]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of each set, one an object. ``samples`` are the test images' keys and records, in order of their number."""
    # A test split of a few images has too few objects for ten strange phrases; later scenes lend theirs.
    scenes = [make_scene(seed, "test", number) for number in range(max(len(samples), MIN_POOL_IMAGES))]
    pools: dict[str, list[tuple[int, Look]]] = {"en": [], "zh": []}
    for scene in scenes:
        pools[scene.language] += [(scene.number, placed.look) for placed in scene.objects]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SETS}
    for scene, (key, sample) in zip(scenes[: len(samples)], samples, strict=True):
        random = scene_random(seed, "test", scene.number, 3)
        present = {placed.look for placed in scene.objects}
        for placed, region in zip(scene.objects, sample.regions, strict=True):
            x1, y1, x2, y2 = region.image_box
            shared = {
                "img_path": f"{key}.jpg",
                "bbox": [
                    round(v, 2)
                    for v in (x1 * scene.width, y1 * scene.height, (x2 - x1) * scene.width, (y2 - y1) * scene.height)
                ],
                "pos_expression": [region.phrase],
                "width": scene.width,
                "height": scene.height,
                "language": scene.language,
                "combination": "unseen" if placed.look.unseen else "seen",
                "category": SHAPES[placed.look.shape].word(scene.language),
            }
            for name, changes in CHANGES.items():
                wrong = [look for look in changed_looks(placed.look, changes, random) if look not in present]
                row = _row(shared, [short_phrase(look, scene.language) for look in wrong])
                told = {"neg_attribute": [_changed(placed.look, look) for look in wrong[:NUM_NEGATIVES]]}
                rows[name].append(row | (told if changes == 1 else {}))
            others = _strangers(placed.look, scene.number, pools[scene.language], present, random)
            rows["trivial"].append(_row(shared, others))
    return rows


def _changed(look: Look, other: Look) -> str:
    """The one attribute in which two looks differ."""
    return next(name for name in ATTRIBUTES if getattr(look, name) != getattr(other, name))


def _row(shared: dict[str, Any], wrong: list[str]) -> dict[str, Any]:
    if len(wrong) < NUM_NEGATIVES:
        raise ValueError(
            f"{shared['img_path']}: {len(wrong)} wrong phrases for {shared['pos_expression'][0]!r}; "
            f"{NUM_NEGATIVES} are needed"
        )
    return shared | {"neg_expression": wrong[:NUM_NEGATIVES]}


def _strangers(
    look: Look, number: int, pool: list[tuple[int, Look]], present: set[Look], random: np.random.Generator
) -> list[str]:
    """Ten distinct phrases of objects of other images, of another shape and another colour than ``look``."""
    language = "en" if number % 2 == 0 else "zh"
    chosen: dict[str, None] = {}
    for i in random.permutation(len(pool)):
        other_number, other = pool[i]
        strange = other.shape != look.shape and other.colour != look.colour and other not in present
        if strange and other_number != number:
            chosen[short_phrase(other, language)] = None
            if len(chosen) == NUM_NEGATIVES:
                break
    return list(chosen)


def write_rows(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """``folder/hard.jsonl`` and so on, each written aside and renamed."""
    for name, lines in rows.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines))
