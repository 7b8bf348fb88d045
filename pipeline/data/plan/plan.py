"""Which samples make global batch n of an epoch: a pure function of (manifests, settings, seed, epoch, batch size).

An epoch is planned from counts alone. Shards are shuffled and cut into windows; within a window the samples of one
group (language, patch budget and, of clips, number of frames) are shuffled into a stream, and the streams of successive
windows join into one stream a group. Batch k of a group is its positions k·B … (k+1)·B, given out in the window that
completes it, among that window's other batches in shuffled order. So what does not fill a batch is carried into the
next window, a cumulative sum over windows finds any batch, and no plan is longer than the list of shards. Within a
batch, samples are ordered by where they lie (``locality``).

A sample is named by (shard, language, ordinal): the ordinal-th of its language in the shard, by level (``Levels``) and
then by place. Only who reads it opens the shard's row index (``ShardReader.row``).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import DataSettings
from pipeline.data.levels import Level
from pipeline.data.manifest import IndexProblem, Manifest, aligned_counts
from pipeline.data.plan.batches import GroupCount, PlannedBatch, name_of
from pipeline.data.plan.locality import order_of, place_of
from pipeline.data.plan.mixing import hash_of, hashes, shuffled, taken_shares

# What a seed is hashed with, so that no two uses share a shuffle.
ORDER, STREAM, BATCHES, SUBSET, ROUNDING, REPLACEMENT = range(1, 7)
NEAR_REPLACEMENTS = 8  # attempts within the batch's own window, whose shards are open, before going anywhere
STREAMS_KEPT, EPOCHS_KEPT = 64, 2


@dataclass(frozen=True)
class _Epoch:
    order: np.ndarray  # [S] shuffled shards
    begin: np.ndarray  # [S, G] samples that earlier epochs used
    taken: np.ndarray  # [S, G] samples used this epoch
    cumulative: np.ndarray  # [W + 1, G] samples of each group before each window
    batches_before: np.ndarray  # [W + 1] batches completed before each window
    last: list[tuple[int, int]]  # kept last batches: (group, size)

    @property
    def steps(self) -> int:
        return int(self.batches_before[-1]) + len(self.last)


class Plan:
    """The batches of every epoch. Letters: S shards, W windows, G groups, B global batch."""

    def __init__(
        self, manifests: Sequence[Manifest], settings: DataSettings, seed: int, global_batch_size: int
    ) -> None:
        """
        Raises:
            IndexProblem: weights that do not fit the sources, or too few samples for one batch.
        """
        if not manifests:
            raise IndexProblem("data.shards is empty; name at least one folder of shards")
        if global_batch_size < 1:
            raise IndexProblem(f"the global batch size is {global_batch_size}; it must be at least 1")
        self.settings, self.seed, self.batch_size = settings, seed, global_batch_size
        self.patch_budgets, self.levels = manifests[0].patch_budgets, manifests[0].levels
        self._pieces = [(manifest.pieces, manifest.languages) for manifest in manifests]
        self._first_shard = np.cumsum([0] + [len(manifest.shards) for manifest in manifests])
        self.languages, aligned = aligned_counts(manifests)
        by_level = np.concatenate(aligned)  # [S, languages, levels]
        self._level_ends = by_level.cumsum(axis=2, dtype=np.int32)
        used = by_level[..., : self.levels.num_used]  # without clips that are too short, which come last
        self.too_short = int(by_level[..., self.levels.num_used :].sum())
        if not settings.one_budget_per_batch:
            used = used.reshape(*used.shape[:2], -1, len(self.patch_budgets)).sum(3)
        self._per_language = used.shape[2]  # groups
        self._counts = used.reshape(len(used), -1)
        source = np.repeat(np.arange(len(manifests)), np.diff(self._first_shard))
        by_language = np.stack([counts[..., : self.levels.num_used].sum((0, 2)) for counts in aligned])
        self.shares = taken_shares(by_language, self.languages, settings.source_weights, settings.language_weights)
        self._shares = np.repeat(self.shares[source], self._per_language, axis=1)  # [S, G]
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._streams: OrderedDict[tuple, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._steps: list[int] = []
        if not self._epoch(0).steps:
            raise IndexProblem(self._too_small())

    def copy(self) -> Plan:
        """The same plan for another thread, with a memory of its own for what it worked out."""
        other = copy.copy(self)
        other._epochs, other._streams, other._steps = OrderedDict(self._epochs), OrderedDict(), list(self._steps)
        return other

    @property
    def num_shards(self) -> int:
        """Of all sources."""
        return len(self._counts)

    def source_of(self, shard: int) -> tuple[int, int]:
        """The number of the source, and of the shard within it."""
        source = int(np.searchsorted(self._first_shard, shard, side="right")) - 1
        return source, shard - int(self._first_shard[source])

    def shard_number(self, source: int, shard: int) -> int:
        """The number over all sources of a shard of one source."""
        return int(self._first_shard[source]) + shard

    def alive_bytes(self, sizes: np.ndarray, epoch: int = 0) -> float:
        """The most bytes of shards at one time that were begun and will be read again. ``sizes`` [S] of all sources.

        A window is begun when a batch that is given out in it takes samples of it, and done with when the last batch
        that holds a sample of it was given out; rare groups take many windows to fill a batch.
        """
        plan, size = self._epoch(epoch), self.batch_size
        starts = np.arange(0, len(plan.order), self.settings.window_shards)
        per_window = np.add.reduceat(sizes[plan.order].astype(np.float64), starts)
        last = np.arange(len(starts))
        for group in range(plan.cumulative.shape[1]):
            cumulative = plan.cumulative[:, group]
            end = np.minimum(-(-cumulative[1:] // size) * size, cumulative[-1] // size * size)
            done = np.searchsorted(cumulative, end, side="left") - 1  # the window in which that batch is full
            taken = np.diff(cumulative) > 0
            last = np.where(taken, np.maximum(last, done), last)
        change = np.zeros(len(starts) + 1)
        change[:-1] += per_window
        np.subtract.at(change, last + 1, per_window)
        return float(change.cumsum().max())

    def steps_per_epoch(self, epoch: int = 0) -> int:
        return self._epoch(epoch if self._varies else 0).steps

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch and the batch within it of global step ``step``, counted from 0 over all epochs."""
        if not self._varies:
            return divmod(step, self._epoch(0).steps)
        while sum(self._steps) <= step:
            self._steps.append(self._epoch(len(self._steps)).steps)
        ends = np.cumsum(self._steps)
        epoch = int(np.searchsorted(ends, step, side="right"))
        return epoch, step - int(ends[epoch] - self._steps[epoch])

    def batch(self, epoch: int, number: int) -> PlannedBatch:
        """Global batch ``number`` of ``epoch``. Costs about the same wherever it lies."""
        group, first, size, window = self._place_of(epoch, number)
        shards, ordinals = self._entries(epoch, group, first, first + size)
        language, (patch_budget, frames) = self._language_and_level(group, shards, ordinals)
        pieces, places = self.pieces_of(language, shards, ordinals)
        order = order_of(places, shards, ordinals)
        columns = (column[order] for column in (shards, ordinals, pieces, places))
        return PlannedBatch(epoch, number, language, patch_budget, frames, group, first, window, *columns)

    def shape_of(self, epoch: int, number: int) -> tuple[int, Level]:
        """Samples and level of a global batch, without its entries where one budget a batch allows that."""
        group, _, size, _ = self._place_of(epoch, number)
        if not self.settings.one_budget_per_batch:
            batch = self.batch(epoch, number)
            return size, Level(batch.patch_budget, batch.frames)
        return size, self.levels.level(group % self._per_language)

    def _place_of(self, epoch: int, number: int) -> tuple[int, int, int, int]:
        """Group, first position in the group's stream, size and window of a batch."""
        plan = self._epoch(epoch)
        if not 0 <= number < plan.steps:
            raise IndexProblem(f"batch {number} of epoch {epoch} was asked for; the epoch has {plan.steps} batches")
        full = int(plan.batches_before[-1])
        if number >= full:
            group, size = plan.last[number - full]
            first = int(plan.cumulative[-1, group]) // self.batch_size * self.batch_size
            return group, first, size, len(plan.cumulative) - 2
        window = int(np.searchsorted(plan.batches_before, number, side="right")) - 1
        group, index = self._batches_of(epoch, window)[number - int(plan.batches_before[window])]
        return int(group), int(index) * self.batch_size, self.batch_size, window

    def pieces_of(self, language: str, shards: np.ndarray, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The piece of each sample within its shard, and that piece's place."""
        distinct, shard = np.unique(shards, return_inverse=True)
        tables = [self._piece_counts(int(number), language) for number in distinct]  # [pieces, levels] each
        counts = np.concatenate(tables)
        num_pieces = np.array([len(table) for table in tables])
        ends = self._level_ends[distinct, self.languages.index(language)]  # [distinct shards, levels]
        level = (ordinals[:, None] >= ends[shard]).sum(1)
        first_piece = np.cumsum(num_pieces) - num_pieces
        pieces = np.zeros(len(shards), dtype=np.int64)
        for number in np.unique(level):
            of_it = np.flatnonzero(level == number)
            before = np.concatenate([[0], np.cumsum(counts[:, number])])
            own = ordinals[of_it] - (ends[shard[of_it], number - 1] if number else 0)
            found = np.searchsorted(before, before[first_piece[shard[of_it]]] + own, side="right") - 1
            pieces[of_it] = found - first_piece[shard[of_it]]
        return pieces, place_of(shards, pieces, num_pieces[shard])

    def _piece_counts(self, shard: int, language: str) -> np.ndarray:
        source, number = self.source_of(shard)
        table, languages = self._pieces[source]
        rows = slice(table.first[number], table.first[number + 1])
        counts = table.counts[rows, languages.index(language)].astype(np.int64)
        if not np.array_equal(counts.sum(0).cumsum(), self._level_ends[shard, self.languages.index(language)]):
            raise IndexProblem(
                f"the pieces of shard {number} of source {source} do not add up to its samples; make the manifest "
                "again with `python -m data_tools index`"
            )
        return counts

    def replacement(self, batch: PlannedBatch, slot: int, attempt: int) -> tuple[int, int]:
        """``(shard, ordinal)`` that stands in for entry ``slot`` when it, and earlier attempts, cannot be read.

        A sample of the same group that is not in the batch, from the batch's window at first; it depends on the
        batch and the slot and on nothing of ranks or workers. It may be met a second time in its own place.
        """
        plan, group, size = self._epoch(batch.epoch), batch.group, len(batch)
        near = attempt < NEAR_REPLACEMENTS
        low, high = (batch.window, batch.window + 1) if near else (0, -1)
        low, high = int(plan.cumulative[low, group]), int(plan.cumulative[high, group])
        draw = hash_of(self.seed, REPLACEMENT, batch.epoch, batch.number)
        # Neighbouring slots take neighbouring places of a shuffled stream, so two faults never take one sample.
        draw = draw + slot + attempt * size if near else hash_of(draw, slot, attempt)
        own_low, own_high = max(low, batch.first), min(high, batch.first + size)
        own = max(0, own_high - own_low)
        if high - low > own:
            position = low + draw % (high - low - own)
            position += own if own and position >= own_low else 0
        else:  # the batch holds every sample there is
            position = batch.first + (slot + 1 + attempt) % size
        shards, ordinals = self._entries(batch.epoch, group, position, position + 1)
        return int(shards[0]), int(ordinals[0])

    def group_counts(self, epoch: int = 0) -> list[GroupCount]:
        """Of each group, also of those without samples."""
        rows = []
        for group, total in enumerate(self._epoch(epoch).cumulative[-1]):
            language, number = divmod(group, self._per_language)
            full, rest = divmod(int(total), self.batch_size)
            if self.settings.one_budget_per_batch:
                budget, frames = self.levels.level(number)
                rows.append(GroupCount(self.languages[language], budget, int(total), full, rest, frames))
            else:
                frames = self.levels.frames_of_block(number)
                rows.append(GroupCount(self.languages[language], None, int(total), full, rest, frames))
        return rows

    @property
    def _varies(self) -> bool:
        """Thinned groups differ by single samples from epoch to epoch, so step counts may."""
        return bool((self.shares[self.shares > 0] < 1).any())

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = self._make_epoch(epoch)
            while len(self._epochs) > EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _make_epoch(self, epoch: int) -> _Epoch:
        order = shuffled(hash_of(self.seed, ORDER, epoch), len(self._counts))
        begin, end = self._taken_until(epoch), self._taken_until(epoch + 1)
        taken = (end - begin).astype(np.int32)
        starts = np.arange(0, len(order), self.settings.window_shards)
        per_window = np.add.reduceat(taken[order], starts, axis=0, dtype=np.int64)
        cumulative = np.concatenate([np.zeros((1, taken.shape[1]), np.int64), per_window.cumsum(0)])
        last = []
        if self.settings.keep_last_batch:
            multiple = self.settings.last_batch_multiple
            rests = (cumulative[-1] % self.batch_size) // multiple * multiple
            last = [(group, int(rest)) for group, rest in enumerate(rests) if rest]
        return _Epoch(order, begin, taken, cumulative, (cumulative // self.batch_size).sum(1), last)

    def _taken_until(self, epoch: int) -> np.ndarray:
        """[S, G] samples that the epochs before ``epoch`` took in all; differences are one epoch's.

        Thinned groups go round their samples, so that over the epochs all are met equally often.
        """
        start = hashes(hash_of(self.seed, ROUNDING), self._counts.size).reshape(self._counts.shape)
        thinned = np.floor(self._counts * self._shares * epoch + (start >> np.uint64(11)) * 2.0**-53)
        return np.where(self._shares == 1, self._counts.astype(np.int64) * epoch, thinned.astype(np.int64))

    def _batches_of(self, epoch: int, window: int) -> list[tuple[int, int]]:
        done, completed = self._epoch(epoch).cumulative[window : window + 2] // self.batch_size
        pairs = [(group, index) for group in range(len(done)) for index in range(done[group], completed[group])]
        return [pairs[i] for i in shuffled(hash_of(self.seed, BATCHES, epoch, window), len(pairs))]

    def _entries(self, epoch: int, group: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        cumulative = self._epoch(epoch).cumulative[:, group]
        low = int(np.searchsorted(cumulative, first, side="right")) - 1
        parts = []
        for window in range(low, int(np.searchsorted(cumulative, end, side="left"))):
            begin, stop = int(cumulative[window]), int(cumulative[window + 1])
            if stop > begin:
                shards, ordinals = self._stream(epoch, window, group)
                part = slice(max(first, begin) - begin, min(end, stop) - begin)
                parts.append((shards[part], ordinals[part]))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _stream(self, epoch: int, window: int, group: int) -> tuple[np.ndarray, np.ndarray]:
        """One window's samples of a group, shuffled: shards and ordinals."""
        key = (epoch, window, group)
        if key in self._streams:
            self._streams.move_to_end(key)
            return self._streams[key]
        plan, width = self._epoch(epoch), self.settings.window_shards
        shards = plan.order[window * width : (window + 1) * width]
        taken = plan.taken[shards, group]
        ordinals = np.concatenate(
            [self._rows(epoch, int(s), group, int(n)) for s, n in zip(shards, taken, strict=True)]
        )
        order = shuffled(hash_of(self.seed, STREAM, epoch, window, group), len(ordinals))
        self._streams[key] = np.repeat(shards, taken)[order], ordinals[order]
        while len(self._streams) > STREAMS_KEPT:
            self._streams.popitem(last=False)
        return self._streams[key]

    def _rows(self, epoch: int, shard: int, group: int, taken: int) -> np.ndarray:
        """Ordinals of the samples that this epoch takes of a shard's group, [taken]."""
        total = int(self._counts[shard, group])
        rows = np.arange(taken, dtype=np.int64)
        if taken < total or self._shares[shard, group] < 1:
            start = int(self._epoch(epoch).begin[shard, group])
            rows = shuffled(hash_of(self.seed, SUBSET, shard, group), total)[(start + rows) % max(total, 1)]
        return rows + self._first_ordinal(shard, group)

    def _first_ordinal(self, shard: int, group: int) -> int:
        language, number = divmod(group, self._per_language)
        if not self.settings.one_budget_per_batch:
            number *= len(self.patch_budgets)
        return int(self._level_ends[shard, language, number - 1]) if number else 0

    def _language_and_level(self, group: int, shards: np.ndarray, ordinals: np.ndarray) -> tuple[str, Level]:
        language, number = divmod(group, self._per_language)
        if not self.settings.one_budget_per_batch:  # the highest budget that is there; levels of a group are neighbours
            number = int((ordinals[:, None] >= self._level_ends[shards, language]).sum(1).max())
        return self.languages[language], self.levels.level(number)

    def _too_small(self) -> str:
        largest = max(self.group_counts(), key=lambda row: row.samples)
        return (
            f"no batch of {self.batch_size} can be filled: the largest group is {name_of(largest)} with "
            f"{largest.samples} samples{self._over()}; lower train.global_batch_size, "
            "or set data.keep_last_batch or data.one_budget_per_batch=false"
        )

    def _over(self) -> str:
        if not self.too_short:
            return ""
        return f", and {self.too_short} clips have less than {min(self.levels.clip_frames)} frames (data.clip_frames)"
