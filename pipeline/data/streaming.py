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
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.base.border import BorderError, one_line, parse_json, shown
from pipeline.base.ranks import loader_workers
from pipeline.config import DataSettings
from pipeline.data.batch import Batch
from pipeline.data.collate import Collator, PixelBuffer
from pipeline.data.faults import DataFaultLimit, check_share
from pipeline.data.images import ImageFault, image_size
from pipeline.data.micro_batches import Unit
from pipeline.data.patches import PATCH_VALUES
from pipeline.data.resolution import level_of
from pipeline.data.schema import IMAGE_EXTENSIONS, Sample, SampleError, parse_sample
from pipeline.data.shard_index import IndexProblem
from pipeline.data.slices import Division
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.workers import KNOWN, Failed, failed, prepare_worker

CAPTION_KEYS = ("caption", "text")  # of a KEY.json that is not this project's, where there is no KEY.txt
NOTICE = (
    "data.streaming: no index is used, so the order is not resumed, epochs are not exact, weights do not apply and a "
    "step's ranks may read different languages and patch budgets; `python -m data_tools index` gives all of that"
)
# What webdataset raises for a tar that is none, is cut, or whose source breaks off.
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError)
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

    def __init__(
        self, urls: list[str], settings: DataSettings, collator: Collator, micro_batch_size: int, place: tuple[int, ...]
    ) -> None:
        """``place``: rank, world size, seed, and the step that the run begins at."""
        self.urls, self.settings, self.collator = urls, settings, collator
        self.micro_batch_size, (self.rank, self.world_size, self.seed, self.start) = micro_batch_size, place

    def __iter__(self) -> Iterator[Batch | Failed]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        tally = _Tally()
        draws = random.Random(f"{self.seed}/{self.start}/{self.rank}/{number}")
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
        mine = self.urls[self.rank * workers + worker :: self.world_size * workers]
        split = len(self.urls) >= self.world_size * workers
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


class StreamingLoader:
    """What ``Loader`` is to an index: iterates over this rank's batches; close it, or use it as a context."""

    def __init__(self, stream: TarStream, num_workers: int, steps_per_epoch: int, first: Unit) -> None:
        self._stream, self._workers, self._steps = stream, num_workers, steps_per_epoch
        self._next = first
        self._iterator: Iterator[Batch | Failed] | None = None
        self._faults: Counter[str] = Counter()
        self._samples = 0

    def __iter__(self) -> StreamingLoader:
        return self

    def __enter__(self) -> StreamingLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upcoming(self) -> Unit:
        """Which micro-batch the next call of ``next`` gives; without reading it."""
        return self._next

    def __next__(self) -> Batch:
        """
        Raises:
            DataFaultLimit: not one usable sample, or more faults than ``max_fault_share`` allows.
        """
        if self._iterator is None:
            self._iterator = iter(self._loader())
        batch = next(self._iterator)
        if isinstance(batch, Failed):
            raise batch.error(batch.message)
        step, part, parts, size = self._next
        self._next = Unit(step, part + 1, parts, size) if part + 1 < parts else Unit(step + 1, 0, parts, size)
        self._samples += len(batch)
        self._faults.update(batch.replaced)
        check_share(self._faults, self._samples, self._stream.settings)
        return batch

    @property
    def num_buffers(self) -> int:
        """Micro-batches that are read ahead at most, over all workers."""
        return self._workers * self._stream.settings.prefetch_batches

    def regions_per_sample(self) -> float:
        """At most; nobody has counted the tars."""
        return float(self._stream.settings.max_regions_per_image)

    @property
    def buffer_bytes(self) -> int:
        """Host memory that batches read ahead take at most, over all workers."""
        settings, size = self._stream.settings, self._stream.micro_batch_size
        return self._workers * settings.prefetch_batches * size * max(settings.patch_budgets) * PATCH_VALUES

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Of ``streaming_epoch_samples``, the same for every epoch and rank."""
        return self._steps

    def fault_counts(self) -> dict[str, int]:
        """Faults met by this loader since it was made, by kind."""
        return dict(self._faults)

    def samples_seen(self) -> int:
        """Samples that this rank was given since the loader was made."""
        return self._samples

    def close(self) -> None:
        """End the workers."""
        self._iterator = None

    def _loader(self) -> DataLoader:
        return DataLoader(
            self._stream,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=self._stream.settings.prefetch_batches if self._workers else None,
            multiprocessing_context="fork" if self._workers else None,
            worker_init_fn=prepare_worker,
        )


def make_streaming_loader(
    settings: DataSettings,
    tokenizer: Tokenizer,
    text_lengths: tuple[int, int],
    *,
    seed: int,
    global_batch_size: int,
    rank: int = 0,
    division: Division = Division(),  # noqa: B008 - frozen
    start_step: int = 0,
    with_regions: bool = False,
    local_world_size: int | None = None,
) -> StreamingLoader:
    """As ``loader.make_loader``, from tars without an index.

    Raises:
        IndexProblem: no shard is named, or a folder that holds none, or a global batch that does not divide.
    """
    world_size, parts = division.world_size, division.most_parts(global_batch_size, settings.patch_budgets)
    micro_batch_size, rest = divmod(global_batch_size, world_size * parts)
    if rest or not micro_batch_size:
        raise IndexProblem(
            f"train.global_batch_size is {global_batch_size}; with data.streaming it must be a multiple of ranks times "
            f"micro-batches ({world_size} x {parts}); change train.global_batch_size, train.micro_batch_size or "
            "train.accumulation_steps, or index the shards"
        )
    urls = expand(settings.shards)
    if rank == 0:
        log.warning("%s", NOTICE)
    workers = loader_workers(settings.num_workers, local_world_size or 1)
    if len(urls) < world_size * max(workers, 1) and rank == 0:
        log.warning(
            "data.streaming: %d shards for %d ranks x %d workers are too few to split; all read all of them, each in "
            "its own order", len(urls), world_size, max(workers, 1),
        )  # fmt: skip
    collator = Collator(settings, tokenizer, text_lengths, seed, with_regions)
    stream = TarStream(urls, settings, collator, micro_batch_size, (rank, world_size, seed, start_step))
    steps = max(1, settings.streaming_epoch_samples // global_batch_size)
    return StreamingLoader(stream, workers, steps, Unit(start_step, 0, parts, global_batch_size))


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


def record_of(key: str, members: dict[str, Any], settings: DataSettings) -> tuple[bytes, Sample]:
    """Image bytes and record of a sample: this project's KEY.json, or a caption in KEY.txt or another KEY.json.

    Raises:
        SampleError, ImageFault: with their ``kind``.
    """
    extension = next((name for name in IMAGE_EXTENSIONS if name in members), None)
    if extension is None:
        raise SampleError("missing_member", f"it has no image, only {sorted(members)!r:.80}", key=key)
    image = members[extension]
    data: Any = {}
    if "json" in members:
        try:
            data = parse_json(members["json"])
        except BorderError as error:
            raise SampleError("bad_json", f"the JSON member does not parse ({one_line(error)})", key=key) from error
        if isinstance(data, dict) and {"language", "width", "height"} <= set(data):
            return image, parse_sample(members["json"], key=key)
    caption = _caption(members, data, key)
    width, height = image_size(image, settings.max_image_megapixels)
    language = settings.streaming_language
    made = {"language": language, "width": width, "height": height, f"{settings.streaming_caption}_caption": caption}
    return image, parse_sample(made, key=key)


def _caption(members: dict[str, Any], data: Any, key: str) -> str:
    if "txt" in members:
        try:
            return members["txt"].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise SampleError("bad_utf8", f"the .txt member is not UTF-8 ({error})", key=key) from error
    found = next(
        (data[name] for name in CAPTION_KEYS if isinstance(data, dict) and isinstance(data.get(name), str)), ""
    )
    if not found.strip():
        raise SampleError(
            "empty_caption", f"it has neither .txt nor one of {', '.join(CAPTION_KEYS)} in .json", key=key
        )
    return found.strip()


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
            yield {"url": url, "stream": stream}


def _open(url: str) -> Any:
    if url.startswith("pipe:") or "://" not in url:
        return webdataset.gopen(url)
    import fsspec

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
