"""What the doctor (pipeline/doctor) needs of a step and no loss tells; measured where a step is logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist

from pipeline.base.ranks import RankInfo
from pipeline.config import Stage1Settings, Stage2Settings
from pipeline.data.batch import Batch
from pipeline.doctor.evidence import GRADIENT_SEEN
from pipeline.training.full_state import own_slices
from pipeline.training.optimizer import PROJECTIONS
from pipeline.training.run import Engine

SMALL_BOX_AREA = 0.01  # of the image


@torch.no_grad()
def gradients_seen(engine: Engine, rank_info: RankInfo) -> dict[str, float]:
    """``gradient_seen/MODULE`` of each projection that an optimizer group holds: the root mean square of its gradients
    so far, after clipping, by Adam's second moment. 0: it never had one. Call on every rank after a step; one
    all-reduce of a few numbers."""
    names = list(PROJECTIONS)
    sums = torch.zeros(2, len(names), dtype=torch.float64, device=engine.device)  # of moments; how many
    for name, _, moments in own_slices(engine, rank_info):
        kind, _, parameter = name.partition("/")
        if kind == "exp_avg_sq":
            for number, module in enumerate(names):
                if parameter.startswith(f"{module}."):
                    sums[0, number] += moments.double().sum()
                    sums[1, number] += moments.numel()
    dist.all_reduce(sums)
    return {
        f"{GRADIENT_SEEN}{name}": math.sqrt(total / count)
        for name, total, count in zip(names, *sums.tolist(), strict=True)
        if count
    }


def small_boxes(batches: Iterable[Batch]) -> int:
    """How many regions are below 1 % of their image, of a clip in every frame; those without area are counted
    elsewhere. Reads the boxes."""
    found = 0
    for batch in batches:
        sides = (batch.boxes[:, 2:] - batch.boxes[:, :2]).clamp(min=0)
        area = sides.prod(dim=1).view(-1, batch.num_frames).amax(dim=1)
        found += int(((area > 0) & (area < SMALL_BOX_AREA)).sum())
    return found


def effective_negatives(
    settings: Stage1Settings, metrics: Mapping[str, float], pools: float, world_size: int
) -> dict[str, float]:
    """``negatives/OBJECTIVE``: what a row is told apart from, on average over the rows of a step.

    Args:
        metrics: counts summed over ranks (``count/…``) and the memory bank's.
        pools: separate batches that the losses of a step were computed from.
    """
    found = {}
    for name in ("global_short", "global_long"):
        if pairs := metrics.get(f"count/{name}/pairs"):
            found[f"negatives/{name}"] = pairs / pools - 1
    if isinstance(settings, Stage2Settings) and (regions := metrics.get("count/fgv/regions")):
        ranks = world_size if settings.region_loss.fgv_scope == "local_rank" else 1
        same_phrase = metrics.get("count/fgv/excluded", 0.0) / regions
        found["negatives/fgv"] = regions / pools / ranks - 1 + metrics["memory_bank/used"] - same_phrase
    if rows := metrics.get("count/fgt/rows"):
        pairs = metrics.get("count/cmr/pairs")
        found |= {"negatives/fgt": pairs / rows} if pairs else {}
    return found
