"""Logits of images and texts in the form that transformers' pipelines and programs expect of a CLIP-like model.

Shape letters: B images, N texts, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class ContrastOutput(ModelOutput):
    """What ``model(pixel_values=…, input_ids=…)`` gives; without images or without texts the others are None."""

    logits_per_image: Tensor | None = None  # [B, N]: scale · cosine + bias
    logits_per_text: Tensor | None = None  # [N, B]
    image_embeds: Tensor | None = None  # [B, D] unit norm
    text_embeds: Tensor | None = None  # [N, D] unit norm


def padded(ids: Tensor, length: int) -> Tensor:
    """Ids [N, T], filled up on the right with 0: the text tower has no mask and was trained on whole rows.

    Raises:
        ValueError: there are more than ``length``.
    """
    if ids.shape[1] > length:
        raise ValueError(
            f"input_ids have {ids.shape[1]} positions and the model {length}; cut them with truncation=True, "
            f"max_length={length}"
        )
    return torch.nn.functional.pad(ids, (0, length - ids.shape[1]))
