"""The public code's extra term X: hard regions against all phrases of the batch, true and altered.

    L = ½ [ (1/H) Σ_h −log softmax over all true and altered phrases t of e^{s_hn} r_h·t, at t_h0
          + (1/H) Σ_h −log softmax over all hard regions r of e^{s_hn} t_h0·r, at r_h ]

Source: the public stage-2 code (not in the paper; weight 0 by default). Reduction: mean over the H regions with
negatives of all ranks. Phrases equal to the region's own are left out unless ``same_phrase_is_negative`` (public).

Shape letters: H rows of all ranks, h rows of this rank, K negatives, G negatives of all ranks, D width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.objectives.collectives import Rows, differentiable_across_ranks, in_float32


def hard_inbatch_loss(
    region: Tensor,
    text: Tensor,
    mask: Tensor,
    phrase_hash: Tensor,
    scale: Tensor,
    *,
    scope: str = "all_ranks",
    same_phrase_is_negative: bool = False,
    altered: Tensor | None = None,
    rows: tuple[Rows, Rows] | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, int | Tensor]]:
    """This rank's value of X (the mean over ranks is the loss) and counts ``rows``, ``excluded`` of this rank.

    Args:
        region: [h, D], unit norm.
        text: [h, 1 + K, D], unit norm: the true phrase, then the negatives; K may differ from rank to rank.
        mask: [h, 1 + K] bool, False where a text is absent; rows without true phrase or negatives take no part.
        phrase_hash: [h, 1 + K] int64, equal exactly for equal phrases.
        scale: scalar e^{s_hn}.
        rows: how many rows and how many negatives each rank holds, where that is known and all rows take part; None:
            read and counted here.
        altered: [A] int64, with ``rows``: the places among the h * K that hold a negative; None: all.
    """
    region, text, scale = in_float32(region, text, scale)
    if rows is None:
        usable = mask[:, 0] & mask[:, 1:].any(dim=1)
        region, text, mask, phrase_hash = region[usable], text[usable], mask[usable], phrase_hash[usable]
        altered = mask[:, 1:].flatten().nonzero().squeeze(1)
        rows = (Rows.of(len(region), group), Rows.of(len(altered), group))
    true_rows, altered_rows = (some.local(scope) for some in rows)
    true, others, other_hash = text[:, 0], text[:, 1:].flatten(0, 1), phrase_hash[:, 1:].flatten()
    if altered is not None:
        others, other_hash = others[altered], other_hash[altered]
    true_hash = true_rows.gather(phrase_hash[:, 0])
    candidate_hash = torch.cat([true_hash, altered_rows.gather(other_hash)])
    own = true_rows.own
    blocked = torch.zeros(len(region), len(candidate_hash), dtype=torch.bool, device=region.device)
    if not same_phrase_is_negative:
        blocked = true_hash[own, None] == candidate_hash[None]
        blocked.diagonal(own.start).fill_(False)

    def value(regions: Tensor, trues: Tensor, altereds: Tensor, scale: Tensor) -> Tensor:
        to_texts = scale * (regions[own] @ torch.cat([trues, altereds]).T)
        to_regions = scale * (trues[own] @ regions.T)
        to_texts = to_texts.masked_fill(blocked, -torch.inf)
        to_regions = to_regions.masked_fill(blocked[:, : len(regions)], -torch.inf)
        by_text, by_region = ((row.logsumexp(dim=1) - row.diagonal(own.start)).sum() for row in (to_texts, to_regions))
        return (by_text + by_region) * (true_rows.share / 2)

    if true_rows.total == 0:
        return region.sum() * 0 + text.sum() * 0 + scale.sum() * 0, {"rows": 0, "excluded": 0}
    loss = differentiable_across_ranks(value, [region, true, others], [true_rows, true_rows, altered_rows], [scale])
    return loss, {"rows": len(region), "excluded": blocked.sum()}
