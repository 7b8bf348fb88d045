"""Matrix products of one micro-batch on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.estimate.memory import Work
from pipeline.estimate.pieces import Piece


@dataclass(frozen=True)
class Flops:
    """Floating point operations by part; a multiplication and an addition are two."""

    forward: dict[str, float]  # vision, text, region
    backward: dict[str, float]
    recomputed: float  # the forward of layers that ran again
    losses: float

    @property
    def model(self) -> float:
        """What the model needs, without what is computed twice."""
        return sum(self.forward.values()) + sum(self.backward.values()) + self.losses

    @property
    def total(self) -> float:
        return self.model + self.recomputed


def count_flops(
    pieces: Sequence[Piece],
    work: Work,
    *,
    checkpointed: bool,
    ranks: int,
    width: int,
    num_captions: int = 2,
    regions_an_image: float = 0.0,
    negatives: int = 10,
) -> Flops:
    """The products of forward, backward and losses.

    Args:
        num_captions: kinds of caption with a weight, short and long.
        regions_an_image: of the image that has the most in its batch; its pooling table has that many rows.
    """
    forward: dict[str, float] = {}
    backward: dict[str, float] = {}
    recomputed = 0.0
    for piece in pieces:
        rows = work.rows(piece.unit)
        one, other = (piece.layers * flops.at(rows) for flops in (piece.forward_flops, piece.backward_flops))
        forward[piece.part] = forward.get(piece.part, 0.0) + one
        backward[piece.part] = backward.get(piece.part, 0.0) + other
        if checkpointed and piece.recomputable:
            recomputed += one
    if work.regions:
        pooling = 2 * work.boxed_images * regions_an_image * work.patches * width
        head = 2 * work.region_texts * width * width
        forward["region"] += pooling + head
        backward["region"] += pooling + 2 * head
        # the short head sees the captions alone
        forward["text"] -= head
        backward["text"] -= 2 * head
    return Flops(forward, backward, recomputed, _losses(work, ranks, width, num_captions, negatives))


def _losses(work: Work, ranks: int, width: int, num_captions: int, negatives: int) -> float:
    """L_global: three products a pair and caption. L_FGV: six. L_TIC: three. L_FGT and L_CMR share three."""
    pairs = work.samples * work.samples * ranks
    flops = num_captions * 3 * 2 * pairs * width
    if work.regions:
        flops += 9 * 2 * work.regions * work.regions * ranks * width
        flops += 3 * 2 * work.hard_rows * (1 + negatives) * width
    return flops
