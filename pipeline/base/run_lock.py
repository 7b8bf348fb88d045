"""One run in a run folder: the second is refused, and told who the first is."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from types import TracebackType

from pipeline.base.border import parse_json

LOCK = ".lock"
# Some network file systems have no locks; a run there goes on, and says that nothing guards the folder.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunFolderTaken(ValueError):
    """Another run works in the folder; the message names its host and process."""


class RunLock:
    """``with RunLock(folder): …`` in one process of the run.

    The lock is the system's own (POSIX), so it ends with the process however that ends, and children do not inherit it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        """
        Raises:
            RunFolderTaken: another process holds the lock.
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 4096, 0).decode("utf-8", "replace")
            os.close(file)
            if error.errno in _UNSUPPORTED:
                print(f"warning: {self.path} cannot be locked ({error}); start no second run here", file=sys.stderr)
                return self
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise RunFolderTaken(
                f"{self.path.parent} is in use by {_holder(holder)}; end that run first (its checkpoints stay), or "
                "give this one another train.run_folder"
            ) from error
        os.ftruncate(file, 0)
        record = {"host": socket.gethostname(), "process": os.getpid()}
        os.pwrite(file, json.dumps(record, ensure_ascii=False).encode("utf-8"), 0)
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)  # which gives the lock back; the file stays, because removing it would race
            self._file = None


def _holder(text: str) -> str:
    try:
        record = parse_json(text)
        return f"process {int(record['process'])} on host {str(record['host'])[:200]!r}"
    except (ValueError, KeyError, TypeError):
        return "another process, which has not said which"
