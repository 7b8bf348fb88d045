"""How a global batch is divided: among the ranks, and by each rank into micro-batches.

Every sample is in exactly one micro-batch of one rank, whatever the numbers; shares differ by at most one sample, and
may be empty. A clip is one sample and is never divided; its frames count as images where a device's room is concerned.
The division depends on the batch's size, patch budget and number of frames alone, so every rank knows all shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Division:
    """The rule by which the batches of a run are divided.

    Args:
        world_size: ranks.
        micro_batches: how many each rank makes of its share, where ``largest`` does not say.
        largest: patch budget -> images of a micro-batch at most; as few micro-batches as that allows are made. A clip
            with more frames is a micro-batch of its own.
        separate: a micro-batch of all ranks together is one contiguous part of the global batch, as suits micro-batches
            that are batches of their own. Otherwise a rank's micro-batches together are one contiguous part, so that
            the order of the samples over ranks and micro-batches is the plan's.
    """

    world_size: int = 1
    micro_batches: int = 1
    largest: Mapping[int, int] | None = None
    separate: bool = False

    def slice_size(self, size: int) -> int:
        """Samples of a global batch of ``size`` on the rank that has most."""
        return -(-size // self.world_size)

    def parts(self, size: int, patch_budget: int, frames: int = 1) -> int:
        """Micro-batches of a global batch of ``size``; alike on all ranks, some may be empty on some."""
        if self.largest is None:
            return self.micro_batches
        samples = max(1, self.largest[patch_budget] // frames)
        return max(1, -(-self.slice_size(size) // samples))

    def part(self, size: int, rank: int, part: int, parts: int) -> slice:
        """The entries of a global batch of ``size`` in micro-batch ``part`` of ``parts`` of ``rank``."""
        if self.separate:
            return share_of(share_of(slice(0, size), part, parts), rank, self.world_size)
        return share_of(share_of(slice(0, size), rank, self.world_size), part, parts)

    def read_by(self, size: int, rank: int, patch_budget: int, frames: int = 1) -> list[slice]:
        """The contiguous parts of a global batch of ``size`` that a rank reads."""
        if not self.separate:
            return [self.part(size, rank, 0, 1)]
        parts = self.parts(size, patch_budget, frames)
        return [self.part(size, rank, part, parts) for part in range(parts)]

    def images(self, size: int, patch_budget: int, frames: int = 1) -> int:
        """Images, frames counted, of the largest micro-batch of a global batch of ``size`` samples."""
        return -(-self.slice_size(size) // self.parts(size, patch_budget, frames)) * frames

    def most_patches(self, size: int, patch_budgets: Iterable[int], clip_frames: Iterable[int] = ()) -> int:
        """Patches, padding included, of the largest micro-batch that a global batch of ``size`` can have."""
        every = (1, *clip_frames)
        return max(self.images(size, budget, frames) * budget for budget in patch_budgets for frames in every)

    def most_parts(self, size: int, patch_budgets: Iterable[int], clip_frames: Iterable[int] = ()) -> int:
        """Micro-batches of the patch budget and number of frames that need most."""
        every = (1, *clip_frames)
        return max(self.parts(size, budget, frames) for budget in patch_budgets for frames in every)


def share_of(whole: slice, number: int, count: int) -> slice:
    """Share ``number`` of ``count`` of ``whole``, in order; their sizes differ by at most one."""
    size = whole.stop - whole.start
    return slice(whole.start + size * number // count, whole.start + size * (number + 1) // count)
