"""Everything that the command shows, computed from settings, a number of devices and their kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.base.ranks import loader_workers
from pipeline.config import SettingsError, Stage1Settings
from pipeline.data.levels import Level
from pipeline.data.micro_batches import HELD_BATCHES
from pipeline.data.slices import Division
from pipeline.estimate.devices import Device
from pipeline.estimate.fitting import is_checkpointed, largest_fitting, largest_micro_batches, memory_of
from pipeline.estimate.flops import Flops, count_flops
from pipeline.estimate.inputs import Data, model_config, pieces_of, read_data, read_zero, sharding_of, work_of
from pipeline.estimate.memory import FLOAT, PATCH_VALUES, Memory, Sharding, Work
from pipeline.estimate.pieces import Piece
from pipeline.estimate.timing import StepTime, cores_to_decode, step_time
from pipeline.model import FGCLIP2Config
from pipeline.training.micro_batches import make_division

CONTEXT_GIGABYTES = 1.5  # assumption: CUDA's context, cuBLAS' and NCCL's workspaces on a device
USABLE_SHARE = 0.92  # assumption: of the rest; the allocator's fragments need their room
DISK_GIGABYTES_PER_SECOND = 1.0  # assumption: of one host, writing and reading back
PROCESS_GIGABYTES = 3.0  # assumption: Python, torch and CUDA's host side, a rank
WORKER_GIGABYTES = 0.4  # assumption: a loader worker beside its batches


@dataclass(frozen=True)
class AtBudget:
    """One patch budget: a step there."""

    patches: int
    frames: int  # of a sample; 1: images
    share: float  # of the samples
    checkpointed: bool
    memory: dict[int, Memory]  # by ZeRO stage
    largest_micro_batch: dict[int, int]
    micro_batch: int  # images of the largest on a device
    micro_batches: int  # a device and step
    flops: Flops
    time: StepTime
    cores: float  # that decode, a device


@dataclass(frozen=True)
class Estimate:
    """The whole of it. Bytes and seconds; numbers by ZeRO stage where they depend on it."""

    stage: str
    device: Device
    devices: int
    zero: int
    parameters: int
    trained: int
    budgets: list[AtBudget]
    steps: int
    seconds_a_step: float
    use: float
    images_per_second: float
    feed_bytes_per_second: float  # all devices
    host_memory: float  # a host
    host_cores: float
    checkpoint_bytes: float
    checkpoint_copy_seconds: float  # training waits this long
    checkpoint_write_seconds: float  # behind training
    disk_bytes: float
    notes: list[str]

    @property
    def usable_memory(self) -> float:
        return usable_bytes(self.device)

    @property
    def fits(self) -> bool:
        """Whether every patch budget fits with the ZeRO stage of the settings."""
        return all(at.memory[self.zero].total <= self.usable_memory for at in self.budgets)

    def to_json(self) -> dict[str, Any]:
        record = asdict(self) | {"device": self.device.model_dump()}
        for at, source in zip(record["budgets"], self.budgets, strict=True):
            at["memory"] = {
                stage: memory.parts() | {"total": memory.total, "moment": memory.moment}
                for stage, memory in source.memory.items()
            }
            at["flops"] |= {"model": source.flops.model, "total": source.flops.total}
            at["time"]["total"] = source.time.total
        return record | {"usable_memory": self.usable_memory, "fits": self.fits}


@dataclass(frozen=True)
class CheckpointCost:
    """Of one checkpoint: its size, how long training waits, and how long it is written behind training."""

    bytes: float
    copy_seconds: float
    write_seconds: float


def checkpoint_cost(sharding: Sharding, device: Device) -> CheckpointCost:
    """What one checkpoint costs on ``sharding.ranks`` devices of one kind."""
    size, per_host = FLOAT * (sharding.total + 2 * sharding.trained), min(sharding.ranks, device.per_host)
    return CheckpointCost(
        bytes=size,
        copy_seconds=size / sharding.ranks / (1e9 * device.host_link * device.bandwidth_use),
        write_seconds=2 * size * per_host / sharding.ranks / (1e9 * DISK_GIGABYTES_PER_SECOND),
    )


def usable_bytes(device: Device) -> float:
    """What of a device's memory tensors can have."""
    whole = 1e9 * device.memory_gigabytes
    return whole * USABLE_SHARE if device.is_cpu else (whole - 1e9 * CONTEXT_GIGABYTES) * USABLE_SHARE


def make_estimate(settings: Stage1Settings, devices: int, device: Device) -> Estimate:
    """The estimate of a stage on ``devices`` devices.

    Raises:
        SettingsError: settings that no run could have.
    """
    notes: list[str] = []
    config, data = model_config(settings, notes), read_data(settings, notes)
    zero = int(read_zero(settings).get("stage", 0))
    if zero not in (1, 2, 3):
        raise SettingsError(f"{settings.train.deepspeed_config} has ZeRO stage {zero}; stages 1, 2 and 3 are estimated")
    shardings = {s: sharding_of(settings, config, devices, s, on_cpu=device.is_cpu) for s in (1, 2, 3)}
    division = make_division(
        settings, devices, lambda: largest_micro_batches(settings, config, shardings[zero], usable_bytes(device))
    )
    budgets = [
        at_budget(settings, config, data, division, level, share, shardings, zero, device)
        for level, share in data.levels.items()
    ]
    seconds = sum(at.share * at.time.total for at in budgets)
    samples = settings.train.global_batch_size / seconds
    images = samples * sum(at.share * at.frames for at in budgets)
    steps = settings.train.max_steps or max(1, round((settings.train.epochs or 0) * data.steps_an_epoch))
    total, trained = shardings[1].total, shardings[1].trained
    checkpoint = checkpoint_cost(shardings[1], device)
    per_host = min(devices, device.per_host)
    cores = sum(at.share * at.cores for at in budgets) * per_host
    return Estimate(
        stage="stage2" if settings.trains_regions else "stage1",
        device=device,
        devices=devices,
        zero=zero,
        parameters=total,
        trained=trained,
        budgets=budgets,
        steps=steps,
        seconds_a_step=seconds,
        use=sum(at.share * at.time.use * at.time.total for at in budgets) / seconds,
        images_per_second=images,
        feed_bytes_per_second=samples * data.bytes_a_sample,
        host_memory=_host_memory(settings, division, data, checkpoint.bytes, devices, per_host, total),
        host_cores=cores + per_host,
        checkpoint_bytes=checkpoint.bytes,
        checkpoint_copy_seconds=checkpoint.copy_seconds,
        checkpoint_write_seconds=checkpoint.write_seconds,
        disk_bytes=_disk(settings, checkpoint.bytes, FLOAT * total, steps),
        notes=notes,
    )


def at_budget(
    settings: Stage1Settings,
    config: FGCLIP2Config,
    data: Data,
    division: Division,
    level: Level,
    share: float,
    shardings: dict[int, Sharding],
    zero: int,
    device: Device,
) -> AtBudget:
    """A step at one patch budget, of images or of clips."""
    patches, frames = level
    train, checkpointed = settings.train, is_checkpointed(settings, patches)
    pieces = pieces_of(settings, config, patches)
    batch = train.global_batch_size
    parts, images = division.parts(batch, patches, frames), division.slice_size(batch) * frames
    micro = division.images(batch, patches, frames)
    shardings = {stage: replace(one, accumulation=parts) for stage, one in shardings.items()}
    cached = parts > 1 and not division.separate
    work = work_of(settings, config, micro, patches, data, frames)
    whole = work_of(settings, config, images, patches, data, frames) if cached else None
    flops = flops_of(settings, pieces, work, shardings[zero].ranks, config, data.regions_an_image)
    time = step_time(
        pieces,
        work,
        flops,
        shardings[zero],
        device,
        train.precision,
        checkpointed=checkpointed,
        accumulation=parts,
        cached=cached,
    )
    rate = frames * train.global_batch_size / time.total / shardings[zero].ranks
    return AtBudget(
        patches=patches,
        frames=frames,
        share=share,
        checkpointed=checkpointed,
        memory={stage: memory_of(settings, pieces, work, one, config, whole) for stage, one in shardings.items()},
        largest_micro_batch={
            stage: largest_fitting(settings, pieces, config, data, patches, one, usable_bytes(device), whole)
            for stage, one in shardings.items()
        },
        micro_batch=micro,
        micro_batches=parts,
        flops=flops,
        time=time,
        cores=cores_to_decode(rate, patches),
    )


def flops_of(
    settings: Stage1Settings, pieces: list[Piece], work: Work, ranks: int, config: FGCLIP2Config, regions: float
) -> Flops:
    """The products of a micro-batch under the settings."""
    weights = (settings.global_loss.short_weight, settings.global_loss.long_weight)
    return count_flops(
        pieces,
        work,
        checkpointed=is_checkpointed(settings, work.patches),
        ranks=ranks,
        width=config.vision_config.hidden_size,
        num_captions=sum(weight > 0 for weight in weights),
        regions_an_image=regions,
        negatives=settings.data.max_negatives,
    )


def _host_memory(
    settings: Stage1Settings,
    division: Division,
    counted: Data,
    checkpoint: float,
    devices: int,
    per_host: int,
    total: int,
) -> float:
    """Bytes of one host: processes, loader slots, the copy that a checkpoint is written from."""
    data, batch = settings.data, settings.train.global_batch_size
    workers = loader_workers(data.num_workers, per_host)
    slots = max(workers, 1) * (data.prefetch_batches + HELD_BATCHES)
    if not division.separate:  # a step holds its micro-batches
        slots += max(division.parts(batch, *level) for level in counted.levels) - 1
    patches = max(division.images(batch, *level) * level.patch_budget for level in counted.levels)
    loader = slots * patches * PATCH_VALUES + 1e9 * WORKER_GIGABYTES * workers
    start = FLOAT * total  # every rank makes the model in host memory before it goes to the device
    return per_host * (1e9 * PROCESS_GIGABYTES + loader + max(checkpoint / devices, start))


def _disk(settings: Stage1Settings, checkpoint: float, weights: float, steps: int) -> float:
    """Bytes of the run's folder at its end, with one checkpoint more while it is being written."""
    train = settings.train
    kept = train.keep_last_checkpoints + 1
    if train.keep_every_steps:
        kept += steps // train.keep_every_steps
    return kept * checkpoint + weights
