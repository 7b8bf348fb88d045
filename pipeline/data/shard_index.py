"""The row index of one shard, and how small files beside shards are read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.base.border import BorderError, one_line, shown
from pipeline.base.languages import canonical, in_order
from pipeline.data.levels import Levels
from pipeline.data.object_clients import client_of
from pipeline.data.problem import IndexProblem

MAX_INDEX_BYTES = 256 << 20  # of one shard's rows: some four million samples
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardIndex:
    """The rows of one shard: N samples in the order of the tar. All arrays are [N].

    What is said of the image of a clip is said of the run of the tar that holds all its frames, headers and all.
    """

    shard: str
    keys: list[str]
    image_offset: np.ndarray
    image_length: np.ndarray
    image_crc32: np.ndarray
    json_offset: np.ndarray
    json_length: np.ndarray
    json_crc32: np.ndarray
    width: np.ndarray
    height: np.ndarray
    languages: tuple[str, ...]
    language: np.ndarray  # positions in ``languages``
    num_regions: np.ndarray
    num_negatives: np.ndarray
    num_frames: np.ndarray  # of a clip, as stored; 0 for an image

    def __len__(self) -> int:
        return len(self.keys)

    def starts(self) -> np.ndarray:
        """[N] bytes: where each sample's first member begins in the tar."""
        return np.minimum(self.image_offset, self.json_offset)

    def ends(self) -> np.ndarray:
        """[N] bytes: where each sample's last member ends in the tar."""
        return np.maximum(self.image_offset + self.image_length, self.json_offset + self.json_length)

    def levels(self, levels: Levels) -> np.ndarray:
        """[N] int64: the column of each sample.

        Raises:
            IndexProblem: a clip, where the levels have none.
        """
        if not levels.clip_frames and self.num_frames.any():
            raise IndexProblem(
                f"the index of {shown(self.shard)} holds clips, which its manifest does not; make both again with "
                "`python -m data_tools index --force`"
            )
        return levels.numbers(self.width, self.height, self.num_frames)

    def counts(self, levels: Levels, languages: Sequence[str] | None = None) -> np.ndarray:
        """[languages, levels] int32, by the languages of this shard or those given.

        Raises:
            IndexProblem: a sample has a language that is not among those given, or as ``levels``.
        """
        names = self.languages if languages is None else tuple(languages)
        there = {self.languages[number] for number in np.unique(self.language)}
        if not there <= set(names):
            raise IndexProblem(
                f"the index of {shown(self.shard)} holds {', '.join(sorted(there - set(names)))}, which its manifest "
                "does not; make both again with `python -m data_tools index --force`"
            )
        place = np.array([names.index(name) if name in there else 0 for name in self.languages])
        group = place[self.language] * len(levels) + self.levels(levels)
        flat = np.bincount(group, minlength=len(names) * len(levels))
        return flat.reshape(len(names), len(levels)).astype(np.int32)

    def grouped_rows(self, levels: Levels) -> dict[str, np.ndarray]:
        """For each language, its rows by level, then by place in the tar: what a plan's numbers refer to."""
        order = np.argsort(self.levels(levels), kind="stable")
        return {name: order[self.language[order] == number] for number, name in enumerate(self.languages)}


def parse_index(data: bytes, shard: str, sha256: str | None = None) -> ShardIndex:
    """The row index of ``shard`` from the bytes of its parquet file.

    Args:
        sha256: what the manifest says of those bytes; None: no manifest speaks of them.

    Raises:
        IndexProblem: the bytes are not such a file, or not those that the manifest was made with.
    """
    import pyarrow.parquet as pq  # half a second that --help does without
    from pyarrow import ArrowException

    remedy = "make it again with `python -m data_tools index --force`"
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise IndexProblem(f"the index of {shown(shard)} is not the one that its manifest was made with; {remedy}")
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        return _rows(table, shard)
    except (ArrowException, OSError, KeyError, ValueError) as error:
        raise IndexProblem(f"the index of {shown(shard)} is damaged ({one_line(error)}); {remedy}") from error


def _rows(table: Any, shard: str) -> ShardIndex:
    """Raises KeyError or ValueError where a column is missing, of another type, or out of its range."""
    import pyarrow.types as types  # half a second that --help does without

    numbers = {}
    for name in ShardIndex.__dataclass_fields__:
        if name in ("shard", "keys", "languages", "language"):
            continue
        if name == "num_frames" and name not in table.column_names:  # an index made before there were clips
            numbers[name] = np.zeros(len(table), dtype=np.int32)
            continue
        column = table[name]
        if not types.is_integer(column.type) or column.null_count:
            raise ValueError(
                f"{name} is of type {column.type} with {column.null_count} nulls; it must be whole numbers"
            )
        numbers[name] = column.to_numpy()
        least = 1 if name in ("width", "height") else 0
        if len(table) and int(numbers[name].min()) < least:
            raise ValueError(f"{name} is {int(numbers[name].min())}; it must be at least {least}")
    keys, languages = table["key"].to_pylist(), table["language"].to_pylist()
    if not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise ValueError("its keys must be strings, each once")
    if not all(isinstance(tag, str) for tag in languages):
        raise ValueError("its languages must be tags")
    tags = {tag: canonical(tag) for tag in set(languages)}
    known = in_order(tags.values())
    language = np.array([known.index(tags[tag]) for tag in languages], dtype=np.int64)
    return ShardIndex(shard=shard, keys=keys, languages=known, language=language, **numbers)


def compare_index(path: Path, shard: str, sha256: str) -> None:
    """See that a file is the index that a manifest was made with. Raises ``IndexProblem``, or ``OSError``."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise IndexProblem(
            f"the index of {shown(shard)} is not the one that its manifest was made with; make it again with "
            "`python -m data_tools index --force`"
        )


def read_rows(path: Path, shard: str, first: int, count: int, row_group: int) -> ShardIndex:
    """``count`` rows of a shard's index file, from ``first`` on; files of this version have them in ``row_group``.

    Raises:
        IndexProblem: the file is damaged, or has other rows. OSError: it cannot be read.
    """
    import pyarrow.parquet as pq  # half a second that --help does without
    from pyarrow import ArrowException

    try:
        with pq.ParquetFile(path, memory_map=False) as file:
            groups = file.metadata.num_row_groups
            if groups > row_group and file.metadata.row_group(row_group).num_rows == count and groups > 1:
                table = file.read_row_group(row_group, use_threads=False)
            else:  # files of version 0.1 have one group for all rows
                table = file.read(use_threads=False).slice(first, count)
        rows = _rows(table, shard)
    except FileNotFoundError:
        raise
    except (ArrowException, OSError, KeyError, ValueError) as error:
        raise IndexProblem(
            f"the index of {shown(shard)} is damaged ({one_line(error)}); make it again with "
            "`python -m data_tools index --force`"
        ) from error
    if len(rows) != count:
        raise IndexProblem(f"the index of {shown(shard)} has {len(rows)} of {count} rows from {first} on; index again")
    return rows


def read_index(folder: str | Path, shard: str, sha256: str | None = None) -> ShardIndex:
    """The row index beside ``folder/shard``, uncached. Raises as ``parse_index``, also where there is none."""
    try:
        return parse_index(read_file(str(folder), index_name(shard), MAX_INDEX_BYTES), shard, sha256)
    except (FileNotFoundError, BorderError) as error:
        raise IndexProblem(
            f"the index of {shown(shard)} cannot be read ({one_line(error)}); make it with `python -m data_tools index`"
        ) from error


def index_name(shard: str) -> str:
    return shard.removesuffix(".tar") + ".index.parquet"


def read_file(folder: str, name: str, max_bytes: int) -> bytes:
    """A small file of a local folder or a URL. Raises ``FileNotFoundError``, or ``BorderError`` if too long."""
    if "://" not in folder:
        with (Path(folder) / name).open("rb") as file:
            return read_at_most(file, name, max_bytes)
    return read_at_most(io.BytesIO(client_of(folder.rstrip("/")).read_beginning(name, max_bytes + 1)), name, max_bytes)


def read_at_most(file: BinaryIO, name: str, max_bytes: int) -> bytes:
    """The rest of a file. Raises ``BorderError`` where that is more than ``max_bytes``, after about as many."""
    parts, left = [], max_bytes
    while part := file.read(CHUNK_BYTES):
        left -= len(part)
        if left < 0:
            raise BorderError(f"{shown(name)} has more than {max_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
