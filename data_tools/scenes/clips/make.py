"""The folder of clips: training and test clips, the test rows, and the anomaly set of longer videos."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from data_tools.scenes.attributes import BACKGROUNDS, COLOURS, SHAPES, SIZES
from data_tools.scenes.clips.drawing import draw_clip
from data_tools.scenes.clips.language import (
    anomaly_prompts,
    long_clip_caption,
    motion_phrase,
    short_clip_caption,
    training_phrases,
)
from data_tools.scenes.clips.layout import CLIP_SPLITS, NUM_FRAMES, NUM_VIDEO_FRAMES, SIDE, Clip, clip_random, make_clip
from data_tools.scenes.clips.motions import MOTIONS
from data_tools.scenes.clips.rows import clip_rows
from data_tools.scenes.fgovd import write_rows
from data_tools.scenes.jobs import Folder, Split, draw_all
from data_tools.shards import Record
from pipeline.data.records import walk_folder, walk_records
from pipeline.data.schema import Region, Sample

CLIPS_VERSION = 1  # raise it when the same settings give other clips: stale folders are then refused
MOST_PER_SHARD = {"train": 500, "test": 250, "anomaly": 50}
ROWS = "phrases"  # folder of the test rows, beside the test shards


def write_clips(folder: Folder, numbers: Mapping[str, int], seed: int, workers: int | None) -> int:
    """Draw what is missing; the exit status.

    Args:
        numbers: clips of each of CLIP_SPLITS.
    """
    settings = {f"{split}_clips": numbers[split] for split in CLIP_SPLITS} | {"seed": seed, "version": CLIPS_VERSION}
    out = folder.path
    if folder.is_complete(settings):
        print(f"{out} is complete with these settings; nothing to do")
        return 0
    folder.begin(settings)
    started = time.monotonic()
    splits = {split: Split(numbers[split], MOST_PER_SHARD[split]) for split in CLIP_SPLITS if numbers[split]}
    draw_all(out, splits, seed, make_clip_record, workers, "clips")
    test = walk_folder(out / "test")
    samples = [(found.key, sample) for path in test for found, sample in walk_records(path, clips=True)]
    rows = clip_rows(samples, seed)
    write_rows(out / "test" / ROWS, rows)
    folder.finish(_summary(settings, rows))
    print(f"{out}: done in {time.monotonic() - started:.1f} s, {len(rows['motion'])} test regions")
    return 0


def make_clip_record(seed: int, split: str, number: int) -> Record:
    """One clip with its record: a pure function of its arguments."""
    clip = make_clip(seed, split, number)
    drawing = draw_clip(clip, clip_random(seed, split, number, 2))
    random = clip_random(seed, split, number, 1)
    regions = []
    for mover, boxes in zip(clip.movers, drawing.boxes, strict=True):
        phrase, negatives = motion_phrase(mover.look, mover.motion, clip.language), tuple[str, ...]()
        if split == "train":
            phrase, negatives = training_phrases(mover, clip.language, random)
        category = SHAPES[mover.look.shape].word(clip.language)
        regions.append(Region(None, phrase, category=category, negatives=negatives, boxes=boxes))
    sample = Sample(
        language=clip.language,
        width=SIDE,
        height=SIDE,
        short_caption=short_clip_caption(clip),
        long_caption=long_clip_caption(clip),
        regions=tuple(regions),
        frames=clip.times,
        anomaly=clip.anomaly,
        source=_source(clip, seed),
    )
    return Record(clip.key, b"", "jpg", sample, frames=drawing.frames)


def _source(clip: Clip, seed: int) -> dict[str, Any]:
    return {
        "generator": f"clips {CLIPS_VERSION}",
        "seed": seed,
        "background": BACKGROUNDS[clip.background][0].en,
        "combination": "unseen" if any(mover.look.unseen for mover in clip.movers) else "seen",
        "objects": [
            {
                "colour": COLOURS[mover.look.colour][0].en,
                "shape": SHAPES[mover.look.shape].en,
                "size": SIZES[mover.look.size][0].en,
                "combination": "unseen" if mover.look.unseen else "seen",
            }
            | ({} if mover.motion is None else {"motion": mover.motion.name})
            for mover in clip.movers
        ],
    } | ({} if clip.event is None else {"event": clip.event})


def _summary(settings: dict[str, int], rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """scenes.json of clips: settings, motions, prompts of the anomaly set, counts."""
    return {
        "settings": settings,
        "frames": {"clip": NUM_FRAMES, "video": NUM_VIDEO_FRAMES},
        "classes": {"en": [term.en for term in SHAPES], "zh": [term.zh for term in SHAPES]},
        "motions": [
            {"name": motion.name, "en": motion.words("en"), "zh": motion.words("zh"), "abnormal": motion.is_abnormal}
            for motion in MOTIONS
        ],
        "anomaly_prompts": anomaly_prompts(),
        "counts": {name: len(found) for name, found in rows.items()},
    }
