"""A study: its runs (seeds, ablations) stand under one parent run of MLflow."""

from __future__ import annotations

from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.tracking.limits import quoted
from pipeline.tracking.store import Store


def join_study(store: Store, name: str) -> None:
    """Put a run under the parent of a study, which is made where there is none.

    Two runs may make it in the same moment; all of them then take the oldest.
    """
    client = store.client
    experiment = client.get_run(store.run_id).info.experiment_id

    def oldest() -> Run | None:
        found = client.search_runs(
            [experiment], filter_string=f"tags.study = {quoted(name)}", order_by=["attributes.start_time ASC"]
        )
        return min(found, key=lambda run: (run.info.start_time, run.info.run_id)) if found else None

    parent = oldest()
    if parent is None:
        made = client.create_run(experiment, run_name=name, tags={"study": name})
        parent = oldest() or made
        if parent.info.run_id != made.info.run_id:
            client.delete_run(made.info.run_id)
    if parent.info.status == "RUNNING":  # new, or left so by a run that was cut off before the next line
        client.set_terminated(parent.info.run_id)
    store.set_tags({MLFLOW_PARENT_RUN_ID: parent.info.run_id})
