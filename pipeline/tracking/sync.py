"""Write the metrics that MLflow missed: what a run's metrics.jsonl holds and its MLflow run lacks."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.base.border import one_line, shown
from pipeline.base.commands import command_parser, run_command
from pipeline.base.run_folder import RunFolder
from pipeline.config import SettingsError, read_saved_settings
from pipeline.tracking.address import find_registration, find_run, save_run
from pipeline.tracking.local_log import read_entries
from pipeline.tracking.parameters import settings_as_text
from pipeline.tracking.store import STORE_ERRORS, Store

ENTRIES_PER_CHUNK = 500
TIMEOUT_SECONDS = 60.0  # assumption: ten times what the first making of tables takes
EXAMPLES = """examples:
  python -m pipeline.tracking.sync runs/stage1
  python -m pipeline.tracking.sync runs/*
"""


def sync_run(folder: str | Path, on_progress: Callable[[], None] = lambda: None) -> int:
    """Bring the MLflow run of a run folder up to date; the number of values written.

    Args:
        on_progress: called after each answer of the store.

    Raises:
        ValueError: the folder is no tracked run.
        STORE_ERRORS: the store does not answer.
    """
    found = find_run(folder)
    if found is None:
        raise ValueError(f"{folder} holds no tracking.json; give the folder of a run made with tracking.enabled=true")
    run_folder, run_id, address = found
    settings_file = RunFolder.at(run_folder).settings
    settings = read_saved_settings(settings_file) if settings_file.is_file() else None
    params = settings_as_text(settings) if settings else {}
    tags = {"run_folder": str(run_folder)} if run_id is None else {}
    registration = find_registration(run_folder) if run_id is None else None
    store = Store.connect(
        address, run_id, params if run_id is None else {}, tags, status=None, registration=registration
    )
    on_progress()
    save_run(run_folder, address, store.run_id)
    store.takes_all = settings is not None and settings.tracking.metrics == "all"
    store.load_held()
    on_progress()
    entries, num_values = read_entries(run_folder), 0
    while chunk := list(itertools.islice(entries, ENTRIES_PER_CHUNK)):
        num_values += sum(len(store.missing(entry)) for entry in chunk)
        store.write(chunk)
        on_progress()
    return num_values


def sync_within(folder: str | Path, timeout_seconds: float) -> int:
    """As ``sync_run``, but a store that is silent for ``timeout_seconds`` ends it.

    The work is done in a thread that does not outlive the program: what waits in a socket cannot be called off.

    Raises:
        TimeoutError: no answer for that long; other errors as ``sync_run``.
    """
    answers: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(sync_run(folder, lambda: answers.put(None)))
        except (SettingsError, *STORE_ERRORS) as error:
            answers.put(error)

    threading.Thread(target=work, name="sync", daemon=True).start()
    while True:
        try:
            answer = answers.get(timeout=timeout_seconds)
        except queue.Empty as error:
            raise TimeoutError(
                f"the tracking store has not answered for {timeout_seconds:g} s; run this again when it does, nothing "
                "is lost (or give --timeout-seconds)"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m pipeline.tracking.sync", __doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run that has ended")
    parser.add_argument(
        "--timeout-seconds", type=float, default=TIMEOUT_SECONDS, help="give up after so long without an answer"
    )
    arguments = parser.parse_args(argv)
    if not 0 < arguments.timeout_seconds <= threading.TIMEOUT_MAX:
        parser.error(f"--timeout-seconds is {arguments.timeout_seconds}; it must be above 0")
    return run_command(lambda: _sync_all(arguments.runs, arguments.timeout_seconds), ())


def _sync_all(runs: list[str], timeout_seconds: float) -> int:
    failed = False
    for folder in runs:
        try:
            print(f"{folder}: {sync_within(folder, timeout_seconds)} values written")
        except (SettingsError, *STORE_ERRORS) as error:
            failed = True
            print(f"error: {shown(folder)}: {one_line(error)}", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
