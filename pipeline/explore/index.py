"""The embeddings nearest to a query: all of them compared, or, where they are many, those of the nearest clusters.

The exact search never misses a neighbour, and its time is that of reading the vectors once: 0.3 GB at 100,000 images of
width 768. Beyond :data:`EXACT_ROWS` faiss keeps the vectors in clusters, in half precision, and reads a few of them.
``python -m benchmarks.search`` measures both, and what the second misses.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

log = logging.getLogger(__name__)
EXACT_ROWS = 150_000  # searched in about 50 ms by one core
PROBES = 32  # clusters read for a query
TRAINING_ROWS = 64  # a cluster; faiss advises 39 to 256
ROUNDS = 10  # of k-means


@dataclass(frozen=True)
class Found:
    """A row of the index and its cosine with the query."""

    row: int
    score: float


class Index(Protocol):
    """Vectors [N, D] of unit norm, float32."""

    def search(self, query: np.ndarray, count: int) -> list[Found]:
        """The ``count`` rows nearest to ``query`` [D], nearest first."""
        ...


class ExactIndex:
    """Every vector is compared; equal ones come in the order of their rows."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)

    def search(self, query: np.ndarray, count: int) -> list[Found]:
        scores = self.vectors @ np.asarray(query, dtype=np.float32)
        count = min(count, len(scores))
        if not count:
            return []
        top = np.argpartition(-scores, count - 1)[:count]
        ordered = top[np.lexsort((top, -scores[top]))]
        return [Found(int(row), float(scores[row])) for row in ordered]


class ClusteredIndex:
    """faiss's inverted lists: about as many clusters as the root of N, of which :data:`PROBES` are compared."""

    def __init__(self, vectors: np.ndarray) -> None:
        import faiss  # an extra

        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        clusters, width = max(1, math.isqrt(len(vectors))), vectors.shape[1]
        centres = faiss.IndexFlatIP(width)
        self._index = faiss.IndexIVFScalarQuantizer(
            centres, width, clusters, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        self._centres = centres  # faiss keeps a bare pointer to it
        self._index.cp.niter, self._index.cp.max_points_per_centroid = ROUNDS, TRAINING_ROWS
        self._index.nprobe = min(PROBES, clusters)
        self._index.train(vectors)
        self._index.add(vectors)

    def search(self, query: np.ndarray, count: int) -> list[Found]:
        scores, rows = self._index.search(np.asarray(query, dtype=np.float32)[None], count)
        return [Found(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True) if row >= 0]


def make_index(vectors: np.ndarray) -> Index:
    """The exact one as long as it answers at once, or where faiss is not installed."""
    if len(vectors) <= EXACT_ROWS:
        return ExactIndex(vectors)
    if importlib.util.find_spec("faiss") is None:
        log.warning(
            "%d embeddings are searched one by one, which takes a while; pip install 'fine-grained-vlm[explore]' for "
            "an index of clusters", len(vectors),
        )  # fmt: skip
        return ExactIndex(vectors)
    return ClusteredIndex(vectors)
