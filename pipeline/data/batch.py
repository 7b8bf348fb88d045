"""One rank's share of a global batch, as tensors.

Shape letters: B samples (images, or clips of F frames), P patches, T tokens, R regions, U distinct region texts,
H regions with negatives, K negatives. F is 1 for images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:  # the facts import the model; a batch alone need not
    from pipeline.data.facts import HostFacts


@dataclass(frozen=True)
class Batch:
    """Regions are flat: R boxes, each with the number of its image. Region texts are held once each.

    All samples of a global batch share one language, one patch budget and one number of frames, so P and F are the same
    on every rank. The frames of a clip are neighbours among the images, and so are the boxes of a region of it.
    """

    keys: list[str]  # B
    language: str
    pixel_values: Tensor  # [B F, P, 768] uint8, or float32 in [-1, 1]; any content in padding
    pixel_attention_mask: Tensor  # [B F, P] int32, 1 for a patch, 0 for padding
    spatial_shapes: Tensor  # [B F, 2] int64, height and width in patches
    short_ids: Tensor  # [B, T_short] int64
    short_valid: Tensor  # [B] bool, False where the sample has no short caption
    long_ids: Tensor  # [B, T_long] int64
    long_valid: Tensor  # [B] bool
    # The rest is empty (R = U = H = 0) in stage 1.
    boxes: Tensor  # [R F, 4] float32, normalised xyxy; 0 in frames where the region is not there
    region_image: Tensor  # [R F] int64, into B F
    region_ids: Tensor  # [U, T_short] int64, the distinct region texts, padded with rows of 0 that nothing refers to
    region_text_hash: Tensor  # [U] int64, equal on any two ranks exactly for equal texts
    phrase_index: Tensor  # [R] int64, into U: the region's own phrase (short or long)
    hard_region: Tensor  # [H] int64, into R
    hard_index: Tensor  # [H, 1 + K] int64, into U: the true short phrase, then the negatives; 0 where absent
    hard_mask: Tensor  # [H, 1 + K] bool, False where a row has fewer than K negatives
    replaced: dict[str, int] = field(default_factory=dict)  # faults met while reading, by kind
    # What the host must know to launch a step. None (batches made by hand): it is read back from the tensors.
    facts: HostFacts | None = None
    num_frames: int = 1  # F

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch with every tensor on ``device``."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a GPU copies by itself."""
        return with_tensors(self, Tensor.pin_memory)

    def every_tensor(self) -> list[Tensor]:
        """Those of ``tensors`` and the facts' row numbers."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        with_tensors(self, note)
        return found

    def stand_in(self) -> Batch:
        """One grey patch (in each frame) with empty texts, of this batch's shapes and on its device, without regions.

        For a rank that has no image of a micro-batch and must go through the same modules as the others.
        """

        def zeros(like: Tensor, rows: int = 1) -> Tensor:
            return like.new_zeros(rows, *like.shape[1:])

        mask = zeros(self.pixel_attention_mask, self.num_frames)
        mask[:, 0] = 1
        return replace(
            self,
            keys=[""],
            pixel_values=zeros(self.pixel_values, self.num_frames),
            pixel_attention_mask=mask,
            spatial_shapes=zeros(self.spatial_shapes, self.num_frames) + 1,
            short_ids=zeros(self.short_ids),
            short_valid=zeros(self.short_valid),
            long_ids=zeros(self.long_ids),
            long_valid=zeros(self.long_valid),
        )

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def __len__(self) -> int:
        return len(self.keys)


T = TypeVar("T")


def with_tensors(record: T, change: Callable[[Tensor], Tensor]) -> T:
    """A copy of a dataclass with every tensor in it, and in the dataclasses in it, changed."""
    changed: dict[str, Any] = {}
    for entry in fields(record):  # type: ignore[arg-type]  # T is a dataclass
        value = getattr(record, entry.name)
        if isinstance(value, Tensor):
            changed[entry.name] = change(value)
        elif is_dataclass(value):
            changed[entry.name] = with_tensors(value, change)
    return replace(record, **changed)  # type: ignore[type-var]
