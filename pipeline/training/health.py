"""What shows early that a run is not what it is meant to be: norms, logits, gradient norms, and which groups train.

What is wrong with a run is judged by pipeline/doctor, from these numbers and others of the log. Everything here is of
one rank's rows unless it says otherwise, and costs a few small products; nothing here is differentiated.

Shape letters: N valid regions, H regions with negatives, K negatives, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.data.batch import Batch

if TYPE_CHECKING:
    from pipeline.model import Embeddings
    from pipeline.training.regions import RankRegions

NORM_TOLERANCE = 1e-3
MAX_ROWS = 512  # of this rank; more would not change what the numbers tell


@torch.no_grad()
def embedding_health(embeddings: Embeddings) -> dict[str, float]:
    """``norm/NAME/{min,max}`` of every embedding (of valid regions; nothing where there is none) and ``scale/NAME``."""
    named = {"image": embeddings.image, "short": embeddings.short, "long": embeddings.long}
    if embeddings.region is not None:
        named["region"] = embeddings.region[embeddings.region_valid]
        named["region_text"] = embeddings.region_text
    found = {}
    for name, rows in named.items():
        if rows is not None and len(rows):
            norms = rows.float().norm(dim=1)
            found[f"norm/{name}/min"], found[f"norm/{name}/max"] = float(norms.min()), float(norms.max())
    for name in ("global_scale", "global_bias", "finegrained", "hardneg"):
        found[f"scale/{name}"] = float(getattr(embeddings.scales, name))
    return found


def norm_problems(health: Mapping[str, float]) -> list[str]:
    """One line for each embedding whose norm is not 1 within 1e-3."""
    problems = []
    for name, value in health.items():
        if name.startswith("norm/") and not abs(value - 1) <= NORM_TOLERANCE:
            problems.append(
                f"{name} is {value:.6g}; embeddings must have norm 1 within {NORM_TOLERANCE:g}; "
                "a norm of 0 or NaN comes from a box or input without content, another from a head that does not "
                "normalise"
            )
    return problems


@torch.no_grad()
def logit_health(embeddings: Embeddings, batch: Batch, regions: RankRegions | None) -> dict[str, float]:
    """Range and spread of the logits of each objective over this rank's own rows, at most 512 of them.

    ``logit/OBJECTIVE/{min,max,spread}`` (spread: standard deviation), ``cosine/OBJECTIVE/{mean,spread}`` of the pairs
    that do not belong together (spread: within a row, averaged), ``positive_margins/OBJECTIVE``: the share of matched
    pairs ahead of every unmatched one of their row. An objective without rows on this rank is left out.
    """
    scales, found = embeddings.scales, {}
    for name, text, present in (
        ("global_short", embeddings.short, batch.short_valid),
        ("global_long", embeddings.long, batch.long_valid),
    ):
        image, text = embeddings.image[present][:MAX_ROWS].float(), text[present][:MAX_ROWS].float()
        found.update(_square(name, image @ text.T, scales.global_scale, scales.global_bias))
    if regions is None:
        return found
    text = regions.text[:MAX_ROWS]
    found.update(_square("fgv", regions.region[:MAX_ROWS] @ text.T, scales.finegrained, None))
    found.update(_square("tic", text @ text.T, None, None))
    cosine, mask = regions.hard_cosine[:MAX_ROWS], regions.hard_mask[:MAX_ROWS]
    usable = mask[:, 0] & mask[:, 1:].any(dim=1)
    if usable.any():
        cosine, mask = cosine[usable], mask[usable]
        altered = cosine[:, 1:].masked_fill(~mask[:, 1:], -torch.inf)
        found.update(_describe("fgt", cosine[mask] * scales.hardneg))
        found["cosine/fgt/mean"] = float(cosine[:, 1:][mask[:, 1:]].mean())
        centred = (cosine - _row_mean(cosine, mask))[mask]
        found["cosine/fgt/spread"] = float(centred.square().mean().sqrt())
        found["positive_margins/fgt"] = float((cosine[:, 0] > altered.amax(dim=1)).float().mean())
        found["positive_margins/pairs"] = float((cosine[:, :1] > cosine[:, 1:])[mask[:, 1:]].float().mean())
    return found


def _row_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)


def _describe(name: str, logits: Tensor) -> dict[str, float]:
    spread = logits.std(correction=0)
    return {f"logit/{name}/min": float(logits.min()), f"logit/{name}/max": float(logits.max()),
            f"logit/{name}/spread": float(spread)}  # fmt: skip


def _square(name: str, cosine: Tensor, scale: Tensor | None, bias: Tensor | None) -> dict[str, float]:
    """Facts of [n, n] cosines whose diagonal belongs together."""
    count = len(cosine)
    if count == 0:
        return {}
    logits = cosine if scale is None else cosine * scale
    found = _describe(name, logits if bias is None else logits + bias)
    if count > 1:
        other = ~torch.eye(count, dtype=torch.bool, device=cosine.device)
        rest = cosine.masked_fill(~other, -torch.inf).amax(dim=1)
        found[f"cosine/{name}/mean"] = float(cosine[other].mean())
        found[f"cosine/{name}/spread"] = float(((cosine - _row_mean(cosine, other))[other]).square().mean().sqrt())
        if name != "tic":
            found[f"positive_margins/{name}"] = float((cosine.diagonal() > rest).float().mean())
    return found


@torch.no_grad()
def gradient_norms(engine: Any) -> dict[str, float]:
    """``gradient_norm/GROUP`` before clipping, over all ranks: one all-reduce of as many numbers as there are groups.

    Call on every rank between ``engine.backward`` and ``engine.step`` of an optimizer step's last micro-batch. With
    ZeRO 1, 2 and 3 a rank holds its partition of the averaged gradients, so the squares of all partitions are added.
    ``deepspeed.utils.safe_get_full_grad`` would need one collective a parameter for the same numbers. (Frozen groups
    have none, and so do steps between gradient accumulation boundaries: their groups are left out.)
    """
    optimizer = engine.optimizer
    names = [group["name"] for group in optimizer.param_groups]
    squares = torch.zeros(len(names), dtype=torch.float64, device=engine.device)
    parts = getattr(optimizer, "averaged_gradients", {})  # {group, or with ZeRO 3 a part of one: gradients}
    if hasattr(optimizer, "fp32_groups_gradient_flat_partition"):  # ZeRO 1 with bf16 weights
        parts = {group: [part] for group, part in enumerate(optimizer.fp32_groups_gradient_flat_partition)}
    group_of_part = getattr(optimizer, "sub_group_to_group_id", None)
    for part, gradients in parts.items():
        for gradient in gradients if gradients is not None else ():
            if gradient is not None:
                squares[part if group_of_part is None else group_of_part[part]] += gradient.double().square().sum()
    dist.all_reduce(squares)
    return {f"gradient_norm/{name}": math.sqrt(s) for name, s in zip(names, squares.tolist(), strict=True) if s > 0}


def group_table(groups: Iterable[Mapping[str, Any]], model: nn.Module | None = None) -> str:
    """Which groups train: name, tensors, numbers, learning rate factor and decay, as lines of equal width.

    Give the groups as they go into ``deepspeed.initialize``: afterwards they hold one rank's partition. With
    ``model``, what does not train is the last line.
    """
    lines = [("group", "tensors", "parameters", "learning rate", "weight decay")]
    trained = 0
    for group in groups:
        size = sum(parameter.numel() for parameter in group["params"])
        trained += size
        rate = f"{group['lr']:g}" if "lr" in group else f"x {group.get('factor', 1.0):g}"
        lines.append(
            (str(group.get("name", "?")), str(len(group["params"])), f"{size:,}", rate, f"{group['weight_decay']:g}")
        )
    lines.append(("trained in all", "", f"{trained:,}", "", ""))
    if model is not None:
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        lines.append(("frozen", str(len(frozen)), f"{sum(p.numel() for p in frozen):,}", "", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
