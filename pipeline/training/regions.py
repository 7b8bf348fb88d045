"""The valid regions of one rank, taken out of the flat batch.

Shape letters: N valid regions of this rank, H regions with negatives, K negatives, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.data.batch import Batch
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
    def of(cls, embeddings: Embeddings, batch: Batch) -> RankRegions:
        valid = embeddings.region_valid
        region, text = in_float32(embeddings.region, embeddings.region_text)
        phrase = batch.phrase_index[valid]
        hard = valid[batch.hard_region]  # a hard row of a region without area takes no part
        hard_region, hard_index = region[batch.hard_region[hard]], batch.hard_index[hard]
        hard_text = text[hard_index]
        with torch.autocast(region.device.type, enabled=False):
            hard_cosine = torch.einsum("hd,hkd->hk", hard_region, hard_text)
        return cls(
            region=region[valid],
            text=text[phrase],
            text_hash=batch.region_text_hash[phrase],
            hard_region=hard_region,
            hard_text=hard_text,
            hard_mask=batch.hard_mask[hard],
            hard_hash=batch.region_text_hash[hard_index],
            hard_cosine=hard_cosine,
            num_invalid=len(valid) - len(phrase),
        )
