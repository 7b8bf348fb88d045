"""L_global, the sigmoid loss over all image–text pairs of all ranks.

    L = −(1/B) Σ_i Σ_j log σ(z_ij (e^s x_i·y_j + b)),  z_ij = +1 for i = j, else −1

Source: SigLIP (2303.15343), FG-CLIP 2 (2510.10921). Reduction: sum over all B² pairs, divided by B.

Value and gradients come out of one pass over tiles of the logits; nothing of a tile is kept. With l the logit of a
pair and p = σ(l), less 1 on the diagonal: L = (1/B) Σ softplus(±l), ∂L/∂l = p/B, so the three matrix products of
a tile (logits, image gradient, text gradient) are all there is to compute. Sums in float64, tiles in float32.

Shape letters: B pairs of all ranks, n pairs of this rank, m texts of the block at hand, D width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.objectives.collectives import Rows, in_float32, with_gradients

GATHER_BYTES = 4 << 30  # 61,440 texts of 768 numbers and their gradient take 0.35 GiB
ROWS_PER_TILE = 512  # images of a tile: with 2,048 texts 4 MiB of float32, which a core's cache just about holds


def global_sigmoid_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    chunk_size: int = 2048,
    exchange: str = "auto",
    rows: Rows | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, int]]:
    """This rank's value of L_global (the mean over ranks is the loss) and ``{"pairs": n}``.

    Args:
        image, text: [n, D], unit norm, matched row by row; n may differ from rank to rank and be 0.
        scale, bias: scalars e^s and b.
        chunk_size: texts whose logits exist at one time.
        exchange: ``ring`` passes one rank's texts on at a time, with the gradient they have gathered so far;
            ``gather`` holds the texts of all ranks and their gradient at once; ``auto``: see ``choose_exchange``.
        rows: how many pairs each rank holds; None: counted here.
    """
    if exchange not in ("auto", "ring", "gather"):
        raise ValueError(f"exchange is {exchange!r}; it must be auto, ring or gather")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; at least 1 text must fit")
    image, text, scale, bias = in_float32(image, text, scale, bias)
    rows = Rows.of(len(image), group) if rows is None else rows
    if exchange == "auto":
        exchange = choose_exchange(max(rows.counts) * len(rows.counts), image.shape[1])
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        tiles = _Tiles(image.detach(), scale.detach(), bias.detach(), chunk_size)
        travel = _through_ring if exchange == "ring" and len(rows.counts) > 1 else _through_gather
        text_gradient = travel(tiles, text.detach(), rows).mul_(scale.detach())
        value, image_gradient, scale_gradient, bias_gradient = tiles.results()
        gradients = [image_gradient, text_gradient, scale_gradient, bias_gradient]
        gradients = [gradient.mul_(rows.share) for gradient in gradients]
    loss = with_gradients(value * rows.share, [image, text, scale, bias], gradients)
    return loss, {"pairs": len(image)}


def choose_exchange(num_texts: int, width: int) -> str:
    """``gather`` where the texts of all ranks and their gradient fit into 4 GiB of float32, otherwise ``ring``.

    Gathering is two collectives a loss; a ring has two messages for every other rank, one after another, so its
    latencies add up. ``python -m benchmarks.exchange`` measures both (docs/performance.md): among processes of one
    machine they are about equal.
    """
    return "gather" if 2 * 4 * num_texts * width <= GATHER_BYTES else "ring"


class _Tiles:
    """The images of this rank against one block of texts after another; sums and gradients add up."""

    def __init__(self, image: Tensor, scale: Tensor, bias: Tensor, chunk_size: int) -> None:
        self.image, self.scale, self.bias = image, scale, bias
        self.chunk_size = chunk_size
        self.weighted_texts = torch.zeros_like(image)  # Σ_j p_ij y_j
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=image.device)
        self.residual_sum = torch.zeros_like(self.loss_sum)  # Σ p_ij
        tile = min(ROWS_PER_TILE, len(image)) * chunk_size
        self.logits, self.losses = image.new_empty(tile), image.new_empty(tile)

    def add(self, text: Tensor, text_gradient: Tensor, first_match: int | None) -> None:
        """Add a block of texts [m, D]; its gradient, up to e^s W / B, is added to ``text_gradient`` [m, D].

        ``first_match``: the place in the block of the text that belongs to image 0; None where none belongs.
        """
        for start in range(0, len(text), self.chunk_size):
            some, gradient = text[start : start + self.chunk_size], text_gradient[start : start + self.chunk_size]
            scaled = some * self.scale
            for row in range(0, len(self.image), ROWS_PER_TILE):
                of_rows = slice(row, min(row + ROWS_PER_TILE, len(self.image)))
                shape = (of_rows.stop - row, len(some))
                logits = self.logits[: shape[0] * shape[1]].view(shape)
                losses = self.losses[: shape[0] * shape[1]].view(shape)
                torch.mm(self.image[of_rows], scaled.T, out=logits)
                logits.add_(self.bias)
                if first_match is not None:  # the matched pairs are dealt with below
                    logits.diagonal(first_match + row - start).fill_(-torch.inf)
                torch._C._nn.softplus(logits, out=losses)
                self.loss_sum += losses.sum()
                torch.sigmoid(logits, out=logits)
                self.residual_sum += logits.sum()
                self.weighted_texts[of_rows].addmm_(logits, some)
                gradient.addmm_(logits.T, self.image[of_rows])
        if first_match is not None and len(self.image):
            of_images = slice(first_match, first_match + len(self.image))
            matched = torch.linalg.vecdot(self.image, text[of_images]) * self.scale + self.bias
            self.loss_sum += F.softplus(-matched).sum()
            residual = -torch.sigmoid(-matched)
            self.residual_sum += residual.sum()
            self.weighted_texts.addcmul_(residual[:, None], text[of_images])
            text_gradient[of_images].addcmul_(residual[:, None], self.image)

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sum over the pairs so far, and its gradients by images [n, D], scale and bias."""
        by_scale = torch.linalg.vecdot(self.weighted_texts, self.image).sum(dtype=torch.float64)  # Σ p_ij x_i·y_j
        sums = [self.loss_sum.to(self.image.dtype), by_scale, self.residual_sum]
        value, by_scale, by_bias = (total.to(self.image.dtype) for total in sums)
        by_scale, by_bias = by_scale.reshape(self.scale.shape), by_bias.reshape(self.bias.shape)
        return value, self.weighted_texts.mul_(self.scale), by_scale, by_bias


def _through_gather(tiles: _Tiles, text: Tensor, rows: Rows) -> Tensor:
    everyone = rows.gather(text)
    gradient = torch.zeros_like(everyone)
    tiles.add(everyone, gradient, rows.own.start)
    return rows.sum_own(gradient)


def _through_ring(tiles: _Tiles, text: Tensor, rows: Rows) -> Tensor:
    """Every block of texts visits every rank once; its gradient travels with it and ends on the block's own rank."""
    size, own_gradient = len(rows.counts), torch.zeros_like(text)
    block = text.new_zeros(max(rows.counts), text.shape[1])
    block[: len(text)] = text
    gradient = torch.zeros_like(block)
    for step in range(size):
        count = rows.counts[(rows.rank - step) % size]
        coming = torch.empty_like(block) if step < size - 1 else block
        texts_under_way = _pass_on(block, coming, rows) if step < size - 1 else []  # while tiles are computed
        if step == 0:
            tiles.add(text, own_gradient, 0)
        else:
            tiles.add(block[:count], gradient[:count], None)
            gathered = torch.empty_like(gradient)
            for request in _pass_on(gradient, gathered, rows):
                request.wait()
            gradient = gathered
        for request in texts_under_way:
            request.wait()
        block = coming
    return own_gradient.add_(gradient[: len(text)])


def _pass_on(outgoing: Tensor, incoming: Tensor, rows: Rows) -> list[dist.Work]:
    size, group = len(rows.counts), rows.group

    def peer(number: int) -> int:
        return number % size if group is None else dist.get_global_rank(group, number % size)

    return dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, outgoing, peer(rows.rank + 1), group),
            dist.P2POp(dist.irecv, incoming, peer(rows.rank - 1), group),
        ]
    )
