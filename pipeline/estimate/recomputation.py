"""The least recomputation of activations that fits: what ``model.gradient_checkpointing=auto`` chooses."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Stage1Settings
from pipeline.estimate.memory import Sharding, Work, memory_at_peak
from pipeline.estimate.pieces import Piece

EVERY = (0, 4, 3, 2, 1)  # each n-th layer, from nothing to everything


def least_recomputation(
    settings: Stage1Settings,
    pieces: Sequence[Piece],
    work: Work,
    sharding: Sharding,
    width: int,
    usable_bytes: float,
    share: Work | None = None,
) -> int:
    """n of "each n-th layer": 0 for none, 1 for every layer, also where that does not fit either.

    ``share``: as for :func:`memory_at_peak`.
    """
    nothing, everything = (
        memory_at_peak(
            pieces,
            work,
            sharding,
            checkpointed=checkpointed,
            width=width,
            exchange=settings.global_loss.exchange,
            chunk_size=settings.global_loss.chunk_size,
            negatives=settings.data.max_negatives,
            share=share,
        ).total
        for checkpointed in (False, True)
    )
    for n in EVERY:
        saved = (nothing - everything) / n if n else 0.0
        if nothing - saved <= usable_bytes:
            return n
    return 1
