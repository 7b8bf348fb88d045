"""The MLflow side of tracking: finds or makes the run, knows which steps it holds, writes what is missing.

Everything here may fail (a locked, full or vanished store, a proxy that cuts answers off); callers catch
:data:`STORE_ERRORS` and try again. Writing twice is safe: MLflow keeps one row for equal (run, name, step, time,
value), so a batch of unknown fate is sent again; a store that promises no such thing is asked first what it has.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alembic.util import CommandError
from google.protobuf.json_format import Error as JsonFormatError
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_IMAGES
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from pipeline.tracking.address import RunAddress, page_of
from pipeline.tracking.data_sets import DataSet
from pipeline.tracking.database import prepare_database, probe, remove_stray_folder
from pipeline.tracking.databricks import is_databricks, workspace
from pipeline.tracking.images import FOLDER, SavedImage
from pipeline.tracking.interface import RefusedError
from pipeline.tracking.limits import (
    METRICS_PER_BATCH,
    PARAMS_PER_BATCH,
    TAGS_PER_BATCH,
    Limits,
    limited_tags,
    limits_of,
    metric_name,
)
from pipeline.tracking.local_log import Entry
from pipeline.tracking.metric_names import is_usual
from pipeline.tracking.server_answers import bound_answers

# json_format.Error: an answer in JSON that is not the server's, as a proxy's own page
STORE_ERRORS = (MlflowException, SQLAlchemyError, CommandError, JsonFormatError, sqlite3.Error, OSError, ValueError)
TABLES_TAG = "mlflow.loggedArtifacts"
HTTP_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # seconds without a byte; assumption: a healthy server answers within one
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a header could ask for a year
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "15",  # its own client goes on for 500 s
}
REGISTRATION = "registration"  # tag
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # of MLflow's page, beside generative ones
_TABLES: TypeAdapter[list[dict[str, str]]] = TypeAdapter(list[dict[str, str]])


@dataclass
class Store:
    """One MLflow run. ``held[name]`` are the steps that it held when :meth:`load_held` asked."""

    address: RunAddress
    run_id: str
    client: MlflowClient
    takes_all: bool = True  # False: only the usual metrics
    held: dict[str, set[int]] = field(default_factory=dict)
    in_doubt: bool = False  # whether a batch was sent whose answer never came

    @property
    def limits(self) -> Limits:
        """What this kind of store takes."""
        return limits_of(self.address.uri)

    @classmethod
    def connect(
        cls,
        address: RunAddress,
        run_id: str | None,
        params: dict[str, str],
        tags: dict[str, str],
        status: str | None = "RUNNING",
        registration: str | None = None,
    ) -> Store:
        """Open the run ``run_id`` again, or make one where it is None or the store does not know it.

        Args:
            status: what an opened run is set to; None leaves it as it is.
            registration: the name under which this run was, or is now, registered. A run that a killed process or a
                lost answer left behind is found by it and gone on with, so that none stays RUNNING without an owner.

        Raises:
            STORE_ERRORS: the store cannot be reached or written.
        """
        quieten_mlflow()
        prepare_database(address.uri)
        probe(address.uri)
        client, params = MlflowClient(address.uri), limits_of(address.uri).parameters(params)
        store = cls._reopen(address, client, run_id, status) if run_id else None
        if store is None:
            experiment = _experiment(client, address)
            store = cls._registered(address, client, experiment, registration, status) if registration else None
        if store is None:
            tags = tags | ({REGISTRATION: registration} if registration else {})
            run = client.create_run(experiment, run_name=address.run_name, tags=limited_tags(tags))
            store = cls(address, run.info.run_id, client)
            store.log_params(params)
        else:
            store.set_tags(tags | store._changed_params(params))
        remove_stray_folder(address.uri)
        return store

    @classmethod
    def _reopen(cls, address: RunAddress, client: MlflowClient, run_id: str, status: str | None) -> Store | None:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage == "deleted":
            client.restore_run(run_id)
        if status is not None:
            client.update_run(run_id, status=status)
        return cls(address, run_id, client)

    @classmethod
    def _registered(
        cls, address: RunAddress, client: MlflowClient, experiment: str, registration: str, status: str | None
    ) -> Store | None:
        found = client.search_runs([experiment], f"tags.{REGISTRATION} = '{registration}'", max_results=1)
        return cls._reopen(address, client, found[0].info.run_id, status) if found else None

    def load_held(self) -> None:
        """Learn which steps the run has, so that :meth:`write` adds none twice."""
        names = [name for name in self.client.get_run(self.run_id).data.metrics if not name.startswith("system/")]
        self.held = {name: {m.step for m in self.client.get_metric_history(self.run_id, name)} for name in names}

    def _changed_params(self, params: dict[str, str]) -> dict[str, str]:
        """Parameters cannot be rewritten in MLflow, so those that a resume changed become tags."""
        logged = self.client.get_run(self.run_id).data.params
        changed = {name: value for name, value in params.items() if logged.get(name, value) != value}
        self.log_params({name: value for name, value in params.items() if name not in logged})
        return {f"resumed_with.{name}": value for name, value in changed.items()}

    def missing(self, entry: Entry) -> list[Metric]:
        """The metrics of ``entry`` whose steps are not in ``held``."""
        milliseconds = int(entry.time * 1000)
        rows = []
        for full_name, value in entry.values.items():
            name = metric_name(full_name)
            if self.takes(full_name) and entry.step not in self.held.get(name, ()):
                rows.append(Metric(name, value, milliseconds, entry.step))
        return rows

    def takes(self, name: str) -> bool:
        """Whether this store gets a metric."""
        return self.takes_all or is_usual(name)

    def write(self, entries: Iterable[Entry]) -> None:
        """Write entries in as few calls as the store's limits allow."""
        probe(self.address.uri)
        if self.in_doubt and not self.limits.keeps_one_of_equal:
            self.load_held()
        rows = [row for entry in entries for row in self.missing(entry)]
        self.in_doubt = True
        for start in range(0, len(rows), METRICS_PER_BATCH):
            self._log_batch(metrics=rows[start : start + METRICS_PER_BATCH])
        self.in_doubt = False

    def _log_batch(self, **rows: Any) -> None:
        try:
            self.client.log_batch(self.run_id, **rows)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise RefusedError(str(error)) from error
            raise

    def log_params(self, params: dict[str, str]) -> None:
        """Write parameters, a hundred at a time; names and values are such as the store takes."""
        rows = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(rows), PARAMS_PER_BATCH):
            self._log_batch(params=rows[start : start + PARAMS_PER_BATCH])

    def set_tags(self, tags: dict[str, str]) -> None:
        """Set tags, cut to the store's limit, a hundred at a time."""
        probe(self.address.uri)
        rows = [RunTag(name, value) for name, value in limited_tags(tags).items()]
        for start in range(0, len(rows), TAGS_PER_BATCH):
            self._log_batch(tags=rows[start : start + TAGS_PER_BATCH])

    def log_data(self, data: Sequence[DataSet]) -> None:
        """Note data sets as inputs of the run; the store keeps each once."""
        probe(self.address.uri)
        inputs = [
            DatasetInput(
                Dataset(one.name, one.digest, "local", json.dumps({"uri": one.source}), None, one.profile),
                [InputTag(MLFLOW_DATASET_CONTEXT, one.context)],
            )
            for one in data
        ]
        if inputs:
            self.client.log_inputs(self.run_id, inputs)

    def log_step_image(self, image: SavedImage) -> None:
        """Put an image where MLflow's page looks for images by step."""
        for path in (image.full, image.small):
            self.log_artifact(path, FOLDER)
        self.set_tags({MLFLOW_LOGGED_IMAGES: "True"})

    def page(self) -> tuple[str | None, str]:
        """The command that shows the store, if there is need of one, and the address of this run's page."""
        experiment = self.client.get_run(self.run_id).info.experiment_id
        uri = self.address.uri
        return page_of(self.address, experiment, self.run_id, workspace(uri) if is_databricks(uri) else None)

    def log_artifact(self, path: str | Path, folder: str | None) -> None:
        """Copy a file into the run's artifacts."""
        if not Path(path).exists():
            raise RefusedError(f"artifact {path} is not there any more")
        probe(self.address.uri)
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the run's artifacts, ``tables/NAME.json``; one of the same name is replaced."""
        probe(self.address.uri)
        content = json.dumps({"columns": list(columns), "data": [list(row) for row in rows]}, ensure_ascii=False)
        file = re.sub(r"[^\w]+", "-", name).strip("-") or "table"
        self.client.log_text(self.run_id, content, f"tables/{file}.json")
        # MLflow's pages show a JSON file as a table where this tag, which its own log_table writes, names it
        tags = self.client.get_run(self.run_id).data.tags
        tables = _tables(tags.get(TABLES_TAG, "[]"))
        entry = {"path": f"tables/{file}.json", "type": "table"}
        self.set_tags({TABLES_TAG: json.dumps([*(one for one in tables if one != entry), entry])})

    def start_system_metrics(self) -> None:
        """MLflow's own monitor of processors, memory, disk, network and GPUs, if its environment variable asks for it.

        Its thread ends by itself when the run is no longer RUNNING or its store fails.
        """
        if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.address.uri).start()

    def terminate(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        probe(self.address.uri)
        self.client.set_terminated(self.run_id, status=status)


def _tables(tag: str) -> list[dict[str, str]]:
    """The tag of a run's tables; one that is damaged, or not as MLflow writes it, names none."""
    try:
        return _TABLES.validate_json(tag)
    except ValidationError:
        return []


def quieten_mlflow() -> None:
    """No migrations and no traces of a full disk on the terminal, no telemetry, and a new connection for each write.

    A pooled sqlite connection would go on writing to a file that was unlinked or replaced. A server that does not
    answer is given up soon, once: whoever calls tries again, and MLflow's own seven tries take four minutes.
    """
    for name, value in HTTP_LIMITS.items():
        os.environ.setdefault(name, value)
    bound_answers()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    for name in ("mlflow.store.db.utils", "mlflow.tracking", "mlflow.system_metrics", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _experiment(client: MlflowClient, address: RunAddress) -> str:
    found = client.get_experiment_by_name(address.experiment)
    if found is None:
        try:
            return client.create_experiment(
                address.experiment, artifact_location=address.artifact_location, tags=EXPERIMENT_TAGS
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run made it in this very moment
                raise
            found = client.get_experiment_by_name(address.experiment)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id
