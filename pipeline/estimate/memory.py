"""Memory of a device by part, and when in a step it is highest.

What DeepSpeed 0.19 holds was read in its source and checked by measurement (``python -m benchmarks.estimate``):

- ZeRO 1 and 2: all weights; a float32 copy and two Adam moments of this rank's share. Gradients go into one bucket
  (``reduce_bucket_size``), which is copied once more while it is reduced; the share of each rank is kept.
- ZeRO 3: shares only, of weights, copy, moments and gradients; the bucket stays between steps. Gathered weights stay
  through the step, because a module that is used again within ``stage3_max_reuse_distance`` is not released, and what
  is being gathered exists twice.

With bf16 weights (``train.weights``) weights, activations and the bucket have two bytes a number; copy, moments and
the gradients that are added up over micro-batches have four. ZeRO 1 is another optimizer of DeepSpeed's then: every
rank holds all gradients in float32 all the time.

On CPUs the bucket costs only what is written into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.estimate.pieces import Piece

FLOAT = 4  # bytes of float32
BFLOAT = 2  # of bf16
PATCH_VALUES = 3 * 16 * 16
ADAM_TEMPORARIES = 2  # tensors of a group's size that AdamW makes where it is not fused
ROWS_PER_TILE = 512  # pipeline.objectives.global_sigmoid
# pairwise matrices that L_FGV and L_TIC hold at their peak, values, masked values and gradients together
PAIRWISE_MATRICES = 6


@dataclass(frozen=True)
class Work:
    """One micro-batch of a rank. Region numbers are 0 in stage 1."""

    images: float  # frames of clips counted
    patches: int
    short_tokens: int
    long_tokens: int
    regions: float = 0.0
    region_texts: float = 0.0  # distinct
    hard_rows: float = 0.0
    boxed_images: float = 0.0
    frames: int = 1  # of a sample

    @property
    def samples(self) -> float:
        return self.images / self.frames

    def rows(self, unit: str) -> float:
        """How many rows a piece sees."""
        return {
            "images": self.images,
            "boxed_images": self.boxed_images,
            "short_texts": self.samples + self.region_texts,
            "long_texts": self.samples,
        }[unit]


@dataclass(frozen=True)
class Sharding:
    """How ZeRO divides the model."""

    stage: int
    ranks: int
    total: int  # parameters
    trained: int
    largest_group: int  # of the optimizer
    reduce_bucket: int  # numbers
    prefetch_bucket: int = 50_000_000
    max_reuse: int = 1_000_000_000
    on_cpu: bool = False
    accumulation: int = 1
    taught: int = 0  # parameters of a teacher, which lies whole on every device
    weight_bytes: int = FLOAT  # of a number of the weights that compute, and of their gradients

    @property
    def share(self) -> float:
        """Bytes of this rank's numbers in float32."""
        return FLOAT * self.trained / self.ranks

    @property
    def bucket(self) -> float:
        """Bytes; on CPUs memory that nothing writes to does not exist."""
        if self.holds_all_gradients:
            return 0.0
        return self.weight_bytes * (min(self.reduce_bucket, self.trained) if self.on_cpu else self.reduce_bucket)

    @property
    def holds_all_gradients(self) -> bool:
        """ZeRO 1 with bf16 weights."""
        return self.stage == 1 and self.weight_bytes == BFLOAT


@dataclass(frozen=True)
class Memory:
    """Bytes of a device at the highest moment of a step, by part; ``moment`` says which."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    losses: float
    buffers: float
    moment: str

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.losses + self.buffers

    def parts(self) -> dict[str, float]:
        names = ("weights", "gradients", "optimizer", "activations", "losses", "buffers")
        return {name: getattr(self, name) for name in names}


def memory_at_peak(
    pieces: Sequence[Piece],
    work: Work,
    sharding: Sharding,
    *,
    checkpointed: bool,
    width: int,
    exchange: str = "gather",
    chunk_size: int = 2048,
    negatives: int = 10,
    share: Work | None = None,
) -> Memory:
    """The highest of the moments of a step.

    Args:
        share: a rank's part of the global batch, where cached embeddings make one step of several micro-batches; the
            losses are then of all of it, while no activations are kept.
        checkpointed: layers keep their input only and run again in the backward.
        width: D of the embeddings.
        exchange, chunk_size: of L_global.
        negatives: K of a region.
    """
    whole = work if share is None else share
    losses = _losses(whole, sharding, width, exchange, chunk_size, negatives)
    moments = [*_backward(pieces, work, sharding, checkpointed), _reduction(work, sharding), _update(work, sharding)]
    if share is None:
        moments.append(_forward(pieces, work, sharding, checkpointed, losses))
    else:
        moments.append(_forward(pieces, work, sharding, checkpointed, 0.0))
        moments = [replace(memory, losses=cached_bytes(share, width)) for memory in moments]
        moments.append(_cached_losses(work, sharding, losses + cached_bytes(share, width)))
        if sharding.on_cpu:  # where the micro-batches wait in the same memory
            waiting = batch_bytes(share) - batch_bytes(work)
            moments = [replace(memory, buffers=memory.buffers + waiting) for memory in moments]
    return max(moments, key=lambda memory: memory.total)


def cached_bytes(share: Work, width: int) -> float:
    """Embeddings of a rank's share of the batch, and their gradients: image, short, long, regions and their texts."""
    return 2 * FLOAT * width * (3 * share.images + share.regions + share.region_texts)


def kept_bytes(pieces: Sequence[Piece], work: Work, checkpointed: bool) -> list[float]:
    """Bytes that each piece keeps from forward to backward."""
    kept = []
    for piece in pieces:
        recomputed = checkpointed and piece.recomputable
        kept.append(piece.layers * (piece.entry if recomputed else piece.saved).at(work.rows(piece.unit)))
    return kept


def batch_bytes(work: Work) -> float:
    """The tensors of a micro-batch: pixels and ids."""
    texts = work.images * (work.short_tokens + work.long_tokens) + work.region_texts * work.short_tokens
    return work.images * work.patches * PATCH_VALUES + 8 * texts


def held_all_the_time(sharding: Sharding) -> tuple[float, float, float, float]:
    """Weights, gradients, optimizer and buffers that are there all the time."""
    weights, teacher = float(sharding.weight_bytes * sharding.total), float(FLOAT * sharding.taught)
    optimizer = 3 * sharding.share  # the float32 copy and two moments
    if sharding.stage < 3:
        between = 0.0
        if sharding.holds_all_gradients:
            between = FLOAT * sharding.trained
        elif sharding.accumulation > 1:  # what earlier micro-batches left
            between = FLOAT * sharding.trained if sharding.stage == 1 else sharding.share
        return weights, between, optimizer, teacher
    return weights / sharding.ranks, sharding.share, optimizer, sharding.bucket + teacher


def _gathered(sharding: Sharding) -> tuple[float, float]:
    """Bytes of gathered weights, and of those that are on their way, under ZeRO 3."""
    if sharding.stage < 3 or sharding.ranks == 1:
        return 0.0, 0.0
    whole = sharding.weight_bytes * min(sharding.total, sharding.max_reuse)
    return whole, min(sharding.weight_bytes * sharding.prefetch_bucket * 2, whole)


def _forward(pieces: Sequence[Piece], work: Work, sharding: Sharding, checkpointed: bool, losses: float) -> Memory:
    weights, gradients, optimizer, buffers = held_all_the_time(sharding)
    whole, moving = _gathered(sharding)
    activations = sum(kept_bytes(pieces, work, checkpointed))
    return Memory(
        weights + whole,
        gradients,
        optimizer,
        activations,
        max(losses - moving, 0.0),  # what was being gathered has come when the losses begin
        buffers + moving + batch_bytes(work),
        "end of the forward",
    )


def _backward(pieces: Sequence[Piece], work: Work, sharding: Sharding, checkpointed: bool) -> list[Memory]:
    """After each piece, last first: what is kept shrinks, the gradients grow."""
    weights, gradients, optimizer, buffers = held_all_the_time(sharding)
    whole, _ = _gathered(sharding)
    kept = kept_bytes(pieces, work, checkpointed)
    grown, moments = 0.0, []
    for number in reversed(range(len(pieces))):
        piece, rows = pieces[number], work.rows(pieces[number].unit)
        working = piece.widest.at(rows)
        if checkpointed and piece.recomputable:
            working += piece.saved.at(rows)
        bucket = min(grown, sharding.bucket) if sharding.stage < 3 else 0.0
        on_device = sharding.bucket if sharding.stage < 3 and not sharding.on_cpu else bucket
        moments.append(
            Memory(
                weights + whole,
                gradients + on_device,
                optimizer,
                sum(kept[: number + 1]) + working,
                0.0,
                buffers + batch_bytes(work),
                f"backward of {piece.part} {piece.name}",
            )
        )
        # a gradient stands beside the bucket until it has been copied there; the first layer's comes at the end
        grown += sharding.weight_bytes * piece.trained
    return moments


def _cached_losses(work: Work, sharding: Sharding, losses: float) -> Memory:
    """Between the two passes: no activations."""
    weights, gradients, optimizer, buffers = held_all_the_time(sharding)
    return Memory(
        weights, gradients, optimizer, 0.0, losses, buffers + batch_bytes(work), "losses of all micro-batches"
    )


def _reduction(work: Work, sharding: Sharding) -> Memory:
    """The end of the backward: the bucket, and the copy of it that is sent."""
    weights, gradients, optimizer, buffers = held_all_the_time(sharding)
    whole, _ = _gathered(sharding)
    touched = float(FLOAT * min(sharding.reduce_bucket, sharding.trained))
    if sharding.weight_bytes == BFLOAT and not sharding.holds_all_gradients:  # joined in bf16, sent in float32
        touched += touched * BFLOAT / FLOAT
    bucket = sharding.bucket if sharding.stage < 3 else 0.0
    return Memory(
        weights + whole, gradients + bucket, optimizer, 0.0, 0.0, buffers + touched + batch_bytes(work), "reduction"
    )


def _update(work: Work, sharding: Sharding) -> Memory:
    weights, gradients, optimizer, buffers = held_all_the_time(sharding)
    temporaries = 1 + (ADAM_TEMPORARIES if sharding.on_cpu else 0)
    group = FLOAT * sharding.largest_group / sharding.ranks
    kept = 0.0 if sharding.stage == 3 else sharding.share
    return Memory(
        weights, max(gradients, kept), optimizer + temporaries * group, 0.0, 0.0, buffers + batch_bytes(work), "update"
    )


def _losses(work: Work, sharding: Sharding, width: int, exchange: str, chunk_size: int, negatives: int) -> float:
    """Bytes of the losses at their peak, embeddings of all ranks included."""
    own, everyone = work.samples, work.samples * sharding.ranks
    tile = 2 * min(ROWS_PER_TILE, own) * chunk_size
    texts = 2 * (everyone if exchange != "ring" and sharding.ranks > 1 else 2 * own) * width
    global_loss = FLOAT * (tile + texts + 2 * 2 * own * width)
    if not work.regions:
        return global_loss
    hard = 2 * work.hard_rows * (1 + negatives) * width
    pairs = PAIRWISE_MATRICES * work.regions * work.regions * sharding.ranks
    gathered = 4 * work.regions * sharding.ranks * width
    return global_loss + FLOAT * (hard + pairs + gathered)
