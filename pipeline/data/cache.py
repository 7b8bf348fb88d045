"""Where shards are read from: a local folder as it is, or any fsspec URL through a local cache.

Several processes of one machine may share a cache folder. A shard is fetched once, under a lock, into a file aside,
checked against the manifest's sha256 and then renamed; the cache is kept below its size by removing what was used
longest ago. Removing a shard that another process reads is safe: its open file stays readable.
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

from pipeline.data.manifest import IndexProblem

FETCH_ATTEMPTS = 3
RETRY_SECONDS = 1.0  # doubled each time
CHUNK_BYTES = 1 << 20


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
        path = self.folder / name
        if not _touch(path):
            with _locked(self.folder / f"{name}.lock"):
                if not _touch(path):  # another process may have fetched it while this one waited
                    self._make_room(size)
                    self._download(name, path, sha256)
        return path

    def _download(self, name: str, path: Path, sha256: str) -> None:
        import fsspec

        aside = path.with_name(f"{name}.{os.getpid()}.part")
        problem = ShardUnavailable("missing_shard", f"{self.url}/{name} was not tried")
        for attempt in range(FETCH_ATTEMPTS):
            if attempt:
                time.sleep(RETRY_SECONDS * 2 ** (attempt - 1))
            try:
                digest = hashlib.sha256()
                with fsspec.open(f"{self.url}/{name}", "rb") as source, aside.open("wb") as target:
                    while chunk := source.read(CHUNK_BYTES):
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
            for path in self.root.glob("*/*"):
                if path.suffix in (".tar", ".parquet"):
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
