"""How many images pass through the model at one time: what ``train.micro_batch_size`` means on these devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.config import SettingsError, Stage1Settings, Stage2Settings
from pipeline.data.slices import Division


def make_division(settings: Stage1Settings, world_size: int, fitting: Callable[[], Mapping[int, int]]) -> Division:
    """The division of global batches that the settings ask for.

    Args:
        fitting: the largest micro-batch of each patch budget that a device has room for; called for ``auto`` only.

    Raises:
        SettingsError: a patch budget without a micro-batch size, more separate micro-batches than images, or, with
            ``auto``, a patch budget of which not one image fits.
    """
    train, budgets = settings.train, settings.data.patch_budgets
    separate = train.accumulation == "separate"
    if train.micro_batch_size is None:
        if separate and train.accumulation_steps > train.global_batch_size:
            raise SettingsError(
                f"train.accumulation_steps is {train.accumulation_steps}, and train.global_batch_size is "
                f"{train.global_batch_size}: with train.accumulation=separate a micro-batch needs an image; "
                "lower train.accumulation_steps"
            )
        return Division(world_size, train.accumulation_steps, separate=separate)
    return Division(world_size, largest=_largest(settings, budgets, fitting), separate=separate)


def _largest(
    settings: Stage1Settings, budgets: list[int], fitting: Callable[[], Mapping[int, int]]
) -> Mapping[int, int]:
    chosen = settings.train.micro_batch_size
    if chosen == "auto":
        fits, frames = fitting(), max(settings.data.clip_frames, default=1)
        if too_large := [budget for budget in budgets if fits[budget] < frames]:
            what = "image" if frames == 1 else f"clip of {frames} images"
            raise SettingsError(
                f"train.micro_batch_size is auto, and by the estimate not one {what} of {max(too_large)} patches fits "
                "beside the model on a device; set model.gradient_checkpointing=true, take ZeRO 3 "
                "(train.deepspeed_config=launch/zero3.json), more devices, or fewer patches (data.patch_budgets); "
                "`python -m pipeline.estimate` shows what takes the room"
            )
        return fits
    if isinstance(chosen, int):
        return dict.fromkeys(budgets, chosen)
    if not isinstance(chosen, dict) or (missing := [budget for budget in budgets if budget not in chosen]):
        raise SettingsError(
            f"train.micro_batch_size is {chosen}; it must name every patch budget of data.patch_budgets, so add "
            f"{', '.join(map(str, missing))}"
        )
    return {budget: chosen[budget] for budget in budgets}


def division_notes(settings: Stage1Settings, division: Division) -> list[str]:
    """What a user should know of the division before the first step; warnings begin with "warning: "."""
    train, notes = settings.train, []
    size, most = train.global_batch_size, division.slice_size(train.global_batch_size)
    parts = {budget: division.parts(size, budget) for budget in settings.data.patch_budgets}
    if max(parts.values()) > 1 or division.largest is not None:
        each = ", ".join(f"{count} of up to {-(-most // count)} images at {budget}" for budget, count in parts.items())
        notes.append(f"micro-batches a rank, by patch budget: {each} ({train.accumulation})")
    if division.largest is not None:
        notes += _clip_notes(settings, division)
    if division.separate and max(parts.values()) > 1:
        notes.append(
            f"train.accumulation=separate: the {size} images of a step are up to {max(parts.values())} batches, so a "
            f"pair meets {size // max(parts.values())} texts instead of {size}, and the result depends on the number "
            "of micro-batches; train.accumulation=cached has all of them for one more forward"
        )
    if size < division.world_size:
        notes.append(
            f"warning: train.global_batch_size is {size} and there are {division.world_size} ranks, so "
            f"{division.world_size - size} of them have no image in a step; use fewer ranks or a larger batch"
        )
    if division.largest is None and train.accumulation_steps > most:
        notes.append(
            f"warning: train.accumulation_steps is {train.accumulation_steps}, and a rank has {most} of the {size} "
            f"images: some micro-batches are empty and cost a forward each; lower it to {most} at most"
        )
    if division.largest is not None and train.micro_batch_size != "auto":
        larger = {budget: images for budget, images in division.largest.items() if images > most}
        if larger:
            notes.append(
                f"warning: train.micro_batch_size is {train.micro_batch_size}, larger than a rank's share of {most} "
                f"of {size} images on {division.world_size} ranks; a step has one micro-batch of {most}; "
                "lower it, or leave it out"
            )
    return notes


def _clip_notes(settings: Stage1Settings, division: Division) -> list[str]:
    """How many clips make a micro-batch, whose size is counted in images."""
    size, notes = settings.train.global_batch_size, []
    for frames in settings.data.clip_frames:
        counts = {budget: division.images(size, budget, frames) // frames for budget in settings.data.patch_budgets}
        each = ", ".join(f"{count} at {budget}" for budget, count in counts.items())
        notes.append(f"micro-batches of clips of {frames} frames hold, by patch budget, at most {each}")
    largest = min((division.largest or {}).values(), default=0)
    if settings.data.clip_frames and largest < settings.data.clip_frames[-1]:
        notes.append(
            f"warning: train.micro_batch_size is {settings.train.micro_batch_size} and a clip of "
            f"{settings.data.clip_frames[-1]} frames is never divided: such a micro-batch holds more images"
        )
    return notes


def bank_notes(settings: Stage1Settings, regions_per_sample: float, total_steps: int) -> list[str]:
    """A warning where the memory bank can never fill."""
    size = settings.region_loss.memory_bank_size if isinstance(settings, Stage2Settings) else 0
    regions = round(regions_per_sample * total_steps * settings.train.global_batch_size)
    if size <= regions:
        return []
    return [
        f"warning: region_loss.memory_bank_size is {size}, and the {total_steps} steps of this run have about "
        f"{regions} regions in all: the bank would never be full; set it to a small part of that, or to 0"
    ]
