"""How long the explorer's search takes over many embeddings, after the query is embedded, and what it misses.

The embeddings are made up: groups of a hundred that are alike (a cosine of about 0.8), as photographs of one thing are.
``found`` is the share of the twelve nearest that the index of clusters finds, against the exact search.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.explore.index import ClusteredIndex, ExactIndex, Index

NUM_QUERIES = 20
SHOWN = 12
GROUP = 100  # embeddings that are alike
SPREAD = 0.5  # of a member around its group's centre, as a share of the centre's length
CHUNK = 10_000


def embeddings(count: int, width: int) -> np.ndarray:
    """Unit vectors [count, width] in groups, in no order."""
    draws = np.random.default_rng(0)
    centres = draws.standard_normal((max(1, count // GROUP), width), dtype=np.float32)
    vectors = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, CHUNK):
        rows = slice(start, min(start + CHUNK, count))
        length = rows.stop - rows.start
        chosen = centres[draws.integers(len(centres), size=length)]
        part = chosen + SPREAD * draws.standard_normal((length, width), dtype=np.float32)
        vectors[rows] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def searched(index: Index, queries: np.ndarray) -> tuple[list[float], list[set[int]]]:
    """Milliseconds of each search but the first, which only warms up, and the rows that were found."""
    times, rows = [], []
    for query in queries:
        begun = time.perf_counter()
        found = index.search(query, SHOWN)
        times.append(1000 * (time.perf_counter() - begun))
        rows.append({one.row for one in found})
    return times[1:], rows[1:]


def measured(count: int, width: int) -> Iterator[Row]:
    vectors = embeddings(count, width)
    queries = vectors[: NUM_QUERIES + 1] + 0.3 * np.roll(vectors[: NUM_QUERIES + 1], 1, axis=0)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    times, exact = searched(ExactIndex(vectors), queries)
    yield Row(f"exact_{count}_median", statistics.median(times), "ms")
    yield Row(f"exact_{count}_slowest", max(times), "ms")
    begun = time.perf_counter()
    clustered = ClusteredIndex(vectors)
    yield Row(f"clusters_{count}_made_in", time.perf_counter() - begun, "s")
    near, found = searched(clustered, queries)
    yield Row(f"clusters_{count}_median", statistics.median(near), "ms", statistics.median(times))
    yield Row(f"clusters_{count}_slowest", max(near), "ms", max(times))
    right = sum(len(a & b) for a, b in zip(exact, found, strict=True))
    yield Row(f"clusters_{count}_found", right, f"of the nearest {SHOWN} of {NUM_QUERIES}", SHOWN * NUM_QUERIES)


def main(argv: list[str] | None = None) -> int:
    example = "  python -m benchmarks.search --images 100000 1000000"
    parser = benchmark_parser("benchmarks.search", __doc__ or "", example)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes of the index")
    parser.add_argument("--width", type=int, default=768, help="numbers of an embedding (default: 768)")
    arguments = parser.parse_args(argv)
    rows = [row for count in arguments.images for row in measured(count, arguments.width)]
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
