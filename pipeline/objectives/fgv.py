"""L_FGV, regions against phrases: a symmetric cross entropy over all regions of the batch.

    L = 1/(2N) Σ_i [ −log softmax_j(e^{s_fg} r_i·t_j)_i  −  log softmax_j(e^{s_fg} t_i·r_j)_i ]

Source: FG-CLIP (2505.05071), FG-CLIP 2 (2510.10921). Reduction: mean over the N valid regions of all ranks. With
``local_rank`` the softmax runs over the regions of a rank only (public code), still with equal weight for every
region. Regions that share one phrase are false negatives of each other and are left out of the softmax, unless
``same_phrase_is_negative``. Past regions and phrases of a memory bank are further candidates j.

Shape letters: N regions of all ranks, n regions of this rank, M candidates (N, and the bank), D width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.objectives.collectives import Rows, differentiable_across_ranks, in_float32
from pipeline.objectives.memory_bank import BankRows


def fgv_loss(
    region: Tensor,
    text: Tensor,
    phrase_hash: Tensor,
    scale: Tensor,
    *,
    scope: str = "all_ranks",
    same_phrase_is_negative: bool = False,
    bank: BankRows | None = None,
    rows: Rows | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, int | Tensor]]:
    """This rank's value of L_FGV (the mean over ranks is the loss) and counts of this rank.

    Args:
        region, text: [n, D], unit norm, matched row by row; n may differ from rank to rank and be 0.
        phrase_hash: [n] int64, equal exactly for equal phrases.
        scale: scalar e^{s_fg}.
        rows: how many regions each rank holds; None: counted here.
    Returns:
        counts ``regions`` and ``excluded`` (entries left out for their phrase).
    """
    region, text, scale = in_float32(region, text, scale)
    rows = Rows.of(len(region), group, scope) if rows is None else rows.local(scope)
    hashes = rows.gather(phrase_hash)
    own = rows.own
    candidates = hashes if bank is None else torch.cat([hashes, bank.phrase_hash])
    if same_phrase_is_negative:
        blocked = None
    else:
        blocked = hashes[own, None] == candidates[None]
        blocked.diagonal(own.start).fill_(False)

    def value(all_regions: Tensor, all_texts: Tensor, scale: Tensor) -> Tensor:
        own_regions, own_texts = all_regions[own], all_texts[own]
        if bank is not None:
            all_regions = torch.cat([all_regions, bank.region.to(all_regions.dtype)])
            all_texts = torch.cat([all_texts, bank.text.to(all_texts.dtype)])
        total = own_regions.new_zeros(())
        for anchors, others in ((own_regions, all_texts), (own_texts, all_regions)):
            logits = scale * (anchors @ others.T)
            if blocked is not None:
                logits = logits.masked_fill(blocked, -torch.inf)
            total = total + (logits.logsumexp(dim=1) - logits.diagonal(own.start)).sum()
        return total * (rows.share / 2)

    if rows.total == 0:
        return (region.sum() + text.sum()) * 0 + scale.sum() * 0, {"regions": 0, "excluded": 0}
    loss = differentiable_across_ranks(value, [region, text], [rows, rows], [scale])
    excluded = 0 if blocked is None else blocked.sum()
    return loss, {"regions": len(region), "excluded": excluded}
