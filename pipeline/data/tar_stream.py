"""Micro-batches out of a stream of tars, through the webdataset package. ``streaming.py`` makes a loader of it."""

from __future__ import annotations

import logging
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
import webdataset
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.base.border import one_line, shown
from pipeline.data.batch import Batch
from pipeline.data.collate import PixelBuffer
from pipeline.data.faults import DataFaultLimit
from pipeline.data.foreign import record_of
from pipeline.data.images import ImageFault
from pipeline.data.patches import PATCH_VALUES
from pipeline.data.rank_loader import Reading, make_collator
from pipeline.data.resolution import level_of
from pipeline.data.schema import Sample, SampleError
from pipeline.data.workers import KNOWN, Failed, failed

# What webdataset raises for a tar that is none, is cut, or whose source breaks off.
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError)
MAX_READS_AFTER_END = 16  # a sound tar is asked once or twice
log = logging.getLogger(__name__)


@dataclass
class _Tally:
    """What a worker has met. ``produced``: samples in this round over its shards."""

    faults: Counter[str] = field(default_factory=Counter)
    produced: int = 0

    def report(self, kind: str, where: str, message: str) -> None:
        self.faults[kind] += 1
        log.warning("%s: %s: %s", shown(where), kind, message)


class TarStream(IterableDataset):
    """Micro-batches of one rank, without end."""

    def __init__(self, urls: list[str], reading: Reading, micro_batch_size: int) -> None:
        self.urls, self.reading, self.micro_batch_size = urls, reading, micro_batch_size
        self.settings, self.collator = reading.settings, make_collator(reading)

    def __iter__(self) -> Iterator[Batch | Failed]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        tally = _Tally()
        reading = self.reading
        draws = random.Random(f"{reading.seed}/{reading.start_step}/{reading.rank}/{number}")
        stages: list[Any] = [
            lambda: self._shards(number, count, tally, draws),
            lambda sources: _opened(sources, tally),
            lambda sources: webdataset.tariterators.tar_file_expander(sources, handler=_handler(tally)),
            lambda files: webdataset.tariterators.group_by_keys(files, handler=_handler(tally)),
            lambda samples: self._records(samples, tally),
            webdataset.shuffle(self.settings.streaming_shuffle_samples, initial=1, rng=draws),
            lambda records: self._batches(records, tally),
        ]
        try:
            yield from webdataset.DataPipeline(*stages)
        except KNOWN as error:
            yield failed(error)

    def _shards(self, worker: int, workers: int, tally: _Tally, draws: random.Random) -> Iterator[dict[str, str]]:
        """This worker's shards, round after round, each in another order."""
        readers = self.reading.division.world_size * workers
        mine = self.urls[self.reading.rank * workers + worker :: readers]
        split = len(self.urls) >= readers
        while True:
            tally.produced = 0
            order = list(mine if split else self.urls)  # too few to split: everybody reads all, in another order
            draws.shuffle(order)
            yield from ({"url": url} for url in order)
            if not tally.produced:
                faults = ", ".join(f"{kind} {count}" for kind, count in tally.faults.most_common())
                raise DataFaultLimit(
                    f"not one usable sample in {len(order)} shards ({faults or 'they are empty'}; the first: "
                    f"{shown(order[0])}); give other shards, or convert them: `python -m data_tools build webdataset`"
                )

    def _records(self, samples: Iterable[dict[str, Any]], tally: _Tally) -> Iterator[tuple[str, bytes, Sample]]:
        for members in samples:
            key, where = str(members["__key__"]), f"{members.get('__url__', '?')}: {members['__key__']}"
            try:
                image, sample = record_of(key, members, self.settings)
            except (SampleError, ImageFault) as error:
                tally.report(error.kind, where, one_line(error))
                continue
            tally.produced += 1
            yield key, image, sample

    def _batches(self, records: Iterable[tuple[str, bytes, Sample]], tally: _Tally) -> Iterator[Batch]:
        buckets: dict[tuple[str, int], list[tuple[str, bytes, Sample]]] = {}
        for key, image, sample in records:
            name = sample.language, level_of(sample.width, sample.height, self.settings.patch_budgets)
            bucket = buckets.setdefault(name, [])
            bucket.append((key, image, sample))
            if len(bucket) == self.micro_batch_size:
                batch = self._batch(bucket, name[1], tally)
                if batch is not None:
                    yield batch
                    bucket.clear()

    def _batch(self, bucket: list[tuple[str, bytes, Sample]], patch_budget: int, tally: _Tally) -> Batch | None:
        """The batch of a full bucket; None if an image does not decode, which then has left the bucket."""
        values = torch.empty((len(bucket), patch_budget, PATCH_VALUES), dtype=torch.uint8)
        pixels = PixelBuffer(values, self.settings)
        broken = []
        for slot, (key, image, sample) in enumerate(bucket):
            try:
                pixels.put(slot, image, sample.width, sample.height)
            except ImageFault as error:
                tally.report(error.kind, key, one_line(error))
                broken.append(slot)
        if broken:
            for slot in reversed(broken):
                del bucket[slot]
            return None
        faults, tally.faults = dict(tally.faults), Counter()
        samples = [sample for *_, sample in bucket]
        return self.collator(pixels, [key for key, *_ in bucket], samples, 0, samples[0].language, faults)


def _opened(sources: Iterable[dict[str, str]], tally: _Tally) -> Iterator[dict[str, Any]]:
    """Each shard with its stream: fsspec for URLs, webdataset's own opener for files and ``pipe:``."""
    for source in sources:
        url = source["url"]
        try:
            stream: BinaryIO = _open(url)
        except TAR_ERRORS as error:
            tally.report("missing_shard", url, one_line(error))
            continue
        with stream:
            yield {"url": url, "stream": _Ending(stream)}


class _Ending:
    """A stream that says so when it is asked for more after its end, again and again.

    A damaged header may promise 2^80 bytes, and tarfile would ask for them block by block until the end of days.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._asked = stream, 0

    def read(self, size: int = -1) -> bytes:
        """As a file. Raises ``tarfile.ReadError`` for the reader of a tar that believes such a header."""
        data = self._stream.read(size)
        self._asked = 0 if data else self._asked + 1
        if self._asked > MAX_READS_AFTER_END:
            raise tarfile.ReadError("a header promises more bytes than the tar has")
        return data


def _open(url: str) -> Any:
    if url.startswith("pipe:") or "://" not in url:
        return webdataset.gopen(url)
    import fsspec  # only for shards in a store

    return fsspec.open(url, "rb").open()


def _handler(tally: _Tally) -> Callable[[BaseException], bool]:
    """What webdataset asks about an error: this shard is left here, the next one is read."""

    def handle(error: BaseException) -> bool:
        if not isinstance(error, TAR_ERRORS):
            return False
        where = next((part for part in reversed(error.args) if isinstance(part, str) and ".tar" in part), "?")
        tally.report("damaged_header", where, one_line(error))
        return True

    return handle
