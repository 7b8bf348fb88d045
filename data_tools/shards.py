"""Writing shards: plain WebDataset tars, written aside and renamed, the same bytes from the same samples.

A shard is there whole or not at all. Its file is ``PREFIX-000012.tar``; while it is being written it has another name,
which no reader looks for. ``ShardWriter`` cuts a stream of samples into shards; ``write_shard`` writes one, for
builders that share shards out among processes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pipeline.base.files import finish_file, partial_path, remove_leftovers
from pipeline.data.schema import IMAGE_EXTENSIONS, Sample

BLOCK_BYTES = 512  # of the tar format
DEFAULT_SAMPLES_PER_SHARD = 1000


class ShardError(ValueError):
    """A sample cannot be stored under its key; the message names the shard, the key, the rule and the remedy."""


@dataclass(frozen=True)
class Record:
    """One sample as it goes into a tar. ``extra_members`` are further files, ``{"mask.png": bytes}``."""

    key: str
    image: bytes
    extension: str
    sample: Sample
    extra_members: Mapping[str, bytes] = field(default_factory=dict)


def shard_path(folder: Path, prefix: str, number: int) -> Path:
    return folder / f"{prefix}-{number:06d}.tar"


class _TarFile:
    """One shard on its way: members are appended to a partial file, ``commit`` gives it its name."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        # Host and process in the name: two machines may build the same shard after one was taken for dead.
        self.path, self.partial = path, partial_path(path)
        self.stream: BinaryIO = open(self.partial, "wb", buffering=1 << 20)
        self.keys: set[str] = set()

    def add(self, record: Record) -> None:
        where = f"{self.path.name}: sample {record.key!r}"
        if not record.key or "." in record.key or "/" in record.key:
            raise ShardError(f"{where}: a key must not be empty nor hold '.' or '/'; WebDataset cuts names there")
        if record.key in self.keys:
            raise ShardError(f"{where}: the key is in this shard already; keys must differ")
        if record.extension not in IMAGE_EXTENSIONS:
            allowed = ", ".join(IMAGE_EXTENSIONS)
            raise ShardError(f"{where}: image extension {record.extension!r}; it must be one of {allowed}")
        self.keys.add(record.key)
        self._member(f"{record.key}.{record.extension}", record.image)
        self._member(f"{record.key}.json", record.sample.to_bytes())
        for name, data in record.extra_members.items():
            self._member(f"{record.key}.{name}", data)

    def _member(self, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(name)  # owner, mode and time stay at their defaults: equal samples, equal bytes
        header.size = len(data)
        self.stream.write(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        self.stream.write(data)
        self.stream.write(bytes(-len(data) % BLOCK_BYTES))

    def commit(self) -> None:
        self.stream.write(bytes(2 * BLOCK_BYTES))
        self.stream.close()
        finish_file(self.partial, self.path, durable=True)

    def discard(self) -> None:
        try:
            self.stream.close()
        finally:  # closing flushes, which fails again on a full disk; the file must go all the same
            self.partial.unlink(missing_ok=True)


def write_shard(path: Path, records: Iterable[Record]) -> int:
    """Write one shard and return its number of samples. No file appears if there is no record.

    Raises:
        ShardError: a bad key. OSError: the disk is full or not writable. In both cases no partial file stays.
    """
    tar = _TarFile(path)
    try:
        for record in records:
            tar.add(record)
        if tar.keys:
            tar.commit()
    except BaseException:
        tar.discard()
        raise
    if not tar.keys:
        tar.discard()
    return len(tar.keys)


class ShardWriter:
    """Cut a stream of samples into shards of ``samples_per_shard``; index and manifest are written at the end.

    A context manager: leaving it by an exception discards the shard in hand and keeps the whole ones.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str = "shard",
        samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD,
        *,
        first_number: int = 0,
        index: bool = True,
    ) -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {samples_per_shard}; it must be at least 1")
        self.folder, self.prefix, self.samples_per_shard = Path(folder), prefix, samples_per_shard
        self.index, self._number = index, first_number
        self._tar: _TarFile | None = None
        self.num_samples = 0

    def write(
        self,
        key: str,
        image: bytes,
        extension: str,
        sample: Sample,
        extra_members: Mapping[str, bytes] | None = None,
    ) -> None:
        if self._tar is None:
            self._tar = _TarFile(shard_path(self.folder, self.prefix, self._number))
        self._tar.add(Record(key, image, extension, sample, extra_members or {}))
        self.num_samples += 1
        if len(self._tar.keys) == self.samples_per_shard:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._tar is not None:
            self._tar.commit()
            self._tar = None
            self._number += 1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            if self._tar is not None:
                self._tar.discard()
            return
        self._finish_shard()
        if self.index:
            from pipeline.data.index import index_folder  # pyarrow; worker processes that only draw do without

            index_folder(self.folder)
