"""Starting values with which a vision tower learns shapes from few images.

A tower from random weights first has to find out which patches are neighbours, and until then it sees colours and
textures only. Two published starts give it that: positions as sines and cosines of row and column, as large as the
patches themselves (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k"), and attention that begins as the
trained one looks, each patch attending to patches like itself and subtracting what they share (Trockman and Kolter
2023, "Mimetic Initialization of Self-Attention Layers").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.models.siglip2.modeling_siglip2 import Siglip2Attention

POSITION_SIZE = 0.5  # of the sines; a patch through its layer has a deviation of about 1
LONGEST_WAVE = 100.0  # patches / 2 pi; the shortest is 1
# Trockman and Kolter's numbers: products of query and key, and of value and output, as noise and identity.
QUERY_KEY_NOISE, QUERY_KEY_IDENTITY = 0.7, 0.7
VALUE_OUT_NOISE, VALUE_OUT_IDENTITY = 0.4, 0.4


@torch.no_grad()
def start_vision_from_scratch(tower: nn.Module) -> None:
    """Set a tower's position table and its layers' attention; random numbers come from torch's generator."""
    table = tower.get_submodule("embeddings.position_embedding").weight
    side = math.isqrt(table.shape[0])
    table[table.shape[0] - side**2 :] = sine_positions(side, table.shape[1])  # CLIP's class token has the row before
    for module in tower.get_submodule("encoder").modules():
        if isinstance(module, Siglip2Attention):
            start_attention(module)


def sine_positions(side: int, width: int) -> Tensor:
    """[side * side, width]: a quarter of the columns each for sine and cosine of the column and of the row."""
    waves = LONGEST_WAVE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64).unsqueeze(1) * waves
    along = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width // 2]
    columns, rows = along.repeat(side, 1), along.repeat_interleave(side, 0)
    values = torch.zeros(side * side, width)  # a width that four does not divide leaves its last columns at 0
    values[:, : 4 * (width // 4)] = POSITION_SIZE * torch.cat([columns, rows], dim=1).float()
    return values


@torch.no_grad()
def start_attention(attention: Siglip2Attention) -> None:
    """Queries and keys whose product is near the identity, values and output whose product is near its negative."""
    width, heads = attention.embed_dim, attention.num_heads
    size = width // heads
    value_out = VALUE_OUT_NOISE * torch.randn(width, width) / math.sqrt(width) - VALUE_OUT_IDENTITY * torch.eye(width)
    left, scales, right = torch.linalg.svd(value_out)
    attention.v_proj.weight.copy_(scales.sqrt().unsqueeze(1) * right)
    attention.out_proj.weight.copy_(left * scales.sqrt())
    for head in range(heads):
        # noise * Z Z^T + identity * I, cut to the head's size: Z's own directions are its largest
        directions, strengths, _ = torch.linalg.svd(torch.randn(width, size) / math.sqrt(size), full_matrices=False)
        kept = (QUERY_KEY_NOISE * strengths.square() + QUERY_KEY_IDENTITY).sqrt().unsqueeze(1) * directions.T
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows] = kept
        attention.k_proj.weight[rows] = kept
