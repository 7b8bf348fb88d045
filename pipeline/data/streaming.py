"""Training straight from anybody's WebDataset tars, without an index.

For a start before an index is made, and for tars that nobody may rewrite.

``data.streaming=true`` reads ``data.shards`` (folders of tars, files, URLs that fsspec opens, ``pipe:`` commands, with
braces as in ``part-{000..099}.tar``) through the webdataset package: shards are split by rank and worker and repeated
without end, samples pass a shuffle buffer and fall into buckets of one language and one patch budget, and a full bucket
is a micro-batch. So every rank always has a next batch, and a run ends after its planned steps on all ranks together.

What an index gives is given up, and a line at the start says so: no exact resume (another order begins), no exact
epochs (``data.streaming_epoch_samples`` stands for their length), no mixing by weights, and the ranks' micro-batches of
one step may be of different languages and budgets. Faults have the names that they have elsewhere; a damaged tar is
left at the place of the damage and met again in the next round.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import webdataset
from torch.utils.data import DataLoader

from pipeline.base.border import shown
from pipeline.base.ranks import loader_workers
from pipeline.data.batch import Batch
from pipeline.data.micro_batches import Unit
from pipeline.data.patches import PATCH_VALUES
from pipeline.data.rank_loader import Loader, Reading
from pipeline.data.shard_index import IndexProblem
from pipeline.data.tar_stream import TarStream
from pipeline.data.workers import Failed, prepare_worker

NOTICE = (
    "data.streaming: no index is used, so the order is not resumed, epochs are not exact, weights do not apply and a "
    "step's ranks may read different languages and patch budgets; `python -m data_tools index` gives all of that"
)
log = logging.getLogger(__name__)


class StreamingLoader(Loader):
    """Micro-batches of tars without an index."""

    def __init__(self, stream: TarStream, num_workers: int, steps_per_epoch: int, first: Unit) -> None:
        super().__init__(stream.settings, first)
        self._stream, self._workers, self._steps = stream, num_workers, steps_per_epoch
        self._iterator: Iterator[Batch | Failed] | None = None

    def _take(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(self._torch_loader())
        batch = next(self._iterator)
        if isinstance(batch, Failed):
            raise batch.error(batch.message)
        return batch

    def _first(self, step: int) -> Unit:
        return self._next._replace(step=step, part=0)

    @property
    def num_workers(self) -> int:
        return self._workers

    @property
    def num_buffers(self) -> int:
        return self._workers * self._settings.prefetch_batches

    def regions_per_sample(self) -> float:
        """At most; nobody has counted the tars."""
        return float(self._settings.max_regions_per_image)

    def buffer_bytes(self, patch_budget: int) -> int:
        return self.num_buffers * self._stream.micro_batch_size * patch_budget * PATCH_VALUES

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Of ``streaming_epoch_samples``, the same for every epoch and rank."""
        return self._steps

    def close(self) -> None:
        self._iterator = None

    def _torch_loader(self) -> DataLoader:
        return DataLoader(
            self._stream,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=self._settings.prefetch_batches if self._workers else None,
            multiprocessing_context="fork" if self._workers else None,
            worker_init_fn=prepare_worker,
        )


def make_streaming_loader(reading: Reading) -> StreamingLoader:
    """The micro-batches of a rank out of tars without an index.

    Raises:
        IndexProblem: no shard is named, or a folder that holds none, or a global batch that does not divide.
    """
    settings, size, world_size = reading.settings, reading.global_batch_size, reading.division.world_size
    parts = reading.division.most_parts(size, settings.patch_budgets)
    micro_batch_size, rest = divmod(size, world_size * parts)
    if rest or not micro_batch_size:
        raise IndexProblem(
            f"train.global_batch_size is {size}; with data.streaming it must be a multiple of ranks times "
            f"micro-batches ({world_size} x {parts}); change train.global_batch_size, train.micro_batch_size or "
            "train.accumulation_steps, or index the shards"
        )
    urls = expand(settings.shards)
    workers = loader_workers(settings.num_workers, reading.local_world_size or 1)
    if reading.rank == 0:
        log.warning("%s", NOTICE)
        if len(urls) < world_size * max(workers, 1):
            log.warning(
                "data.streaming: %d shards for %d ranks x %d workers are too few to split; all read all of them, each "
                "in its own order", len(urls), world_size, max(workers, 1),
            )  # fmt: skip
    steps = max(1, settings.streaming_epoch_samples // size)
    return StreamingLoader(
        TarStream(urls, reading, micro_batch_size), workers, steps, Unit(reading.start_step, 0, parts, size)
    )


def expand(shards: Iterable[str]) -> list[str]:
    """The tars of folders, files and URLs with braces, in order. Raises ``IndexProblem`` where there is none."""
    urls: list[str] = []
    for name in shards:
        if "://" not in name and not name.startswith("pipe:") and Path(name).is_dir():
            found = sorted(str(path) for path in Path(name).glob("*.tar"))
            if not found:
                raise IndexProblem(f"shard folder {name} holds no .tar file; name a folder or pattern of tars")
            urls += found
        else:
            urls += webdataset.shardlists.expand_urls(name)
    for url in urls:
        if "://" not in url and not url.startswith("pipe:") and not Path(url).is_file():
            raise IndexProblem(f"shard {shown(url)} does not exist; give existing tars in data.shards")
    if not urls:
        raise IndexProblem("data.shards is empty; name at least one tar, folder or URL")
    return urls
