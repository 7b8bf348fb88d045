"""Draw the embedded data: scenes of coloured shapes with captions, boxes, phrases and wrong phrases.

examples:
  python -m data_tools scenes --out data/scenes
  python -m data_tools scenes --out data/scenes --train-images 8000 --test-images 1000 --seed 0 --workers 2

Writes OUT/train/*.tar and OUT/test/*.tar with index and manifest, OUT/test/fgovd/{hard,medium,easy,trivial}.jsonl, and
OUT/scenes.json. Half of the images are English, half Chinese. The same seed gives the same bytes whatever the number
of workers. Interrupted, the same command goes on; finished, it says so and returns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from data_tools.execution.jobs import InProcess, Job
from data_tools.execution.local import LocalExecutor
from data_tools.execution.progress import Progress
from data_tools.scenes.attributes import ATTRIBUTES, BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, UNSEEN_TRIPLES
from data_tools.scenes.drawing import draw_scene, mask_value
from data_tools.scenes.fgovd import fgovd_rows, write_rows
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
from data_tools.shards import Record, shard_path, write_shard
from pipeline.base.border import read_object
from pipeline.base.files import remove_leftovers, write_json
from pipeline.data.records import walk_folder, walk_records
from pipeline.data.schema import Region, Sample

GENERATOR_VERSION = 3  # raise it when the same settings give other scenes: stale folders are then refused
SUMMARY = "scenes.json"
PLAN = "scenes-begun.json"  # the settings of a job under way
MAX_IMAGES_PER_SHARD = {"train": 500, "test": 250}
MIN_SHARDS = 4  # of a split, so that small folders too can be read by several processes


@dataclass(frozen=True)
class ShardTask:
    """One shard's images: ``numbers`` within the split."""

    path: Path
    split: str
    first: int
    last: int  # exclusive
    seed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--train-images", type=int, default=8000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: this machine's cores)")


def run(arguments: argparse.Namespace) -> int:
    for name in ("train_images", "test_images"):
        value = getattr(arguments, name)
        if value < 2:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {value}; it must be at least 2, one image a language")
    if arguments.seed < 0:
        raise ValueError(f"--seed is {arguments.seed}; it must be 0 or more")
    out: Path = arguments.out
    settings = {
        "train_images": arguments.train_images,
        "test_images": arguments.test_images,
        "seed": arguments.seed,
        "version": GENERATOR_VERSION,
    }
    if (out / SUMMARY).is_file() and _read(out / SUMMARY).get("settings") == settings:
        print(f"{out} is complete with these settings; nothing to do")
        return 0
    _begin(out, settings)
    started = time.monotonic()
    _draw_all(out, settings, arguments.workers)
    from pipeline.data.index import index_folder  # here, so that --help answers without loading pyarrow

    for split in MAX_IMAGES_PER_SHARD:
        index_folder(out / split)
    samples = [(found.key, sample) for path in walk_folder(out / "test") for found, sample in walk_records(path)]
    rows = fgovd_rows(samples, arguments.seed)
    write_rows(out / "test" / "fgovd", rows)
    write_json(out / SUMMARY, summary(settings, rows))
    (out / PLAN).unlink(missing_ok=True)
    print(f"{out}: done in {time.monotonic() - started:.1f} s, {len(rows['hard'])} test objects")
    return 0


def _begin(out: Path, settings: dict[str, int]) -> None:
    """Note the settings, so that shards of two different jobs never mix in one folder."""
    for name in (SUMMARY, PLAN):
        if (out / name).is_file() and (found := _read(out / name).get("settings")) != settings:
            raise ValueError(f"{out / name} names other settings, {found}; choose another --out or delete that folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, {"settings": settings})


def _draw_all(out: Path, settings: dict[str, int], workers: int | None) -> None:
    jobs = []
    for split, most in MAX_IMAGES_PER_SHARD.items():
        (out / split).mkdir(exist_ok=True)
        total = settings[f"{split}_images"]
        per_shard = min(most, -(-total // MIN_SHARDS))
        for shard, first in enumerate(range(0, total, per_shard)):
            path = shard_path(out / split, split, shard)
            remove_leftovers(path, of_all=True)
            if not path.is_file():
                task = ShardTask(path, split, first, min(first + per_shard, total), settings["seed"])
                jobs.append(Job(f"{split}/{path.name}", task))
    if not jobs:
        return
    executor = InProcess() if workers == 1 or len(jobs) == 1 else LocalExecutor(workers)
    shown = Progress("scenes", len(jobs))
    for result in executor.run(DrawShards(), jobs, shown.add):
        if result.error is not None:
            raise OSError(f"{result.error}; run the same command again to go on")
        shown.job(skipped=False)
    shown.end()


class DrawShards:
    """The work of one job: draw and write one shard."""

    def open(self, worker: int) -> None:
        """Nothing is loaded."""

    def close(self) -> None:
        """Nothing is held."""

    def do(self, job: Job, progress: Callable[[int], None]) -> int:
        task: ShardTask = job.payload

        def records() -> Iterator[Record]:
            for number in range(task.first, task.last):
                yield make_record(task.seed, task.split, number)
                progress(1)

        return write_shard(task.path, records())


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
        "region_templates": {language: region_templates(language) for language in ("en", "zh")},
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
            "classes": {language: [term.word(language) for term in terms] for language in ("en", "zh")},
            "templates": {language: region_templates(language, name) for language in ("en", "zh")},
            "class_of_value": class_of_value,
        }
    return read


def _read(path: Path) -> dict[str, Any]:
    return read_object(path)
