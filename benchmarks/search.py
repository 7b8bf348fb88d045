"""How long the explorer's exact search takes over many embeddings, after the query is embedded."""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.explore.index import ExactIndex

NUM_QUERIES = 20
SHOWN = 12


def milliseconds(num_images: int, width: int) -> list[float]:
    """Of each of :data:`NUM_QUERIES` searches, the first of which only warms up."""
    draws = np.random.default_rng(0)
    vectors = draws.standard_normal((num_images, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = ExactIndex(vectors)
    found = []
    for query in vectors[: NUM_QUERIES + 1]:
        begun = time.perf_counter()
        index.search(query, SHOWN)
        found.append(1000 * (time.perf_counter() - begun))
    return found[1:]


def main(argv: list[str] | None = None) -> int:
    example = "  python -m benchmarks.search --images 100000 1000000"
    parser = benchmark_parser("benchmarks.search", __doc__ or "", example)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 300_000], help="sizes of the index")
    parser.add_argument("--width", type=int, default=768, help="numbers of an embedding (default: 768)")
    arguments = parser.parse_args(argv)
    rows = []
    for count in arguments.images:
        found = milliseconds(count, arguments.width)
        rows.append(Row(f"{count:,} images, median", statistics.median(found), "ms"))
        rows.append(Row(f"{count:,} images, slowest of {NUM_QUERIES}", max(found), "ms"))
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
