"""L_TIC, pushes apart the phrases that are close without being the same.

    L = (1/N) Σ_i log Σ_{m ∈ T_i} exp S(t_i, t_m),  S the cosine

T_i: the 10 most similar other phrases, after those with S > 0.95 (the same thing said again) are left out. Source:
FG-CLIP 2 (2510.10921). Reduction: mean over the regions' phrases of all ranks, one a region, that have at least one
member. With fewer than 10 others T_i is all of them. ``zero_similarity`` (public code): left-out entries, the phrase
itself too, stay as candidates of similarity 0.

Where equal phrases tie for the last place it does not matter which is taken: they have one embedding, and so the same
gradient on every weight.

Shape letters: N phrases of all ranks, n phrases of this rank, D width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.objectives.collectives import (
    Rows,
    differentiable_across_ranks,
    in_float32,
    sum_over_ranks,
    world_size,
)


def tic_loss(
    text: Tensor,
    *,
    num_texts: int = 10,
    exclude_above: float = 0.95,
    exclusion: str = "leave_out",
    scope: str = "all_ranks",
    rows: Rows | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's value of L_TIC (the mean over ranks is the loss) and its counts.

    Args:
        text: [n, D], unit norm; n may differ from rank to rank and be 0.
        rows: how many texts each rank holds; None: counted here.
    Returns:
        counts ``texts`` (that have members) and ``excluded`` (other phrases above ``exclude_above``).
    """
    if exclusion not in ("leave_out", "zero_similarity"):
        raise ValueError(f"exclusion is {exclusion!r}; it must be leave_out or zero_similarity")
    (text,) = in_float32(text)
    rows = Rows.of(len(text), group, scope) if rows is None else rows.local(scope)
    counts = {name: torch.zeros((), dtype=torch.int64, device=text.device) for name in ("texts", "excluded")}

    def summed(texts: Tensor) -> Tensor:
        similarity = texts[rows.own] @ texts.T
        excluded = similarity.detach() > exclude_above
        itself = excluded.diagonal(rows.own.start)
        itself.fill_(False)
        counts["excluded"] = excluded.sum()
        itself.fill_(True)
        similarity = similarity.masked_fill(excluded, -torch.inf if exclusion == "leave_out" else 0.0)
        nearest = similarity.topk(min(num_texts, len(texts)), dim=1).values
        has_members = (nearest > -torch.inf).any(dim=1)
        counts["texts"] = has_members.sum()
        # Where there is none, a row of 0 keeps NaN out of the gradient.
        nearest = torch.where(has_members[:, None], nearest, 0.0)
        return torch.where(has_members, nearest.logsumexp(dim=1), 0.0).sum()

    if rows.total == 0:
        return text.sum() * 0, counts
    loss = differentiable_across_ranks(summed, [text], [rows], [])
    members = sum_over_ranks(counts["texts"], group)
    return loss * (world_size(group) / members.clamp(min=1).to(loss)), counts
