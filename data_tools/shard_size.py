"""How many samples go into one shard: by number and by bytes, the same for every run over the same input.

Cuts are made before any sample is read, from sizes that the file system or the table's header knows, because shards are
shared out among workers by name. So a shard of a source is about as large as it is told to be, not exactly; it never
depends on the number of workers. ``shards.ShardWriter``, which sees the bytes, keeps to them exactly.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

MAX_SAMPLES_PER_SHARD = 10_000
FEW_SHARDS = 16  # shards are shared out among workers and shuffled in windows of data.window_shards
SAMPLES_OF_FEW_SHARDS = 1000  # where the default makes fewer than FEW_SHARDS, they are smaller, down to this
GIGABYTES_PER_SHARD = 1.0
PROBES = 200  # files whose size is looked at where a mean is enough


@dataclass(frozen=True)
class ShardSize:
    """Limits of a shard. ``samples`` None: 10,000, or fewer where that makes fewer than 16 shards, at least 1,000."""

    samples: int | None = None
    gigabytes: float = GIGABYTES_PER_SHARD

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a limit that no sample keeps.
        """
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"--samples-per-shard is {self.samples}; it must be at least 1")
        if not self.gigabytes > 0:
            raise ValueError(f"--gigabytes-per-shard is {self.gigabytes:g}; it must be above 0")

    def most_samples(self, total: int, mean_bytes: float = 0.0) -> int:
        """Samples of a shard at most, of ``total`` that have about ``mean_bytes`` each; at least one."""
        by_bytes = int(self.gigabytes * 1e9 / mean_bytes) if mean_bytes > 0 else MAX_SAMPLES_PER_SHARD
        if self.samples is not None:
            return max(1, min(self.samples, by_bytes if mean_bytes > 0 else self.samples))
        wanted = max(SAMPLES_OF_FEW_SHARDS, -(-total // FEW_SHARDS))
        return max(1, min(MAX_SAMPLES_PER_SHARD, wanted, by_bytes))

    def cut(self, sizes: Sequence[int]) -> list[slice]:
        """Neighbouring samples of ``sizes`` bytes, shard by shard: as many as both limits allow, at least one."""
        most_samples, most_bytes = self.most_samples(len(sizes)), self.gigabytes * 1e9
        cuts, held = [0], 0
        for number, size in enumerate(sizes):
            if number > cuts[-1] and (number - cuts[-1] == most_samples or held + size > most_bytes):
                cuts.append(number)
                held = 0
            held += size
        return [slice(low, high) for low, high in itertools.pairwise([*cuts, len(sizes)])] if sizes else []


def mean_of(sizes: Iterable[int | None]) -> float:
    """The mean of those that are known; 0 where none is."""
    known = [size for size in sizes if size is not None]
    return sum(known) / len(known) if known else 0.0


def probes(count: int) -> Iterator[int]:
    """At most ``PROBES`` numbers below ``count``, evenly spread, always the same."""
    return iter(range(0, count, max(1, -(-count // PROBES))))


def add_shard_size_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ShardSize`."""
    parser.add_argument(
        "--samples-per-shard",
        type=int,
        metavar="N",
        help=f"at most (default: {MAX_SAMPLES_PER_SHARD:,}; of a small set fewer, so that it has {FEW_SHARDS} shards)",
    )
    parser.add_argument(
        "--gigabytes-per-shard",
        type=float,
        default=GIGABYTES_PER_SHARD,
        metavar="GB",
        help="of images, about (default: %(default)g)",
    )


def shard_size(arguments: argparse.Namespace) -> ShardSize:
    """The parsed options as a record. Raises ``ValueError`` as `ShardSize`."""
    return ShardSize(arguments.samples_per_shard, arguments.gigabytes_per_shard)
