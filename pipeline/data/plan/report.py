"""What an epoch will look like, in lines for people: steps, batches by group, padding, and the shuffle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import DataSettings
from pipeline.data.manifest import Manifest, read_index
from pipeline.data.plan.batches import name_of
from pipeline.data.plan.mixing import shuffled
from pipeline.data.plan.plan import Plan
from pipeline.data.resolution import PATCH_SIZE, budget_numbers, grid_of

MOST_NAMED = 5  # languages in one line
SAMPLED_SHARDS, SAMPLED_ROWS, SAMPLED_BATCHES = 8, 500, 20


def report(plan: Plan, manifests: Sequence[Manifest], epoch: int) -> list[str]:
    """Lines for people; the padding is estimated from the rows of a few shards."""
    groups = plan.group_counts(epoch)
    steps = plan.steps_per_epoch(epoch)
    total = sum(int(manifest.samples.sum()) for manifest in manifests)
    used, rest = sum(row.samples for row in groups), sum(row.rest for row in groups)
    kept = steps - sum(row.batches for row in groups)
    what = "samples" if plan.levels.clip_frames else "images"
    lines = [
        f"epoch {epoch}: {steps} steps of {plan.batch_size} {what}; {total} samples in "
        f"{sum(len(manifest.shards) for manifest in manifests)} shards, {used} taken after weighting",
        f"remainder: {rest} samples fill no batch; "
        + (f"kept in {kept} smaller batches" if kept else "dropped this epoch (order differs in the next)"),
    ]
    if plan.too_short:
        frames = ", ".join(map(str, plan.levels.clip_frames))
        lines.append(f"left out: {plan.too_short} clips are shorter than each of data.clip_frames ({frames})")
    for number, manifest in enumerate(manifests):
        have = dict(zip(manifest.languages, manifest.counts.sum((0, 2)).tolist(), strict=True))
        shares = ", ".join(
            f"{plan.shares[number, i]:.0%} of {have[name]} {name}"
            for i, name in enumerate(plan.languages)
            if have.get(name)
        )
        left_out = sum(manifest.faults.values())
        lines.append(f"source {manifest.folder}: takes {shares} samples; {left_out} were left out by the index")
    patches = 0.0
    for row in groups:
        if row.samples:
            name = name_of(row) + ("" if row.patch_budget else ", patch budgets mixed")
            lines.append(f"  {name}: {row.batches} batches, {row.rest} samples over")
        patches += row.batches * row.frames * (row.patch_budget or 0)
    if plan.settings.one_budget_per_batch:
        full = max(sum(row.batches for row in groups), 1)
        lines.append(f"patches a step: {patches / full * plan.batch_size:,.0f} on average, padding included")
        lines.append(f"padding: {padding_share(manifests, plan.settings):.1%} of the patches (estimated)")
    lines.append(f"shuffling: {spread(plan, epoch)}")
    return lines + untrained_languages(plan)


def padding_share(manifests: Sequence[Manifest], settings: DataSettings) -> float:
    """Share of patches without image, over sampled rows resized to fill their own patch budget."""
    padded = filled = 0
    for manifest in manifests:
        shards = [manifest.shards[i] for i in shuffled(0, len(manifest.shards))[:SAMPLED_SHARDS]]
        for shard in shards:
            index = read_index(manifest.folder, shard)
            rows = slice(0, SAMPLED_ROWS)
            patch_budgets = budget_numbers(index.width[rows], index.height[rows], settings.patch_budgets)
            for width, height, number in zip(index.width[rows], index.height[rows], patch_budgets, strict=True):
                patch_budget = settings.patch_budgets[number]
                columns_rows = grid_of(int(width), int(height), patch_budget, settings.keep_aspect_ratio)
                filled += columns_rows[0] * columns_rows[1]
                padded += patch_budget
    return 1 - filled / max(padded, 1)


def spread(plan: Plan, epoch: int) -> str:
    """How far the samples of one shard lie from each other, from batches in the middle of the epoch."""
    steps = plan.steps_per_epoch(epoch)
    middle = max(0, steps // 2 - SAMPLED_BATCHES // 2)
    batches = [plan.batch(epoch, n) for n in range(middle, min(middle + SAMPLED_BATCHES, steps))]
    shards = np.mean([len(np.unique(batch.shards)) for batch in batches])
    same = np.mean([np.mean(np.diff(np.sort(batch.shards)) == 0) if len(batch) > 1 else 0.0 for batch in batches])
    window = steps * plan.settings.window_shards / plan.num_shards
    return (
        f"a batch mixes {shards:.1f} shards ({same:.0%} of its samples share a shard with another); samples of one "
        f"shard spread over about {min(max(window, 1), steps):.1f} steps of {steps} (data.window_shards = "
        f"{plan.settings.window_shards}), in another place every epoch"
    )


def untrained_languages(plan: Plan) -> list[str]:
    """A line where languages of the plan fill no batch: whatever the number of epochs, they would not be trained."""
    samples: dict[str, int] = {}
    trained = set()
    multiple = plan.settings.last_batch_multiple if plan.settings.keep_last_batch else plan.batch_size
    for row in plan.group_counts():
        samples[row.language] = samples.get(row.language, 0) + row.samples
        if row.batches or row.rest >= multiple:
            trained.add(row.language)
    left = {language: count for language, count in samples.items() if count and language not in trained}
    if not left:
        return []
    named = ", ".join(f"{language} ({count})" for language, count in list(left.items())[:MOST_NAMED])
    more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
    present = sum(1 for count in samples.values() if count)
    return [
        f"warning: {len(left)} of {present} languages fill no batch of {plan.batch_size} and are never trained: "
        f"{named}{more}; lower train.global_batch_size, or set data.one_budget_per_batch=false or "
        "data.keep_last_batch=true, or leave them out of the shards"
    ]


def first_batches(plan: Plan, manifests: Sequence[Manifest], epoch: int, count: int) -> list[str]:
    """One line for each of an epoch's first ``count`` batches."""
    lines = []
    for number in range(min(count, plan.steps_per_epoch(epoch))):
        batch = plan.batch(epoch, number)
        source, shard = plan.source_of(int(batch.shards[0]))
        clips = f", {batch.frames} frames" if batch.frames > 1 else ""
        lines.append(
            f"batch {number}: {batch.language}, {batch.patch_budget} patches{clips}, {len(batch)} samples of "
            f"{len(np.unique(batch.shards))} shards, the first from {manifests[source].shards[shard]} "
            f"[{_pixels(batch.patch_budget)}]"
        )
    return lines


def _pixels(patch_budget: int) -> str:
    side = int(patch_budget**0.5) * PATCH_SIZE
    return f"about {side}x{side} pixels"
