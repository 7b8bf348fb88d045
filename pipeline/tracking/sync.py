"""Write the metrics that MLflow missed: what a run's metrics.jsonl holds and its MLflow run lacks."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from pipeline.base.run_folder import RunFolder
from pipeline.config import SettingsError, read_saved_settings
from pipeline.tracking.local_log import read_entries
from pipeline.tracking.parameters import settings_as_text
from pipeline.tracking.store import STORE_ERRORS, Store, find_run, save_run

ENTRIES_PER_CHUNK = 500
EXAMPLES = """examples:
  python -m pipeline.tracking.sync runs/stage1
  python -m pipeline.tracking.sync runs/*
"""


def sync_run(folder: str | Path) -> int:
    """Bring the MLflow run of a run folder up to date; the number of values written.

    Raises:
        ValueError: the folder is no tracked run.
        STORE_ERRORS: the store does not answer.
    """
    found = find_run(folder)
    if found is None:
        raise ValueError(f"{folder} holds no tracking.json; give the folder of a run made with tracking.enabled=true")
    run_folder, run_id, address = found
    settings_file = RunFolder.at(run_folder).settings
    params = settings_as_text(read_saved_settings(settings_file)) if settings_file.is_file() else {}
    tags = {"run_folder": str(run_folder)} if run_id is None else {}
    store = Store.connect(address, run_id, params if run_id is None else {}, tags, status=None)
    save_run(run_folder, address, store.run_id)
    store.load_held()
    entries, num_values = read_entries(run_folder), 0
    while chunk := list(itertools.islice(entries, ENTRIES_PER_CHUNK)):
        num_values += sum(len(store.missing(entry)) for entry in chunk)
        store.write(chunk)
    return num_values


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tracking.sync",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run that has ended")
    failed = False
    for folder in parser.parse_args(argv).runs:
        try:
            print(f"{folder}: {sync_run(folder)} values written")
        except (SettingsError, *STORE_ERRORS) as error:
            failed = True
            print(f"error: {folder}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
