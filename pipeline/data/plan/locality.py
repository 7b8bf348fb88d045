"""The order of a global batch: by where its samples lie, so that a rank's slice comes from few pieces of few shards.

Every piece of every shard has a *place*, a fixed number in 0 … 1. The pieces of a shard are spread evenly over it, from
a start that differs from shard to shard (multiples of the golden ratio), so any group of samples is spread evenly, too.
A batch is ordered by place; then rank r of R, whose slice begins at r / R of the batch, always reads the pieces whose
places are about r / R, and a node of ranks reads about its own share of every shard and nothing else.

How many samples a batch has near a place is left to chance, and small differences would add up along the batch. So the
batch is cut into bins of equal size: what a bin has too many of fills what others have too few of. These few samples
are read by another node than the rest of their piece. The bins are a function of the batch's size alone, so the order
is the same for any number of ranks.

Letters: B samples of the batch, Q pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipeline.data.plan.mixing import GAMMA, MASK

MOST_BINS = 1024
SMALLEST_BIN = 64  # samples; of 64 that belong to a bin by chance about 5 % find it full, of fewer still more


def place_of(shard: np.ndarray, piece: np.ndarray, num_pieces: np.ndarray) -> np.ndarray:
    """Places as 64-bit fractions, uint64: of piece ``piece`` out of ``num_pieces`` of a shard. Exact everywhere."""
    with np.errstate(over="ignore"):
        start = shard.astype(np.uint64) * np.uint64(GAMMA & MASK)
        step = np.uint64(MASK) // num_pieces.astype(np.uint64)
        return start + piece.astype(np.uint64) * step


@lru_cache(maxsize=64)
def num_bins(size: int) -> int:
    """Bins of a batch: the divisor of its size with the most divisors, so that they fit most numbers of nodes."""
    most = max(1, min(MOST_BINS, size // SMALLEST_BIN))
    candidates = [number for number in range(1, most + 1) if size % number == 0]
    return max(candidates, key=lambda number: (sum(number % d == 0 for d in range(1, number + 1)), number))


def bin_of(place: np.ndarray, size: int) -> np.ndarray:
    """The bin that each place belongs to in a batch of ``size`` samples, int64."""
    bins = np.uint64(num_bins(size))
    return (((place >> np.uint64(32)) * bins) >> np.uint64(32)).astype(np.int64)


def order_of(place: np.ndarray, shard: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
    """The samples of a batch in the order in which ranks read them: positions [B]."""
    size = len(place)
    by_place = np.lexsort((ordinal, shard, place))
    home = bin_of(place[by_place], size)
    capacity = size // num_bins(size)
    counts = np.bincount(home, minlength=num_bins(size))
    in_bin = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
    over = in_bin >= capacity
    final = home.copy()
    # In order of place both: what is too much goes to the next bins that lack something, mostly near ones.
    final[over] = np.repeat(np.arange(len(counts)), np.maximum(capacity - counts, 0))
    return by_place[np.argsort(final, kind="stable")]


def is_home(place: np.ndarray, size: int, slices: Sequence[slice]) -> np.ndarray:
    """Whether batches of ``size`` keep the samples of these places in ``slices``, what one node reads: [Q] bool."""
    capacity = size // num_bins(size)
    mine = np.zeros(num_bins(size), dtype=bool)
    for part in slices:
        mine[part.start // capacity : -(-part.stop // capacity)] = True
    return mine[bin_of(place, size)]
