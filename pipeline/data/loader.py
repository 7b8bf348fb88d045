"""One way to a rank's batches: by the index beside the shards, or streamed from tars that have none."""

from __future__ import annotations

from pipeline.data.indexed import make_indexed_loader
from pipeline.data.rank_loader import Loader, Reading
from pipeline.data.streaming import make_streaming_loader

__all__ = ["Loader", "Reading", "make_loader"]


def make_loader(reading: Reading) -> Loader:
    """The micro-batches of a rank, in order, from the global optimizer step ``reading.start_step`` on.

    Raises:
        IndexProblem: shards, index, weights or batch sizes that do not fit, each with its remedy.
    """
    return make_streaming_loader(reading) if reading.settings.streaming else make_indexed_loader(reading)
