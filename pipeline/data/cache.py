"""Where shards are read from: a local folder as it is, or any fsspec URL through a local cache.

Several processes of one machine may share a cache folder. A shard is fetched once, under a lock, into a file aside,
checked against the manifest's sha256 and then renamed; the cache is kept below its size by removing what was used
longest ago. Removing a shard that another process reads is safe: its open file stays readable. Only files in folders
that carry the cache's mark are ever removed: a cache folder may stand above, or in, folders of the user's own shards.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.base.border import quoted
from pipeline.base.files import write_text
from pipeline.data.shard_index import MAX_INDEX_BYTES, IndexProblem

FETCH_ATTEMPTS = 3
RETRY_SECONDS = 1.0  # doubled each time
CHUNK_BYTES = 1 << 20
MARK = ".shard-cache"  # in each folder that a cache made; holds the URL that its files come from
CACHED_SUFFIXES = (".tar", ".index.parquet")


class ShardUnavailable(OSError):
    """A shard is not there or arrives damaged. ``kind``: ``missing_shard`` or ``shard_checksum``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class LocalFolder:
    """Shards of a folder that this machine can open."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def open(self, name: str, size: int, sha256: str) -> BinaryIO:
        """A file. Its length and checksum are not looked at: samples carry their own checksums."""
        try:
            return (self.folder / name).open("rb")
        except FileNotFoundError as error:
            raise ShardUnavailable("missing_shard", f"{self.folder / name} does not exist") from error


class CachedFolder:
    """Shards of an fsspec URL, kept in ``cache_folder`` below ``max_bytes``."""

    def __init__(self, url: str, cache_folder: str | Path, max_bytes: int) -> None:
        self.url = url.rstrip("/")
        # One folder a URL: two data sets may have shards of one name.
        self.folder = Path(cache_folder) / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.root, self.max_bytes = Path(cache_folder), max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MARK).exists():
            write_text(self.folder / MARK, self.url + "\n")

    def open(self, name: str, size: int, sha256: str) -> BinaryIO:
        """A file of the cache, fetched if it is not there. Raises as ``fetch``."""
        for _ in range(FETCH_ATTEMPTS):
            path = self.fetch(name, size, sha256)
            try:
                return path.open("rb")
            except FileNotFoundError:
                continue  # another process made room in between
        raise ShardUnavailable(
            "missing_shard",
            f"{path} is removed as fast as it is fetched; raise data.cache_gigabytes above a window's size",
        )

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """The local path of a file, fetched if it is not in the cache.

        Raises:
            ShardUnavailable: it does not exist, or does not match ``sha256`` after three attempts.
        """
        if Path(name).name != name or name.startswith("."):
            raise ShardUnavailable("missing_shard", f"{quoted(name)} is no name of a shard: it leads out of its folder")
        path = self.folder / name
        if not _touch(path):
            with _locked(self.folder / f"{name}.lock"):
                if not _touch(path):  # another process may have fetched it while this one waited
                    self._make_room(size)
                    self._download(name, path, size, sha256)
        return path

    def _download(self, name: str, path: Path, size: int, sha256: str) -> None:
        import fsspec

        aside = path.with_name(f"{name}.{os.getpid()}.part")
        problem = ShardUnavailable("missing_shard", f"{self.url}/{name} was not tried")
        for attempt in range(FETCH_ATTEMPTS):
            if attempt:
                time.sleep(RETRY_SECONDS * 2 ** (attempt - 1))
            try:
                digest, left = hashlib.sha256(), size or MAX_INDEX_BYTES
                with fsspec.open(f"{self.url}/{name}", "rb") as source, aside.open("wb") as target:
                    while left >= 0 and (chunk := source.read(CHUNK_BYTES)):  # a body may have no end
                        left -= len(chunk)
                        digest.update(chunk)
                        target.write(chunk)
                if digest.hexdigest() == sha256:
                    os.replace(aside, path)
                    return
                problem = ShardUnavailable(
                    "shard_checksum", f"{self.url}/{name} has sha256 {digest.hexdigest()}, the manifest says {sha256}"
                )
            except FileNotFoundError as error:
                problem = ShardUnavailable("missing_shard", f"{self.url}/{name} does not exist ({error})")
                break  # asking again brings nothing
            except OSError as error:
                problem = ShardUnavailable("missing_shard", f"{self.url}/{name} cannot be read ({error})")
            finally:
                aside.unlink(missing_ok=True)
        raise problem

    def _make_room(self, size: int) -> None:
        with _locked(self.root / "evict.lock"):
            files = []
            for path in self._evictable():
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                files.append((status.st_mtime_ns, status.st_size, path))
            used = sum(length for _, length, _ in files)
            for _, length, path in sorted(files):
                if used + size <= self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                used -= length
            if used + size > self.max_bytes:
                raise IndexProblem(
                    f"a shard of {size} bytes does not fit into the cache of {self.max_bytes} bytes; "
                    "raise data.cache_gigabytes"
                )
            free = shutil.disk_usage(self.root).free
            if free < size:
                raise IndexProblem(f"{self.root} has {free} bytes free and a shard needs {size}; free some or move it")

    def _evictable(self) -> Iterator[Path]:
        """Shards and indexes in the folders below the cache's that a cache made; links are not followed."""
        for folder in self.root.iterdir():
            if (folder / MARK).is_file() and not folder.is_symlink():
                for path in folder.iterdir():
                    if path.name.endswith(CACHED_SUFFIXES) and not path.is_symlink():
                        yield path


ShardStore = LocalFolder | CachedFolder


def make_store(folder: str, cache_folder: str | None, cache_gigabytes: float) -> ShardStore:
    """The store of one entry of ``data.shards``.

    Raises:
        IndexProblem: a URL without ``data.cache_folder``.
    """
    if "://" not in folder:
        return LocalFolder(folder)
    if cache_folder is None:
        raise IndexProblem(f"{folder} is remote and data.cache_folder is null; name a local folder for its shards")
    return CachedFolder(folder, cache_folder, int(cache_gigabytes * 1e9))


def _touch(path: Path) -> bool:
    """Mark as just used; False where it does not exist."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # flock is released by the kernel when its process dies, so a killed loader leaves no lock behind.
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
