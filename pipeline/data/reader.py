"""Samples out of shards: by place for training, one after the other for evaluation and data tools.

Every member read by its place is checked against the checksum that the index holds, so bytes that were flipped, cut
or swapped after indexing are a fault and never a wrong sample.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.base.border import BorderError, quoted, shown
from pipeline.data.cache import LocalFolder, ShardStore, ShardUnavailable
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.records import Fault, walk_folder, walk_records
from pipeline.data.schema import Sample, SampleError, parse_sample
from pipeline.data.shard_index import (
    MAX_INDEX_BYTES,
    IndexProblem,
    ShardIndex,
    index_name,
    parse_index,
    read_at_most,
    read_index,
)
from pipeline.data.tar import LARGEST_MEMBER_BYTES

OPEN_SHARDS = 64  # files and row indexes that a reader keeps open; about a window's worth


class ReadFault(ValueError):
    """A sample cannot be read. ``kind`` is what faults are counted under; ``key`` may be ``?``."""

    def __init__(self, kind: str, message: str, *, shard: str, key: str = "?") -> None:
        super().__init__(f"{shown(shard)}: {shown(key)}: {kind}: {message}")
        self.kind, self.shard, self.key = kind, shard, key


@dataclass(frozen=True)
class RawSample:
    """One sample's bytes and record, as stored."""

    key: str
    shard: str
    image: bytes
    sample: Sample


class ShardReader:
    """Reads samples of one source by shard number and row. Not for sharing between threads.

    Args:
        manifest: the source's manifest.
        store: where its files are.
        patch_budgets: of the plan whose ordinals ``row`` translates.
    """

    def __init__(self, manifest: Manifest, store: ShardStore, patch_budgets: tuple[int, ...]) -> None:
        self.manifest, self.store, self.patch_budgets = manifest, store, patch_budgets
        self._open: OrderedDict[int, tuple[BinaryIO, ShardIndex, dict[str, np.ndarray]]] = OrderedDict()
        self._lost: dict[int, ReadFault] = {}

    def row(self, shard: int, language: str, ordinal: int) -> int:
        """The row of the ``ordinal``-th sample of a language, by patch budget, then by place in the tar."""
        _, index, rows = self._shard(shard)
        if ordinal >= len(rows.get(language, ())):
            name = self.manifest.shards[shard]
            raise ReadFault("stale_index", "it holds fewer samples than the manifest says; index again", shard=name)
        return int(rows[language][ordinal])

    def read(self, shard: int, row: int) -> RawSample:
        """Raises ``ReadFault``."""
        file, index, _ = self._shard(shard)
        name, key = self.manifest.shards[shard], index.keys[row]
        image = self._member(file, index, "image", row, name)
        record = self._member(file, index, "json", row, name)
        try:
            sample = parse_sample(record, key=key, shard=name)
        except SampleError as error:
            raise ReadFault(error.kind, str(error), shard=name, key=key) from error
        return RawSample(key, name, image, sample)

    def close(self) -> None:
        for file, _, _ in self._open.values():
            file.close()
        self._open.clear()

    def _member(self, file: BinaryIO, index: ShardIndex, what: str, row: int, shard: str) -> bytes:
        offset, length, expected = (
            int(getattr(index, f"{what}_{part}")[row]) for part in ("offset", "length", "crc32")
        )
        key = index.keys[row]
        if offset < 0 or not 0 < length <= LARGEST_MEMBER_BYTES:
            raise ReadFault("stale_index", f"{what} of {length} bytes at byte {offset}", shard=shard, key=key)
        try:
            file.seek(offset)
            data = file.read(length)
        except OSError as error:
            raise ReadFault("read_error", f"{what} at byte {offset}: {error}", shard=shard, key=key) from error
        if len(data) < length:
            raise ReadFault("truncated_shard", f"{what} is cut: {len(data)} of {length} bytes", shard=shard, key=key)
        if zlib.crc32(data) != expected:
            raise ReadFault("checksum", f"{what} at byte {offset} is not what was indexed", shard=shard, key=key)
        return data

    def _shard(self, number: int) -> tuple[BinaryIO, ShardIndex, dict[str, np.ndarray]]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if number in self._lost:
            raise self._lost[number]
        name = self.manifest.shards[number]
        try:
            opened = self._open_shard(number, name)
        except ShardUnavailable as error:
            self._lost[number] = ReadFault(error.kind, str(error), shard=name)
            raise self._lost[number] from error
        except (IndexProblem, BorderError) as error:
            self._lost[number] = ReadFault("damaged_index", str(error), shard=name)
            raise self._lost[number] from error
        except OSError as error:
            raise ReadFault("read_error", str(error), shard=name) from error
        self._open[number] = opened
        while len(self._open) > OPEN_SHARDS:
            _, (file, _, _) = self._open.popitem(last=False)
            file.close()
        return opened

    def _open_shard(self, number: int, name: str) -> tuple[BinaryIO, ShardIndex, dict[str, np.ndarray]]:
        manifest = self.manifest
        digest = manifest.index_sha256[number]
        with self.store.open(index_name(name), 0, digest) as file:
            index = parse_index(read_at_most(file, index_name(name), MAX_INDEX_BYTES), name, digest)
        if not np.array_equal(index.counts(self.patch_budgets, manifest.languages), manifest.counts[number]):
            raise IndexProblem(
                f"{index_name(name)} has {len(index)} rows, the manifest says {manifest.samples[number]}, or of other "
                "languages and sizes; make both again with `python -m data_tools index --force`"
            )
        tar = self.store.open(name, int(manifest.sizes[number]), manifest.sha256[number])
        return tar, index, index.grouped_rows(self.patch_budgets)


def read_sample(shard: str | Path, key: str) -> tuple[bytes, Sample]:
    """Image bytes and record of one sample of an indexed local shard.

    Raises:
        ReadFault: the sample is damaged.
        IndexProblem: no such key, or a damaged index.
    """
    shard = Path(shard)
    index = read_index(shard.parent, shard.name)
    if key not in index.keys:
        raise IndexProblem(f"{shard} has no sample {quoted(key)}; its first keys are {index.keys[:3]}")
    manifest = load_manifest(shard.parent)
    reader = ShardReader(manifest, LocalFolder(str(shard.parent)), manifest.patch_budgets)
    try:
        raw = reader.read(manifest.shards.index(shard.name), index.keys.index(key))
    finally:
        reader.close()
    return raw.image, raw.sample


def iterate_shards(
    folder: str | Path, on_fault: Callable[[Fault], None] | None = None
) -> Iterator[tuple[str, bytes, Sample, dict[str, bytes]]]:
    """``(key, image bytes, record, other members by extension)`` of every sample of a shard or folder, in tar order.

    Needs no index. Without ``on_fault`` the first fault is raised; with it the fault is handed over and reading goes
    on with the next sample or shard.

    Raises:
        IndexProblem: no such folder or no shard in it.
        ReadFault: a damaged sample or shard, where ``on_fault`` is None.
    """
    try:
        shards = walk_folder(folder)
    except FileNotFoundError as error:
        raise IndexProblem(str(error)) from error

    def report(fault: Fault) -> None:
        if on_fault is None:
            raise ReadFault(fault.kind, fault.message, shard=fault.shard, key=fault.key)
        on_fault(fault)

    for shard in shards:
        for found, sample in walk_records(shard, report):
            extra = {name: found.read(name) for name in found.members if name not in (found.image_extension, "json")}
            yield found.key, found.read(found.image_extension or ""), sample, extra
