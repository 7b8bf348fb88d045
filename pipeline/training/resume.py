"""What a start finds in its run folder: who else is there, which checkpoint to go on from, and what would change.

The main rank looks and decides; every rank gets the same answer or raises the same error, because ranks could see a
shared folder at different times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from pipeline.base.ranks import RankInfo
from pipeline.base.run_lock import RunFolderTaken, RunLock
from pipeline.checkpoint.folder import find_resume, set_aside_later
from pipeline.checkpoint.record import CheckpointError, read_record
from pipeline.checkpoint.remote import fetch_newer
from pipeline.config import SettingsError, Stage1Settings
from pipeline.supervise.attempts import AttemptLog, failed_attempts, restart_count, same_step_twice
from pipeline.training.before import check_inputs
from pipeline.training.fingerprint import compare_fingerprints, make_fingerprint

Answer = TypeVar("Answer")


@contextmanager
def run_folder_held(settings: Stage1Settings, rank_info: RankInfo) -> Iterator[None]:
    """The run folder is this run's while the block lasts. Collective.

    Raises:
        RunFolderTaken: on every rank, where another run works there.
        OSError: on every rank, where the folder cannot be written.
    """
    lock = RunLock(settings.train.run_folder)
    _decide(rank_info, lock.__enter__)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def settle_inputs(settings: Stage1Settings, rank_info: RankInfo) -> None:
    """Check what the settings name, before the run has a folder. Collective.

    Raises:
        SettingsError, OSError: on every rank; see :func:`pipeline.training.before.check_inputs`.
    """
    _decide(rank_info, lambda: check_inputs(settings))


class RepeatedFailure(ValueError):
    """A launcher started the run again although it fails at one step each time."""


@contextmanager
def noted_attempt(settings: Stage1Settings, rank_info: RankInfo) -> Iterator[AttemptLog | None]:
    """This start in the notes of the run folder, on the main rank; a block that raises has failed. Collective.

    Raises:
        RepeatedFailure: on every rank, where a launcher's restart would only fail at the same step again.
        OSError: on every rank, where the folder cannot be written.
    """
    folder, logs = settings.train.run_folder, []

    def begin() -> None:
        if restart_count(os.environ) and (reason := same_step_twice(failed_attempts(folder))):
            raise RepeatedFailure(reason)
        logs.append(AttemptLog(folder))

    _decide(rank_info, begin)
    log = logs[0] if logs else None
    try:
        yield log
    except BaseException:
        if log is not None:
            log.failed()
        raise


def choose_checkpoint(settings: Stage1Settings, rank_info: RankInfo) -> Path | None:
    """The checkpoint to go on from: the newest whole one of the run folder and ``train.remote_folder``. Collective.

    Raises:
        CheckpointError: on every rank, if ``train.resume`` cannot be followed.
    """
    train = settings.train

    def choose() -> Path | None:
        if train.resume == "auto" and train.remote_folder:
            fetched = fetch_newer(train.remote_folder, train.run_folder)
            if fetched is not None:
                print(f"{fetched} was fetched from {train.remote_folder}", flush=True)
                return fetched
        return find_resume(train.run_folder, train.resume)

    return _decide(rank_info, choose)


def settle_changes(settings: Stage1Settings, rank_info: RankInfo, checkpoint: Path | None) -> dict[str, Any]:
    """Say or refuse what differs from the checkpoint's run, and set a line that is left behind aside. Collective.

    Returns:
        this run's fingerprint, to be kept in its checkpoints.

    Raises:
        SettingsError: on every rank, for a difference that is not allowed.
        OSError: on every rank, where the tokenizer, a manifest or the folder cannot be read or written.
    """

    def settle() -> dict[str, Any]:
        fingerprint = make_fingerprint(settings)
        if checkpoint is not None:
            then = read_record(checkpoint).fingerprint
            for line in compare_fingerprints(then, fingerprint, settings.train.accept_changes, checkpoint):
                print(f"resume: {line}", flush=True)
        step = read_record(checkpoint).step if checkpoint is not None else None
        if settings.train.resume != "auto":
            aside = set_aside_later(settings.train.run_folder, step)
            if aside is not None:
                after = "all its checkpoints" if step is None else f"its checkpoints after step {step}"
                print(f"resume: the run goes back; {after} are in {aside} now, and no resume takes them", flush=True)
        return fingerprint

    return _decide(rank_info, settle)


ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (CheckpointError, RunFolderTaken, RepeatedFailure, SettingsError, OSError)
}


def _decide(rank_info: RankInfo, decide: Callable[[], Answer]) -> Answer:
    """The main rank's answer, or its error, on every rank."""
    answer: list[Any] = [None, "", ""]
    if rank_info.is_main:
        try:
            answer[0] = decide()
        except (CheckpointError, RunFolderTaken, RepeatedFailure, SettingsError) as error:
            answer[1:] = [type(error).__name__, str(error)]
        except OSError as error:
            answer[1:] = ["OSError", str(error)]
    if isinstance(answer[0], RunLock):  # it is this process's
        answer[0] = None
    dist.broadcast_object_list(answer, src=0)
    if answer[1]:
        raise ERRORS[answer[1]](answer[2])
    return answer[0]


def nothing_left(step: int, total_steps: int) -> list[str]:
    """A line for a run that has done all its steps before it begins."""
    if step < total_steps:
        return []
    return [
        f"warning: step {step} is done and the run has {total_steps}, so nothing is left to train; to go on, raise "
        "train.max_steps or train.epochs"
    ]
