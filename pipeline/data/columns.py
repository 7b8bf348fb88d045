"""The columns of a manifest: one Arrow file over S shards and Q pieces, written once and mapped into memory.

Letters: S shards, Q pieces of all shards, L languages, K levels (``levels.Levels``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.border import BorderError, one_line, quoted
from pipeline.data.levels import Levels
from pipeline.data.resolution import patch_counts

# A size of 32 MiB takes 1.6 s over a connection of 20 MB/s, and is long enough that a store is not asked too often.
PIECE_BYTES = 32 << 20
# A number a sample: the patches of its image, up to LARGEST_COUNT, above them its language, and above that the number
# of frames of a clip (0 for an image). See `size_type`.
LANGUAGE_SHIFT, FRAMES_SHIFT = 14, 32
LARGEST_COUNT = (1 << LANGUAGE_SHIFT) - 1
LANGUAGES = (1 << (FRAMES_SHIFT - LANGUAGE_SHIFT)) - 1
CHUNK_SAMPLES = 1 << 24  # counted at one time
# Names become paths in the shards' folder and in the cache, so they must stay there.
SHARD_NAME = r"^[^./\\\pC][^/\\\pC]*\.tar$"
SHARD_NUMBERS = ("bytes", "samples", "regions", "negatives")


@dataclass(frozen=True)
class PieceTable:
    """Runs of neighbouring samples, shard after shard. Arrays run over the Q pieces of all S shards."""

    first: np.ndarray  # [S + 1] int64: pieces of shard s are first[s] … first[s + 1] - 1
    first_row: np.ndarray  # [Q] the first sample of a piece, counted in its shard
    start: np.ndarray  # [Q] int64 bytes, in the tar
    end: np.ndarray  # [Q] int64 bytes
    counts: np.ndarray  # [Q, L, K] samples

    def of_row(self, shard: int, row: int) -> int:
        """The piece of a shard, counted in it, that holds a row."""
        rows = self.first_row[self.first[shard] : self.first[shard + 1]]
        return int(np.searchsorted(rows, row, side="right")) - 1

    def counted(self, codes: np.ndarray, samples: np.ndarray, levels: Levels, num_languages: int) -> PieceTable:
        """The same pieces, counted by other levels; ``codes``: the sizes of all samples in the tars' order."""
        starts = np.repeat(np.concatenate([[0], np.cumsum(samples[:-1])]), np.diff(self.first)) + self.first_row
        starts = np.append(starts, len(codes))
        groups = num_languages * len(levels)
        flat = np.zeros(len(self.start) * groups, dtype=np.int64)
        for low in range(0, len(codes), CHUNK_SAMPLES):
            chunk = codes[low : low + CHUNK_SAMPLES]
            language, frames = (chunk >> LANGUAGE_SHIFT).astype(np.int64) & LANGUAGES, frames_of(chunk)
            level = levels.numbers_of_patches(chunk & LARGEST_COUNT, frames)
            piece = np.searchsorted(starts, np.arange(low, low + len(chunk)), side="right") - 1
            number = piece * groups + language * len(levels) + level
            first = int(number[0] // groups) * groups
            found = np.bincount(number - first)
            flat[first : first + len(found)] += found
        counts = flat.reshape(len(self.start), num_languages, len(levels)).astype(np.int32)
        return PieceTable(self.first, self.first_row, self.start, self.end, counts)


def whole_shards(sizes: np.ndarray, counts: np.ndarray) -> PieceTable:
    """One piece a shard, where nothing finer is known. ``sizes`` [S] bytes, ``counts`` [S, L, K]."""
    zeros = np.zeros(len(sizes), dtype=np.int64)
    return PieceTable(np.arange(len(sizes) + 1), zeros, zeros, np.asarray(sizes, dtype=np.int64), counts)


@dataclass
class ShardSummary:
    """What the manifest says of one shard; ``languages`` number those of ``pieces`` and ``codes``."""

    name: str
    bytes: int
    sha256: str
    index_sha256: str
    samples: int
    regions: int
    negatives: int
    pieces: PieceTable  # of this shard alone
    codes: np.ndarray  # [samples] uint64
    languages: tuple[str, ...]
    faults: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Columns:
    """A manifest's columns; arrays look at the mapped file."""

    names: Sequence[str]
    sha256: Sequence[str]
    index_sha256: Sequence[str]
    numbers: dict[str, np.ndarray]  # [S] each of SHARD_NUMBERS
    counts: np.ndarray  # [S, L, K] int32
    pieces: PieceTable


class _Names(Sequence[str]):
    """A column of text; an entry becomes a ``str`` when it is asked for."""

    def __init__(self, column: Any, as_hex: bool = False) -> None:
        self._column, self._as_hex = column, as_hex

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[position] for position in range(*number.indices(len(self)))]
        value = self._column[int(number)].as_py()
        return value.hex() if self._as_hex else value


def piece_table(
    starts: np.ndarray, ends: np.ndarray, groups: np.ndarray, shape: tuple[int, int], piece_bytes: int = PIECE_BYTES
) -> PieceTable:
    """Cut one shard's samples into pieces. ``starts``, ``ends`` [N] bytes, ``groups`` [N]: language x K + level."""
    if not len(starts):
        return whole_shards(np.array([0]), np.zeros((1, *shape), np.int32))
    first_row = piece_rows(starts, ends, piece_bytes)
    size = shape[0] * shape[1]
    piece = np.searchsorted(first_row, np.arange(len(starts)), side="right") - 1
    counts = np.bincount(piece * size + groups, minlength=len(first_row) * size).reshape(len(first_row), *shape)
    last_row = np.append(first_row[1:], len(starts)) - 1
    return PieceTable(
        np.array([0, len(first_row)]), first_row, starts[first_row], np.maximum.accumulate(ends)[last_row], counts
    )


def piece_rows(starts: np.ndarray, ends: np.ndarray, piece_bytes: int) -> np.ndarray:
    """The first row of each piece of a shard with at least one sample."""
    # A new piece begins where a sample ends beyond the next multiple of the piece's length.
    number = (ends - starts[0] - 1) // piece_bytes
    return np.flatnonzero(np.concatenate([[True], number[1:] != number[:-1]]))


def size_codes(width: np.ndarray, height: np.ndarray, language: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """[N] uint64 of samples; ``language`` [N] are their numbers, ``frames`` [N] 0 for images."""
    count = np.minimum(patch_counts(width, height), LARGEST_COUNT)
    above = (language.astype(np.int64) << LANGUAGE_SHIFT) | (frames.astype(np.int64) << FRAMES_SHIFT)
    return (count | above).astype(np.uint64)


def frames_of(codes: np.ndarray) -> np.ndarray:
    """[N] int64 of size codes, read or made: the frames of clips, 0 for images."""
    if codes.dtype.itemsize < 8:
        return np.zeros(len(codes), dtype=np.int64)
    return (codes >> np.uint64(FRAMES_SHIFT)).astype(np.int64)


def size_type(num_languages: int, with_clips: bool = False) -> np.dtype:
    """How a size code is written: two bytes hold four languages, four bytes all that there are, eight clips, too."""
    return np.dtype("<u8" if with_clips else "<u2" if num_languages <= 4 else "<u4")


def with_languages(summary: ShardSummary, languages: tuple[str, ...]) -> ShardSummary:
    """The same summary with languages numbered as in ``languages``, which holds all of the shard's."""
    if summary.languages == languages:
        return summary
    place = np.array([languages.index(name) for name in summary.languages])
    pieces, codes = summary.pieces, summary.codes
    counts = np.zeros((len(pieces.start), len(languages), pieces.counts.shape[2]), dtype=pieces.counts.dtype)
    counts[:, place] = pieces.counts
    old = codes.astype(np.int64)
    language = place[(old >> LANGUAGE_SHIFT) & LANGUAGES]
    codes = (old & ~(LANGUAGES << LANGUAGE_SHIFT) | (language << LANGUAGE_SHIFT)).astype(np.uint64)
    return replace(summary, pieces=replace(pieces, counts=counts), codes=codes, languages=languages)


def columns_bytes(summaries: Sequence[ShardSummary]) -> bytes:
    """The Arrow file of a folder's shards."""
    pieces = [summary.pieces for summary in summaries]
    per_shard = {
        "name": pa.array([summary.name for summary in summaries], pa.string()),
        "sha256": _digests([summary.sha256 for summary in summaries]),
        "index_sha256": _digests([summary.index_sha256 for summary in summaries]),
        **{name: pa.array([getattr(s, name) for s in summaries], pa.int64()) for name in SHARD_NUMBERS},
        "num_pieces": pa.array([len(table.start) for table in pieces], pa.int64()),
        "counts": _flat(np.concatenate([table.counts.sum(0, dtype=np.int32).reshape(1, -1) for table in pieces])),
    }
    per_piece = {
        "first_row": pa.array(np.concatenate([table.first_row for table in pieces]).astype(np.int32)),
        "start": pa.array(np.concatenate([table.start for table in pieces]).astype(np.int64)),
        "end": pa.array(np.concatenate([table.end for table in pieces]).astype(np.int64)),
        "piece_counts": _flat(_small(np.concatenate([t.counts.reshape(len(t.start), -1) for t in pieces]))),
    }
    sink = pa.BufferOutputStream()
    # Two tables of different lengths, each one value of a list column: one file, one checksum, no copy on reading.
    arrays = [pa.ListArray.from_arrays([0, len(column)], column) for column in {**per_shard, **per_piece}.values()]
    batch = pa.record_batch(arrays, names=[*per_shard, *per_piece])
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def without_clips(summary: ShardSummary, num_budgets: int) -> ShardSummary:
    """The same summary in a folder without clips: its first columns, those of images."""
    pieces = summary.pieces
    return replace(summary, pieces=replace(pieces, counts=np.ascontiguousarray(pieces.counts[..., :num_budgets])))


def read_columns(source: Path | bytes, num_shards: int, languages: int, levels: int) -> Columns:
    """Map or read an Arrow file. Raises ``BorderError`` where it is not one, or contradicts itself."""
    try:
        buffer = pa.memory_map(str(source)) if isinstance(source, Path) else pa.BufferReader(source)
        batch = pa.ipc.open_file(buffer).get_batch(0)
        batch.validate()
        columns = {name: batch.column(number)[0].values for number, name in enumerate(batch.schema.names)}
        return _checked(columns, num_shards, languages, levels)
    except (pa.ArrowException, KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, BorderError):
            raise
        raise BorderError(f"its columns do not fit: {one_line(error)}") from error


def _checked(columns: dict[str, Any], num_shards: int, languages: int, levels: int) -> Columns:
    def column(name: str) -> Any:
        return columns[name]

    numbers = {name: column(name).to_numpy() for name in SHARD_NUMBERS}
    num_pieces, counts = column("num_pieces").to_numpy(), column("counts").to_numpy()
    start, piece_counts = column("start").to_numpy(), column("piece_counts").to_numpy()
    lengths = {len(column(name)) for name in ("name", "sha256", "index_sha256", *SHARD_NUMBERS)} | {len(num_pieces)}
    if lengths != {num_shards} or num_pieces.sum() != len(start) or (num_pieces < 1).any():
        raise BorderError(f"its columns have {sorted(lengths)} entries for {num_shards} shards")
    wrong = pc.invert(pc.match_substring_regex(column("name"), SHARD_NAME))
    if pc.any(wrong).as_py():
        name = column("name").filter(wrong)[0].as_py()
        raise BorderError(f"{quoted(name)} must be the name of a .tar file, without a folder")
    if pc.count_distinct(column("name")).as_py() != num_shards:
        raise BorderError("it names a shard twice")
    # The pieces' counts are compared where they are used: looking at all would read the whole file into memory.
    if (counts.reshape(num_shards, -1).sum(1, dtype=np.int64) != numbers["samples"]).any() or (counts < 0).any():
        raise BorderError("its counts do not add up to its samples")
    pieces = PieceTable(
        first=np.concatenate([[0], np.cumsum(num_pieces)]),
        first_row=column("first_row").to_numpy(),
        start=start,
        end=column("end").to_numpy(),
        counts=piece_counts.reshape(len(start), languages, levels),
    )
    return Columns(
        names=_Names(column("name")),
        sha256=_Names(column("sha256"), as_hex=True),
        index_sha256=_Names(column("index_sha256"), as_hex=True),
        numbers=numbers,
        counts=counts.reshape(num_shards, languages, levels),
        pieces=pieces,
    )


def shards_digest(summaries: Sequence[ShardSummary]) -> str:
    """SHA-256 of all shards' checksums, in their order: what two copies of a data set have in common."""
    return hashlib.sha256("".join(summary.sha256 for summary in summaries).encode("ascii")).hexdigest()


def _digests(values: Sequence[str]) -> pa.Array:
    return pa.array([bytes.fromhex(value) for value in values], pa.binary(32))


def _small(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in two bytes each where they fit."""
    return values.astype(np.uint16 if values.max(initial=0) < 1 << 16 else np.int32)


def _flat(values: np.ndarray) -> pa.Array:
    return pa.array(values.reshape(-1))
