"""Seconds of a step by part. Rates are the device table's, times the use that the table assumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.estimate.devices import Device
from pipeline.estimate.flops import Flops
from pipeline.estimate.memory import FLOAT, Sharding, Work
from pipeline.estimate.pieces import Piece

# Assumption: what is kept for the backward is written and read once in the forward, read in the backward, and its
# gradient, as large, is written and read.
PASSES_OVER_KEPT = 5
ADAM_BYTES = 7 * FLOAT  # a number's reads and writes: weight, gradient, two moments, and the copy
CORE_IMAGES_PER_SECOND = {256: 345.0, 1024: 305.0}  # measured, docs/performance.md: decoded and resized on one core
SPARE_CORES = 1.2  # assumption: decoding must outrun the device a little, or every stall shows


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step by part; ``use``: the model's products over what the device could do meanwhile."""

    products: float
    pointwise: float
    exchange: float
    update: float
    use: float

    @property
    def total(self) -> float:
        return self.products + self.pointwise + self.exchange + self.update

    def parts(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("products", "pointwise", "exchange", "update")}


def step_time(
    pieces: Sequence[Piece],
    work: Work,
    flops: Flops,
    sharding: Sharding,
    device: Device,
    precision: str,
    *,
    checkpointed: bool,
    accumulation: int,
    cached: bool = False,
) -> StepTime:
    """One optimizer step of ``accumulation`` micro-batches. Nothing is assumed to overlap.

    With ``cached`` every micro-batch goes forward twice.
    """
    rate = device.flops_per_second(precision)
    twice = sum(flops.forward.values()) if cached else 0.0
    products = accumulation * (flops.total + twice) / (rate * device.matrix_use)
    kept = sum(piece.layers * piece.saved.at(work.rows(piece.unit)) for piece in pieces)
    again = sum(
        piece.layers * piece.saved.at(work.rows(piece.unit)) for piece in pieces if checkpointed and piece.recomputable
    )
    passes = PASSES_OVER_KEPT + 2 * cached
    pointwise = accumulation * (passes * kept + 2 * again) / (1e9 * device.bandwidth * device.bandwidth_use)
    exchange = _exchange(work, sharding, device, accumulation)
    update = ADAM_BYTES * sharding.trained / sharding.ranks / (1e9 * device.bandwidth * device.bandwidth_use)
    total = products + pointwise + exchange + update
    return StepTime(products, pointwise, exchange, update, accumulation * flops.model / rate / total)


def _exchange(work: Work, sharding: Sharding, device: Device, accumulation: int) -> float:
    """Gradients reduced and weights gathered, by rings; texts of all ranks for the losses."""
    if sharding.ranks == 1:
        return 0.0
    link = device.device_link if sharding.ranks <= device.per_host else min(device.device_link, device.network)
    part = (sharding.ranks - 1) / sharding.ranks
    gradients, weights = FLOAT * sharding.trained * part, sharding.weight_bytes * sharding.trained * part
    if sharding.stage == 3:
        return accumulation * (gradients + 2 * weights) / (1e9 * link)
    reductions = accumulation if sharding.stage == 2 else 1
    return (reductions * gradients + weights) / (1e9 * link)


def cores_to_decode(images_per_second: float, patches: int) -> float:
    """Processor cores that decode and resize so many images a second."""
    budgets = sorted(CORE_IMAGES_PER_SECOND)
    nearest = min(budgets, key=lambda budget: abs(budget - patches))
    return SPARE_CORES * images_per_second / CORE_IMAGES_PER_SECOND[nearest]
