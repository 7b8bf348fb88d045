"""L_teacher, keeps the similarities of a model near those of its teacher, the model that training began from.

    L = (1/N²) Σ_i Σ_j (e_i·t_j − ê_i·t̂_j)²

e, t: embeddings of images (or regions) and texts; ê, t̂: those that the teacher gives the same inputs. All N² pairs of
all ranks count, matched or not. Source: similarities, not features, are what is kept, as in ZSCL (2303.06628), here by
a squared difference of cosines. Reduction: mean over the pairs of all ranks.

No [N, N] matrix is made. With Δ for "minus the teacher's", e_i·t_j − ê_i·t̂_j = Δe_i·t_j + ê_i·Δt_j, so the sum of
squares follows from six matrices [D, D] that are sums over rows:

    Σ = ⟨ΔEᵀΔE, TᵀT⟩ + 2 ⟨ΔEᵀÊ, TᵀΔT⟩ + ⟨ÊᵀÊ, ΔTᵀΔT⟩

and they are all that ranks exchange. Written by differences, it is exactly 0 where nothing has moved.

Shape letters: N pairs of all ranks, n pairs of this rank, D width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.objectives.collectives import Rows, in_float32, sum_over_ranks, with_gradients, world_size


def teacher_loss(
    image: Tensor,
    text: Tensor,
    taught_image: Tensor,
    taught_text: Tensor,
    *,
    rows: Rows | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, int]]:
    """This rank's value of L_teacher (the mean over ranks is the loss) and its counts.

    Args:
        image, text, taught_image, taught_text: [n, D], row by row of the same samples; n may differ from rank to rank
            and be 0. The teacher's get no gradient.
        rows: how many pairs each rank holds; None: counted here.
    Returns:
        counts ``pairs``: n.
    """
    rows = Rows.of(len(image), group) if rows is None else rows
    image, text = in_float32(image, text)
    counts = {"pairs": len(image)}
    if rows.total == 0:
        return image.sum() * 0 + text.sum() * 0, counts
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        taught_image, taught_text = taught_image.to(image.dtype), taught_text.to(text.dtype)
        moved_image, moved_text = image - taught_image, text - taught_text
        sums = torch.stack(
            [
                moved_image.T @ moved_image,
                text.T @ text,
                moved_image.T @ taught_image,
                text.T @ moved_text,
                taught_image.T @ taught_image,
                moved_text.T @ moved_text,
            ]
        )
        image_moves, texts, image_cross, text_cross, taught_images, text_moves = sum_over_ranks(sums, group)
        total = (image_moves * texts).sum() + 2 * (image_cross * text_cross).sum() + (taught_images * text_moves).sum()
        # Every rank has the whole sum, so its mean over ranks is the loss; gradients are of this rank's rows alone,
        # which averaging over ranks would divide by their number.
        factor = 2.0 * world_size(group) / rows.total**2
        by_image = factor * (moved_image @ texts + taught_image @ text_cross.T)
        by_text = factor * (text @ (image_moves + image_cross) + moved_text @ (image_cross.T + taught_images))
    return with_gradients(total / rows.total**2, [image, text], [by_image, by_text]), counts
