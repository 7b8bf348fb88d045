"""Samples out of shards: by place for training, one after the other for evaluation and data tools.

Every member read by its place is checked against the checksum that the index holds, so bytes that were flipped, cut
or swapped after indexing are a fault and never a wrong sample.
"""

from __future__ import annotations

import io
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.base.border import BorderError, quoted, shown
from pipeline.data.cache import LocalFolder, Piece, ShardStore
from pipeline.data.levels import Levels
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.records import Fault, TarSample, walk_folder, walk_records
from pipeline.data.schema import Sample, SampleError, parse_sample
from pipeline.data.shard_index import (
    IndexProblem,
    ShardIndex,
    compare_index,
    index_name,
    read_index,
    read_rows,
)
from pipeline.data.tar import LARGEST_MEMBER_BYTES, group_members
from pipeline.data.transport import ShardUnavailable

OPEN_PIECES = 1024  # whose rows a reader remembers; some 50 kB each
LOST_SECONDS = 60.0  # then a shard that was missing is looked for again


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
    images: tuple[bytes, ...]  # one, or the frames of a clip in their order
    sample: Sample


@dataclass
class _Rows:
    """What is known of a piece: its index rows, and those of each language and level in the tar's order."""

    piece: Piece
    first_row: int
    index: ShardIndex
    groups: dict[tuple[str, int], np.ndarray]  # by the number of the level


class ShardReader:
    """Reads samples of one source by shard number and row. Not for sharing between threads.

    Args:
        manifest: the source's manifest.
        store: where its files are.
        levels: of the plan whose ordinals ``row`` translates.
    """

    def __init__(self, manifest: Manifest, store: ShardStore, levels: Levels) -> None:
        self.manifest, self.store, self.levels = manifest, store, levels
        self._rows: OrderedDict[tuple[int, int], _Rows] = OrderedDict()
        self._lost: dict[tuple[int, int], tuple[float, ReadFault]] = {}
        self._compared: set[int] = set()  # shards whose index is the manifest's

    def row(self, shard: int, language: str, ordinal: int) -> int:
        """The row of the ``ordinal``-th sample of a language, by level, then by place in the tar."""
        pieces = self.manifest.pieces
        counts = (
            pieces.counts[pieces.first[shard] : pieces.first[shard + 1], self._language(shard, language)]
            .astype(np.int64)
            .T
        )
        ends = counts.reshape(-1).cumsum()  # over levels, and over pieces within a level
        place = int(np.searchsorted(ends, ordinal, side="right"))
        if place == len(ends):
            name = self.manifest.shards[shard]
            raise ReadFault("stale_index", "it holds fewer samples than the plan says; index again", shard=name)
        level, piece = divmod(place, counts.shape[1])
        found = self._piece(shard, piece)
        return found.first_row + int(found.groups[language, level][ordinal - int(ends[place] - counts[level, piece])])

    def _language(self, shard: int, language: str) -> int:
        if language not in self.manifest.languages:
            name = self.manifest.shards[shard]
            raise ReadFault("stale_index", f"its manifest has no samples in {language}; index again", shard=name)
        return self.manifest.languages.index(language)

    def read(self, shard: int, row: int) -> RawSample:
        """Raises ``ReadFault``, or ``StoreUnavailable`` where a remote store is away for too long."""
        found = self._piece(shard, self.manifest.pieces.of_row(shard, row))
        name, index, number = self.manifest.shards[shard], found.index, row - found.first_row
        key = index.keys[number]
        start, end = self.extent(found.index, number)
        if not 0 <= start < end or end - start > 2 * LARGEST_MEMBER_BYTES:
            raise ReadFault("stale_index", f"members of {end - start} bytes at byte {start}", shard=name, key=key)
        try:
            data = self.store.read(found.piece, index, number, start, end)
        except ShardUnavailable as error:
            raise ReadFault(error.kind, str(error), shard=name, key=key) from error
        except OSError as error:
            raise ReadFault("read_error", f"bytes {start} to {end}: {error}", shard=name, key=key) from error
        image = self._member(data, start, index, "image", number, name)
        record = self._member(data, start, index, "json", number, name)
        try:
            sample = parse_sample(record, key=key, shard=name)
        except SampleError as error:
            raise ReadFault(error.kind, str(error), shard=name, key=key) from error
        stored = int(index.num_frames[number])
        if stored != (0 if sample.frames is None else sample.num_frames):
            message = f"its record and its index, which says {stored}, differ in the number of frames; index again"
            raise ReadFault("stale_index", message, shard=name, key=key)
        images = (image,) if sample.frames is None else _frames(image, sample, name, key)
        return RawSample(key, name, images, sample)

    def rows_of(self, shard: int, piece: int) -> tuple[Piece, int, ShardIndex]:
        """A piece, its first row, and its index rows. Raises as ``read``."""
        found = self._piece(shard, piece)
        return found.piece, found.first_row, found.index

    @contextmanager
    def naming(self, shard: str) -> Iterator[None]:
        """What a store says of an object becomes the fault of its shard."""
        try:
            yield
        except ShardUnavailable as error:
            raise ReadFault(error.kind, str(error), shard=shard) from error

    @staticmethod
    def extent(index: ShardIndex, number: int) -> tuple[int, int]:
        """Where the members of a row begin and end in the tar."""
        image, record = int(index.image_offset[number]), int(index.json_offset[number])
        ends = image + int(index.image_length[number]), record + int(index.json_length[number])
        return min(image, record), max(ends)

    def close(self) -> None:
        self.store.close()
        self._rows.clear()

    def _member(self, data: bytes, start: int, index: ShardIndex, what: str, number: int, shard: str) -> bytes:
        offset, length, expected = (
            int(getattr(index, f"{what}_{part}")[number]) for part in ("offset", "length", "crc32")
        )
        key, member = index.keys[number], data[offset - start : offset - start + length]
        if not length:
            raise ReadFault("stale_index", f"{what} of no bytes at byte {offset}", shard=shard, key=key)
        if len(member) < length:
            raise ReadFault("truncated_shard", f"{what} is cut: {len(member)} of {length} bytes", shard=shard, key=key)
        if zlib.crc32(member) != expected:
            raise ReadFault("checksum", f"{what} at byte {offset} is not what was indexed", shard=shard, key=key)
        return member

    def _piece(self, shard: int, piece: int) -> _Rows:
        place = shard, piece
        if place in self._rows:
            self._rows.move_to_end(place)
            return self._rows[place]
        if place in self._lost:
            since, fault = self._lost[place]
            if time.monotonic() - since < LOST_SECONDS:
                raise fault
            del self._lost[place]
        name = self.manifest.shards[shard]
        try:
            found = self._open_piece(shard, piece, name)
        except ShardUnavailable as error:
            raise self._lose(place, ReadFault(error.kind, str(error), shard=name)) from error
        except (IndexProblem, BorderError, FileNotFoundError) as error:
            raise self._lose(place, ReadFault("damaged_index", str(error), shard=name)) from error
        except OSError as error:
            raise ReadFault("read_error", str(error), shard=name) from error
        self._rows[place] = found
        while len(self._rows) > OPEN_PIECES:
            self._rows.popitem(last=False)
        return found

    def _lose(self, place: tuple[int, int], fault: ReadFault) -> ReadFault:
        self._lost[place] = time.monotonic(), fault
        return fault

    def _open_piece(self, shard: int, number: int, name: str) -> _Rows:
        table = self.manifest.pieces
        place = int(table.first[shard]) + number
        counts = table.counts[place]
        first, count = int(table.first_row[place]), int(counts.sum())
        path = self.store.index(name, self.manifest.index_sha256[shard])
        if isinstance(self.store, LocalFolder) and shard not in self._compared:  # what was fetched has been compared
            compare_index(path, name, self.manifest.index_sha256[shard])
            self._compared.add(shard)
        index = read_rows(path, name, first, count, number)
        if not np.array_equal(index.counts(self.levels, self.manifest.languages), counts):
            raise IndexProblem(
                f"{index_name(name)} has samples of other languages and sizes than the manifest says; make both again "
                "with `python -m data_tools index --force`"
            )
        levels = index.levels(self.levels)
        groups = {
            (name, level): np.flatnonzero((index.language == number) & (levels == level))
            for number, name in enumerate(index.languages)
            for level in range(counts.shape[1])
        }
        piece = Piece(shard, number, name, int(table.start[place]), int(table.end[place]))
        return _Rows(piece, first, index, groups)


def _frames(run: bytes, sample: Sample, shard: str, key: str) -> tuple[bytes, ...]:
    """The frames of a clip out of the run of the tar that holds them. Raises ``ReadFault``."""
    faults: list[str] = []
    file = io.BytesIO(run)
    for found, members in group_members(file, lambda kind, where, message: faults.append(f"{where}: {message}")):
        if found == key:
            try:
                frames = TarSample(Path(shard), key, members, file).clip_members(sample)
            except SampleError as error:
                raise ReadFault(error.kind, str(error), shard=shard, key=key) from error
            return tuple(run[frame.offset : frame.offset + frame.size] for frame in frames)
    message = f"its frames are not where the index says ({faults[0] if faults else 'another key'}); index again"
    raise ReadFault("stale_index", message, shard=shard, key=key)


def read_sample(shard: str | Path, key: str) -> tuple[bytes, Sample]:
    """Image bytes (of a clip, its first frame's) and record of one sample of an indexed local shard.

    Raises:
        ReadFault: the sample is damaged.
        IndexProblem: no such key, or a damaged index.
    """
    shard = Path(shard)
    index = read_index(shard.parent, shard.name)
    if key not in index.keys:
        raise IndexProblem(f"{shard} has no sample {quoted(key)}; its first keys are {index.keys[:3]}")
    manifest = load_manifest(shard.parent)
    reader = ShardReader(manifest, LocalFolder(str(shard.parent)), manifest.levels)
    try:
        raw = reader.read(manifest.shards.index(shard.name), index.keys.index(key))
    finally:
        reader.close()
    return raw.images[0], raw.sample


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
