"""L_CMR, a hinge on how far the true phrase leads the altered ones, with a margin that follows the model.

    L = (1/M) Σ_(h,k) max(0, S(r_h, t_hk) − S(r_h, t_h0) + τ)

τ at an optimizer step is the mean of S(r_h, t_h0) − S(r_h, t_hk) over all pairs of the step before (see margin.py).
Source: the rank loss (2306.08832), FG-CLIP 2 (2510.10921). Reduction: mean over the M pairs of all ranks.
S is the cosine (paper) or the scaled logit e^{s_hn} r·t (public code).

Shape letters: M pairs (a region and one negative) of all ranks, h rows of this rank, K negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.objectives.collectives import in_float32, sum_over_ranks, world_size


@dataclass(frozen=True)
class CmrValue:
    """What L_CMR gives: this rank's value, its counts, and what τ is made from."""

    loss: Tensor  # [], the mean over ranks is the loss
    counts: dict[str, int | Tensor]  # "pairs", "violated" (pairs with a positive hinge), "margin_positive" (S₀ > S_k)
    margin_sum_and_count: Tensor  # [2] float64, over all ranks: Σ (S₀ − S_k), number of pairs


def cmr_loss(similarity: Tensor, mask: Tensor, margin: Tensor, *, group: dist.ProcessGroup | None = None) -> CmrValue:
    """L_CMR on this rank.

    Args:
        similarity: [h, 1 + K], S(r_h, t_hk), the true phrase first.
        mask: [h, 1 + K] bool, False where a text is absent.
        margin: [] τ, alike on all ranks.
    """
    (similarity,) = in_float32(similarity)
    pairs = mask[:, 1:] & mask[:, :1]
    lead = torch.where(pairs, similarity[:, :1] - similarity[:, 1:], 0.0)  # [h, K]
    hinge = torch.where(pairs, F.relu(margin.to(lead) - lead), 0.0)
    num_pairs = pairs.sum()
    own = torch.stack([lead.detach().sum(dtype=margin.dtype), num_pairs.to(margin.dtype)])
    everyone = sum_over_ranks(own, group)
    share = world_size(group) / everyone[1].clamp(min=1)
    counts: dict[str, int | Tensor] = {
        "pairs": num_pairs,
        "violated": (hinge > 0).sum(),
        "margin_positive": (lead > 0).sum(),
    }
    return CmrValue(hinge.sum() * share.to(hinge), counts, everyone)
