"""Writing files and folders: aside first, flushed to disk where asked, then renamed, so that none is ever half there.

What is being written has the name ``.NAME.HOST-PROCESS.partial``. A killed process leaves such a file behind, and the
next writer of the same name removes it once that process is gone.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUFFIX = ".partial"
_PARTIAL = re.compile(r"^\.(?P<name>.+)\.(?P<host>[^.]+)-(?P<process>\d+)\.partial$")


def partial_path(path: str | Path, owner: str | None = None) -> Path:
    """Where ``path`` is written until it is whole.

    ``owner``: a name in place of host and process, for a folder that several processes write together.
    """
    path = Path(path)
    return path.with_name(f".{path.name}.{owner or f'{_host()}-{os.getpid()}'}{SUFFIX}")


def is_partial(path: str | Path) -> bool:
    """Whether this is the name of something half written."""
    name = Path(path).name
    return name.startswith(".") and name.endswith(SUFFIX)


@contextmanager
def write_aside(path: str | Path, *, durable: bool = False, search: bool = True) -> Iterator[Path]:
    """Write to the path that this yields; it takes the name ``path`` when the block ends without an error.

    Folders above are made. Where the block raises, what was there before is untouched and nothing is left behind.

    Args:
        durable: also survive a power cut: the content is flushed to disk before the name is given, the name after.
        search: look for what killed processes left; False in folders of very many files, where that takes long.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if search:
        remove_leftovers(path)
    partial = partial_path(path)
    try:
        yield partial
        finish_file(partial, path, durable=durable)
    finally:
        partial.unlink(missing_ok=True)


def finish_file(partial: Path, path: Path, *, durable: bool = False) -> None:
    """Give a written file its name; for writers that are no block of code, others take `write_aside`."""
    if durable:
        flush_to_disk(partial)
    os.replace(partial, path)
    if durable:
        flush_to_disk(path.parent)


def write_bytes(path: str | Path, data: bytes, *, durable: bool = False, search: bool = True) -> None:
    """Write a file as a whole; the options are those of `write_aside`."""
    with write_aside(path, durable=durable, search=search) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Write UTF-8 text as a whole, line ends as they are."""
    write_bytes(path, text.encode("utf-8"), durable=durable)


def write_json(path: str | Path, value: Any, *, indent: int | None = 1, durable: bool = False) -> None:
    """Write JSON as a whole, every character as itself."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", durable=durable)


@contextmanager
def write_folder_aside(folder: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Fill the folder that this yields; it replaces ``folder`` when the block ends without an error."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    partial = partial_path(folder)
    partial.mkdir()
    try:
        yield partial
        replace_folder(partial, folder, durable=durable)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: str | Path, folder: str | Path, *, durable: bool = False) -> None:
    """Give a written folder its name; what had the name before is moved away first and removed last."""
    partial, folder = Path(partial), Path(folder)
    if durable:
        for path in partial.rglob("*"):
            if path.is_file():
                flush_to_disk(path)
        flush_to_disk(partial)
    old = partial_path(folder, owner="replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    if durable:
        flush_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def move(path: str | Path, target: str | Path) -> None:
    """Move a whole file or folder to another name of the same file system, in one step."""
    os.replace(path, target)


def set_aside(path: str | Path) -> Path:
    """Move an old file out of the way, as ``NAME.1.EXTENSION``, ``NAME.2.EXTENSION`` …; its new path."""
    path = Path(path)
    numbers = itertools.count(1)
    target = next(t for n in numbers if not (t := path.with_name(f"{path.stem}.{n}{path.suffix}")).exists())
    os.replace(path, target)
    return target


def flush_to_disk(path: str | Path) -> None:
    """Return when a file's content, or a folder's list of names, is on disk.

    A file system that cannot flush folders (some network ones) is taken as it is; a file must flush.
    """
    is_folder = Path(path).is_dir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not is_folder:
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(path: str | Path, *, of_all: bool = False) -> None:
    """Remove what killed processes of this host left of ``path``; another host's may still be at work.

    Args:
        of_all: the caller holds a lock which tells that nobody else writes ``path``, on whatever host.
    """
    path = Path(path)
    if not path.parent.is_dir():
        return
    for leftover in path.parent.glob(f".{_escaped(path.name)}.*{SUFFIX}"):
        match = _PARTIAL.match(leftover.name)
        if match is None or match["name"] != path.name or (match["host"] != _host() and not of_all):
            continue
        if of_all or (int(match["process"]) != os.getpid() and not _is_alive(int(match["process"]))):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname()) or "host"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return True
