"""From settings to the layers that are recomputed in the backward, by patch budget."""

from __future__ import annotations

import psutil
import torch

from pipeline.base.ranks import RankInfo
from pipeline.config import Stage1Settings
from pipeline.estimate.estimate import CONTEXT_GIGABYTES, USABLE_SHARE
from pipeline.estimate.inputs import is_trained, read_data, read_zero, sharding_of, work_of
from pipeline.estimate.pieces import trace_pieces
from pipeline.estimate.recomputation import least_recomputation
from pipeline.model import FGCLIP2Config
from pipeline.model.checkpointing import Recomputation
from pipeline.objectives.collectives import gather_numbers
from pipeline.training.engine import micro_batch_size

ESTIMATE_MARGIN = 1.15  # the estimate is held within 15 % of measured peaks


def recomputation_of(
    settings: Stage1Settings, config: FGCLIP2Config, rank_info: RankInfo, device: torch.device
) -> Recomputation:
    """What ``model.gradient_checkpointing`` and its fellows ask for; with ``auto``, the least that fits by estimate."""
    model = settings.model
    if model.gradient_checkpointing is False:
        return Recomputation()
    if model.gradient_checkpointing is True:
        return Recomputation(((model.checkpoint_from_patches, model.checkpoint_every_layers),))
    zero = int(read_zero(settings).get("stage", 0))
    sharding = sharding_of(settings, config, rank_info.world_size, zero, on_cpu=device.type == "cpu")
    micro = micro_batch_size(settings.train, rank_info.world_size)
    # One choice on every rank: under ZeRO 3 a recomputed layer gathers its weights once more, together with all ranks.
    available = int(usable_memory(device, rank_info) / ESTIMATE_MARGIN)
    usable = min(numbers[0] for numbers in gather_numbers([available]))
    data = read_data(settings, [])
    chosen = []
    for patches in settings.data.patch_budgets:
        pieces = trace_pieces(
            config,
            patches,
            settings.train.precision,
            settings.trains_regions,
            lambda name: is_trained(name, settings.trains_regions),
        )
        work = work_of(settings, config, micro, patches, data)
        width = config.vision_config.hidden_size
        chosen.append((patches, least_recomputation(settings, pieces, work, sharding, width, usable)))
    return Recomputation(tuple(chosen))


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
