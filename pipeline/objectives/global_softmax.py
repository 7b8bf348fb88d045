"""L_global as a symmetric softmax over all image–text pairs of all ranks.

    L = 1/(2B) Σ_i [ −log softmax_j(e^s x_i·y_j)_i  −  log softmax_j(e^s y_i·x_j)_i ]

Source: CLIP (2103.00020), FG-CLIP (2505.05071). Reduction: mean over the B pairs of all ranks and over both directions.

Each rank holds the logits l of its own images with all texts, in tiles of which nothing is kept. A first pass makes the
normaliser of every row, and this rank's part of that of every column; the parts meet in two all-reduces of B numbers. A
second pass computes the tiles again: with p and q the softmax along rows and columns, ∂L/∂l = (p + q − 2 [i = j]) / 2B,
and the image and text gradients are two products of it. Only the texts are gathered. Sums in float64, tiles in float32.

Shape letters: B pairs of all ranks, n pairs of this rank, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.objectives.collectives import Rows, in_float32, with_gradients

ROWS_PER_TILE = 512  # images of a tile; see global_sigmoid


def global_softmax_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    chunk_size: int = 2048,
    rows: Rows | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, int]]:
    """This rank's value of L_global (the mean over ranks is the loss) and ``{"pairs": n}``.

    Args:
        image, text: [n, D], unit norm, matched row by row; n may differ from rank to rank and be 0.
        scale: scalar e^s.
        chunk_size: texts whose logits exist at one time.
        rows: how many pairs each rank holds; None: counted here.

    Raises:
        ValueError: no text fits.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; at least 1 text must fit")
    image, text, scale = in_float32(image, text, scale)
    rows = Rows.of(len(image), group) if rows is None else rows
    if rows.total == 0:  # of all ranks: none of them goes on to a collective
        return (image.sum() + text.sum() + scale.sum()) * 0, {"pairs": 0}
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        own, every, factor = image.detach(), rows.gather(text), scale.detach()
        tiles = _Tiles(own, every, factor, chunk_size)
        by_row, by_column = tiles.normalisers(rows)
        image_gradient, text_gradient = tiles.gradients(by_row, by_column)
        matched = every[rows.own]
        image_gradient.sub_(2 * matched)
        text_gradient[rows.own] -= 2 * own
        cosine = torch.linalg.vecdot(own, matched)
        value = (by_row + by_column[rows.own] - 2 * factor * cosine).sum(dtype=torch.float64)
        by_scale = torch.linalg.vecdot(image_gradient, own).sum(dtype=torch.float64)  # Σ (p + q − 2 [i = j]) x_i·y_j
        share = rows.share / 2
        gradients = [
            image_gradient.mul_(factor * share),
            rows.sum_own(text_gradient).mul_(factor * share),
            (by_scale * share).to(scale.dtype).reshape(scale.shape),
        ]
    return with_gradients(value.to(image.dtype) * share, [image, text, scale], gradients), {"pairs": len(image)}


class _Tiles:
    """The images of this rank against the texts of all, a tile of the logits at a time."""

    def __init__(self, image: Tensor, text: Tensor, scale: Tensor, chunk_size: int) -> None:
        self.image, self.text, self.scale, self.chunk_size = image, text, scale, chunk_size

    def _each(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and logits of one tile after another."""
        for first in range(0, len(self.text), self.chunk_size):
            columns = slice(first, min(first + self.chunk_size, len(self.text)))
            scaled = self.text[columns] * self.scale
            for row in range(0, len(self.image), ROWS_PER_TILE):
                of_rows = slice(row, min(row + ROWS_PER_TILE, len(self.image)))
                yield of_rows, columns, self.image[of_rows] @ scaled.T

    def normalisers(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The logarithms of the sums of exponentials along rows [n] and, over all ranks, along columns [B]."""
        by_row = self.image.new_full((len(self.image),), -torch.inf)
        by_column = self.image.new_full((len(self.text),), -torch.inf)
        for of_rows, columns, logits in self._each():
            by_row[of_rows] = torch.logaddexp(by_row[of_rows], logits.logsumexp(dim=1))
            by_column[columns] = torch.logaddexp(by_column[columns], logits.logsumexp(dim=0))
        if len(rows.counts) == 1:
            return by_row, by_column
        largest = by_column.clone()  # -inf on a rank without images; finite on some rank
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=rows.group)
        total = (by_column - largest).exp()
        dist.all_reduce(total, group=rows.group)
        return by_row, total.log_().add_(largest)

    def gradients(self, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j (p + q)_ij y_j [n, D] of this rank's images, and its part of Σ_i (p + q)_ij x_i [B, D]."""
        of_images, of_texts = torch.zeros_like(self.image), torch.zeros_like(self.text)
        for of_rows, columns, logits in self._each():
            both = (logits - by_row[of_rows, None]).exp_()
            both += (logits - by_column[columns]).exp_()
            of_images[of_rows].addmm_(both, self.text[columns])
            of_texts[columns].addmm_(both.T, self.image[of_rows])
        return of_images, of_texts
