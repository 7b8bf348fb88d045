"""SC-CLIP (arXiv 2411.15869): training-free calibration of a frozen tower's patch features.

Works on a list of transformer blocks with ``layer_norm1``, ``self_attn`` (q, k, v, out projections) and an MLP, as
transformers' CLIP and SigLIP 2 have them. Five parts, each of which can be switched off:

``outliers``   patches whose local density is odd before the last block are replaced by their normal neighbours' mean
``early``      patches are averaged with those that a late-middle block finds similar
``attention``  the last block attends by that similarity and by its keys, without residual and MLP
``late``       patches are averaged again, by an early block's similarity
``levels``     ``attention`` and ``late`` once more on the sum of the middle blocks, added

With all five off the result is the tower's own patch features. Indices of blocks are the publication's for 12 blocks
and scale with the depth.

Where the class token is added, a tower without one (SigLIP 2, FG-CLIP 2) adds, from the same place in the network, each
patch's own state (SUBSTITUTES ``patch``: what remains of the residual, on which its heads were trained) or the mean of
the image's patches (``mean``). docs/inference.md has both measured.

Letters: B images, P patches, D width, H heads, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.evaluation.options.base import CalibrationOptions
from pipeline.evaluation.results import EvaluationError

PARTS = ("outliers", "early", "attention", "late", "levels")
SUBSTITUTES = ("patch", "mean")
EPSILON = 1e-6  # keeps a row without any similar patch from dividing by zero, as the published code


@dataclass(frozen=True)
class Calibration:
    """The published numbers. Block indices are into the outputs of 12 blocks and are scaled to a tower's depth."""

    off: frozenset[str] = frozenset()
    num_neighbours: int = 30
    contamination: float = 0.05
    beta: float = 0.4  # similarities below it count as 0
    sharpness: float = 3.0
    class_token_weight: float = 0.3
    class_token_substitute: str | None = (
        None  # for the class token, of a tower without one; None: the first of SUBSTITUTES
    )
    early_block: int = 8
    late_block: int = 3
    first_level: int = 3
    last_level: int = 10  # exclusive

    def __post_init__(self) -> None:
        for part in self.off:
            if part not in PARTS:
                raise EvaluationError(f"part {part!r} cannot be switched off; the parts are {', '.join(PARTS)}")
        if self.class_token_substitute not in (None, *SUBSTITUTES):
            raise EvaluationError(
                f"class_token_substitute is {self.class_token_substitute!r}; it must be one of {', '.join(SUBSTITUTES)}"
            )

    @classmethod
    def of(cls, options: CalibrationOptions) -> Calibration | None:
        """What the options ask for; None where they want the plain features."""
        if not options.calibrate:
            return None
        weight = options.class_token_weight
        return cls(
            off=frozenset(options.switch_off),
            class_token_substitute=options.class_token_substitute,
            class_token_weight=cls.class_token_weight if weight is None else weight,
        )

    def to_json(self, has_class_token: bool) -> dict[str, Any]:
        """Everything that influences a score."""
        shown = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "off"}
        shown["class_token_substitute"] = None if has_class_token else self.class_token_substitute or SUBSTITUTES[0]
        return {"parts": [part for part in PARTS if self.has(part)], **shown}

    def has(self, part: str) -> bool:
        return part not in self.off

    def scaled(self, index: int, num_blocks: int) -> int:
        """``index`` of 12 blocks at a depth of ``num_blocks``; the last usable output is that before the last block."""
        return round(index * (num_blocks - 2) / 10)


def outlier_factors(patches: Tensor, mask: Tensor, num_neighbours: int) -> Tensor:
    """Local outlier factors of every image's patches, as the published code computes them.

    The distance is the squared Euclidean one, and a patch's reachability is its own distance to its k-th neighbour, so
    that the factor is that distance times the mean of its neighbours' inverse ones.

    Args:
        patches: [B, P, D]; mask: [B, P] bool. Images with fewer than k + 1 patches use as many neighbours as they have.
    Returns:
        [B, P] float32; 0 at padding.
    """
    patches = patches.float()
    distances = torch.cdist(patches, patches, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances = distances.masked_fill(~mask[:, None, :], torch.inf)
    k = min(num_neighbours, patches.shape[1] - 1)
    near, index = distances.topk(k + 1, largest=False)
    near, index = near[..., 1:], index[..., 1:]  # the first is the patch itself
    own_k = (mask.sum(1) - 1).clamp(1, k)  # neighbours that this image has
    counted = torch.arange(k, device=mask.device)[None] < own_k[:, None]
    reach = near.gather(2, (own_k - 1)[:, None, None].expand(-1, near.shape[1], 1)).squeeze(2)
    density = 1.0 / reach.clamp(min=torch.finfo(torch.float32).tiny)
    of_neighbours = density[:, None].expand(-1, near.shape[1], -1).gather(2, index) * counted[:, None]
    return (of_neighbours.sum(2) / own_k[:, None] / density).masked_fill(~mask, 0.0)


def outliers(factors: Tensor, mask: Tensor, contamination: float) -> Tensor:
    """[B, P] bool: patches above their image's (1 - contamination) quantile (interpolated) of the factors."""
    count = mask.sum(1)
    ordered = factors.masked_fill(~mask, torch.inf).sort(1).values
    place = (1 - contamination) * (count - 1).float()
    low = place.floor().long()
    high = torch.minimum(low + 1, count - 1)
    below, above = ordered.gather(1, low[:, None]), ordered.gather(1, high[:, None])
    threshold = torch.lerp(below, above, (place - low)[:, None])
    return (factors > threshold) & mask


def repaired(patches: Tensor, odd: Tensor, mask: Tensor, grids: Tensor) -> Tensor:
    """Each odd patch as the mean of its up to 8 normal neighbours; one without any stays as it is.

    Args:
        patches: [B, P, D], row-major on each image's grid; odd, mask: [B, P] bool; grids: [B, 2] height, width.
    """
    image, place = odd.nonzero(as_tuple=True)
    if not len(image):
        return patches
    height, width = grids[image].unbind(1)
    row, column = place // width, place % width
    normal = mask & ~odd
    total = torch.zeros(len(image), patches.shape[2], dtype=patches.dtype, device=patches.device)
    count = torch.zeros(len(image), 1, dtype=patches.dtype, device=patches.device)
    for step in range(9):
        down, right = step // 3 - 1, step % 3 - 1
        inside = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        other = torch.where(inside, place + down * width + right, place)  # itself is odd, so it never counts
        use = normal[image, other].to(patches.dtype)[:, None]
        total += use * patches[image, other]
        count += use
    result = patches.clone()
    result[image, place] = torch.where(count > 0, total / count.clamp(min=1), patches[image, place])
    return result


def similarity(patches: Tensor, mask: Tensor) -> Tensor:
    """Cosine of every two patches of an image, [B, P, P] float32; 0 where either is padding."""
    unit = F.normalize(patches.float(), dim=-1) * mask[..., None]
    return unit @ unit.transpose(1, 2)


def aggregated(patches: Tensor, similar: Tensor, beta: float) -> Tensor:
    """Patches averaged with their similar ones: weights below ``beta`` are 0, rows sum to 1."""
    weights = similar.masked_fill(similar < beta, 0.0)
    weights = weights / (weights.sum(-1, keepdim=True) + EPSILON)
    return weights.to(patches.dtype) @ patches


def similarity_attention(similar: Tensor, mask: Tensor, sharpness: float) -> Tensor:
    """softmax(sharpness (S - mean S)), negatives out, [B, P, P]. The mean is each image's own."""
    pairs = mask[:, :, None] & mask[:, None, :]
    mean = similar.sum((1, 2)) / pairs.sum((1, 2))
    logits = (similar - mean[:, None, None]) * sharpness
    diagonal = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    keep = (pairs & (logits >= 0)) | diagonal  # the diagonal gives padding's rows something to attend to
    return logits.masked_fill(~keep, -torch.inf).softmax(-1)


def calibrated_attention(block: nn.Module, patches: Tensor, by_similarity: Tensor, mask: Tensor) -> Tensor:
    """The block's values, half by ``by_similarity`` and half by its keys among themselves; [B, P, D]."""
    attention: Any = block.self_attn
    normed = cast(nn.Module, block.layer_norm1)(patches)
    keys = attention.k_proj(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    values = attention.v_proj(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    # Two attentions over the same values: their mean needs no [B, H, P, P] of its own
    visible = mask[:, None, None, :]
    by_keys = F.scaled_dot_product_attention(keys, keys, values, attn_mask=visible)
    mixed = (by_similarity.to(values.dtype)[:, None] @ values + by_keys) / 2
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def calibrated_patches(
    blocks: Sequence[nn.Module],
    hidden: Tensor,
    run: Callable[[nn.Module, Tensor], Tensor],
    *,
    mask: Tensor,
    grids: Tensor,
    has_class_token: bool,
    settings: Calibration,
) -> Tensor:
    """Patch features before the final norm, [B, P, D].

    Args:
        blocks: all L blocks of the tower; hidden: [B, (1 +) P, D], what goes into the first.
        run: applies one block as the tower does (with its attention mask).
        mask: [B, P] bool, True for a patch; grids: [B, 2] patches, height and width.
    Raises:
        EvaluationError: fewer than 3 blocks: there is no middle to calibrate from; or a substitute for a class token
            that the tower has.
    """
    if has_class_token and settings.class_token_substitute is not None:
        raise EvaluationError(
            f"class_token_substitute is {settings.class_token_substitute!r}; leave it out, this tower has a class token"
        )
    if len(blocks) < 3:
        raise EvaluationError(f"the tower has {len(blocks)} blocks; SC-CLIP needs at least 3, use it plain")
    first = int(has_class_token)
    levels = range(*(settings.scaled(index, len(blocks)) for index in (settings.first_level, settings.last_level)))
    early_block, late_block = (
        settings.scaled(index, len(blocks)) for index in (settings.early_block, settings.late_block)
    )
    kept: dict[int, Tensor] = {}
    summed = torch.zeros_like(hidden)
    for number, block in enumerate(blocks[:-1]):
        hidden = run(block, hidden)
        if number in (early_block, late_block):
            kept[number] = hidden[:, first:]
        if number in levels and settings.has("levels"):
            summed = summed + hidden
    patches, middle = hidden[:, first:], kept[early_block]
    if settings.has("outliers"):
        odd = outliers(outlier_factors(patches, mask, settings.num_neighbours), mask, settings.contamination)
        patches, middle = repaired(patches, odd, mask, grids), repaired(middle, odd, mask, grids)
    similar = similarity(middle, mask)
    by_similarity = similarity_attention(similar, mask, settings.sharpness)
    late = similarity(kept[late_block], mask) if settings.has("late") else None

    def finish(part: Tensor, whole: Tensor) -> Tensor:
        """The last block on ``part`` [B, P, D]; ``whole`` is what the class token's substitute is taken from."""
        if has_class_token:
            token = whole[:, :1]
        else:
            token = _mean(whole, mask) if settings.class_token_substitute == "mean" else whole
        if settings.has("attention"):
            done = calibrated_attention(blocks[-1], part, by_similarity, mask) + settings.class_token_weight * token
        else:
            done = run(blocks[-1], torch.cat([token, part], 1) if has_class_token else part)[:, first:]
        return done if late is None else aggregated(done, late, settings.beta)

    start = aggregated(patches, similar, settings.beta) if settings.has("early") else patches
    result = finish(start, hidden if has_class_token else patches)
    if settings.has("levels") and len(levels):
        result = result + finish(summed[:, first:], summed)
    return result


def _mean(patches: Tensor, mask: Tensor) -> Tensor:
    """[B, 1, D]: the mean over each image's patches."""
    weights = mask.to(patches.dtype)[..., None]
    return (patches * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
