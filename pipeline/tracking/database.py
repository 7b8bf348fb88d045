"""The sqlite file of a tracking store: its address, whether it can be written, and its making by one process alone.

MLflow makes its tables one by one in a file that already has its name. Killed on the way, or begun by two runs at once,
it leaves a database that no later run can use. Here the file is made aside, under a lock, and gets its name when whole.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mlflow.tracking import MlflowClient

from pipeline.base.files import set_aside, write_aside
from pipeline.tracking.address import SQLITE, sqlite_path, sqlite_uri

LOCK_SECONDS = 1.0
TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('alembic_version', 'runs')"


def probe(uri: str) -> None:
    """Ask a sqlite store for its write lock, because MLflow itself would wait 20 s for it, and minutes at its start.

    Raises:
        FileNotFoundError: the database is gone; sqlite would silently begin an empty one.
        sqlite3.Error: it is locked, full or damaged.
    """
    path = sqlite_path(uri)
    if path is None:
        return
    if not path.exists():
        raise FileNotFoundError(f"the tracking database {path} is gone")
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def prepare_database(uri: str) -> None:
    """Make the database of a sqlite address where there is none; one that was left half made is moved out of the way.

    Raises:
        BlockingIOError: another process is making it; try again. OSError, sqlite3.Error: it cannot be made or read.
    """
    path = sqlite_path(uri)
    if path is None or _is_whole(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):
        if _is_whole(path):  # made while this process came here
            return
        if path.exists():
            set_aside(path)
        with write_aside(path) as partial:
            MlflowClient(sqlite_uri(partial)).search_experiments(max_results=1)
    remove_stray_folder(uri)


def remove_stray_folder(uri: str) -> None:
    """MLflow makes the folder of an address without reading its escapes; the empty one that comes of it goes again."""
    path, raw = sqlite_path(uri), Path(uri.removeprefix(SQLITE))
    if path is not None and raw.is_absolute() and raw.parent != path.parent:
        with suppress(OSError):  # not there, or somebody's own
            raw.parent.rmdir()


def _is_whole(path: Path) -> bool:
    """Whether MLflow ended making its tables: the version that it stamps is the last thing it writes."""
    if not path.exists():
        return False
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        if connection.execute(TABLES).fetchone()[0] < 2:
            return False
        return bool(connection.execute("SELECT count(*) FROM alembic_version").fetchone()[0])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel when the process ends
        yield
    finally:
        os.close(descriptor)
