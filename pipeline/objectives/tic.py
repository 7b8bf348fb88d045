"""L_TIC, pushes apart the phrases that are close without being the same.

    L = (1/N) Σ_i log Σ_{m ∈ T_i} exp S(t_i, t_m),  S the cosine

T_i: the 10 most similar other phrases, after those with S > 0.95 (the same thing said again) are left out. Source:
FG-CLIP 2 (2510.10921). Reduction: mean over the regions' phrases of all ranks, one a region, that have at least one
member. With fewer than 10 others T_i is all of them. ``zero_similarity`` (public code): left-out entries, the phrase
itself too, stay as candidates of similarity 0.

Where equal phrases tie for the last place it does not matter which is taken: they have one embedding, and so the same
gradient on every weight. In a large batch the ten places fill with repetitions of few phrases; ``phrase_hash`` leaves
repetitions out, as L_FGV leaves out equal phrases. The paper and the public code do not.

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
    phrase_hash: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, int]]:
    """This rank's value of L_TIC (the mean over ranks is the loss) and its counts.

    Args:
        text: [n, D], unit norm; n may differ from rank to rank and be 0.
        phrase_hash: [n] int64, equal exactly for equal phrases: T_i then holds each other phrase once, however many
            regions share it. None: a phrase may fill several places of T_i.
    Returns:
        counts ``texts`` (that have members) and ``excluded`` (other phrases above ``exclude_above``).
    """
    if exclusion not in ("leave_out", "zero_similarity"):
        raise ValueError(f"exclusion is {exclusion!r}; it must be leave_out or zero_similarity")
    (text,) = in_float32(text)
    rows = Rows.of(len(text), text.device, group, scope)
    counts = {"texts": 0, "excluded": 0}
    hashes = None if phrase_hash is None else rows.gather(phrase_hash)
    repeated = None if hashes is None else repetitions(hashes)

    def summed(texts: Tensor) -> Tensor:
        similarity = texts[rows.own] @ texts.T
        excluded = similarity.detach() > exclude_above
        itself = excluded.diagonal(rows.own.start)
        itself.fill_(False)
        counts["excluded"] = int(excluded.sum())
        itself.fill_(True)
        similarity = similarity.masked_fill(excluded, -torch.inf if exclusion == "leave_out" else 0.0)
        if repeated is not None:
            similarity = similarity.masked_fill(repeated[None], -torch.inf)
        nearest = similarity.topk(min(num_texts, len(texts)), dim=1).values
        nearest = nearest[(nearest > -torch.inf).any(dim=1)]
        counts["texts"] = len(nearest)
        return nearest.logsumexp(dim=1).sum()

    if rows.total == 0:
        return text.sum() * 0, counts
    loss = differentiable_across_ranks(summed, [text], [rows], [])
    members = sum_over_ranks(torch.tensor(counts["texts"], device=text.device), group)
    return loss * (world_size(group) / members.clamp(min=1).to(loss)), counts


def repetitions(hashes: Tensor) -> Tensor:
    """[N] bool: rows whose phrase stands in an earlier row. All ranks see the same order, so they agree."""
    distinct, which = hashes.unique(return_inverse=True)
    order = torch.arange(len(hashes), device=hashes.device)
    first = torch.full((len(distinct),), len(hashes), device=hashes.device).scatter_reduce(0, which, order, "amin")
    return first[which] != order
