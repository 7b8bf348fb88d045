"""Checks of regions: the memory bank, the region scales, boxes, and how many negatives there are."""

from __future__ import annotations

import math

from pipeline.config import RegionLossSettings, Stage2Settings
from pipeline.doctor.evidence import Evidence, Finding, median_of_end
from pipeline.doctor.first_losses import START_SCALES, is_far_from_start

# Assumptions, chosen between what healthy runs show and what the diagnosed ones did (docs/diagnosis.md).
INVALID_SHARE = 0.005  # of regions; a diagnosed run had a quarter
SMALL_SHARE = 0.2  # of regions below 1 % of their image
FEWEST_NEGATIVES = {"global_short": 15.0, "global_long": 15.0, "fgv": 15.0, "fgt": 2.0}  # of a row, on average


def memory_bank_never_starts(evidence: Evidence) -> Finding | None:
    """A bank of some size that begins after the run ends, or that should have begun and holds nothing."""
    region = _region_loss(evidence)
    if region is None or not region.memory_bank_size:
        return None
    start, filled = region.memory_bank_start_step, evidence.points("memory_bank/filled")
    if evidence.total_steps is not None and start >= evidence.total_steps:
        return Finding(
            f"the memory bank begins after step {start}, and the run has {evidence.total_steps} steps",
            float(start),
            "its start was counted in forward calls, or for a longer run",
            "region_loss.memory_bank_start_step",
            f"set it below {evidence.total_steps} optimizer steps, or region_loss.memory_bank_size to 0",
        )
    late = [(step, count) for step, count in filled if step > max(start, 1)]
    if late and not any(count for _, count in late):
        step = late[-1][0]
        return Finding(
            f"the memory bank holds 0 of {region.memory_bank_size} regions at step {step}; it should fill from step "
            f"{max(start, 1)} on",
            0.0,
            "no region reached it: the batches have none, or L_FGV, which fills it, has no weight",
            "region_loss.fgv_weight",
            "raise it above 0, or set region_loss.memory_bank_size to 0",
        )
    return None


def region_scale_is_wrong(evidence: Evidence) -> Finding | None:
    """A region scale that does not start near 100."""
    if not evidence.settings.trains_regions:
        return None
    for name in ("finegrained", "hardneg"):
        value = evidence.at_step(f"scale/{name}", 1)
        if value is None or not is_far_from_start(name, value):
            continue
        start, stored = START_SCALES[name], math.log(value) if value > 0 else -math.inf
        return Finding(
            f"the scale of region losses {name} starts at {value:.4g} (stored as {stored:.4f}); {start:g} is meant "
            f"(stored as {math.log(start):.4f}): logits are too {'flat' if value < start else 'steep'} to train well",
            value,
            "the weights that the run starts from hold the starting scale of CLIP"
            if abs(stored - math.log(1 / 0.07)) < 0.1
            else "the weights that the run starts from hold another scale",
            "model.start_from",
            f"give weights whose logit_scale_finegraind and logit_scale_hardneg are {math.log(start):.4f}",
        )
    return None


def regions_without_area(evidence: Evidence) -> Finding | None:
    """Boxes that pool to zero: without area, outside their image, or not finite. They take part in no loss."""
    invalid, valid = sum(evidence.values("count/regions/invalid")), sum(evidence.values("count/regions/valid"))
    share = invalid / max(1.0, invalid + valid)
    if share <= INVALID_SHARE:
        return None
    has_clips = bool(evidence.settings.data.clip_frames)
    return Finding(
        f"{100 * share:.3g} % of the regions ({invalid:.0f} of {invalid + valid:.0f} logged) have no features: their "
        "norm is 0, and they are left out",
        share,
        "boxes without area or outside their image: a wrong order of corners, pixels taken for shares of the image"
        + (", or regions of clips that are in none of the frames that are read" if has_clips else ""),
        "data.shards",
        "read the shards again with python -m data_tools verify, and mend the boxes at their source",
    )


def boxes_are_small(evidence: Evidence) -> Finding | None:
    """Many boxes below 1 % of their image: a few patches, or less than one."""
    small = dict(evidence.points("count/regions/small"))
    valid = dict(evidence.points("count/regions/valid"))
    total = sum(count for step, count in valid.items() if step in small)
    if not total or (share := sum(small.values()) / total) <= SMALL_SHARE:
        return None
    return Finding(
        f"{100 * share:.3g} % of the boxes are below 1 % of their image",
        share,
        "objects far away, or boxes of parts: a region of less than a patch holds its surroundings",
        "data.patch_budgets",
        "give more patches an image, or leave such boxes out when shards are built",
    )


def negatives_are_few(evidence: Evidence) -> Finding | None:
    """Few things that a pair, a region or a phrase is told apart from."""
    for name, fewest in FEWEST_NEGATIVES.items():
        found = evidence.values(f"negatives/{name}")
        if not found or (count := median_of_end(found)) >= fewest:
            continue
        if name == "fgt":
            setting, change = (
                "data.max_negatives",
                "raise it; where the shards hold few: python -m data_tools negatives",
            )
        elif evidence.settings.train.accumulation == "separate":
            setting, change = "train.accumulation", "set it to cached: the losses then see the whole global batch"
        elif name == "fgv":
            setting, change = "region_loss.memory_bank_size", "keep past regions, or raise train.global_batch_size"
        else:
            setting, change = "train.global_batch_size", "raise it; a smaller train.micro_batch_size makes room"
        return Finding(
            f"{name} has {count:.3g} negatives a row; fewer than {fewest:g} teach little",
            count,
            "a small batch, separate micro-batches, or many equal phrases",
            setting,
            change,
        )
    return None


def _region_loss(evidence: Evidence) -> RegionLossSettings | None:
    return evidence.settings.region_loss if isinstance(evidence.settings, Stage2Settings) else None
