"""Begin or go on with the tracking of a run: its local log, its MLflow run, and the thread that serves it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.distributed import current_rank
from pipeline.config import Stage1Settings
from pipeline.tracking.address import find_registration, find_run, lineage_tags, run_address, save_run
from pipeline.tracking.interface import NoTracking, Tracker
from pipeline.tracking.local_log import LocalLog
from pipeline.tracking.parameters import run_tags, settings_as_text
from pipeline.tracking.tracker import RunTracker, page_in_words

if TYPE_CHECKING:
    from pipeline.tracking.store import Store


def start_tracking(
    settings: Stage1Settings,
    run_folder: str | Path,
    resume_run_id: str | None = None,
    resume_step: int | None = None,
) -> Tracker:
    """Begin or go on with a run; on every rank but 0 a tracker that does nothing.

    Args:
        resume_run_id: MLflow run to go on with; without it, a resume uses the one in the folder's tracking.json.
        resume_step: the last optimizer step of the checkpoint resumed from; later ones are made again and cut
            from the local file. None with a ``resume_run_id`` keeps all lines; None without begins a new run.

    Raises:
        OSError: the run folder cannot be written at the start.
    """
    if current_rank() != 0:
        return NoTracking()
    run_folder = Path(run_folder)
    resuming = resume_run_id is not None or resume_step is not None
    keep = None if not resuming else (resume_step if resume_step is not None else sys.maxsize)
    local = LocalLog.open(run_folder, keep)
    opener = None
    if settings.tracking.enabled:
        tags = run_tags(settings, run_folder) | ({"resumed_at_step": str(resume_step)} if resume_step else {})
        opener = _store_opener(settings, run_folder, resume_run_id, resuming, tags)
    tracker = RunTracker(run_folder, local, opener, settings.tracking)
    tracker.start(behind=resuming)
    return tracker


def _store_opener(
    settings: Stage1Settings, run_folder: Path, run_id: str | None, resuming: bool, tags: dict[str, str]
) -> Callable[[], Store]:
    """A function for the thread that opens the run, or makes it, and notes it in tracking.json."""
    registration = uuid.uuid4().hex  # one for all attempts: an attempt whose answer was lost may have made the run

    def open_store() -> Store:
        from pipeline.tracking.store import Store  # both import MLflow
        from pipeline.tracking.study import join_study

        nonlocal registration
        address = run_address(settings, run_folder)
        known = find_run(run_folder) if resuming else None
        wanted = run_id or (known[1] if known else None)
        if wanted is None:
            registration = (find_registration(run_folder) if resuming else None) or registration
            save_run(run_folder, address, None, registration)
        store = Store.connect(
            address,
            wanted,
            settings_as_text(settings),
            tags | lineage_tags(settings),
            registration=registration if wanted is None else None,
        )
        store.takes_all = settings.tracking.metrics == "all"
        if settings.tracking.group:
            join_study(store, settings.tracking.group)
        store.load_held()
        store.start_system_metrics()
        save_run(run_folder, address, store.run_id)
        print(f"tracking: {page_in_words(store)}", flush=True)
        return store

    return open_store
