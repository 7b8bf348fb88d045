"""L_FGT, a region's true phrase against its altered ones.

    L = −(1/H) Σ_h log softmax_k(e^{s_hn} r_h·t_hk)_0,  k = 0 the true phrase, 1 … K the negatives

Source: FG-CLIP (2505.05071), FG-CLIP 2 (2510.10921). Reduction: mean over the H rows of all ranks that have a true
phrase and at least one negative. A row with fewer than K negatives has a softmax over those it has.

Shape letters: H rows of all ranks, h rows of this rank, K negatives.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.objectives.collectives import Rows, in_float32


def fgt_loss(
    cosine: Tensor,
    mask: Tensor,
    scale: Tensor,
    *,
    rows: Rows | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, int]]:
    """This rank's value of L_FGT (the mean over ranks is the loss) and ``{"rows": …}``, its rows that take part.

    Args:
        cosine: [h, 1 + K], r_h·t_hk.
        mask: [h, 1 + K] bool, False where a text is absent.
        scale: scalar e^{s_hn}.
        rows: how many rows each rank holds, where that is known and all of them take part; None: read and counted here.
    """
    cosine, scale = in_float32(cosine, scale)
    if rows is None:
        usable = mask[:, 0] & mask[:, 1:].any(dim=1)
        cosine, mask = cosine[usable], mask[usable]
        rows = Rows.of(len(cosine), group)
    logits = (scale * cosine).masked_fill(~mask, -torch.inf)
    loss = (logits.logsumexp(dim=1) - logits[:, 0]).sum() * rows.share
    return loss, {"rows": len(cosine)}
