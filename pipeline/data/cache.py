"""Where the bytes of samples are read from: a local folder as it is, or a remote one through a cache on this machine.

The cache holds pieces of shards, single samples that belong to pieces of other nodes, and row indexes, each a file of
its own, written aside and renamed. The processes of a machine share it: what one fetches under a lock, the others find.
It is kept below its size by removing what was used longest ago; removing what another process reads is safe, because an
open file stays readable. Only files in folders that carry the cache's mark are ever removed: a cache folder may stand
above, or in, folders of the user's own shards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.base.border import quoted
from pipeline.base.files import is_partial, remove_leftovers, write_bytes
from pipeline.data.locks import locks_of
from pipeline.data.shard_index import MAX_INDEX_BYTES, IndexProblem, ShardIndex, index_name
from pipeline.data.transport import CHECKSUM_ATTEMPTS, CHUNK_BYTES, ShardUnavailable, Transport

MARK = ".shard-cache"  # in each folder that a cache made; holds the URL that its files come from
CACHED_SUFFIXES = (".piece", ".sample", ".index.parquet", ".tar")  # .tar: of version 0.1
OPEN_FILES = 64
KEPT_SHARE = 0.95  # when the cache is full, this much of it is kept, so that it is not looked through for each file
LOOK_EVERY_SHARE = 0.01  # bytes fetched between two looks at the cache's size


@dataclass(frozen=True)
class Piece:
    """A run of samples of a shard, and its bytes in the tar."""

    shard: int  # of its source
    number: int  # in its shard
    name: str  # of the tar
    start: int
    end: int

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name.startswith("."):
            message = f"{quoted(self.name)} is no name of a shard: it leads out of its folder"
            raise ShardUnavailable("missing_shard", message)


class _OpenFiles:
    """The files that were used last stay open."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, BinaryIO] = OrderedDict()

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Raises ``OSError``, also ``FileNotFoundError``. Fewer bytes where the file ends."""
        if path not in self._files:
            self._files[path] = path.open("rb")
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        file = self._files[path]
        file.seek(offset)
        return file.read(length)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class LocalFolder:
    """Shards of a folder that this machine can open."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._files = _OpenFiles()

    def index(self, name: str, sha256: str) -> Path:
        """The row index of a shard."""
        return self.folder / index_name(name)

    def read(self, piece: Piece, rows: ShardIndex, number: int, start: int, end: int) -> bytes:
        """Bytes ``start`` … ``end`` of a tar. Fewer where it ends; samples carry their own checksums."""
        path = self.folder / piece.name
        try:
            return self._files.read(path, start, end - start)
        except FileNotFoundError as error:
            raise ShardUnavailable("missing_shard", f"{path} does not exist") from error

    def close(self) -> None:
        self._files.close()


class CachedFolder:
    """Shards of an fsspec URL, through files in ``cache_folder``, which is kept below ``max_bytes``.

    Args:
        is_home: whether this machine reads (nearly) all samples of a piece of a source; others are fetched one by one.
    """

    def __init__(
        self,
        transport: Transport,
        cache_folder: str | Path,
        max_bytes: int,
        is_home: Callable[[Piece], bool] = lambda piece: True,
    ) -> None:
        self.transport, self.root, self.max_bytes, self.is_home = transport, Path(cache_folder), max_bytes, is_home
        # One folder a URL: two data sets may have shards of one name.
        self.folder = self.root / hashlib.sha256(transport.url.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), (self.folder / MARK).open("x", encoding="utf-8") as mark:
            mark.write(transport.url + "\n")
        for left in filter(is_partial, list(self.folder.iterdir())):
            remove_leftovers(self.folder / left.name[1:].rsplit(".", 2)[0])
        self._files = _OpenFiles()
        self._locks = locks_of(self.root / "locks")
        self._unlooked: float = max_bytes  # bytes fetched since the cache's size was looked at; look before the first

    def index(self, name: str, sha256: str) -> Path:
        """The row index of a shard, fetched if it is not there.

        Raises:
            ShardUnavailable: it is missing, or has other bytes than the manifest says. StoreUnavailable.
        """
        path = self.folder / index_name(name)

        def fetch() -> bytes:
            for _ in range(CHECKSUM_ATTEMPTS):
                data = self.transport.read_whole(index_name(name), MAX_INDEX_BYTES)
                if hashlib.sha256(data).hexdigest() == sha256:
                    return data
            message = f"{self.transport.url}/{index_name(name)} has not the manifest's sha256 {sha256[:12]}…"
            raise ShardUnavailable("shard_checksum", message)

        self._ensure(path, 0, fetch)
        return path

    def read(self, piece: Piece, rows: ShardIndex, number: int, start: int, end: int) -> bytes:
        """Bytes ``start`` … ``end`` of a tar: sample ``number`` of a piece's index rows. Raises as ``index``."""
        path = self._path(piece)
        if not path.exists() and not self.is_home(piece):
            self.fetch_sample(piece, rows, number, start, end)
            return self._files.read(self._path(piece, number), 0, end - start)
        self.fetch_piece(piece, rows)
        return self._files.read(path, start - piece.start, end - start)

    def fetch_piece(self, piece: Piece, rows: ShardIndex) -> bool:
        """Have a piece in the cache; whether it was not there. Its bytes are compared with ``rows``, its index rows."""

        def fetch() -> bytes:
            parts = range(piece.start, piece.end, CHUNK_BYTES)
            return b"".join(self.transport.read(piece.name, low, min(low + CHUNK_BYTES, piece.end)) for low in parts)

        fetch = self._checked(fetch, piece.start, rows, range(len(rows)))
        return self._ensure(self._path(piece), piece.end - piece.start, fetch)

    def fetch_sample(self, piece: Piece, rows: ShardIndex, number: int, start: int, end: int) -> bool:
        """Have the bytes of one sample in the cache; whether they were not there."""
        fetch = self._checked(
            lambda: self.transport.read(piece.name, start, end), start, rows, range(number, number + 1)
        )
        return self._ensure(self._path(piece, number), end - start, fetch)

    def has(self, piece: Piece) -> bool:
        """Whether a piece is in the cache."""
        return self._path(piece).exists()

    def _checked(self, fetch: Callable[[], bytes], start: int, rows: ShardIndex, numbers: range) -> Callable[[], bytes]:
        """``fetch``, again where samples have not the checksums of their index.

        Bytes that stay wrong are the store's own; the samples in them are named when they are read.
        """

        def checked() -> bytes:
            for _ in range(CHECKSUM_ATTEMPTS - 1):
                data = fetch()
                if _is_right(data, start, rows, numbers):
                    return data
                self.transport.patience.counts.add("retries")
            return fetch()

        return checked

    def close(self) -> None:
        self._files.close()

    def _path(self, piece: Piece, number: int | None = None) -> Path:
        stem = piece.name.removesuffix(".tar")
        return self.folder / (
            f"{stem}.{piece.number}.piece" if number is None else f"{stem}.{piece.number}.{number}.sample"
        )

    def _ensure(self, path: Path, size: int, fetch: Callable[[], bytes]) -> bool:
        if _touch(path):
            return False
        with self._locks.hold(path.name):
            if _touch(path):  # another process may have fetched it while this one waited
                return False
            self._make_room(size)
            write_bytes(path, fetch(), search=False)
            return True

    def _make_room(self, size: int) -> None:
        if size > self.max_bytes:
            raise IndexProblem(
                f"a piece of {size} bytes does not fit into the cache of {self.max_bytes} bytes; "
                "raise data.cache_gigabytes"
            )
        self._unlooked += size
        if self._unlooked < LOOK_EVERY_SHARE * self.max_bytes:
            return
        self._unlooked = 0
        with self._locks.hold("evict"):
            files = list(self._evictable())
            used = sum(length for _, length, _ in files)
            allowed = self.max_bytes if used + size <= self.max_bytes else self.max_bytes * KEPT_SHARE
            for _, length, path in sorted(files):
                if used + size <= allowed:
                    break
                Path(path).unlink(missing_ok=True)
                used -= length
        free = shutil.disk_usage(self.root).free
        if free < size:
            raise IndexProblem(f"{self.root} has {free} bytes free and a piece needs {size}; free some or move it")

    def _evictable(self) -> Iterator[tuple[int, int, str]]:
        """When used, bytes and path of the files that a cache made below this one's folder; links are not followed."""
        for folder in self.root.iterdir():
            if not (folder / MARK).is_file() or folder.is_symlink():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(CACHED_SUFFIXES) and not entry.is_symlink():
                        with suppress(FileNotFoundError):
                            status = entry.stat()
                            yield status.st_mtime_ns, status.st_size, entry.path


ShardStore = LocalFolder | CachedFolder


def _is_right(data: bytes, start: int, rows: ShardIndex, numbers: range) -> bool:
    """Whether the members of these samples have the checksums that their index says; ``data`` begins at ``start``."""
    view, part_of = memoryview(data), slice(numbers.start, numbers.stop)
    for what in ("image", "json"):
        columns = (getattr(rows, f"{what}_{part}")[part_of].tolist() for part in ("offset", "length", "crc32"))
        for offset, length, expected in zip(*columns, strict=True):
            low = offset - start
            if zlib.crc32(view[low : low + length]) != expected:
                return False
    return True


def _touch(path: Path) -> bool:
    """Mark as just used; False where it does not exist."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def check_remote(folder: str, cache_folder: str | None) -> None:
    """
    Raises:
        IndexProblem: a URL without ``data.cache_folder``.
    """
    if "://" in folder and cache_folder is None:
        raise IndexProblem(f"{folder} is remote and data.cache_folder is null; name a local folder for its shards")
