"""Which runs a comparison is of: folders, MLflow ids, an experiment, the children of a parent, a filter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.border import one_line
from pipeline.tracking.compare.runs import RunView, address_in_words, runs_of_folder, runs_of_store
from pipeline.tracking.limits import quoted

MOST_RUNS = 200  # of a search; a page of more is not read by anybody


@dataclass(frozen=True)
class Selection:
    """What was asked for. ``uri`` None: MLFLOW_TRACKING_URI."""

    runs: Sequence[str] = ()
    uri: str | None = None
    experiment: str | None = None
    parent: str | None = None  # the name of a study, or the id of its parent run
    filter: str | None = None  # in MLflow's words: params.`optimizer.peak_learning_rate` = '0.001'


def select_runs(selection: Selection, wanted: Sequence[str] | None) -> list[RunView]:
    """The runs, each once, with names that differ.

    Args:
        wanted: metrics to read from a store beside the usual ones; None: all.

    Raises:
        ValueError: a run is not there, nothing was selected, or the store does not answer.
    """
    uri = selection.uri or os.environ.get("MLFLOW_TRACKING_URI")
    views: list[RunView] = []
    for run in selection.runs:
        if Path(run).is_dir():
            views += runs_of_folder(Path(run))
        elif os.sep in run:
            raise ValueError(f"run {run} is not there; give a run's folder or the id of an MLflow run")
        else:
            views += runs_of_store([run], uri, wanted)
    if selection.experiment or selection.parent or selection.filter:
        views += runs_of_store(_search(selection, uri), uri, wanted)
    if not views:
        raise ValueError("no run was named; give folders, MLflow ids, --experiment, --parent or --filter")
    by_place = {view.place: view for view in views}
    return _distinct(list(by_place.values()))


def _search(selection: Selection, uri: str | None) -> list[str]:
    """Ids of the runs that an experiment, a parent and a filter have in common, oldest first."""
    from mlflow.entities import ViewType  # here, because MLflow takes seconds to import
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from pipeline.tracking.store import quieten_mlflow

    quieten_mlflow()
    client = MlflowClient(uri)
    try:
        experiments = [one.experiment_id for one in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)]
        if selection.experiment:
            named = client.get_experiment_by_name(selection.experiment)
            if named is None:
                names = ", ".join(sorted(one.name for one in client.search_experiments()))
                raise ValueError(
                    f"--experiment is {selection.experiment}, which {uri or address_in_words()} has not; it has {names}"
                )
            experiments = [named.experiment_id]
        conditions = [selection.filter] if selection.filter else []
        if selection.parent:
            study = client.search_runs(experiments, f"tags.study = {quoted(selection.parent)}", max_results=1)
            parent = study[0].info.run_id if study else selection.parent
            conditions.append(f"tags.`mlflow.parentRunId` = {quoted(parent)}")
        found = client.search_runs(
            experiments, " and ".join(conditions), max_results=MOST_RUNS + 1, order_by=["attributes.start_time ASC"]
        )
    except MlflowException as error:
        raise ValueError(
            f"the MLflow store {uri or address_in_words()} says: {one_line(error)}; check --uri and --filter"
        ) from error
    trained = [run.info.run_id for run in found if run.data.params]  # the parent of a study holds none
    if not trained:
        raise ValueError("no run fits --experiment, --parent and --filter; widen them")
    if len(trained) > MOST_RUNS:
        raise ValueError(f"more than {MOST_RUNS} runs fit; narrow them with --filter")
    return trained


def _distinct(runs: list[RunView]) -> list[RunView]:
    """Two runs of one name (a/run, b/run) get a number, because names are the columns and the legend."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.name] = counts.get(run.name, 0) + 1
        if counts[run.name] > 1:
            run.name = f"{run.name} ({counts[run.name]})"
    return runs
