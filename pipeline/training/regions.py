"""The valid regions of one rank, taken out of the flat batch.

Shape letters: N valid regions of this rank, H regions with negatives, K negatives, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.data.facts import LossRows
from pipeline.objectives.collectives import in_float32

if TYPE_CHECKING:
    from pipeline.model import Embeddings


@dataclass(frozen=True)
class RankRegions:
    """The valid regions of this rank with their phrases, and the hard rows among them."""

    region: Tensor  # [N, D]
    text: Tensor  # [N, D], the region's own phrase
    text_hash: Tensor  # [N]
    hard_region: Tensor  # [H, D]
    hard_text: Tensor  # [H, 1 + K, D]
    hard_mask: Tensor  # [H, 1 + K] bool
    hard_hash: Tensor  # [H, 1 + K]
    hard_cosine: Tensor  # [H, 1 + K]
    num_invalid: int

    @classmethod
    def of(cls, embeddings: Embeddings, batch: Batch, rows: LossRows) -> RankRegions:
        """``rows``: those of regions with an area, and of usable hard rows.

        Raises:
            ValueError: the model was called without regions.
        """
        if embeddings.region is None or embeddings.region_text is None:
            raise ValueError("embeddings hold no regions; stage 2 needs the model called with regions=True")
        region, text = in_float32(embeddings.region, embeddings.region_text)
        phrase = select(batch.phrase_index, rows.region)
        hard_region = region[select(batch.hard_region, rows.hard)]
        hard_index = select(batch.hard_index, rows.hard)
        hard_text = text[hard_index]
        with torch.autocast(region.device.type, enabled=False):
            # No matrix product: those may run in TF32 in the backward, and the losses are float32.
            hard_cosine = (hard_region.unsqueeze(1) * hard_text).sum(dim=-1)
        return cls(
            region=select(region, rows.region),
            text=text[phrase],
            text_hash=batch.region_text_hash[phrase],
            hard_region=hard_region,
            hard_text=hard_text,
            hard_mask=select(batch.hard_mask, rows.hard),
            hard_hash=batch.region_text_hash[hard_index],
            hard_cosine=hard_cosine,
            num_invalid=len(region) - len(phrase),
        )


def select(values: Tensor, rows: Tensor | None) -> Tensor:
    """The numbered rows of ``values``; None: all of them."""
    return values if rows is None else values.index_select(0, rows)
