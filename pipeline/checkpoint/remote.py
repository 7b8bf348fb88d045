"""Copies of whole checkpoints in a remote folder (any fsspec URL), for machines that may vanish.

A copy is ``URL/step-00000120``; its record is written last and removed first, so a copy with a record is whole.
"""

from __future__ import annotations

import logging
import posixpath
import queue
import shutil
import threading
from pathlib import Path
from typing import Any

import fsspec

from pipeline.base.border import one_line
from pipeline.base.files import move, write_folder_aside
from pipeline.checkpoint.folder import checkpoint_folder, list_checkpoints, step_of, verify_checkpoint
from pipeline.checkpoint.record import RECORD, CheckpointError

logger = logging.getLogger(__name__)

# What file systems of fsspec raise is open: their own classes, those of aiohttp, botocore and others. Nothing of it may
# end training, so copying catches Exception in one place and says what it was.


class RemoteCopies:
    """Copies checkpoints in a thread of its own, the newest first; what it cannot copy costs a warning."""

    def __init__(self, url: str, keep_last: int) -> None:
        self.url, self.keep_last = url.rstrip("/"), keep_last
        self._waiting: queue.Queue[Path | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="checkpoint-copies", daemon=True)
        self._thread.start()

    def add(self, checkpoint: Path) -> None:
        """Copy a whole checkpoint, as soon as the ones before are done; older ones that still wait are left out."""
        self._waiting.put(checkpoint)

    def finish(self) -> None:
        """Wait until the newest is copied."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (checkpoint := self._waiting.get()) is not None:
            last = False
            while not self._waiting.empty():
                newer = self._waiting.get()
                last, checkpoint = newer is None, newer or checkpoint
            self._copy(checkpoint)
            if last:
                return

    def _copy(self, checkpoint: Path) -> None:
        try:
            copy_out(checkpoint, self.url)
            _prune(self.url, self.keep_last)
        except Exception as error:  # noqa: BLE001 - see above
            logger.warning(
                "%s was not copied to %s (%s: %s); training goes on, the next checkpoint is tried again",
                checkpoint, self.url, type(error).__name__, one_line(error, 300),
            )  # fmt: skip


def copy_out(checkpoint: Path, url: str) -> None:
    """Copy a checkpoint below ``url``, its record last."""
    system, folder = _system(url)
    target = posixpath.join(folder, checkpoint.name)
    if system.exists(posixpath.join(target, RECORD)):
        system.rm_file(posixpath.join(target, RECORD))
    system.makedirs(target, exist_ok=True)
    files = sorted((path for path in checkpoint.iterdir() if path.is_file()), key=lambda path: path.name == RECORD)
    for path in files:
        system.put_file(str(path), posixpath.join(target, path.name))


def fetch_newer(url: str, run_folder: str | Path) -> Path | None:
    """Fetch the newest whole copy, where it is newer than every whole checkpoint of the run; the folder it is in now.

    Raises:
        CheckpointError: the remote folder cannot be read.
    """
    newest = -1
    for folder in reversed(list_checkpoints(run_folder)):
        try:
            verify_checkpoint(folder)
        except CheckpointError:
            continue
        newest = step_of(folder)
        break
    try:
        system, source = _system(url)
        steps = _steps(system, source)
        for step in sorted((step for step in steps if step > newest), reverse=True):
            target = checkpoint_folder(run_folder, step)
            try:
                _fetch(system, posixpath.join(source, target.name), target)
            except CheckpointError as error:
                logger.warning("%s; trying the copy before it", error)
                continue
            return target
    except CheckpointError:
        raise
    except Exception as error:  # see above
        raise CheckpointError(
            f"train.remote_folder {url} cannot be read ({type(error).__name__}: {one_line(error, 300)}); "
            "mend it, or set train.remote_folder=null to go on from what is here"
        ) from error
    return None


def _fetch(system: Any, source: str, target: Path) -> None:
    if target.is_dir():  # damaged, or it would not be fetched
        shutil.rmtree(target)
    with write_folder_aside(target, durable=True) as partial:
        inside = partial / target.name  # a checkpoint is checked under its own name
        inside.mkdir()
        for entry in system.ls(source, detail=False):
            system.get_file(entry, str(inside / posixpath.basename(entry)))
        verify_checkpoint(inside)
        for path in list(inside.iterdir()):
            move(path, partial / path.name)
        inside.rmdir()


def _steps(system: Any, folder: str) -> list[int]:
    if not system.exists(folder):
        return []
    names = [posixpath.basename(entry.rstrip("/")) for entry in system.ls(folder, detail=False)]
    steps = [name.removeprefix("step-") for name in names if name.startswith("step-")]
    return [
        int(step) for step in steps if step.isdigit() and system.exists(posixpath.join(folder, f"step-{step}", RECORD))
    ]


def _prune(url: str, keep_last: int) -> None:
    system, folder = _system(url)
    for step in sorted(_steps(system, folder))[:-keep_last]:
        target = posixpath.join(folder, f"step-{step:08d}")
        system.rm_file(posixpath.join(target, RECORD))
        system.rm(target, recursive=True)


def _system(url: str) -> tuple[Any, str]:
    return fsspec.core.url_to_fs(url)
