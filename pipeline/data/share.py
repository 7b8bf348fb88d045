"""What one machine reads of a plan: which pieces are its own, what each step needs, how large a cache that takes.

Pure functions of the plan, used alike by training and by ``benchmarks.feed``. Letters: B samples of a global batch,
W windows, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.manifest import Manifest
from pipeline.data.plan import Plan, PlannedBatch
from pipeline.data.plan.locality import is_home, place_of
from pipeline.data.slices import Division

CACHE_SLACK = 1.25  # assumption: shares of nodes differ by less, and eviction has room to work


@dataclass(frozen=True)
class Need:
    """Samples of one piece that a slice of a batch reads. ``whole``: the piece is this machine's own."""

    source: int
    shard: int  # of the source
    piece: int  # of the shard
    whole: bool
    language: str
    ordinals: tuple[int, ...]


class NodeShare:
    """The ranks of one machine, neighbours among all ranks, and what of each global batch is theirs."""

    def __init__(
        self, plan: Plan, manifests: Sequence[Manifest], first_rank: int, num_ranks: int, division: Division
    ) -> None:
        self.plan, self.manifests = plan, manifests
        self.num_ranks, self.division = num_ranks, division
        # where a separate micro-batch is a part of its own, its number depends on the level: this is the largest
        largest = max(plan.patch_budgets), max((1, *plan.levels.clip_frames))
        firsts, lasts = (
            division.read_by(plan.batch_size, rank, *largest) for rank in (first_rank, first_rank + num_ranks - 1)
        )
        self.slices = [slice(first.start, last.stop) for first, last in zip(firsts, lasts, strict=True)]

    def is_home(self, source: int, shard: int, piece: int) -> bool:
        """Whether batches keep (nearly) all samples of a piece for this machine."""
        pieces = self.manifests[source].pieces
        count = int(pieces.first[shard + 1] - pieces.first[shard])
        number = np.array([self.plan.shard_number(source, shard)])
        place = place_of(number, np.array([piece]), np.array([count]))
        return bool(is_home(place, self.plan.batch_size, self.slices)[0])

    def needs(self, batch: PlannedBatch, mine: slice) -> list[Need]:
        """What a slice of a batch reads, piece by piece."""
        whole = is_home(batch.places[mine], self.plan.batch_size, self.slices)
        shards, pieces, ordinals = batch.shards[mine], batch.pieces[mine], batch.ordinals[mine]
        order = np.lexsort((pieces, shards))
        changes = (np.diff(shards[order]) != 0) | (np.diff(pieces[order]) != 0)
        needs = []
        for rows in np.split(order, np.flatnonzero(changes) + 1) if len(order) else []:
            source, shard = self.plan.source_of(int(shards[rows[0]]))
            wanted = tuple(ordinals[rows].tolist())
            piece = int(pieces[rows[0]])
            needs.append(Need(source, shard, piece, bool(whole[rows[0]]), batch.language, wanted))
        return needs

    def cache_bytes(self, ahead_bytes: float) -> int:
        """Bytes of a cache from which nothing is removed that is needed again, and ``ahead_bytes`` of every rank."""
        sizes = np.concatenate([manifest.sizes for manifest in self.manifests])
        alive = self.plan.alive_bytes(sizes)
        share = self.num_ranks / self.division.world_size
        return int(CACHE_SLACK * (alive * share + ahead_bytes * self.num_ranks))
