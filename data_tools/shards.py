"""Writing shards: plain WebDataset tars, written aside and renamed, the same bytes from the same samples.

A shard is there whole or not at all. Its file is ``PREFIX-000012.tar``; while it is being written it has another name,
which no reader looks for. ``ShardWriter`` cuts a stream of samples into shards; ``write_shard`` writes one, for
builders that share shards out among processes. The tar itself is written by webdataset's ``TarWriter``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from data_tools.shard_size import GIGABYTES_PER_SHARD, MAX_SAMPLES_PER_SHARD, ShardSize
from pipeline.base.files import finish_file, partial_path, remove_leftovers
from pipeline.data.schema import IMAGE_EXTENSIONS, Sample

MODE = 0o644  # of every member; with no owner and the time 0, equal samples give equal bytes


class ShardError(ValueError):
    """A sample cannot be stored under its key; the message names the shard, the key, the rule and the remedy."""


@dataclass(frozen=True)
class Record:
    """One sample as it goes into a tar. ``extra_members`` are further files, ``{"mask.png": bytes}``.

    A clip has ``frames``, each as ``extension`` says, and no ``image``.
    """

    key: str
    image: bytes
    extension: str
    sample: Sample
    extra_members: Mapping[str, bytes] = field(default_factory=dict)
    frames: tuple[bytes, ...] = ()

    def members(self) -> dict[str, bytes]:
        """What is stored, by extension: the image or the frames, and the record."""
        pictures = {self.extension: self.image}
        if self.sample.frames is not None:
            pictures = {frame_name(number, self.extension): frame for number, frame in enumerate(self.frames)}
        return {**pictures, "json": self.sample.to_bytes()}


def frame_name(number: int, extension: str) -> str:
    """What follows the key in the name of a clip's frame, as "007.jpg"."""
    return f"{number:03d}.{extension}"


def shard_path(folder: Path, prefix: str, number: int) -> Path:
    return folder / f"{prefix}-{number:06d}.tar"


class _TarFile:
    """One shard on its way: samples are appended to a partial file, ``commit`` gives it its name."""

    def __init__(self, path: Path) -> None:
        from webdataset import TarWriter  # it imports torch, which --help and shards that exist do without

        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        # Host and process in the name: two machines may build the same shard after one was taken for dead.
        self.path, self.partial = path, partial_path(path)
        self.stream: BinaryIO = open(self.partial, "wb", buffering=1 << 20)
        self.tar = TarWriter(
            self.stream, user="", group="", mode=MODE, mtime=0, compress=False, encoder=False, keep_meta=True
        )
        self.keys: set[str] = set()
        self.num_bytes = 0  # of the members' content

    def add(self, record: Record) -> None:
        """Raises ``ShardError``; nothing of the record is written then."""
        where = f"{self.path.name}: sample {record.key!r}"
        if not record.key or "." in record.key or "/" in record.key:
            raise ShardError(f"{where}: a key must not be empty nor hold '.' or '/'; WebDataset cuts names there")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in record.key):
            raise ShardError(f"{where}: a key must hold no control characters and be UTF-8, as readers ask; rename it")
        if record.key in self.keys:
            raise ShardError(f"{where}: the key is in this shard already; keys must differ")
        if record.extension not in IMAGE_EXTENSIONS:
            allowed = ", ".join(IMAGE_EXTENSIONS)
            raise ShardError(f"{where}: image extension {record.extension!r}; it must be one of {allowed}")
        if len(record.frames) != len(record.sample.frames or ()):
            times = len(record.sample.frames or ())
            raise ShardError(f"{where}: {len(record.frames)} frames for {times} times; a clip has one time a frame")
        own = record.members()
        taken = sorted({*own, "__key__"} & set(record.extra_members))
        if taken:
            raise ShardError(f"{where}: its further member {taken[0]!r} has the name of one that is there; rename it")
        self.keys.add(record.key)
        self.num_bytes += self.tar.write({"__key__": record.key, **own, **record.extra_members})

    def commit(self) -> None:
        self.tar.close()
        self.stream.close()
        finish_file(self.partial, self.path, durable=True)

    def discard(self) -> None:
        try:
            for end in (self.tar.close, self.stream.close):
                with suppress(OSError):  # of a full disk, which is why it is discarded
                    end()
        finally:
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
    """Cut a stream of samples into shards; index and manifest are written at the end.

    A context manager: leaving it by an exception discards the shard in hand and keeps the whole ones.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str = "shard",
        samples_per_shard: int = MAX_SAMPLES_PER_SHARD,
        *,
        gigabytes_per_shard: float = GIGABYTES_PER_SHARD,
        first_number: int = 0,
        index: bool = True,
    ) -> None:
        """
        Args:
            samples_per_shard: a shard has as many at most. gigabytes_per_shard: and is finished by the sample with
                which its content reaches this.
        """
        size = ShardSize(samples_per_shard, gigabytes_per_shard)
        self.folder, self.prefix = Path(folder), prefix
        self._most_samples, self._most_bytes = samples_per_shard, size.gigabytes * 1e9
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
        if len(self._tar.keys) == self._most_samples or self._tar.num_bytes >= self._most_bytes:
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
