"""Attention: few large products, and one mask for all layers.

Shape letters: B images or texts, T tokens or patches, Q queries, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def additive_mask(pixel_attention_mask: Tensor, like: Tensor) -> Tensor:
    """[B, T], 1 to see, -> [B, 1, 1, T], 0 to see and -inf not to, in the type that attention computes in.

    Made once for all layers and heads: a boolean mask would be turned into this one in each layer.
    """
    kind = like.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
    mask = torch.zeros(pixel_attention_mask.shape, dtype=dtype, device=like.device)
    return mask.masked_fill(pixel_attention_mask == 0, -torch.inf)[:, None, None, :]


def causal_mask(like: Tensor) -> Tensor:
    """[1, 1, T, T] for ``like`` [N, T, D]: 0 for a position and those before it, -inf for those after; see above."""
    length = like.shape[1]
    earlier = torch.ones(length, length, dtype=torch.int32, device=like.device).tril()
    return additive_mask(earlier, like).transpose(0, 2)


def project_together(hidden: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """What each layer makes of ``hidden`` [B, T, D], by one product.

    The weights stay apart, under the names of the public checkpoints, and are put together for the product. ZeRO 3
    gathers weights by module when the module is called, and a layer with a low-rank addition is more than its weight:
    there the layers are called one by one.
    """
    if any(type(layer) is not nn.Linear or hasattr(layer.weight, "ds_id") for layer in layers):
        return tuple(layer(hidden) for layer in layers)
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(hidden, weight, bias).split([layer.out_features for layer in layers], dim=-1)


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """[B, T, D] -> [B, H, T, D / H]."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    """Attention of [B, Q, D] over [B, T, D]; ``mask`` broadcasts to [B, H, Q, T], boolean (True to see) or additive."""
    heads = (split_heads(states, num_heads) for states in (queries, keys, values))
    attended = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale)
    return attended.transpose(1, 2).flatten(2)


class PackedAttention(nn.Module):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention`` (q, k, v in one matrix).

    torch's own module reads its children's weights without calling them, which ZeRO-3 cannot see.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None, query: Tensor | None = None) -> Tensor:
        """``query`` [B, Q, D], by default ``hidden``, over ``hidden`` [B, T, D]; ``mask`` as in ``attend``.

        That each row is its own query is said by None: under ZeRO 3 DeepSpeed's hooks hand the module another tensor
        for each argument, so that the same one given twice is not known to be the same.
        """
        width = hidden.shape[-1]
        if query is None:
            queries, keys, values = F.linear(hidden, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            queries = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
            keys, values = F.linear(hidden, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        return self.out_proj(attend(queries, keys, values, self.num_heads, mask))
