"""The test clips as rows of one true and ten wrong phrases a region, in three sets.

motion: the wrong phrases differ in the motion alone, and the motion backwards is among them where there is one. mixed:
five differ in the motion, five in one attribute of the look. looks: all differ in one attribute of the look. A row
names its clip by key and has a box per frame, null where the object is not there; ``neg_attribute`` says what each
wrong phrase changes.
"""

from __future__ import annotations

from typing import Any

from data_tools.scenes.clips.language import changed_attribute, motion_phrase, wrong_looks, wrong_motions
from data_tools.scenes.clips.layout import CLIP_SPLITS, SIDE, clip_random, make_clip
from data_tools.scenes.language import NUM_NEGATIVES
from pipeline.data.schema import Sample

MOTION = "motion"  # as ``neg_attribute``
MOTION_NEGATIVES = {"motion": NUM_NEGATIVES, "mixed": NUM_NEGATIVES // 2, "looks": 0}  # of the ten, by set


def clip_rows(samples: list[tuple[str, Sample]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of each set, one a region. ``samples`` are the test clips' keys and records, in order of their number."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in MOTION_NEGATIVES}
    for number, (key, sample) in enumerate(samples):
        clip = make_clip(seed, CLIP_SPLITS[1], number)
        random = clip_random(seed, CLIP_SPLITS[1], number, 3)
        for mover, region in zip(clip.movers, sample.regions, strict=True):
            if mover.motion is None or region.boxes is None:
                raise ValueError(
                    f"{key}: a test clip's object has a motion and boxes; report this as a fault of scenes"
                )
            shared = {
                "clip": key,
                "boxes": [None if box is None else _pixels(box) for box in region.boxes],
                "pos_expression": [region.phrase],
                "width": sample.width,
                "height": sample.height,
                "language": clip.language,
                "combination": "unseen" if mover.look.unseen else "seen",
                "motion": mover.motion.name,
            }
            for name, num_motions in MOTION_NEGATIVES.items():
                motions = wrong_motions(mover.motion, random)[:num_motions]
                looks = wrong_looks(mover.look, random)[: NUM_NEGATIVES - num_motions]
                wrong = [motion_phrase(mover.look, motion, clip.language) for motion in motions]
                wrong += [motion_phrase(look, mover.motion, clip.language) for look in looks]
                told = [MOTION] * len(motions) + [changed_attribute(mover.look, look) for look in looks]
                rows[name].append(shared | {"neg_expression": wrong, "neg_attribute": told})
    return rows


def _pixels(box: tuple[float, float, float, float]) -> list[float]:
    """x, y, width and height, as FG-OVD has them."""
    x1, y1, x2, y2 = box
    return [round(v * SIDE, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
