"""What a dry run measured, beside the estimate of the same step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.config import Stage1Settings
from pipeline.data.levels import Level
from pipeline.estimate.estimate import AtBudget, CheckpointCost, at_budget, checkpoint_cost
from pipeline.estimate.inputs import read_data, read_zero, sharding_of
from pipeline.estimate.memory import held_all_the_time
from pipeline.estimate.use import this_device
from pipeline.model import FGCLIP2Config
from pipeline.training.running import Start

GIGABYTE = 1e9


@dataclass(frozen=True)
class Measured:
    """Of a dry run. Bytes are those of the rank that has most, seconds the mean over the ranks, by part."""

    patches: int  # of an image, padding included
    images: int  # of the step, on all ranks, or clips
    frames: int  # of each; 1: images
    micro_batches: int  # a rank
    regions: int  # of the step, on all ranks; region_texts too
    region_texts: int
    weights: int  # what is there all the time
    optimizer: int
    peak: int | None  # None: this system does not count it
    checkpoint_bytes: int
    seconds: dict[str, float]

    @property
    def step_seconds(self) -> float:
        """Of the second step, whose batches were there."""
        return sum(self.seconds[name] for name in ("forward", "losses", "backward", "update"))


@dataclass(frozen=True)
class Estimated:
    """Of the same step on the same devices. Bytes of a device and seconds; ``notes``: what had to be assumed."""

    device: str
    on_cpu: bool
    weights: float
    optimizer: float
    at: AtBudget
    zero: int
    checkpoint: CheckpointCost
    bytes_a_sample: float
    notes: list[str] = field(default_factory=list)


def estimated_of(start: Start, measured: Measured) -> Estimated | None:
    """The estimate of the step that was measured; None for FG-CLIP 1, or a device that is not in the table."""
    row, config = this_device(start.device), start.model.config
    if row is None or not isinstance(config, FGCLIP2Config):
        return None
    notes: list[str] = []
    settings = _as_it_runs(start, measured, notes)
    data = replace(read_data(settings, notes), regions_an_image=measured.regions / measured.images)
    zero, world_size = int(read_zero(settings).get("stage", 0)), start.rank_info.world_size
    sharding = sharding_of(settings, config, world_size, zero, on_cpu=row.is_cpu)
    at = at_budget(
        settings, config, data, start.division, Level(measured.patches, measured.frames), 1.0, {zero: sharding}, zero,
        row,
    )  # fmt: skip
    weights, _, optimizer, _ = held_all_the_time(sharding)
    cost = checkpoint_cost(sharding, row)
    return Estimated(row.name, row.is_cpu, weights, optimizer, at, zero, cost, data.bytes_a_sample, notes)


def _as_it_runs(start: Start, measured: Measured, notes: list[str]) -> Stage1Settings:
    """The settings with the step's own batch size, and with the recomputation that ``auto`` chose."""
    settings = start.settings
    every = start.model.vision_model.encoder.recomputation.every(measured.patches)
    if every > 1:
        notes.append(f"one layer in {every} is recomputed; the estimate knows all or none, and takes all")
    model = settings.model.model_copy(update={"gradient_checkpointing": every > 0, "checkpoint_from_patches": 0})
    train = settings.train.model_copy(update={"global_batch_size": measured.images})
    return settings.model_copy(update={"model": model, "train": train})


def format_table(measured: Measured, estimated: Estimated | None) -> str:
    """Lines for a terminal."""
    what = f"clips of {measured.frames} frames, each" if measured.frames > 1 else "images"
    shape = (
        f"the step: {measured.images} {what} of {measured.patches} patches, {measured.micro_batches} micro-batch(es) a "
        f"rank, {measured.regions} regions, {measured.region_texts} texts of regions"
    )
    rows = [("", "measured", "estimated", "ratio"), *_memory(measured, estimated), *_step(measured, estimated)]
    rows += [*_checkpoint(measured, estimated), *_evaluation(measured)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if estimated is None:
        notes = ["no estimate: it knows FG-CLIP 2, on the devices of pipeline/estimate/devices.yaml"]
    else:
        notes = [f"assumed: {note}" for note in estimated.notes]
        if estimated.on_cpu:
            notes.append("the peak on a CPU is the growth of the whole process: of a small model, mostly code")
        notes.append(f"the estimate is for: {estimated.device}; the step's own numbers of images and regions are used")
    return "\n".join([shape, *table, *notes, "dry run: all of it works; nothing was kept"])


Cells = tuple[str, str, str, str]


def _memory(measured: Measured, estimated: Estimated | None) -> list[Cells]:
    memory = estimated.at.memory[estimated.zero] if estimated else None
    held = measured.weights + measured.optimizer
    rest = None if measured.peak is None else measured.peak - held
    beside = memory.total - estimated.weights - estimated.optimizer if estimated and memory else None
    lines = [
        ("weights, GB", measured.weights, estimated.weights if estimated else None),
        ("optimizer, GB", measured.optimizer, estimated.optimizer if estimated else None),
        ("gradients, activations, buffers at the peak, GB", rest, beside),
        ("peak of a device, GB", measured.peak, memory.total if memory else None),
    ]
    return [_row(name, value, other, GIGABYTE) for name, value, other in lines]


def _step(measured: Measured, estimated: Estimated | None) -> list[Cells]:
    seconds, time = measured.seconds, estimated.at.time if estimated else None
    together = seconds["forward"] + seconds["losses"] + seconds["backward"]
    images = measured.images * measured.frames
    rate, expected = images / measured.step_seconds, images / time.total if time else None
    rows = [
        *(_row(f"{name}, s", seconds[name], None) for name in ("forward", "losses", "backward")),
        _row("forward to backward, s", together, time.total - time.update if time else None),
        _row("update, s", seconds["update"], time.update if time else None),
        _row("step, s", measured.step_seconds, time.total if time else None),
        _row("first step, s", seconds["first"], None),
        _row("its batches, none read ahead, s", seconds["data"], None),
        _row("images/s", rate, expected),
    ]
    if estimated:
        size = estimated.bytes_a_sample / measured.frames  # of an image
        rows.append(_row("to feed, MB/s", rate * size, None if expected is None else expected * size, 1e6))
    return rows


def _checkpoint(measured: Measured, estimated: Estimated | None) -> list[Cells]:
    cost, seconds = estimated.checkpoint if estimated else None, measured.seconds
    return [
        _row("checkpoint, GB", measured.checkpoint_bytes, cost.bytes if cost else None, GIGABYTE),
        _row("training waits for it, s", seconds["checkpoint/wait_seconds"], cost.copy_seconds if cost else None),
        _row("it is written in, s", seconds["checkpoint/write_seconds"], cost.write_seconds if cost else None),
        _row("it is read back in, s", seconds["read_back"], None),
    ]


def _evaluation(measured: Measured) -> list[Cells]:
    names = {
        "evaluation_copy": "the model's copy for an evaluation, s",
        "validation_batch": "a batch of the validation loss, s",
        "task_batch": "a batch of a task's images and texts, s",
    }
    return [_row(told, measured.seconds[name], None) for name, told in names.items() if name in measured.seconds]


def _row(name: str, measured: float | None, estimated: float | None, unit: float = 1.0) -> Cells:
    ratio = f"{measured / estimated:.2f}" if measured is not None and estimated else ""
    return name, _number(measured, unit), _number(estimated, unit), ratio


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.3g}"
