"""From settings to the layers that are recomputed in the backward, by patch budget."""

from __future__ import annotations

from dataclasses import replace

import psutil
import torch

from pipeline.base.ranks import RankInfo
from pipeline.config import Stage1Settings
from pipeline.data.slices import Division
from pipeline.estimate.estimate import CONTEXT_GIGABYTES, USABLE_SHARE
from pipeline.estimate.inputs import estimated_config, pieces_of, read_data, read_zero, sharding_of, work_of
from pipeline.estimate.recomputation import least_recomputation
from pipeline.model import FamilyConfig
from pipeline.model.checkpointing import Recomputation
from pipeline.objectives.collectives import gather_numbers

ESTIMATE_MARGIN = 1.15  # the estimate is held within 15 % of measured peaks


def recomputation_of(
    settings: Stage1Settings, config: FamilyConfig, rank_info: RankInfo, device: torch.device, division: Division
) -> Recomputation:
    """What ``model.gradient_checkpointing`` and its fellows ask for; with ``auto``, the least that fits by estimate."""
    model = settings.model
    if model.gradient_checkpointing is False:
        return Recomputation()
    if model.gradient_checkpointing is True:
        return Recomputation(((model.checkpoint_from_patches, model.checkpoint_every_layers),))
    config = estimated_config(config)
    zero = int(read_zero(settings).get("stage", 0))
    sharding = sharding_of(settings, config, rank_info.world_size, zero, on_cpu=device.type == "cpu")
    batch = settings.train.global_batch_size
    images = division.slice_size(batch)
    # One choice on every rank: under ZeRO 3 a recomputed layer gathers its weights once more, together with all ranks.
    usable = least_usable_memory(device, rank_info)
    data = read_data(settings, [])
    chosen = []
    for patches in settings.data.patch_budgets:
        pieces = pieces_of(settings, config, patches, products=False)
        # of images or of clips, whichever make the larger micro-batch
        frames = max((1, *settings.data.clip_frames), key=lambda count: division.images(batch, patches, count))
        parts = division.parts(batch, patches, frames)
        work = work_of(settings, config, division.images(batch, patches, frames), patches, data, frames)
        whole = None
        if parts > 1 and not division.separate:
            whole = work_of(settings, config, images * frames, patches, data, frames)
        of_parts, width = replace(sharding, accumulation=parts), config.vision_config.hidden_size
        chosen.append((patches, least_recomputation(settings, pieces, work, of_parts, width, usable, whole)))
    return Recomputation(tuple(chosen))


def least_usable_memory(device: torch.device, rank_info: RankInfo) -> int:
    """Bytes that any rank may take, with room for the estimate to be wrong; alike on all ranks, collective."""
    available = int(usable_memory(device, rank_info) / ESTIMATE_MARGIN)
    return min(numbers[0] for numbers in gather_numbers([available]))


def usable_memory(device: torch.device, rank_info: RankInfo) -> float:
    """Bytes that tensors of this rank may take: of its GPU, or its share of the machine's memory."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        return (whole - 1e9 * CONTEXT_GIGABYTES) * USABLE_SHARE
    return psutil.virtual_memory().available / rank_info.local_world_size * USABLE_SHARE


def describe(recomputation: Recomputation, num_layers: int) -> str:
    """One line for the terminal."""
    parts = [
        f"from {patches} patches on {'nothing' if not n else 'every layer' if n == 1 else f'one layer in {n}'}"
        for patches, n in recomputation.from_patches
    ]
    return f"recomputed in the backward ({num_layers} layers a tower): {'; '.join(parts) or 'nothing'}"
