"""Scores of a checkpoint: into the folder of the run that made it, and into that run's MLflow page."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.base.border import one_line, read_typed
from pipeline.base.files import write_json, write_text
from pipeline.base.run_folder import RunFolder
from pipeline.tracking.address import RunAddress, find_run
from pipeline.tracking.data_sets import DataSet, any_set
from pipeline.tracking.interface import RefusedError
from pipeline.tracking.local_log import Entry, read_entries
from pipeline.tracking.metric_names import grouped_metrics
from pipeline.tracking.score_table import scores_section, with_scores

SCORES_FILE = "scores.json"
FACTS_FILE = "score_facts.json"
ATTEMPTS, PAUSE_SECONDS = 3, 2.0  # assumption: a proxy that restarts is back within them
_SCORES: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])  # nested by task; JSON's own depth is the bound


def log_scores(
    folder: str | Path,
    scores: Mapping[str, Any],
    step: int | None = None,
    *,
    data: Sequence[str | Path] = (),
    files: Sequence[str | Path] = (),
    facts: Mapping[str, Any] | None = None,
) -> bool:
    """Add scores to the run that made a checkpoint: merged into RUN/scores.json, and as metrics ``evaluation/…``.

    Args:
        folder: a run folder, its final/ or one of its checkpoints.
        scores: numbers by name; groups may nest, as ``{"fgovd": {"hard": 0.41, "by_language": {"zh": 0.4}}}``.
        step: optimizer step of the checkpoint; by default that of its folder's name, else the run's last.
        data: what was evaluated on; noted as data sets of the run.
        files: results to keep beside the run, under ``evaluation``.
        facts: of flat names ``n``, ``chance`` and ``kind``; kept in RUN/score_facts.json, for the model card.

    Returns:
        Whether MLflow has them. False, with a line on stderr, where there is no run or its store does not answer.
    """
    from pipeline.tracking.store import STORE_ERRORS  # here, because MLflow takes seconds to import

    try:
        found = find_run(folder)
        if found is None:
            return _refuse(f"{folder} belongs to no tracked run")
        run_folder, run_id, address = found
        _merge(run_folder / SCORES_FILE, scores)
        _merge(run_folder / FACTS_FILE, facts or {})
        _renew_card(RunFolder.at(run_folder))
        if run_id is None:
            return _refuse(f"{run_folder} has no MLflow run yet")
        step = _step_of(Path(folder), run_folder) if step is None else step
        values = grouped_metrics({f"score/{name}": value for name, value in flatten_scores(scores).items()})
        told = Entry(step, time.time(), values), [any_set(path) for path in data], files
        _insisting(lambda: _tell_store(address, run_id, *told))
    except STORE_ERRORS as error:
        return _refuse(one_line(error, 300))
    return True


def log_table(folder: str | Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Add a table to the MLflow page of the run that made a checkpoint, as ``tables/NAME.json``.

    Returns:
        Whether MLflow has it. False, with a line on stderr, where there is no run or its store does not answer.
    """
    from pipeline.tracking.store import STORE_ERRORS, Store  # MLflow takes seconds to import

    try:
        found = find_run(folder)
        if found is None or found[1] is None:
            return _refuse(f"{folder} belongs to no tracked run")
        _, run_id, address = found
        _insisting(lambda: Store.connect(address, run_id, {}, {}, status=None).log_table(name, columns, rows))
    except STORE_ERRORS as error:
        return _refuse(one_line(error, 300))
    return True


def _tell_store(
    address: RunAddress, run_id: str, entry: Entry, data: Sequence[DataSet], files: Sequence[str | Path]
) -> None:
    """Doing it twice changes nothing, so an attempt of which a part arrived is made again."""
    from pipeline.tracking.logged_models import link_metrics, run_models  # MLflow takes seconds to import
    from pipeline.tracking.store import Store

    store = Store.connect(address, run_id, {}, {}, status=None)
    store.write([entry])
    store.log_data(data)
    for model in run_models(store):
        if model.tags.get("step") == str(entry.step):
            link_metrics(store, model.model_id, entry, data)
    for file in files:
        store.log_artifact(file, "evaluation")


def _insisting(call: Callable[[], None]) -> None:
    """A few attempts: no thread goes on for an evaluation that has ended. Raises the last one's error."""
    from pipeline.tracking.store import STORE_ERRORS  # MLflow takes seconds to import

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except STORE_ERRORS as error:
            if attempt == ATTEMPTS or isinstance(error, RefusedError):
                raise
            time.sleep(PAUSE_SECONDS)


def flatten_scores(scores: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """``{"group/name": number}`` of nested scores; texts and lists are left out."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping):
            flat |= flatten_scores(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def read_scores(run_folder: str | Path) -> dict[str, float]:
    """The flat scores of a run; empty where none were made."""
    path = Path(run_folder) / SCORES_FILE
    return flatten_scores(_known(path))


def read_facts(run_folder: str | Path) -> dict[str, Any]:
    """What is known of a run's scores by their flat names; empty where nothing is."""
    return _known(Path(run_folder) / FACTS_FILE)


def _renew_card(run: RunFolder) -> None:
    """Put the scores into the card of the run's exported model, where there is one."""
    card = run.final / "README.md"
    if card.is_file():
        section = scores_section(read_scores(run.path), read_facts(run.path))
        write_text(card, with_scores(card.read_text(encoding="utf-8"), section))


def _step_of(folder: Path, run_folder: Path) -> int:
    match = re.fullmatch(r"step-(\d+)", folder.name)
    if match:
        return int(match.group(1))
    try:
        return max((entry.step for entry in read_entries(run_folder)), default=0)
    except FileNotFoundError:
        return 0


def _merge(path: Path, scores: Mapping[str, Any]) -> None:
    write_json(path, _merged(_known(path), scores))


def _known(path: Path) -> dict[str, Any]:
    """Raises ValueError: the file is damaged."""
    return read_typed(path, _SCORES, "move it away, and evaluate again") if path.is_file() else {}


def _merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(known)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(known.get(name), Mapping)
        result[name] = _merged(known[name], value) if both else value
    return result


def _refuse(reason: str) -> bool:
    print(f"tracking: scores went to no MLflow run: {reason}", file=sys.stderr, flush=True)
    return False
