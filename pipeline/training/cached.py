"""The losses of a whole global batch from micro-batches, by cached embeddings.

    pass 1   embed every micro-batch m of this rank's share without a graph: E_m
    losses   L and ∂L/∂E of all embeddings together, as leaves; ∂L/∂s of the scalars s
    pass 2   embed each micro-batch again, with a graph, and go backward from Σ ⟨∂L/∂E_m, E_m(θ)⟩

The sum of pass 2 over m, plus ∂L/∂s · s(θ) once, has the gradient of L by the weights θ (chain rule), so the result
does not depend on the number of micro-batches. Activations of one micro-batch exist at a time; the price is one more
forward. Source: GradCache (arXiv 2101.06983). It needs a model whose two passes agree: no dropout, or the same seed.

Every rank must have the same number of micro-batches, since each forward and backward can hold collectives of ZeRO. A
rank without images in one of them runs a stand-in, whose embeddings take part in nothing.

Shape letters: B images, R regions, U distinct region texts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.data.join import join_for_losses
from pipeline.model import Embeddings
from pipeline.model.embeddings import Scales
from pipeline.training.losses import LossOutput

Forward = Callable[[Batch, int], Embeddings]  # a micro-batch and its number


class Losses(Protocol):
    """As ``StageLosses``."""

    def __call__(self, embeddings: Embeddings, batch: Batch, *, with_health: bool) -> LossOutput: ...


Backward = Callable[[Tensor, bool], None]  # a scalar, and whether it is the last of the optimizer step


@dataclass(frozen=True)
class SliceLosses:
    """The losses of this rank's share of a global batch, before the backward."""

    batches: list[Batch]  # the micro-batches
    embeddings: Embeddings  # of all of them; leaves of the losses where there are several, else with the model's graph
    output: LossOutput


def losses_of_slice(
    forward: Forward, batches: Iterable[Batch], parts: int, losses: Losses, *, with_health: bool = False
) -> SliceLosses:
    """Embed ``parts`` micro-batches and compute the losses of all together; collective."""
    kept: list[Batch] = []
    found: list[Embeddings] = []
    with torch.set_grad_enabled(parts == 1 and torch.is_grad_enabled()):
        for number, batch in enumerate(batches):
            kept.append(batch)
            found.append(embed(forward, batch, number))
    embeddings = found[0] if parts == 1 else as_leaves(found)
    device = embeddings.image.device
    output = losses(embeddings, join_for_losses(kept, device), with_health=with_health)
    return SliceLosses(kept, embeddings, output)


def backward_of_slice(computed: SliceLosses, forward: Forward, backward: Backward) -> Tensor:
    """Give every weight its gradient. Returns the largest difference between the two passes' image embeddings, []."""
    embeddings, total = computed.embeddings, computed.output.total
    if len(computed.batches) == 1:
        backward(total + every_scale(embeddings), True)
        return torch.zeros((), device=total.device)
    leaves = [*_tensors(embeddings), *embeddings.scales]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]
    by_row, by_scale = gradients[: -len(embeddings.scales)], gradients[-len(embeddings.scales) :]
    difference = torch.zeros((), device=total.device)
    first_image = first_region = first_text = 0
    for number, batch in enumerate(computed.batches):
        again = embed(forward, batch, number)
        images = slice(first_image, first_image + len(again.image))
        rows = [images, images, images]
        if again.region is not None and again.region_text is not None:
            rows += [
                slice(first_region, first_region + len(again.region)),
                slice(first_text, first_text + len(again.region_text)),
            ]
            first_region, first_text = rows[3].stop, rows[4].stop
        first_image = images.stop
        is_last = number + 1 == len(computed.batches)
        terms = [
            (tensor * gradient[some]).sum()
            for tensor, gradient, some in zip(_tensors(again), by_row, rows, strict=True)
        ]
        # a factor of 0 keeps the scalars in every graph: ranks and micro-batches go through the same parameters
        terms += [scale * gradient * float(is_last) for scale, gradient in zip(again.scales, by_scale, strict=True)]
        if len(again.image):
            moved = (again.image.detach() - embeddings.image.detach()[images]).abs().max()
            difference = torch.maximum(difference, moved)
        backward(torch.stack(terms).sum(), is_last)
    return difference


def embed(forward: Forward, batch: Batch, number: int) -> Embeddings:
    """The embeddings of a micro-batch; of an empty one, no rows that still belong to the model's graph."""
    if len(batch):
        return forward(batch, number)
    found = forward(batch.stand_in(), number)
    return found._replace(image=found.image[:0], short=found.short[:0], long=found.long[:0])


def every_scale(embeddings: Embeddings) -> Tensor:
    """A zero that gives every scalar a gradient on every rank.

    ZeRO 1 and 2 reduce only the parameters that had one, so a rank without regions would reduce fewer than the others.
    """
    return torch.stack([0.0 * scale for scale in embeddings.scales]).sum()


def as_leaves(found: Sequence[Embeddings]) -> Embeddings:
    """All rows in order, cut from any graph and differentiable; the scalars are alike in all."""

    def leaf(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).detach().requires_grad_()

    regions = [(e.region, e.region_text) for e in found if e.region is not None and e.region_text is not None]
    return Embeddings(
        image=leaf([e.image for e in found]),
        short=leaf([e.short for e in found]),
        long=leaf([e.long for e in found]),
        region=leaf([region for region, _ in regions]) if regions else None,
        region_valid=torch.cat([e.region_valid for e in found]),
        region_text=leaf([text for _, text in regions]) if regions else None,
        scales=Scales(*(scale.detach().clone().requires_grad_() for scale in found[0].scales)),
    )


def _tensors(embeddings: Embeddings) -> list[Tensor]:
    """Those of images, then those of regions where there are any."""
    named = [embeddings.image, embeddings.short, embeddings.long, embeddings.region, embeddings.region_text]
    return [tensor for tensor in named if tensor is not None]
