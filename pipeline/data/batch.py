"""One rank's share of a global batch, as tensors.

Shape letters: B images, P patches, T tokens, R regions, U distinct region texts, H regions with negatives, K negatives.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Regions are flat: R boxes, each with the number of its image. Region texts are held once each.

    All images of a global batch share one language and one patch budget, so P is the same on every rank.
    """

    keys: list[str]  # B
    language: str
    pixel_values: Tensor  # [B, P, 768] float32
    pixel_attention_mask: Tensor  # [B, P] int32, 1 for a patch, 0 for padding
    spatial_shapes: Tensor  # [B, 2] int64, height and width in patches
    short_ids: Tensor  # [B, T_short] int64
    short_valid: Tensor  # [B] bool, False where the sample has no short caption
    long_ids: Tensor  # [B, T_long] int64
    long_valid: Tensor  # [B] bool
    # The rest is empty (R = U = H = 0) in stage 1.
    boxes: Tensor  # [R, 4] float32, normalised xyxy
    region_image: Tensor  # [R] int64, into B
    region_ids: Tensor  # [U, T_short] int64, the distinct region texts
    region_text_hash: Tensor  # [U] int64, equal on any two ranks exactly for equal texts
    phrase_index: Tensor  # [R] int64, into U: the region's own phrase (short or long)
    hard_region: Tensor  # [H] int64, into R
    hard_index: Tensor  # [H, 1 + K] int64, into U: the true short phrase, then the negatives; 0 where absent
    hard_mask: Tensor  # [H, 1 + K] bool, False where a row has fewer than K negatives
    replaced: dict[str, int] = field(default_factory=dict)  # faults met while reading, by kind

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch with every tensor on ``device``."""
        moved: dict[str, Any] = {k: v.to(device, non_blocking=non_blocking) for k, v in self.tensors().items()}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Called by torch's loader on machines with a GPU."""
        pinned: dict[str, Any] = {k: v.pin_memory() for k, v in self.tensors().items()}
        return replace(self, **pinned)

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def __len__(self) -> int:
        return len(self.keys)
