"""What training asks of a loader, whatever it reads from, and what a loader is made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pipeline.config import DataSettings
from pipeline.data.batch import Batch
from pipeline.data.collate import Collator
from pipeline.data.faults import check_share
from pipeline.data.micro_batches import Unit
from pipeline.data.slices import Division
from pipeline.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reading:
    """What one rank reads.

    Args:
        text_lengths: tokens of short (and region) texts, and of long ones.
        division: how a global batch is divided among ranks and micro-batches.
        start_step: the global optimizer step whose batch comes first.
        of_negatives: losses that have members only where regions have negatives, with their weights.
        local_world_size: ranks on this machine, neighbours among all; None: ``rank`` is alone there.
    """

    settings: DataSettings
    tokenizer: Tokenizer
    text_lengths: tuple[int, int]
    seed: int
    global_batch_size: int
    rank: int = 0
    division: Division = Division()
    start_step: int = 0
    with_regions: bool = False
    of_negatives: Mapping[str, float] | None = None
    local_world_size: int | None = None


def make_collator(reading: Reading) -> Collator:
    """Makes batches of a rank's samples."""
    return Collator(reading.settings, reading.tokenizer, reading.text_lengths, reading.seed, reading.with_regions)


class Loader(ABC):
    """Iterates over a rank's micro-batches, in order, without end; close it, or use it as a context.

    Made by ``loader.make_loader``. What differs by source is abstract here: where the next micro-batch comes from.
    """

    def __init__(self, settings: DataSettings, first: Unit) -> None:
        self._settings, self._next = settings, first
        self._faults: Counter[str] = Counter()
        self._samples = 0

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upcoming(self) -> Unit:
        """Which micro-batch the next call of ``next`` gives; without reading it."""
        return self._next

    def __next__(self) -> Batch:
        """This rank's next micro-batch, which may be empty.

        Raises:
            DataFaultLimit: no sample can be used, or more are faulty than ``max_fault_share`` allows.
            StoreUnavailable: a remote store was away for longer than ``store_patience_seconds``.
            OSError, ValueError: a worker met one; its message is one line.
        """
        batch = self._take()
        following = self._next.part + 1 < self._next.parts
        self._next = self._next._replace(part=self._next.part + 1) if following else self._first(self._next.step + 1)
        self._samples += len(batch)
        self._faults.update(batch.replaced)
        check_share(self._faults, self._samples, self._settings)
        return batch

    def fault_counts(self) -> dict[str, int]:
        """Faults met by this loader since it was made, by kind."""
        return dict(self._faults)

    def samples_seen(self) -> int:
        """Samples that this rank was given since the loader was made."""
        return self._samples

    @abstractmethod
    def _take(self) -> Batch:
        """The micro-batch that ``upcoming`` names."""

    @abstractmethod
    def _first(self, step: int) -> Unit:
        """The first micro-batch of a step."""

    @abstractmethod
    def steps_per_epoch(self, epoch: int = 0) -> int:
        """The same on every rank."""

    @abstractmethod
    def regions_per_sample(self) -> float:
        """The mean number of regions that are read of a sample, or its upper bound where nobody has counted."""

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """Decoding processes of this rank; 0: this process decodes."""

    @property
    @abstractmethod
    def num_buffers(self) -> int:
        """Micro-batches that are in host memory at most, over all workers."""

    @abstractmethod
    def buffer_bytes(self, patch_budget: int) -> int:
        """Host memory that decoded batches take at most while they are of ``patch_budget``, over all workers."""

    def plan_notes(self) -> list[str]:
        """Lines for people about samples that no batch would hold."""
        return []

    def store_counts(self) -> dict[str, float]:
        """Requests, bytes and retries of this rank's processes at remote stores, where they are counted."""
        return {}

    def waits_for(self) -> str | None:
        """The remote store that a call of ``next`` waits for, for people; None: for none. Asked by another thread."""
        return None

    @abstractmethod
    def close(self) -> None:
        """End the workers and what reads ahead."""
