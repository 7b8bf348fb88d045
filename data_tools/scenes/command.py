"""Draw the embedded data: scenes of coloured shapes with captions, boxes, phrases and wrong phrases.

examples:
  python -m data_tools scenes --out data/scenes
  python -m data_tools scenes --out data/scenes --train-images 8000 --test-images 1000 --seed 0 --workers 2
  python -m data_tools scenes --clips --out data/clips --train-clips 4000 --test-clips 500 --anomaly-videos 100

Writes OUT/train/*.tar and OUT/test/*.tar with index and manifest, OUT/test/fgovd/{hard,medium,easy,trivial}.jsonl, and
OUT/scenes.json. Half of the images are English, half Chinese. The same seed gives the same bytes whatever the number
of workers. Interrupted, the same command goes on; finished, it says so and returns.

With --clips the shapes move: clips of eight frames with captions and regions that only motion tells apart, normal ones
and ones with an anomaly (a collision, a sudden turn, an object that appears), with OUT/test/phrases/{motion,mixed,
looks}.jsonl; and OUT/anomaly, longer videos with a label a frame (docs/video.md).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from data_tools.scenes.attributes import ATTRIBUTES, BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, UNSEEN_TRIPLES
from data_tools.scenes.clips.layout import CLIP_SPLITS
from data_tools.scenes.clips.make import write_clips
from data_tools.scenes.drawing import draw_scene, mask_value
from data_tools.scenes.fgovd import fgovd_rows, write_rows
from data_tools.scenes.jobs import Folder, Split, draw_all
from data_tools.scenes.language import (
    long_caption,
    long_phrase,
    region_templates,
    short_caption,
    short_phrase,
    training_attributes,
    training_negatives,
)
from data_tools.scenes.layout import Scene, make_scene, scene_random
from data_tools.shards import Record
from pipeline.base.constants import LANGUAGES
from pipeline.data.records import walk_folder, walk_records
from pipeline.data.schema import Region, Sample

GENERATOR_VERSION = 3  # raise it when the same settings give other scenes: stale folders are then refused
SUMMARY = "scenes.json"
PLAN = "scenes-begun.json"  # the settings of a job under way
DEFAULT_IMAGES = {"train_images": 8000, "test_images": 1000}
DEFAULT_CLIPS = {"train_clips": 4000, "test_clips": 500, "anomaly_videos": 100}
MAX_IMAGES_PER_SHARD = {"train": 500, "test": 250}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--train-images", type=int, help=f"(default: {DEFAULT_IMAGES['train_images']})")
    parser.add_argument("--test-images", type=int, help=f"(default: {DEFAULT_IMAGES['test_images']})")
    parser.add_argument("--clips", action="store_true", help="moving shapes instead of still images")
    parser.add_argument("--train-clips", type=int, help=f"(default: {DEFAULT_CLIPS['train_clips']})")
    parser.add_argument("--test-clips", type=int, help=f"(default: {DEFAULT_CLIPS['test_clips']})")
    parser.add_argument("--anomaly-videos", type=int, help=f"(default: {DEFAULT_CLIPS['anomaly_videos']})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: this machine's cores)")


def run(arguments: argparse.Namespace) -> int:
    numbers = _numbers(arguments)
    if arguments.seed < 0:
        raise ValueError(f"--seed is {arguments.seed}; it must be 0 or more")
    out: Path = arguments.out
    folder = Folder(out, SUMMARY, PLAN)
    if arguments.clips:
        by_split = dict(zip(CLIP_SPLITS, numbers.values(), strict=True))
        return write_clips(folder, by_split, arguments.seed, arguments.workers)
    settings = {**numbers, "seed": arguments.seed, "version": GENERATOR_VERSION}
    if folder.is_complete(settings):
        print(f"{out} is complete with these settings; nothing to do")
        return 0
    folder.begin(settings)
    started = time.monotonic()
    splits = {name: Split(settings[f"{name}_images"], most) for name, most in MAX_IMAGES_PER_SHARD.items()}
    draw_all(out, splits, arguments.seed, make_record, arguments.workers, "scenes")
    samples = [(found.key, sample) for path in walk_folder(out / "test") for found, sample in walk_records(path)]
    rows = fgovd_rows(samples, arguments.seed)
    write_rows(out / "test" / "fgovd", rows)
    folder.finish(summary(settings, rows))
    print(f"{out}: done in {time.monotonic() - started:.1f} s, {len(rows['hard'])} test objects")
    return 0


def _numbers(arguments: argparse.Namespace) -> dict[str, int]:
    """How many images, or clips and videos, of each split.

    Raises:
        ValueError: an option of the other kind was given, or a number is too small.
    """
    asked, other = (DEFAULT_CLIPS, DEFAULT_IMAGES) if arguments.clips else (DEFAULT_IMAGES, DEFAULT_CLIPS)
    for name in other:
        if getattr(arguments, name) is not None:
            rule = "is of still images; leave --clips out" if arguments.clips else "is of clips; give --clips too"
            raise ValueError(f"--{name.replace('_', '-')} {rule}")
    numbers = {name: getattr(arguments, name) for name in asked}
    numbers = {name: asked[name] if value is None else value for name, value in numbers.items()}
    for name, value in numbers.items():
        least = 0 if name == "anomaly_videos" else 2
        if value < least:
            rule = "it must be 0 or more" if least == 0 else "it must be at least 2, one a language"
            raise ValueError(f"--{name.replace('_', '-')} is {value}; {rule}")
    return numbers


def make_record(seed: int, split: str, number: int) -> Record:
    """One image with its record: a pure function of its arguments."""
    scene = make_scene(seed, split, number)
    drawing = draw_scene(scene, scene_random(seed, split, number, 2), with_mask=split == "test")
    random = scene_random(seed, split, number, 1)
    regions = []
    for i, (placed, box) in enumerate(zip(scene.objects, drawing.boxes, strict=True)):
        named = training_attributes(random) if split == "train" else ATTRIBUTES
        regions.append(
            Region(
                box=(round(box[0], 6), round(box[1], 6), round(box[2], 6), round(box[3], 6)),
                phrase=short_phrase(placed.look, scene.language, named),
                long_phrase=long_phrase(i, scene),
                category=SHAPES[placed.look.shape].word(scene.language),
                negatives=training_negatives(placed.look, named, scene.language, random),
            )
        )
    sample = Sample(
        language=scene.language,
        width=scene.width,
        height=scene.height,
        short_caption=short_caption(scene),
        long_caption=long_caption(scene, random),
        regions=tuple(regions),
        source=_source(scene, seed),
    )
    extra = {} if drawing.mask is None else {"mask.png": drawing.mask}
    return Record(scene.key, drawing.jpeg, "jpg", sample, extra)


def _source(scene: Scene, seed: int) -> dict[str, Any]:
    combinations = ["unseen" if placed.look.unseen else "seen" for placed in scene.objects]
    return {
        "generator": f"scenes {GENERATOR_VERSION}",
        "seed": seed,
        "background": BACKGROUNDS[scene.background][0].en,
        "combination": "unseen" if "unseen" in combinations else "seen",  # of the image: any object unseen
        "objects": [
            {
                "colour": COLOURS[placed.look.colour][0].en,
                "pattern": PATTERNS[placed.look.pattern].en,
                "shape": SHAPES[placed.look.shape].en,
                "size": SIZES[placed.look.size][0].en,
                "combination": combination,
            }
            for placed, combination in zip(scene.objects, combinations, strict=True)
        ],
    }


def summary(settings: dict[str, int], rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """scenes.json: settings, classes and prompts, held-out combinations, counts, and what the masks' values mean."""

    def words(terms: list[Any]) -> list[dict[str, str]]:
        return [asdict(term) for term in terms]

    return {
        "settings": settings,
        "classes": {"en": [term.en for term in SHAPES], "zh": [term.zh for term in SHAPES]},
        "attributes": {
            "colour": words([term for term, _ in COLOURS]),
            "pattern": words(list(PATTERNS)),
            "size": words([term for term, _ in SIZES]),
            "background": words([term for term, _ in BACKGROUNDS]),
        },
        "region_templates": {language: region_templates(language) for language in LANGUAGES},
        "held_out": [
            {"colour": COLOURS[c][0].en, "pattern": PATTERNS[p].en, "shape": SHAPES[s].en} for c, p, s in UNSEEN_TRIPLES
        ],
        "counts": {
            "train_images": settings["train_images"],
            "test_images": settings["test_images"],
            "test_objects": len(rows["hard"]),
            "test_objects_unseen": sum(row["combination"] == "unseen" for row in rows["hard"]),
        },
        "masks": _mask_classes(),
    }


def _mask_classes() -> dict[str, Any]:
    """How KEY.mask.png of a test image is read as a map of shapes or of colours.

    ``class_of_value[v]`` is the class, from 1 on, of a pixel of value v; 0 is background.
    """
    read = {}
    for name, terms in (("shape", SHAPES), ("colour", [term for term, _ in COLOURS])):
        class_of_value = [0] * (mask_value(len(SHAPES) - 1, len(COLOURS) - 1) + 1)
        for shape, colour in product(range(len(SHAPES)), range(len(COLOURS))):
            class_of_value[mask_value(shape, colour)] = 1 + (shape if name == "shape" else colour)
        read[name] = {
            "classes": {language: [term.word(language) for term in terms] for language in LANGUAGES},
            "templates": {language: region_templates(language, name) for language in LANGUAGES},
            "class_of_value": class_of_value,
        }
    return read
