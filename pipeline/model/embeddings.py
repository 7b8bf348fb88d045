"""What a forward pass reads and returns.

Shape letters: B samples of F frames (1 for images), P patches, T tokens, R regions, U distinct region texts, D width.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import ImageLayout, RegionLayout


class StepFacts(Protocol):
    """The fields of ``pipeline.data.facts.HostFacts`` that a forward pass reads."""

    @property
    def images(self) -> ImageLayout: ...

    @property
    def regions(self) -> RegionLayout: ...


class StepInputs(Protocol):
    """The fields of ``pipeline.data.batch.Batch`` that a forward pass reads."""

    num_frames: int  # F
    pixel_values: Tensor  # [B F, P, 768], uint8 or in [-1, 1]
    pixel_attention_mask: Tensor  # [B F, P], 1 for a patch, 0 for padding
    spatial_shapes: Tensor  # [B F, 2], height and width in patches
    short_ids: Tensor  # [B, T_short]
    long_ids: Tensor  # [B, T_long]
    boxes: Tensor  # [R F, 4], normalised xyxy; without area in frames where the region is not there
    region_image: Tensor  # [R F], into B F
    region_ids: Tensor  # [U, T_short]
    facts: StepFacts | None  # None: what the host needs is read back from the tensors


class Scales(NamedTuple):
    """The learned scalars, float32, exponentiated where they are stored as logarithms, and differentiable."""

    global_scale: Tensor  # e^s of the global loss
    global_bias: Tensor  # b of the global loss
    finegrained: Tensor  # e^s of region against phrase
    hardneg: Tensor  # e^s of region against its altered phrases


class Embeddings(NamedTuple):
    """What one forward returns. A tuple, because DeepSpeed's ZeRO-3 finds the tensors of an output in tuples only.

    Every embedding is float32 and has unit norm; a row of ``region`` that ``region_valid`` leaves out is 0.

    Without regions (stage 1) ``region`` and ``region_text`` are None and ``region_valid`` is empty.
    """

    image: Tensor  # [B, D]
    short: Tensor  # [B, D]
    long: Tensor  # [B, D]
    region: Tensor | None  # [R, D]
    region_valid: Tensor  # [R] bool
    region_text: Tensor | None  # [U, D]
    scales: Scales

    @property
    def region_anchor(self) -> Tensor:
        """A scalar of value 0 through every tensor here that trains; stage 2 adds it to the loss on every rank.

        A rank without regions then goes backward through the same modules as all others. ZeRO-3 needs even more than
        the same modules: it counts the outputs that get a gradient, and stops where ranks disagree.
        """
        tensors = [self.image, self.short, self.long, self.region, self.region_text, *self.scales]
        zeros = [0.0 * tensor.sum() for tensor in tensors if tensor is not None]
        return torch.stack(zeros).sum()


def unit(vectors: Tensor, valid: Tensor | None = None) -> Tensor:
    """``vectors`` [N, D] at unit norm in float32; rows where ``valid`` [N] is False become 0.

    Left-out rows are replaced before the division, not after: 0/0 there would send NaN into every weight that made
    the valid rows, because NaN times 0 is NaN.
    """
    vectors = vectors.float()
    if valid is None:
        return F.normalize(vectors, dim=-1)
    keep = valid.unsqueeze(-1)
    return torch.where(keep, F.normalize(torch.where(keep, vectors, torch.ones_like(vectors)), dim=-1), 0.0)
