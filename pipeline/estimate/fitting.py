"""Memory under a run's settings, and how many images of a micro-batch fit into a device's."""

from __future__ import annotations

from dataclasses import replace

from pipeline.config import Stage1Settings
from pipeline.estimate.inputs import Data, pieces_of, work_of
from pipeline.estimate.memory import Memory, Sharding, Work, memory_at_peak
from pipeline.estimate.pieces import Piece
from pipeline.model import FGCLIP2Config


def is_checkpointed(settings: Stage1Settings, patches: int) -> bool:
    """Whether the settings recompute activations at a patch budget; ``auto`` counts as if it had to."""
    model = settings.model
    return model.gradient_checkpointing == "auto" or (
        model.gradient_checkpointing is True and patches >= model.checkpoint_from_patches
    )


def memory_of(
    settings: Stage1Settings,
    pieces: list[Piece],
    work: Work,
    sharding: Sharding,
    config: FGCLIP2Config,
    share: Work | None = None,
) -> Memory:
    """The peak of a micro-batch under the settings; ``share`` as for :func:`memory_at_peak`."""
    return memory_at_peak(
        pieces,
        work,
        sharding,
        checkpointed=is_checkpointed(settings, work.patches),
        width=config.vision_config.hidden_size,
        exchange=settings.global_loss.exchange,
        chunk_size=settings.global_loss.chunk_size,
        negatives=settings.data.max_negatives,
        share=share,
    )


def largest_fitting(
    settings: Stage1Settings,
    pieces: list[Piece],
    config: FGCLIP2Config,
    data: Data,
    patches: int,
    sharding: Sharding,
    usable: float,
    share: Work | None,
) -> int:
    """Images of the largest micro-batch that fits; 0 where not even one does."""

    def fits(images: int) -> bool:
        work = work_of(settings, config, images, patches, data)
        return memory_of(settings, pieces, work, sharding, config, share).total <= usable

    low, high = 0, 1
    while fits(high) and high < 1 << 20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_micro_batches(
    settings: Stage1Settings, config: FGCLIP2Config, sharding: Sharding, usable: float
) -> dict[int, int]:
    """Images of the largest micro-batch by patch budget, a power of two, or 0, with ``usable`` bytes of a device.

    Where ``model.gradient_checkpointing`` is ``auto`` too, recomputation is taken to make one micro-batch of the whole
    share where it can, and else there is none: several micro-batches already cost one more forward. Every image is
    taken to have as many regions as are read, so that no micro-batch is larger than the estimate.
    """
    batch = settings.train.global_batch_size
    frames = max(settings.data.clip_frames, default=1)
    images = -(-batch // sharding.ranks) * frames
    data = Data(batch, 0.0, {}, 1, float(settings.data.max_regions_per_image), True)
    one = replace(sharding, accumulation=2)
    found = {}
    for patches in settings.data.patch_budgets:
        pieces = pieces_of(settings, config, patches, products=False)
        cached = settings.train.accumulation == "cached"
        whole = work_of(settings, config, images, patches, data, frames) if cached else None
        fits = largest_fitting(settings, pieces, config, data, patches, one, usable, whole)
        if settings.model.gradient_checkpointing == "auto" and fits < images:
            plain = settings.model_copy(
                update={"model": settings.model.model_copy(update={"gradient_checkpointing": False})}
            )
            fits = largest_fitting(plain, pieces, config, data, patches, one, usable, whole) or fits
        found[patches] = 1 << (fits.bit_length() - 1) if fits else 0
    return found
